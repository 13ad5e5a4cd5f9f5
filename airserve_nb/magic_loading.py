"""``%load_ext`` and ``%unload_ext``: what is put into the shell, and taken out of it again."""

from __future__ import annotations

from typing import Any

from airserve_nb.magic_completion import MagicCompletion
from airserve_nb.magics import AirServeMagics

__all__ = ["load", "unload"]


def load(ipython: Any) -> None:
    """Register the magics and their completion; loading twice does nothing more."""
    if _registered(ipython) is not None:
        return
    tables = ipython.magics_manager.magics
    # Creating them makes them configurable: IPython's Magics do that by themselves.
    magics = AirServeMagics(ipython)
    magics.previous = {
        (kind, name): tables[kind].get(name) for kind in magics.magics for name in magics.magics[kind]
    }
    ipython.register_magics(magics)
    completer = getattr(ipython, "Completer", None)
    if completer is not None:
        magics.matcher = MagicCompletion(ipython, magics).matcher()
        completer.custom_matchers = [*completer.custom_matchers, magics.matcher]


def unload(ipython: Any) -> None:
    """Remove all that :func:`load` has put there, and put back what it replaced; services go on running."""
    magics = _registered(ipython)
    if magics is None:
        return
    tables = ipython.magics_manager.magics
    for (kind, name), previous in magics.previous.items():
        if getattr(tables[kind].get(name), "__self__", None) is not magics:
            continue  # someone registered another one since: it stays
        if previous is None:
            del tables[kind][name]
        else:
            tables[kind][name] = previous
    del ipython.magics_manager.registry[AirServeMagics.__name__]
    ipython.configurables[:] = [each for each in ipython.configurables if each is not magics]
    if magics.matcher is not None:
        completer = ipython.Completer
        completer.custom_matchers = [each for each in completer.custom_matchers if each is not magics.matcher]


def _registered(ipython: Any) -> Any:
    return ipython.magics_manager.registry.get(AirServeMagics.__name__)
