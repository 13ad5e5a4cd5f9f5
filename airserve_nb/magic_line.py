"""Reading the line of a magic: options, values, and names of the notebook.

Whatever is wrong with a line becomes a ``UsageError``, which IPython shows as one sentence with no
traceback. It must be that class itself: IPython doesn't recognise classes derived from it.
"""

from __future__ import annotations

import argparse
import builtins
import keyword
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument
from IPython.utils.process import arg_split

from airserve_nb.magic_values import did_you_mean

__all__ = [
    "check_service_name",
    "look_up",
    "option_names",
    "parse",
    "running",
    "target",
]

_DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def option_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the options of a magic function, as they are typed."""
    decorators = getattr(function, "decorators", ())
    names = (name for each in decorators if isinstance(each, argument) for name in each.args)
    return tuple(sorted(name for name in names if name.startswith("--")))


def parse(function: Any, line: str, *, magic: str) -> argparse.Namespace | None:
    """Read the line of a magic function.

    Parameters
    ----------
    function
        A function decorated by ``magic_arguments``.
    line
        What the user typed after the magic's name.
    magic
        The magic as the user types it, such as ``%%serve``.

    Returns
    -------
    argparse.Namespace | None
        The options; None when help was asked for, which has been printed.

    Raises
    ------
    UsageError
        When the line can't be read.
    """
    try:
        words = arg_split(line, strict=True)
    except ValueError as error:  # a quote that isn't closed
        raise UsageError(f"{magic} can't read its line ({str(error).lower()}): {line}") from None
    if "--help" in words:
        print(function.parser.format_help())  # noqa: T201 - what --help is for
        return None
    for word in words:
        _check_expanded(word)
    _check_options(words, option_names(function), magic)
    try:
        args, rest = function.parser.parse_known_args(words)
    except UsageError as error:
        raise UsageError(f"{magic}: {error}; see {magic} --help.") from None
    if rest:
        hint = (
            f"to serve a cell, begin it with %%serve {rest[0]}"
            if magic == "%serve"
            else f"see {magic} --help"
        )
        raise UsageError(f"{magic} can't use {' '.join(rest)!r}; {hint}.")
    namespace: argparse.Namespace = args
    return namespace


def _check_expanded(word: str) -> None:
    """Refuse a ``{name}`` that IPython left as it was: it says nothing when it can't expand a line."""
    if re.search(r"[{}]|^\$", word):
        raise UsageError(
            f"{word!r} could not be expanded: is every name in it defined, and every brace closed?"
        )


def _check_options(words: list[str], known: Collection[str], magic: str) -> None:
    # Before argparse, which takes abbreviations: an option that comes later would change their meaning.
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            hint = did_you_mean(option.replace("_", "-"), known) or f"; see {magic} --help"
            raise UsageError(f"{magic} has no option {option}{hint}.")


def check_service_name(
    name: str | None, namespace: Mapping[str, Any], bound_by_cell: Collection[str]
) -> None:
    """Refuse a NAME that can't be a route and a variable, or that means something else already.

    Parameters
    ----------
    name
        What was typed.
    namespace
        The notebook's names.
    bound_by_cell
        The names that the cell itself defines; the service would overwrite them.

    Raises
    ------
    UsageError
        With what to do.
    """
    if name is None:
        raise UsageError("%%serve needs a name for the service, as in %%serve adder; see %%serve --help.")
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise UsageError(
            f"{name!r} can't name a service: it becomes a variable and a part of the URL, "
            "so use letters, digits and underscores, and begin with a letter."
        )
    if name.startswith("_") or hasattr(builtins, name):
        whose = (
            "IPython keeps such names for itself"
            if name.startswith("_")
            else "Python has a builtin of that name"
        )
        raise UsageError(f"{name!r} can't name a service: {whose}; choose another name.")
    if name in bound_by_cell:
        raise UsageError(
            f"The cell itself defines {name!r}, and the service would take its place: give the service another name."
        )
    if name in namespace and not _is_service(namespace[name]):
        kind = type(namespace[name]).__name__
        raise UsageError(
            f"{name!r} is a {kind} of this notebook, and the service would take its place: "
            f"give the service another name, or run del {name} first."
        )


