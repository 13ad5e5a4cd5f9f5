"""Watching one probe of a sweep: how far it is, and whether there is any point in going on."""

from __future__ import annotations

import time
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airserve_nb.loadgen.result import ProbeResult
    from airserve_nb.loadgen.running import ProbeProgress, RunningProbe
    from airserve_nb.progress import LiveLine

__all__ = ["Behind", "Seen", "is_behind", "watch"]

SLICE_S = 0.1
FOR_GOOD_S = 1.0
"""A machine that stops for a moment leaves a backlog too, but that is worked off."""
FOR_GOOD = 0.5
"""Of the patience, where that is longer: a model that takes seconds answers in lumps, with nothing in between."""


@dataclass(frozen=True)
class Seen:
    """A probe that has ended, in whatever way."""

    result: ProbeResult
    hopeless: bool
    """Whether it was stopped because the service can't keep up."""
    interrupted: bool
    """Whether the user stopped it."""


def watch(running: RunningProbe, line: LiveLine, words: str, *, patience_s: float) -> Seen:
    """Wait for the end, or stop it: when the user interrupts, or when the service falls behind for good."""
    hopeless = interrupted = False
    behind = Behind(patience_s)
    try:
        while not running.done:
            wait([running._flight.future], SLICE_S)  # noqa: SLF001 - ours
            line.show(f"{running.progress}; {words}")
            if not hopeless and behind.for_good(running.progress, time.monotonic()):
                hopeless = True
                running.cancel()
    except KeyboardInterrupt:
        interrupted = True
        running.cancel()
    return Seen(running.result(), hopeless and not interrupted, interrupted)


class Behind:
    """Remembers since when a service has been behind.

    Parameters
    ----------
    patience_s
        As for :func:`is_behind`.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._for_good_s = max(FOR_GOOD_S, FOR_GOOD * patience_s)
        self._since: float | None = None

    def for_good(self, progress: ProbeProgress, now: float) -> bool:
        """Tell whether it has been behind for long enough without a break; ``now`` in seconds."""
        if not is_behind(progress, self._patience_s):
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self._for_good_s


def is_behind(progress: ProbeProgress, patience_s: float) -> bool:
    """Tell whether the requests under way are more than what is answered in ``patience_s`` seconds.

    By Little's law that is a latency beyond it, and in an open loop with a fixed rate it only grows. Before the first
    answer it is not known what is answered in that time, unless it has gone by.
    """
    if not progress.elapsed_s or (not progress.ended and progress.elapsed_s < patience_s):
        return False
    # On average since the start: of a moment's rate a lump of answers would be the best.
    return progress.in_flight > patience_s * progress.ended / progress.elapsed_s
