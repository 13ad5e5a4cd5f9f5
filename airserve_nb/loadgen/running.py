"""A probe under way: how far it is, its result, and how to stop it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.progress import LiveLine

if TYPE_CHECKING:
    from airserve_nb.loadgen.launch import Flight
    from airserve_nb.loadgen.result import ProbeResult

__all__ = ["Latest", "ProbeProgress", "RunningProbe"]

BAR = 24
SLICE_S = 0.25
"""How often the line is brought up to date; and on Windows a wait without end can't be interrupted."""


@dataclass(frozen=True, repr=False)
class ProbeProgress:
    """How far a probe is; printed, it is a line with a bar."""

    share: float = 0.0
    """From 0 to 1, of the requests, or of the time where that decides."""
    planned: int | None = None
    """Requests in all; None where the duration decides."""
    elapsed_s: float = 0.0
    ok: int = 0
    failed: int = 0
    in_flight: int = 0
    requests_per_s: float = 0.0
    """Answers a second, in the last moment."""
    p50_ms: float | None = None
    """Median latency of these; None without one."""

    @property
    def ended(self) -> int:
        """Requests that have ended, in whatever way."""
        return self.ok + self.failed

    def __str__(self) -> str:
        filled = round(self.share * BAR)
        total = "" if self.planned is None else f" of {self.planned:,}"
        parts = [f"{self.ended:,}{total} requests", f"{self.requests_per_s:,.0f} a second"]
        if self.p50_ms is not None:
            parts.append(f"p50 {self.p50_ms:.1f} ms")
        parts.append(f"{self.in_flight:,} in flight")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return f"{'█' * filled}{'░' * (BAR - filled)} {self.share:4.0%}  {', '.join(parts)}"

    __repr__ = __str__


class Latest:
    """Takes the client's reports; from another thread.

    Parameters
    ----------
    plan
        How the requests were planned.
    count
        How many; None where the duration decides.
    until_s
        When the last one is to be sent; None where the answers decide.
    also
        Called at every report.
    """

    def __init__(
        self, plan: LoadPlan, count: int | None, until_s: float | None, also: Callable[[], object]
    ) -> None:
        self._until_s = until_s if plan.kind == "open" or count is None else None
        self._count = count
        self._also = also
        self.progress = ProbeProgress(planned=count)

    def take(self, report: dict[str, Any]) -> None:
        """Take a report."""
        if self._until_s:
            share = report["elapsed_s"] / self._until_s
        else:
            share = (report["ok"] + report["failed"]) / (self._count or 1)
        self.progress = ProbeProgress(share=min(share, 1.0), planned=self._count, **report)
        self._also()


class RunningProbe:
    """A probe that goes on while the notebook does; made by ``start_probe``.

    Parameters
    ----------
    target
        The target's name.
    flight
        The plan under way.
    latest
        How far it is.
    """

    def __init__(self, target: str, flight: Flight[ProbeResult], latest: Latest) -> None:
        self._target = target
        self._flight = flight
        self._latest = latest

    @property
    def progress(self) -> ProbeProgress:
        """How far it is, as of the last quarter of a second."""
        return self._latest.progress

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self._flight.future.done()

    def result(self, timeout_s: float | None = None) -> ProbeResult:
        """Wait for the end and return the result.

        Parameters
        ----------
        timeout_s
            How long to wait, in seconds; None: to the end.

        Raises
        ------
        ProbeError
            When the client fails as a whole, or the probe takes longer than ``timeout_s``; it then goes on.
        """
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.done:
            left = SLICE_S if ends is None else min(SLICE_S, ends - time.monotonic())
            if left <= 0:
                raise ProbeError(
                    f"The probe of {self._target} is still under way after {timeout_s:g} s; wait longer, or cancel() it."
                )
            wait([self._flight.future], left)
        return self._flight.future.result()

    def cancel(self) -> None:
        """Send nothing more and give up what is under way; ``result()`` then has what there is, soon."""
        self._flight.stop()

    def _watch(self) -> ProbeResult:
        """Wait for the end in the calling thread and show how far it is.

        A first interrupt stops it and returns what there is; a second one gives up on that too.
        """
        try:
            with contextlib.closing(LiveLine()) as line:
                while not self.done:
                    wait([self._flight.future], SLICE_S)
                    line.show(str(self.progress))
        except KeyboardInterrupt:  # also while the line is made or taken away
            self.cancel()
        try:
            return self.result()
        except KeyboardInterrupt:
            self._flight.kill()
            raise

    def __repr__(self) -> str:
        return f"<RunningProbe {self._target}: {'done' if self.done else 'under way'}>"
