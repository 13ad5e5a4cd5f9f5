"""What a predictor prints goes into its log book, and not into whichever cell ran last.

In a notebook the text that a thread prints lands in the newest cell's output. So while a local deployment runs,
``sys.stdout`` and ``sys.stderr`` are replaced by streams that look where a text comes from: what is written in the
model's thread, or while a request is read, is kept in that deployment's book; everything else passes. A replica on Ray
is a process of its own: there all that is written is kept, and goes to Ray's files besides.

Logging and warnings end in these streams too. What a library writes past Python, straight to the file descriptors, and
what threads print that a predictor starts by itself, is not seen here.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol

__all__ = ["Reader", "divert", "keep_all", "restore", "send_to"]

_STREAMS = ("stdout", "stderr")


class Reader(Protocol):
    """Who keeps what is written."""

    def written(self, stream: str, text: str) -> None:
        """Take a piece of text, which may be a part of a line; ``stream`` is ``stdout`` or ``stderr``."""


_reader: ContextVar[Reader | None] = ContextVar("airserve_nb.output", default=None)
_lock = threading.Lock()
_diversions = 0


def send_to(reader: Reader) -> None:
    """Send to ``reader`` what is written in this thread or task, and in the tasks that it starts."""
    _reader.set(reader)


class _Routed:
    """A stream that asks where a text comes from. All but writing is the business of the stream beneath."""

    def __init__(self, name: str, beneath: Any, everything_to: Reader | None) -> None:
        self._name = name
        self._beneath = beneath
        self._everything_to = everything_to

    def write(self, text: str) -> int:
        reader = self._everything_to or _reader.get()
        if reader is not None:
            with contextlib.suppress(Exception):  # what can't be kept must not stop the predictor
                reader.written(self._name, text)
        if reader is None or self._everything_to is not None:
            self._beneath.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._beneath)


def keep_all(reader: Reader) -> None:
    """Keep all that this process writes from now on; it is written as before, too."""
    _route(everything_to=reader)


def divert() -> None:
    """Look where a text comes from, from now on; :func:`restore` ends it, once for each call."""
    global _diversions  # noqa: PLW0603 - a process has one stdout
    with _lock:
        _diversions += 1
        # Again at each call: somebody may have put another stream there since.
        _route(everything_to=None)


def restore() -> None:
    """Put the streams back that were there, when nobody needs ours any more."""
    global _diversions  # noqa: PLW0603 - as above
    with _lock:
        _diversions -= 1
        if _diversions:
            return
        for name in _STREAMS:
            ours = getattr(sys, name)
            # Whoever has put another one over ours since, keeps it.
            if isinstance(ours, _Routed):
                setattr(sys, name, ours._beneath)  # noqa: SLF001 - our own class
                _redirect_handlers(ours, ours._beneath)  # noqa: SLF001 - as above


def _route(*, everything_to: Reader | None) -> None:
    for name in _STREAMS:
        beneath = getattr(sys, name)
        if beneath is None or isinstance(beneath, _Routed):
            continue
        ours = _Routed(name, beneath, everything_to)
        setattr(sys, name, ours)
        _redirect_handlers(beneath, ours)


def _redirect_handlers(before: Any, after: Any) -> None:
    """Let the root logger's handlers write where printing does: they have kept the stream of their beginning."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.stream = after
