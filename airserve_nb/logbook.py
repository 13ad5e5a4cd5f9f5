"""The newest lines that a replica has logged or printed, kept where the notebook can ask for them."""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections import deque
from pathlib import Path

__all__ = ["LogBook", "users_frames", "users_traceback"]

_PACKAGE = f"{Path(__file__).parent}{os.sep}"

# A few failing batches with their tracebacks.
SIZE = 1_000
LONGEST_ENTRY = 20_000
MOST_FRAMES = 10


class LogBook(logging.Handler):
    """A logging handler that remembers the last records as text, and a reader of what is printed."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self._entries: deque[str] = deque(maxlen=size)
        # Lines that are not complete, by stream and thread.
        self._begun: dict[tuple[str, int], str] = {}
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        try:
            self._entries.append(_cut(self.format(record)))
        except Exception:  # noqa: BLE001 - logging's own rule: a bad record must not stop the program
            self.handleError(record)

    def written(self, stream: str, text: str) -> None:
        """Keep what was printed, by whole lines."""
        key = (stream, threading.get_ident())
        lines = f"{self._begun.pop(key, '')}{text}".split("\n")
        rest = lines.pop()
        # A progress bar writes over its line: only the last state counts.
        entry = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        if entry.strip():
            self._keep(stream, entry)
        if len(rest) > LONGEST_ENTRY:
            self._keep(stream, rest)
        elif rest:
            self._begun[key] = rest

    def _keep(self, stream: str, text: str) -> None:
        record = logging.LogRecord("", logging.INFO, "", 0, text, None, None)
        record.levelname = stream.upper()
        self.emit(record)

    def tail(self, count: int) -> list[str]:
        """Return the last ``count`` entries, oldest first; an entry may hold several lines."""
        return list(self._entries)[-count:] if count > 0 else []


def _cut(entry: str) -> str:
    """Keep both ends of an entry that is too long: what it is about, and how it ended."""
    if len(entry) <= LONGEST_ENTRY:
        return entry
    half = LONGEST_ENTRY // 2
    return f"{entry[:half]}\n… {len(entry) - LONGEST_ENTRY} characters left out …\n{entry[-half:]}"


def users_traceback(error: BaseException) -> str:
    """Return the traceback of ``error`` from the user's code on: our own frames before it tell nothing."""
    formatted = traceback.TracebackException.from_exception(error)
    formatted.stack = _theirs(formatted.stack)
    return "".join(formatted.format()).rstrip()


def users_frames(error: BaseException) -> str:
    """Return the last frames of the user's code, without the message, which can be of any length."""
    stack = _theirs(traceback.TracebackException.from_exception(error).stack)
    return "".join(traceback.StackSummary.from_list(stack[-MOST_FRAMES:]).format()).rstrip()


def _theirs(stack: traceback.StackSummary) -> traceback.StackSummary:
    first = next((i for i, frame in enumerate(stack) if not frame.filename.startswith(_PACKAGE)), None)
    return stack if first is None else traceback.StackSummary.from_list(stack[first:])
