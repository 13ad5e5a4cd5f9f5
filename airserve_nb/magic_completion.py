"""Completion on the lines of the magics: options, their values, services, and names of the notebook.

It stands beside IPython's own matchers, and takes over only where the cursor is on a line of ours and it knows
something; everywhere else, below a ``%%serve`` line too, the others go on as before. It looks at what is there and
runs nothing: no attribute is computed, no service is asked.
"""

from __future__ import annotations

import inspect
import re
import sys
from argparse import Action
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from airserve_nb.cell_names import Definitions
from airserve_nb.magic_values import Choice

__all__ = ["MagicCompletion"]

_LINE = re.compile(r"\s*(?:[\w.]+\s*=\s*)?(?P<percent>%%?)(?P<name>\w+)\s+(?P<rest>.*)", re.DOTALL)
_OF_THE_NOTEBOOK = frozenset({"checkpoint", "example", "predict_kwargs", "checkpoint_kwargs", "http_adapter"})
_DICTS = frozenset({"predict_kwargs", "checkpoint_kwargs"})


class MagicCompletion:
    """Completes the lines of the magics in one shell.

    Parameters
    ----------
    shell
        The IPython shell.
    magics
        The registered magics.
    """

    def __init__(self, shell: Any, magics: Any) -> None:
        self._shell = shell
        self._magics = magics

    def matcher(self) -> Callable[[CompletionContext], SimpleMatcherResult]:
        """Return a matcher for ``Completer.custom_matchers``."""

        @context_matcher(identifier="airserve_nb.magics")
        def match(context: CompletionContext) -> SimpleMatcherResult:
            fragment, words = self.suggest(context.full_text, context.cursor_line, context.text_until_cursor)
            return SimpleMatcherResult(
                completions=[SimpleCompletion(text=word, type="magic") for word in words],
                matched_fragment=fragment,
                suppress=bool(words),
                ordered=True,
            )

        return match  # type: ignore[no-any-return]  # IPython's decorator is untyped

    def suggest(self, cell: str, line_number: int, until_cursor: str) -> tuple[str, list[str]]:
        """Return what stands before the cursor already, and the words that it may become.

        Parameters
        ----------
        cell
            The whole cell.
        line_number
            The cursor's line, from 0.
        until_cursor
            That line, up to the cursor.
        """
        line = _LINE.fullmatch(until_cursor)
        actions = self._actions(line, cell, line_number) if line is not None else None
        if line is None or actions is None:
            return "", []
        *typed, fragment = re.split(r"\s+", line["rest"])
        option, equals, value = fragment.partition("=")
        if equals and option.startswith("-"):
            typed, fragment = [*typed, option], value
        wanted = dict.fromkeys(self._candidates(actions, typed, fragment, cell))
        # One that is complete, too: it keeps Python's names of the same beginning out.
        return fragment, [word for word in wanted if word.startswith(fragment)]

    def _actions(self, line: re.Match[str], cell: str, line_number: int) -> list[Action] | None:
        """Return the arguments of the magic on this line; None when it is none of ours."""
        kind = "cell" if line["percent"] == "%%" else "line"
        if kind == "cell" and any(each.strip() for each in cell.split("\n")[:line_number]):
            return None  # a cell magic is one on the first line only
        function = self._magics.magics[kind].get(line["name"])
        current = self._shell.magics_manager.magics[kind].get(line["name"])
        return None if function is None or current != function else list(function.parser._actions)  # noqa: SLF001 - argparse has no public list

    def _candidates(self, actions: list[Action], typed: list[str], fragment: str, cell: str) -> Iterator[str]:
        options = {name: action for action in actions for name in action.option_strings}
        before = options.get(typed[-1]) if typed else None
        if before is not None and before.nargs != 0:
            yield from self._values(before, fragment, cell)
            if before.nargs != "?":
                return
        positional = [action for action in actions if not action.option_strings]
        named = _positionals(typed, options)
        if positional and not named and not fragment.startswith("-"):
            yield from _services()
        used = {word.partition("=")[0] for word in typed}
        yield from sorted(name for name in options if name.startswith("--") and name not in used)

    def _values(self, action: Action, fragment: str, cell: str) -> Iterator[str]:
        if isinstance(action.type, Choice):
            yield from action.type.words
        elif action.dest == "class_name":
            yield from Definitions.of(cell.partition("\n")[2], shell=self._shell).classes
        elif action.dest in _OF_THE_NOTEBOOK:
            yield from self._names(action.dest, fragment)

    def _names(self, option: str, fragment: str) -> Iterator[str]:
        root, dot, _ = fragment.rpartition(".")
        namespace: Mapping[str, Any] = self._shell.user_ns
        if dot:
            yield from (f"{root}.{name}" for name in _members(root, namespace))
            return
        if option == "http_adapter":
            from airserve_nb import http_adapters

            yield from sorted(http_adapters.__all__)
        hidden = self._shell.user_ns_hidden
        for name, value in sorted(namespace.items()):
            if not name.startswith("_") and name not in hidden and _fits(option, value):
                yield name


def _positionals(typed: list[str], options: Mapping[str, Action]) -> list[str]:
    """Return the words that are neither options nor their values."""
    found: list[str] = []
    before: str | None = None
    for word in typed:
        action = options.get(before) if before is not None else None
        is_value = action is not None and action.nargs != 0
        if not word.startswith("-") and not is_value:
            found.append(word)
        before = word
    return found


def _fits(option: str, value: Any) -> bool:
    """Whether a value, or something in it, can be what the option names."""
    if isinstance(value, ModuleType):
        return False
    if option == "http_adapter":
        return callable(value)
    if option in _DICTS:
        return isinstance(value, Mapping) or hasattr(value, "__dict__")
    return not callable(value) or isinstance(value, type)


def _members(path: str, namespace: Mapping[str, Any]) -> Iterator[str]:
    """Yield the public attributes of a dotted name, without computing any on the way."""
    root, *attributes = path.split(".")
    if root not in namespace:
        return
    value = namespace[root]
    for attribute in attributes:
        try:
            value = inspect.getattr_static(value, attribute)
        except AttributeError:
            return
        if inspect.isdatadescriptor(value):
            return
    yield from (name for name in dir(value) if not name.startswith("_"))


def _services() -> list[str]:
    # While nobody has imported the module, nothing can run.
    module = sys.modules.get("airserve_nb.deploying")
    return sorted(module.services()) if module is not None else []
