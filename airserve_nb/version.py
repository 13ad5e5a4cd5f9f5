"""A Version: one predictor behind one adapter and one batcher, from its description to its end.

A :class:`VersionSpec` is what travels: plain, picklable, built wherever the endpoint runs. A
:class:`Version` is what serves. A request is bound to one version when it arrives.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airserve_nb.batching.batcher import MicroBatcher
from airserve_nb.batching.execution import Predict
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.checkpoint import Checkpoint
from airserve_nb.errors import OptionError
from airserve_nb.http_adapters import CompiledAdapter, compile_adapter, json_to_ndarray
from airserve_nb.output import Reader, send_to
from airserve_nb.predictor import Predictor
from airserve_nb.telemetry import Recorder

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = [
    "KeptVersion",
    "Version",
    "VersionSpec",
    "import_string",
    "make_spec",
    "numbered",
    "resolve_predictor",
]


def import_string(path: str, *, what: str) -> Any:
    """Import ``package.module:name`` or ``package.module.name``.

    Raises
    ------
    OptionError
        When there is no such module or name; the sentence says which.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator:
        module_name, _, attribute = path.rpartition(".")
    if not module_name or not attribute:
        raise OptionError(f"{what} {path!r} is not an import path; write it as 'package.module:name'.")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise OptionError(f"{what} {path!r} can't be imported ({error}); check the path.") from error


def resolve_predictor(predictor: type[Predictor] | str) -> type[Predictor]:
    """Return the predictor class that a class or an import string means.

    Raises
    ------
    OptionError
        When it is not a subclass of :class:`~airserve_nb.predictor.Predictor`.
    """
    found = import_string(predictor, what="predictor_cls") if isinstance(predictor, str) else predictor
    if isinstance(found, Predictor):
        raise OptionError(
            f"predictor_cls is an instance of {type(found).__name__}; give the class itself, its checkpoint "
            "makes the instance where it is served."
        )
    if not (inspect.isclass(found) and issubclass(found, Predictor)):
        raise OptionError(
            f"predictor_cls is {found!r}, but must be a subclass of airserve_nb.Predictor or the import "
            "path of one."
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise OptionError(f"{found.__name__} can't be served because it does not define {missing}.")
    return found


@dataclass(frozen=True)
class VersionSpec:
    """All that it takes to build a version, anywhere."""

    predictor_cls: type[Predictor] | str
    checkpoint: Checkpoint
    http_adapter: Any = json_to_ndarray
    settings: BatchSettings = field(default_factory=BatchSettings)
    predict_kwargs: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``from_checkpoint``."""
    version: str = "v1"
    """What answers and records call it."""

    def load(self) -> Predict:
        """Build the predictor; its ``predict`` with the fixed keyword arguments is returned."""
        predictor_cls = resolve_predictor(self.predictor_cls)
        predictor = predictor_cls.from_checkpoint(self.checkpoint, **self.checkpoint_kwargs)
        if not callable(getattr(predictor, "predict", None)):
            raise OptionError(
                f"{predictor_cls.__name__}.from_checkpoint returned {type(predictor).__name__}, which has no "
                "predict method; return an instance of the class."
            )
        if self.predict_kwargs:
            return functools.partial(predictor.predict, **self.predict_kwargs)
        predict: Predict = predictor.predict
        return predict


class KeptVersion(VersionSpec):
    """A version that another kernel deployed: it is kept where it is served, and here only its name and settings."""

    @classmethod
    def named(cls, version: str, settings: BatchSettings) -> KeptVersion:
        """Return what is known here."""
        return cls(predictor_cls="", checkpoint=Checkpoint.of(None), settings=settings, version=version)


def make_spec(
    predictor_cls: type[Predictor] | str,
    checkpoint: Any,
    *,
    http_adapter: Any = json_to_ndarray,
    batching_params: Mapping[str, Any] | bool | None = None,
    predict_kwargs: Mapping[str, Any] | None = None,
    checkpoint_kwargs: Mapping[str, Any] | None = None,
) -> VersionSpec:
    """Check what a deployment is made of.

    Raises
    ------
    OptionError, CheckpointError
        In the caller's process, with a sentence, for anything that could not be served.
    """
    resolved = resolve_predictor(predictor_cls)
    compile_adapter(http_adapter)
    for name, value in (("predict_kwargs", predict_kwargs), ("checkpoint_kwargs", checkpoint_kwargs)):
        if value is not None and not isinstance(value, Mapping):
            raise OptionError(f"{name} is {value!r}, but must be a dict of keyword arguments.")
    return VersionSpec(
        predictor_cls=predictor_cls if isinstance(predictor_cls, str) else resolved,
        checkpoint=Checkpoint.of(checkpoint),
        http_adapter=http_adapter,
        settings=BatchSettings.from_params(batching_params),
        predict_kwargs=dict(predict_kwargs or {}),
        checkpoint_kwargs=dict(checkpoint_kwargs or {}),
    )


class Version:
    """A predictor that serves: ``adapter`` makes its inputs, ``batcher`` its batches.

    Parameters
    ----------
    spec
        What to build.
    recorder, replica, next_batch_id
        Handed to the batcher.
    output
        Gets what the model's thread prints; None lets it pass.
    """

    def __init__(
        self,
        spec: VersionSpec,
        *,
        recorder: Recorder,
        replica: str,
        next_batch_id: Callable[[], str],
        output: Reader | None = None,
    ) -> None:
        self.name = spec.version
        self.spec = spec
        self.adapter: CompiledAdapter = compile_adapter(spec.http_adapter)
        self.batcher = MicroBatcher(
            functools.partial(_load, spec, output),
            spec.settings,
            next_batch_id=next_batch_id,
            recorder=recorder,
            version=spec.version,
            replica=replica,
        )
        self.fastapi_app: FastAPI | None = None
        """The application of an adapter that needs FastAPI; made by the endpoint when it is first needed."""
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    def spec_in_force(self) -> VersionSpec:
        """Return what it was built from, with the limits that were set since."""
        return replace(self.spec, settings=self.batcher.settings)

    @property
    def in_use(self) -> bool:
        """Whether any request is bound to it."""
        return self._users > 0

    def hold(self) -> None:
        """Bind a request to this version; :meth:`release` lets go. Both on the endpoint's event loop."""
        self._users += 1
        self._unused.clear()

    def release(self) -> None:
        """Let a request go."""
        self._users -= 1
        if self._users == 0:
            self._unused.set()

    async def retire(self) -> None:
        """Wait until no request is bound to it, then end its model thread."""
        await self._unused.wait()
        await self.batcher.close()


def _load(spec: VersionSpec, output: Reader | None) -> Predict:
    """Load the model, in its own thread, whose output is ``output``'s from then on."""
    if output is not None:
        send_to(output)
    return spec.load()


def numbered(prefix: str) -> Callable[[], str]:
    """Return a function that gives ``prefix-1``, ``prefix-2``, ...; safe to call from any thread."""
    numbers = itertools.count(1)
    return lambda: f"{prefix}-{next(numbers)}"
