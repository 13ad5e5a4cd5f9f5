"""Say an exception in one line that is safe to send, to store and to print.

A predictor may raise anything: an exception whose ``str`` fails, with a megabyte of text, with a traceback of
another process in its message, with bytes that are no text.
"""

from __future__ import annotations

import re

__all__ = ["as_sentence", "describe", "message_of", "printable"]

LONGEST = 1_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")
_TRACEBACK = "Traceback (most recent call last)"


def printable(text: str) -> str:
    """Return ``text`` in one line, without control characters and lone surrogates, cut where it is long."""
    if _TRACEBACK in text:
        text = _without_traceback(text)
    # One character more than fits tells that something was cut; what is cut need not be cleaned.
    head = _CONTROL.sub(" ", text[: LONGEST + 1]).strip()
    head = head.encode("utf-8", "backslashreplace").decode()
    return head if len(head) <= LONGEST and len(text) <= LONGEST else f"{head[:LONGEST]}…"


def as_sentence(text: str) -> str:
    """Return ``text`` with an end."""
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def describe(error: BaseException) -> str:
    """Return ``TypeName: message``, or the type's name alone."""
    message = message_of(error)
    name = printable(type(error).__name__)
    return f"{name}: {message}" if message else name


def message_of(error: BaseException) -> str:
    """Return the exception's message, printable; empty when it has none or can't be read."""
    try:
        return printable(str(error))
    except Exception:  # noqa: BLE001 - a str() that fails says nothing, and must not do harm
        return ""


def _without_traceback(text: str) -> str:
    """Keep what stands before another process's traceback, and the line that ends it."""
    before = text.partition(_TRACEBACK)[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines and not lines[-1].startswith((_TRACEBACK, 'File "')) else ""
    return f"{before} {last}".strip()
