"""Can a version travel to a replica? It is pickled in the kernel, where the parts that can't be still have names."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

from ray import cloudpickle

from airserve_nb._sentences import describe
from airserve_nb.errors import DeployError
from airserve_nb.version import VersionSpec

__all__ = ["parts_of", "pickled", "size_of"]

# What can be imported where it arrives is pickled as its name.
_LARGEST_REFERENCE = 300
# How far a name is followed: a predictor's helper's helper.
_DEEPEST = 4


def pickled(spec: VersionSpec, *, name: str) -> bytes:
    """Pickle a version.

    Raises
    ------
    DeployError
        When it can't be; the sentence names the global, attribute or argument that is to blame.
    """
    try:
        content: bytes = cloudpickle.dumps(spec)
    except Exception as error:
        found = next(_culprits(spec), None)
        where, value = found if found is not None else ("something in it", None)
        kind = "" if found is None else f", a {type(value).__name__}"
        raise DeployError(
            f"{name} can't travel to its replica because of {where}{kind} ({describe(error)}); make it inside "
            "from_checkpoint or predict, which run in the replica.",
            deployment=name,
        ) from error
    return content


def _culprits(spec: VersionSpec) -> Iterator[tuple[str, Any]]:
    """Yield what can't be pickled, with words for where it is."""
    seen: set[int] = set()
    if not isinstance(spec.predictor_cls, str):
        yield from _within(f"the class {spec.predictor_cls.__name__}", spec.predictor_cls, seen, _DEEPEST)
    yield from _within("the HTTP adapter", spec.http_adapter, seen, _DEEPEST)
    arguments: list[tuple[str, Mapping[str, Any]]] = [
        ("predict_kwargs", spec.predict_kwargs),
        ("checkpoint_kwargs", spec.checkpoint_kwargs),
    ]
    for what, values in arguments:
        for key, value in values.items():
            yield from _within(f"{what}[{key!r}]", value, seen, _DEEPEST)
    yield from _within("the checkpoint", spec.checkpoint, seen, _DEEPEST)


def parts_of(spec: VersionSpec) -> Iterator[tuple[str, Any]]:
    """Yield what travels with a version, with words for where it is: globals, attributes, arguments, the checkpoint."""
    seen: set[int] = set()
    roots = [spec.predictor_cls, spec.http_adapter]
    while roots:
        root = roots.pop()
        # What can be imported there is not taken along.
        if isinstance(root, str) or id(root) in seen or not _is_of_the_notebook(root):
            continue
        seen.add(id(root))
        for where, value in _parts(root):
            if isinstance(value, type | types.FunctionType):
                roots.append(value)
            else:
                yield where, value
    for what, values in (
        ("predict_kwargs", spec.predict_kwargs),
        ("checkpoint_kwargs", spec.checkpoint_kwargs),
    ):
        yield from ((f"{what}[{key!r}]", value) for key, value in values.items())
    yield "the checkpoint", spec.checkpoint


def _is_of_the_notebook(root: Any) -> bool:
    return size_of(root) > _LARGEST_REFERENCE


def size_of(value: Any) -> int:
    """Return how many bytes a value is when it is pickled; 0 when it can't be."""
    try:
        return len(cloudpickle.dumps(value))
    except Exception:  # noqa: BLE001 - then it is none of those that are large
        return 0


def _within(where: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the innermost parts of a value that can't be pickled; nothing when it can be."""
    if id(value) in seen or _can_travel(value):
        return
    seen.add(id(value))
    inner = [] if depth == 0 else [part for each in _parts(value) for part in _within(*each, seen, depth - 1)]
    yield from inner or [(where, value)]


def _can_travel(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - that is the question
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is pickled with a value, and words for each."""
    if isinstance(value, type):
        yield from _parts_of_class(value)
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"the entry {key!r}", item
    elif hasattr(value, "__dict__"):
        yield from _parts(vars(value))


def _parts_of_class(cls: type) -> Iterator[tuple[str, Any]]:
    for name, attribute in list(vars(cls).items()):
        function = inspect.unwrap(getattr(attribute, "__func__", getattr(attribute, "fget", attribute)))
        if isinstance(function, types.FunctionType):
            yield from _parts_of_function(function)
        elif not name.startswith("__"):
            yield f"the attribute {cls.__name__}.{name}", attribute


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name in _names_used(function.__code__) & function.__globals__.keys():
        yield f"the global {name!r}", function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield f"the variable {name!r}", cell.cell_contents


def _names_used(code: types.CodeType) -> set[str]:
    nested = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names_used, nested))
