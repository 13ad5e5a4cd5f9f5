"""The one thread of a panel: it watches the service while somebody looks, and writes all that the browser is told.

A page that does not acknowledge what it was sent gets less, not more: what it misses is merged into one message a
second. (It may be unable to: while a cell runs, messages to a kernel without subshells have to wait.)
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from airserve_nb._background import step_back
from airserve_nb._sentences import describe
from airserve_nb.collector import Tick
from airserve_nb.panel.picture import Picture
from airserve_nb.panel.viewers import Viewers

__all__ = ["Feed", "Source"]

MOST_UNACKNOWLEDGED = 4
SLOW_S = 1.0
"""How often a page is told something that acknowledges nothing."""
QUIET_S = 3.0
"""How often a page hears from the kernel when there is nothing to say; ``panel.js`` waits for it."""
EXPLAIN_S = 1.0
KEEP_S = 10.0
"""How often what the saved notebook keeps is renewed, at most."""
JOIN_S = 2.0


class Source(Protocol):
    """What a feed needs of a panel."""

    def watch(self, tell: Callable[[Tick], object]) -> Callable[[], None]:
        """Have ``tell`` called with what is new; return the function that ends it."""

    def head(self) -> dict[str, Any]:
        """Return what is shown of the service itself."""

    def explain(self, picture: Picture) -> list[str] | None:
        """Return a sentence or two on why batches are as large as they are, or None."""

    def ended(self) -> bool:
        """Whether the service is stopped."""

    def publish(self, number: int, parts: dict[str, Any]) -> None:
        """Send one message to the browser."""

    def keep(self, parts: dict[str, Any]) -> None:
        """Renew what is kept in the notebook."""


class Feed:
    """Watches a service for a panel.

    Parameters
    ----------
    source
        The panel.
    viewers
        Who looks.
    """

    def __init__(self, source: Source, viewers: Viewers) -> None:
        self._source = source
        self._viewers = viewers
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._inbox: deque[Tick] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._newcomers = False
        self._sent = self._acknowledged = 0
        self._sent_at = self._explained_at = self._kept_at = 0.0
        self._why: list[str] | None = None
        self._latency: list[float] | None = None
        self._kept_requests = -1

    def start(self, *, newcomer: bool) -> None:
        """Watch from now on, if it doesn't already; tell everything to a page that knows nothing."""
        with self._lock:
            if self._closed:
                return
            self._newcomers |= newcomer
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="airserve-panel", daemon=True)
                self._thread.start()
        self._wake.set()

    def acknowledge(self, number: int) -> None:
        """Note that a page has shown message ``number``."""
        self._acknowledged = max(self._acknowledged, min(number, self._sent))
        self._wake.set()

    def wake(self) -> None:
        """Look at once whether there is something to tell."""
        self._wake.set()

    def close(self) -> None:
        """End the thread, for good."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    @property
    def is_watching(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        step_back()
        while self._goes_on():
            # The first tick of a watch has everything again.
            picture = Picture()
            self._newcomers = True
            end = self._source.watch(self._take)
            try:
                self._follow(picture)
            except Exception as error:  # noqa: BLE001 - shown; a panel that is blind for a second is better than a dead one
                self._admit(error)
            finally:
                end()
                self._inbox.clear()

    def _admit(self, error: Exception) -> None:
        """Tell the browser what went wrong here, and wait a moment before it is tried again."""
        with contextlib.suppress(Exception):  # the way to the browser itself may be what failed
            self._source.publish(self._sent, {"now": time.time(), "error": describe(error)})
        self._wake.clear()
        self._wake.wait(SLOW_S)

    def _goes_on(self) -> bool:
        with self._lock:
            if not self._closed and self._viewers.anybody() and (self._newcomers or not self._source.ended()):
                return True
            self._thread = None
            return False

    def _follow(self, picture: Picture) -> None:
        began, ticks_after_end, seen = time.monotonic(), 0, False
        while not self._closed and self._viewers.anybody():
            self._wake.wait(1.0)
            self._wake.clear()
            ended = self._source.ended()
            ticks = self._drain(picture)
            # A page that has a picture is not shown an empty one; one without is not left waiting either.
            seen = seen or ticks > 0 or time.monotonic() - began >= SLOW_S
            if seen:
                self._tell(picture)
            # What came in last before the end is still to be told.
            ticks_after_end += ended and ticks > 0
            if ticks_after_end > 1:
                break
        self._keep(picture, last=True)

    def _take(self, tick: Tick) -> None:
        self._inbox.append(tick)
        self._wake.set()

    def _drain(self, picture: Picture) -> int:
        count = 0
        while self._inbox:
            picture.absorb(self._inbox.popleft(), time.time())
            count += 1
        return count

    def _tell(self, picture: Picture) -> None:
        now = time.monotonic()
        if self._sent - self._acknowledged >= MOST_UNACKNOWLEDGED and now - self._sent_at < SLOW_S:
            return
        if now - self._explained_at >= EXPLAIN_S:
            self._explained_at, self._why = now, self._source.explain(picture)
            self._latency = picture.latency()
        newcomers, self._newcomers = self._newcomers, False
        extra = {"head": self._source.head(), "why": self._why, "latency": self._latency}
        parts = picture.everything(**extra) if newcomers else picture.changes(**extra)
        if parts or now - self._sent_at >= QUIET_S:
            self._sent += 1
            self._sent_at = now
            self._source.publish(self._sent, {"now": time.time(), **parts})
        self._keep(picture, last=False, quiet="rows" not in parts)

    def _keep(self, picture: Picture, *, last: bool, quiet: bool = True) -> None:
        """Renew what the notebook keeps: in a pause, and not too often."""
        now, requests = time.monotonic(), picture.counters.requests
        if requests != self._kept_requests and (last or (quiet and now - self._kept_at >= KEEP_S)):
            self._kept_at, self._kept_requests = now, requests
            self._source.keep(self._source.head())
