"""Who looks at a panel: pages that say so every few seconds.

A closed page says nothing, and neither does one that can't get through: a kernel that runs a cell reads no
messages unless its front end uses subshells. So silence counts only while no cell runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["BEAT_S", "PATIENCE_S", "CellWatch", "Viewers"]

BEAT_S = 4.0
"""How often a page says that it is there; ``panel.js`` has the same figure."""
PATIENCE_S = 3 * BEAT_S
"""After so much silence, while it could have spoken, a page is gone."""


class Viewers:
    """The pages that show a panel.

    Parameters
    ----------
    cells
        Tells whether a cell runs.
    clock
        Seconds, only ever growing.
    """

    def __init__(self, cells: CellWatch, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cells = cells
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, float] = {}

    def heard(self, page: str, *, visible: bool) -> bool:
        """Note that a page spoke; True when it was not there before."""
        with self._lock:
            if not visible:
                self._seen.pop(page, None)
                return False
            new = page not in self._seen
            self._seen[page] = self._clock()
            return new

    def anybody(self) -> bool:
        """Whether some page is open and visible."""
        quiet_since = self._cells.idle_since()
        with self._lock:
            if quiet_since is not None:
                now = self._clock()
                self._seen = {
                    page: seen
                    for page, seen in self._seen.items()
                    if now - max(seen, quiet_since) < PATIENCE_S
                }
            return bool(self._seen)


class CellWatch:
    """Knows whether the notebook runs a cell, from IPython's events.

    Parameters
    ----------
    shell
        IPython's shell; None where there is none, and then no cell ever runs.
    """

    def __init__(self, shell: Any = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._shell = shell
        self._clock = clock
        # Made by a cell, as a rule, whose beginning could not be seen.
        self._running: list[Any] = [None] if shell is not None else []
        self._idle_since = clock()
        if shell is not None:
            shell.events.register("pre_run_cell", self._began)
            shell.events.register("post_run_cell", self._ended)

    def idle_since(self) -> float | None:
        """Return since when no cell runs, by the clock; None while one runs."""
        return None if self._running else self._idle_since

    def _began(self, info: Any) -> None:
        self._running = [each for each in self._running if each is not None] + [info]

    def _ended(self, result: Any) -> None:
        # Cells nest, as in a magic that runs a cell; one that was interrupted may never be heard of again.
        info = getattr(result, "info", None)
        known = [number for number, each in enumerate(self._running) if each is info]
        self._running = self._running[: known[0]] if known else []
        if not self._running:
            self._idle_since = self._clock()

    def close(self) -> None:
        """Listen no more."""
        if self._shell is not None:
            self._shell.events.unregister("pre_run_cell", self._began)
            self._shell.events.unregister("post_run_cell", self._ended)
            self._shell = None
        self._running = []
