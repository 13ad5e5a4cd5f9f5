"""The client measures itself, so that nobody takes its own delay for the server's."""

from __future__ import annotations

import time
from array import array

from airserve_nb.loadgen.alarm import Alarm
from airserve_nb.loadgen.outcomes import ClientReport

__all__ = ["SelfWatch"]

EVERY_S = 0.02
"""How often the event loop is asked how long it takes to come to something that is ready."""


class SelfWatch:
    """Collects how late the client is, and how busy."""

    def __init__(self) -> None:
        self.lags = array("d")
        """Seconds between the planned time of a request and the moment at which it was looked at."""
        self.most_in_flight = 0
        self.held_back = 0
        self._waits = array("d")
        self._longest_held_s = 0.0
        self._cpu_s = 0.0

    def start(self) -> None:
        """Begin; inside a running event loop."""
        self._cpu_s = time.process_time()
        self._alarm = Alarm(self._look)
        self._due = time.perf_counter() + EVERY_S
        self._alarm.set(self._due)

    def stop(self) -> None:
        """End."""
        self._alarm.close()
        self._cpu_s = time.process_time() - self._cpu_s

    def held(self, seconds: float) -> None:
        """Note how long a request that was due had to wait for a lane."""
        self._longest_held_s = max(self._longest_held_s, seconds)

    def report(self, elapsed_s: float) -> ClientReport:
        """Return it in milliseconds; ``elapsed_s`` is how long the client ran."""
        lags, waits = sorted(self.lags), sorted(self._waits)
        return ClientReport(
            lag_p50_ms=_percentile_ms(lags, 0.5),
            lag_p99_ms=_percentile_ms(lags, 0.99),
            lag_max_ms=_percentile_ms(lags, 1),
            loop_p50_ms=_percentile_ms(waits, 0.5),
            loop_p99_ms=_percentile_ms(waits, 0.99),
            cpu_share=self._cpu_s / max(elapsed_s, 1e-9),
            most_in_flight=self.most_in_flight,
            held_back=self.held_back,
            held_back_ms=self._longest_held_s * 1000,
        )

    def _look(self) -> None:
        """Note how long this call was due: as long as an answer would have lain unread."""
        now = time.perf_counter()
        self._waits.append(now - self._due)
        self._due = now + EVERY_S
        self._alarm.set(self._due)


def _percentile_ms(ascending: list[float], share: float) -> float:
    return ascending[min(int(share * len(ascending)), len(ascending) - 1)] * 1000 if ascending else 0.0