def _is_service(value: Any) -> bool:
    # While nobody has imported the module, nothing can be a Service.
    module = sys.modules.get("airserve_nb.service")
    return module is not None and isinstance(value, module.Service)


def look_up(
    option: str, text: str | None, namespace: Mapping[str, Any], *, made_later: Collection[str] = ()
) -> Any:
    """Return what a name or a dotted name means in the notebook.

    Two options take what needs no name in the notebook, too: ``--checkpoint`` a URI such as
    ``s3://bucket/model``, and ``--http-adapter`` one of airserve_nb's own adapters or an import string
    ``package.module:adapter``.

    Parameters
    ----------
    option
        The option, as a Python name.
    text
        What was typed; None gives None.
    namespace
        The notebook's names.
    made_later
        Names that don't count as unknown yet, as the cell will define them; they give None.

    Raises
    ------
    UsageError
        When the name is unknown.
    """
    if text is None:
        return None
    if (option == "checkpoint" and "://" in text) or (option == "http_adapter" and ":" in text):
        return text
    flag = f"--{option.replace('_', '-')}"
    if not _DOTTED_NAME.fullmatch(text):
        raise UsageError(
            f"{flag} {text!r} is not a name of the notebook: assign the value to a variable and give its name."
        )
    root, *attributes = text.split(".")
    if root in made_later:
        return None
    if root not in namespace:
        own = _own_adapter(text) if option == "http_adapter" else None
        if own is None:
            raise UsageError(f"{flag}: the notebook has no name {root!r}{_similar(root, namespace)}.")
        return own
    value = namespace[root]
    for done, attribute in enumerate(attributes):
        try:
            value = getattr(value, attribute)
        except AttributeError:
            owner = ".".join([root, *attributes[:done]])
            raise UsageError(
                f"{flag}: {owner} has no attribute {attribute!r}{_similar(attribute, dir(value))}."
            ) from None
    return value


def _own_adapter(text: str) -> Any:
    from airserve_nb import http_adapters

    name = text.removeprefix("http_adapters.")
    return getattr(http_adapters, name) if name in http_adapters.__all__ else None


def _similar(name: str, candidates: Collection[str]) -> str:
    public = [each for each in candidates if not each.startswith("_")]
    return did_you_mean(name, public)


def running(name: str | None, *, magic: str, elsewhere: bool = False) -> Any:
    """Return the service of that name.

    Parameters
    ----------
    name
        What was typed.
    magic
        The magic as the user types it.
    elsewhere
        Whether one that this kernel has not made will do, if this kernel is connected to its Ray.

    Raises
    ------
    UsageError
        When there is none.
    """
    from airserve_nb import applications, deploying

    if name is None:
        raise UsageError(f"{magic} needs the name of a service, as in {magic} adder; see {magic} --help.")
    found = deploying.services()
    if name in found:
        return found[name]
    if elsewhere and (connected := applications.connected(name)) is not None:
        return connected
    raise UsageError(f"No service is called {name!r}{_similar(name, found)}; %serve shows what runs.")


def target(name: str | None, namespace: Mapping[str, Any]) -> Any:
    """Return what ``%probe`` is to send its requests to: a Service, or a URL as it stands.

    Raises
    ------
    UsageError
        When the name means neither.
    """
    if name is None:
        raise UsageError(
            "%probe needs the name of a service or a URL, as in %probe adder; see %probe --help."
        )
    if "://" in name:
        return name
    from airserve_nb import deploying, service

    value = namespace.get(name)
    if isinstance(value, service.Service):
        return value
    if name in namespace and name not in deploying.services():
        raise UsageError(f"{name!r} is a {type(value).__name__}, and %probe needs a service or a URL.")
    return running(name, magic="%probe", elsewhere=True)
