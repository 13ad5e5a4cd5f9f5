"""How often a client may ask: one bucket a client, which fills with time. Pure; the clock is given."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["RateLimit"]

# A bucket takes some 200 bytes. Beyond this the one that was used longest ago goes, and starts full again.
MOST_CLIENTS = 10_000


class RateLimit:
    """Lets every client ask ``burst`` times at once, and ``per_s`` times a second in the long run.

    Parameters
    ----------
    per_s
        Requests a second.
    burst
        Requests at once.
    clock
        Seconds, only ever growing.
    """

    def __init__(self, per_s: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        # Client -> what its bucket held, and when; the one used longest ago stands first.
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, client: str) -> float:
        """Take one request from the client's bucket: 0; when it is empty, the seconds until it is not."""
        now = self._clock()
        held, since = self._buckets.pop(client, (self._burst, now))
        held = min(self._burst, held + (now - since) * self._per_s)
        allowed = held >= 1
        self._buckets[client] = (held - 1 if allowed else held, now)
        if len(self._buckets) > MOST_CLIENTS:
            del self._buckets[next(iter(self._buckets))]
        return 0.0 if allowed else (1 - held) / self._per_s
