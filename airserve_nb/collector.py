"""Gather the records of every replica of one deployment.

A replica's ring buffer forgets; what was read once stays here, also when the replica is gone. Whoever wants to follow
what happens *watches*: as long as anybody does, one thread pulls, however many they are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from airserve_nb._background import step_back
from airserve_nb._sentences import describe
from airserve_nb.telemetry import (
    BatchRecord,
    BatchStatistics,
    Counters,
    Cursor,
    Page,
    ReplicaState,
    RequestRecord,
    shown_preview,
    sum_counters,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Collector", "Tick"]

# Some 60 MB of records.
KEPT = 100_000
# Often enough to look live, seldom enough to cost a few percent of a core.
PERIOD_S = 0.125
# While nothing happens: what comes then is still seen at once.
IDLE_PERIOD_S = 0.2
# Nobody waits for a thread that waits for a replica.
JOIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Tick:
    """What a watcher is told."""

    requests: list[RequestRecord]
    """Those that the last tick did not have."""
    batches: list[BatchRecord]
    counters: Counters
    """Totals of all replicas that were ever read."""
    lost_requests: int
    """Request records, since the first reading, that a ring buffer had dropped before they could be read."""
    lost_batches: int
    states: Mapping[str, ReplicaState]
    """How each replica that answers does."""
    error: str | None = None
    """Why nothing could be read this time."""


@dataclass(eq=False, slots=True)
class _Watcher:
    tell: Callable[[Tick], object]
    requests: list[RequestRecord] = field(default_factory=list)
    batches: list[BatchRecord] = field(default_factory=list)


class Collector:
    """Pulls new records from the replicas and keeps them.

    Parameters
    ----------
    pull_pages
        Asks every live replica for its records since its cursor.
    """

    def __init__(self, pull_pages: Callable[[Mapping[str, Cursor]], Iterable[tuple[str, Page]]]) -> None:
        self._pull_pages = pull_pages
        # One reading at a time. What was read has a lock of its own: a replica that is slow to answer keeps nobody
        # from what is known.
        self._pulling = threading.Lock()
        self._lock = threading.Lock()
        self._cursors: dict[str, Cursor] = {}
        self._counters: dict[str, Counters] = {}
        self._states: dict[str, ReplicaState] = {}
        self._lost_requests = 0
        self._lost_batches = 0
        self._requests: deque[RequestRecord] = deque(maxlen=KEPT)
        self._batches: deque[BatchRecord] = deque(maxlen=KEPT)
        # Replaced, never changed: one may end while another thread goes through them.
        self._watchers: tuple[_Watcher, ...] = ()
        # Guards who watches and who is their thread.
        self._watching = threading.Lock()
        self._thread: threading.Thread | None = None
        self._nobody_left = threading.Event()

    def pull(self) -> None:
        """Read what is new; safe to call from any thread."""
        with self._pulling:
            complete = False
            while not complete:
                pages = list(self._pull_pages(dict(self._cursors)))
                complete = all(page.complete for _, page in pages)
                with self._lock:
                    for replica, page in pages:
                        self._take(replica, page)
                    self._states = {replica: page.state for replica, page in pages if page.state is not None}

    def _take(self, replica: str, page: Page) -> None:
        self._cursors[replica] = page.cursor
        self._counters[replica] = page.counters
        self._lost_requests += page.lost_requests
        self._lost_batches += page.lost_batches
        self._requests.extend(page.requests)
        self._batches.extend(page.batches)
        for watcher in self._watchers:
            watcher.requests.extend(page.requests)
            watcher.batches.extend(page.batches)

    # -- watching -------------------------------------------------------------------------------

    def watch(self, tell: Callable[[Tick], object]) -> Callable[[], None]:
        """Call ``tell`` some times a second, from a thread, with what is new; returns the function that ends it.

        The first tick has what was read before, too. ``tell`` must be quick; when it raises, it is called no more.
        """
        with self._lock:
            watcher = _Watcher(tell, list(self._requests), list(self._batches))
            with self._watching:
                self._watchers = (*self._watchers, watcher)
                if self._thread is None:
                    self._nobody_left = threading.Event()
                    self._thread = threading.Thread(
                        target=self._keep_pulling,
                        args=(self._nobody_left,),
                        name="airserve-collector",
                        daemon=True,
                    )
                    self._thread.start()
        return lambda: self._end(watcher)

    def _end(self, watcher: _Watcher) -> None:
        with self._watching:
            self._watchers = tuple(each for each in self._watchers if each is not watcher)
            if self._watchers or self._thread is None:
                return
            thread, self._thread = self._thread, None
            self._nobody_left.set()
        if thread is not threading.current_thread():
            thread.join(JOIN_S)

    def _keep_pulling(self, ended: threading.Event) -> None:
        step_back()
        period = 0.0
        while not ended.wait(period):
            error = None
            try:
                self.pull()
            except Exception as raised:  # noqa: BLE001 - a deployment that is gone, or busy being replaced
                error = describe(raised)
            period = PERIOD_S if self._tell(error) else IDLE_PERIOD_S

    def _tell(self, error: str | None) -> bool:
        """Tell all watchers; True when there was something new."""
        with self._lock:
            counters = sum_counters(self._counters.values())
            states = dict(self._states)
            lost_requests, lost_batches = self._lost_requests, self._lost_batches
            watchers = self._watchers
            told = [(each, each.requests, each.batches) for each in watchers]
            for each in watchers:
                each.requests, each.batches = [], []
        for watcher, requests, batches in told:
            try:
                watcher.tell(Tick(requests, batches, counters, lost_requests, lost_batches, states, error))
            except Exception:  # noqa: BLE001 - a front end that is gone must not end what others watch
                self._end(watcher)
        return any(requests or batches for _, requests, batches in told)

    # -- reading --------------------------------------------------------------------------------

    def counters(self) -> Counters:
        """Return the totals of all replicas that were ever read."""
        with self._lock:
            return sum_counters(self._counters.values())

    def last_requests(self, count: int) -> list[RequestRecord]:
        """Return the last ``count`` requests that were read, in the order of arrival."""
        with self._lock:
            # What was read last came about last, but for what replicas did at once.
            newest = list(islice(reversed(self._requests), 4 * count))
        return sorted(newest, key=lambda record: record.arrived_at)[-count:]

    def statistics(self) -> BatchStatistics:
        """Return the figures of all replicas that were ever read."""
        with self._lock:
            return BatchStatistics.from_counters(self._counters.values())

    def requests(self) -> pd.DataFrame:
        """Return one row a request, in the order of arrival."""
        with self._lock:
            records = sorted(self._requests, key=lambda record: record.arrived_at)
        frame = _frame(RequestRecord, records)
        for name in ("payload", "answer"):
            frame[name] = frame[name].map(shown_preview).astype(object)
        return frame

    def batches(self) -> pd.DataFrame:
        """Return one row a batch, in the order of release."""
        with self._lock:
            records = sorted(self._batches, key=lambda record: record.released_at)
        return _frame(BatchRecord, records)


def _frame(kind: type[Any], records: list[Any]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame.from_records(records, columns=kind._fields)
    for name in kind._fields:
        if name.endswith("_at"):
            frame[name] = pd.to_datetime(frame[name], unit="s", utc=True)
    return frame
