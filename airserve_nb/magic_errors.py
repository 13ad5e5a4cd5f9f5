"""How the errors of a magic look in the cell: what its user can act on, and none of our own frames."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from airserve_nb.errors import AirServeError

__all__ = ["shown_briefly"]

# With its sentence, an error of a cell's deployment stays within ten lines.
MOST_FRAME_LINES = 8


@contextlib.contextmanager
def shown_briefly() -> Iterator[None]:
    """Show our own errors as their sentence, and an interrupt by what it has left running."""
    try:
        yield
    except AirServeError as error:
        _show_as(error, [*_users_frames(error), f"{type(error).__name__}: {error}"])
        raise
    except KeyboardInterrupt as interrupt:
        # Below a hundred lines of Ray's frames nobody would find the note.
        notes = [str(note) for note in getattr(interrupt, "__notes__", ())]
        if notes:
            _show_as(interrupt, [f"KeyboardInterrupt: {' '.join(notes)}"])
        raise


def _show_as(error: Any, lines: list[str]) -> None:
    if not hasattr(error, "_render_traceback_"):
        error._render_traceback_ = functools.partial(list, lines)


def _users_frames(error: AirServeError) -> list[str]:
    """Return the frames of the user's code that failed in a replica: the last few, which say where."""
    return str(getattr(error, "frames", "")).splitlines()[-MOST_FRAME_LINES:]
