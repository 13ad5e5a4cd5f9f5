"""What a ``%%serve`` cell defines: run it, then find the predictor in it.

The cell runs in the notebook's own namespace, as any cell does, so it can use what other cells defined
and shows its own output and tracebacks. Then its syntax tree says which names it binds, and the namespace
says what those names have become: the predictor is the one class derived from
:class:`~airserve_nb.predictor.Predictor`, or the function called ``predict``, that *this* run of the cell made.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Mapping
from tokenize import TokenError
from typing import Any

from airserve_nb.cell_names import Definitions
from airserve_nb.errors import CellError

__all__ = ["CellFailedError", "find_predictor", "run_cell"]

FUNCTION_NAME = "predict"

_NEEDED = (
    "define a class derived from Predictor with from_checkpoint and predict, "
    "or a function predict(batch: np.ndarray) that returns a batch"
)


class CellFailedError(CellError):
    """The cell's own code raised, and the notebook has shown its traceback already."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows these lines instead of a traceback, whose frames would all be ours.
        return [str(self)]


def run_cell(shell: Any, source: str, *, heading: str = "") -> None:
    """Run a cell's body in the notebook, with its output and its tracebacks as of any cell.

    Parameters
    ----------
    shell
        The IPython shell.
    source
        The body.
    heading
        The magic's own line. It stands before the body as a comment, so that the line numbers in
        tracebacks are those of the notebook's cell.

    Raises
    ------
    CellFailedError
        When the body raises or is no Python. The notebook has shown the traceback; this error only ends
        the cell, so that "Run All" stops.
    CellError
        When the body awaits at its top level while an event loop runs already, as it does in a
        Jupyter kernel.
    """
    if Definitions.of(source, shell=shell).awaits and _loop_runs():
        raise CellError(
            "The cell awaits at its top level, which a %%serve cell can't do in a running kernel: "
            "await in a cell above and use the result here."
        )
    with _silenced(shell, source):
        result = shell.run_cell(_with_heading(source, heading))
    if not result.success:
        error = result.error_before_exec or result.error_in_exec
        what = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"raised {type(error).__name__}"
        # `from None`: the cause has been shown.
        raise CellFailedError(f"Not deployed: the cell above {what}.") from None


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _with_heading(source: str, heading: str) -> str:
    # A nested cell magic must stay on the first line, and an indented body is dedented by its first line.
    if not heading or source.startswith(("%%", " ", "\t")):
        return source
    return f"# {heading}\n{source}"


class _silenced:  # noqa: N801 - reads as a statement
    """Hide the last expression's value when the body ends in a semicolon.

    IPython looks for that semicolon at the end of the outer cell only, where it would hide our value.
    """

    def __init__(self, shell: Any, source: str) -> None:
        self._shell = shell
        try:
            self._applies = shell.displayhook.semicolon_at_end_of_expression(source)
        except (SyntaxError, TokenError):  # running the body will say so
            self._applies = False

    def __enter__(self) -> None:
        self._before = self._shell.ast_node_interactivity
        if self._applies:
            self._shell.ast_node_interactivity = "none"

    def __exit__(self, *exc_info: object) -> None:
        self._shell.ast_node_interactivity = self._before


def find_predictor(
    cell: str | Definitions, namespace: Mapping[str, Any], *, class_name: str | None = None
) -> Any:
    """Return the predictor that a cell has defined: a Predictor class, or the function ``predict``.

    Parameters
    ----------
    cell
        The :class:`Definitions` read before the cell ran, or its source when it had nothing to replace.
    namespace
        The notebook's names after the run.
    class_name
        Which one, where the cell defines several.

    Raises
    ------
    CellError
        When the cell defines none, or several and ``class_name`` picks none of them.
    """
    definitions = Definitions.of(cell) if isinstance(cell, str) else cell
    new = dict(_made_by(definitions, namespace))
    found = {name: value for name, value in new.items() if _is_predictor(name, value)}
    if class_name is not None:
        if class_name not in found:
            raise CellError(
                f"The cell defines no predictor called {class_name!r}, only {_listed(found) or 'none'}: "
                "give one of the cell's own."
            )
        return found[class_name]
    if not found:
        raise CellError(_why_none(definitions, new, namespace))
    if len(found) > 1:
        raise CellError(
            f"The cell defines {len(found)} predictors, {_listed(found)}: "
            "choose one with --class, or move the others to a cell above."
        )
    return next(iter(found.values()))


def _made_by(definitions: Definitions, namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what the run has made: a name whose object was there before is of an earlier cell."""
    names = [*definitions.classes, *definitions.functions]
    if FUNCTION_NAME in definitions.others:  # such as predict = jit(predict)
        names.append(FUNCTION_NAME)
    for name in names:
        if name not in namespace:
            continue
        value = namespace[name]
        if name not in definitions.previous or definitions.previous[name] is not value:
            yield name, value


def _is_predictor(name: str, value: Any) -> bool:
    from airserve_nb.predictor import Predictor

    if isinstance(value, type):
        # An abstract class is a base that another class of the cell completes.
        return issubclass(value, Predictor) and not inspect.isabstract(value)
    return name == FUNCTION_NAME and callable(value)


def _listed(names: Mapping[str, Any]) -> str:
    *rest, last = [*names] or [""]
    return f"{', '.join(rest)} and {last}" if rest else last


def _why_none(definitions: Definitions, new: Mapping[str, Any], namespace: Mapping[str, Any]) -> str:
    """Say what is needed, beginning with the nearest miss."""
    from airserve_nb.predictor import Predictor

    def is_subclass(value: Any) -> bool:
        return isinstance(value, type) and issubclass(value, Predictor) and value is not Predictor

    for name, value in new.items():
        if is_subclass(value):
            missing = " and ".join(sorted(value.__abstractmethods__))
            return f"The class {name} doesn't define {missing}: add it to the class."
        if isinstance(value, type) and callable(getattr(value, "predict", None)):
            return f"The class {name} has a predict but is no Predictor: write class {name}(Predictor)."
    for name in definitions.imported:
        if is_subclass(namespace.get(name)):
            return (
                f"The cell imports {name} but defines no predictor: derive a class from it in this cell, "
                f"or call deploy({name}, checkpoint, name=...)."
            )
    functions = [name for name in definitions.functions if name in new]
    if len(functions) == 1:
        return f"The cell defines the function {functions[0]} but no predictor: call it {FUNCTION_NAME}."
    return f"The cell defines no predictor: {_NEEDED}."
