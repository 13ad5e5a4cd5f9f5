"""Watching one probe of a sweep: how far it is, and whether there is any point in going on."""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airserve_nb.loadgen.result import ProbeResult
    from airserve_nb.loadgen.running import ProbeProgress, RunningProbe
    from airserve_nb.progress import LiveLine

__all__ = ["Seen", "falls_behind", "watch"]

SLICE_S = 0.1
SOONEST_S = 0.9
"""Earlier the figures of a moment are those of an accident."""


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
    try:
        while not running.done:
            wait([running._flight.future], SLICE_S)  # noqa: SLF001 - ours
            line.show(f"{running.progress}; {words}")
            if not hopeless and falls_behind(running.progress, patience_s):
                hopeless = True
                running.cancel()
    except KeyboardInterrupt:
        interrupted = True
        running.cancel()
    return Seen(running.result(), hopeless and not interrupted, interrupted)


def falls_behind(progress: ProbeProgress, patience_s: float) -> bool:
    """Tell whether the requests under way are more than what is answered in ``patience_s`` seconds.

    By Little's law that is a latency beyond it, and in an open loop with a fixed rate it only grows.
    """
    if progress.elapsed_s < SOONEST_S:
        return False
    answered = max(progress.requests_per_s, progress.ended / progress.elapsed_s)
    return progress.in_flight > patience_s * answered
