"""The values of options on a magic's line: what each may be, and the sentence for what it may not be.

Each is a ``type`` of argparse: text in, the value out.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Collection

__all__ = ["Choice", "count", "cpus", "did_you_mean", "port", "rates", "route", "seconds", "seed"]

_LARGEST_PORT = 65535


def did_you_mean(word: str, candidates: Collection[str]) -> str:
    """Return `` (did you mean ...?)`` when a candidate is close, else nothing."""
    close = difflib.get_close_matches(word, candidates, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class Choice:
    """One of a few words; completion offers them."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, text: str) -> str:
        """Read one of the words."""
        if text not in self.words:
            hint = did_you_mean(text, self.words)
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(self.words)}{hint}")
        return text


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def seed(text: str) -> int:
    """Read a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def rates(text: str) -> float | list[float]:
    """Read a number of requests a second, or several with commas between them."""
    try:
        values = [float(each) for each in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(0 < value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 200, or rates such as 50,100,200")
    return values if len(values) > 1 else values[0]


def seconds(text: str) -> float:
    """Read a number of seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of at least 0")
    return value


def cpus(text: str) -> float:
    """Read a number of CPUs, 0 or more."""
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of CPUs of at least 0") from None


def port(text: str) -> int:
    """Read a TCP port."""
    if not (text.isdecimal() and 1 <= int(text) <= _LARGEST_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to {_LARGEST_PORT}")
    return int(text)


def route(text: str) -> str:
    """Read a route prefix."""
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} doesn't begin with a slash")
    return text
