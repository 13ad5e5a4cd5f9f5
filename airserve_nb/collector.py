"""Gather the records of every replica of one deployment.

A replica's ring buffer forgets; what was read once stays here, also when the replica is gone. Whoever wants to follow
what happens *watches*: as long as anybody does, one thread pulls, however many they are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from heapq import nlargest
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

__all__ = ["Collector", "Tick", "lacking_in_words"]

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
    lost_replicas: int
    """Replicas that answered once and answer no more, though nobody here asked them to end: what they did after they
    were last read is in neither records nor totals."""
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
        # Replicas: those that answered last, that may go, and that went without being asked to.
        self._answering: set[str] = set()
        self._dismissed: set[str] = set()
        self._lost: set[str] = set()
        self._changes = 0
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
                    self._note_who_answers({replica for replica, _ in pages})

    def _note_who_answers(self, answering: set[str]) -> None:
        self._answering = answering
        # Who answers again was not lost.
        self._lost -= answering
        if not self._changes:
            self._lost |= self._gone()

    def _gone(self) -> set[str]:
        return self._counters.keys() - self._answering - self._dismissed

    def dismiss_all(self) -> None:
        """Expect every replica that was read so far to end: it is being stopped or replaced, and not lost."""
        with self._lock:
            self._dismissed |= self._counters.keys() - self._lost

    @contextmanager
    def departures(self) -> Iterator[None]:
        """Expect replicas to end within this block: they are read up to their end, and are not lost."""
        self.pull()
        end = self.watch(lambda _tick: None)
        with self._lock:
            self._changes += 1
        try:
            yield
        finally:
            end()
            # Who is there now; where that can't be asked, nobody has left as far as is known.
            with suppress(Exception):
                self.pull()
            with self._lock:
                self._changes -= 1
                self._dismissed |= self._gone() - self._lost

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
                if not self._answering:
                    error = "No replica answers."
            except Exception as raised:  # noqa: BLE001 - a deployment that is gone, or busy being replaced
                error = describe(raised)
            period = PERIOD_S if self._tell(error) else IDLE_PERIOD_S

    def _tell(self, error: str | None) -> bool:
        """Tell all watchers; True when there was something new."""
        with self._lock:
            counters = sum_counters(self._counters.values())
            states = dict(self._states)
            lost = self._lost_requests, self._lost_batches, len(self._lost)
            watchers = self._watchers
            told = [(each, each.requests, each.batches) for each in watchers]
            for each in watchers:
                each.requests, each.batches = [], []
        for watcher, requests, batches in told:
            try:
                watcher.tell(Tick(requests, batches, counters, *lost, states, error))
            except Exception:  # noqa: BLE001 - a front end that is gone must not end what others watch
                self._end(watcher)
        return any(requests or batches for _, requests, batches in told)

    # -- reading --------------------------------------------------------------------------------

    def counters(self) -> Counters:
        """Return the totals of all replicas that were ever read."""
        with self._lock:
            return sum_counters(self._counters.values())

    def lacking(self) -> str:
        """Return in words what is known to lack among the records; empty when nothing is."""
        with self._lock:
            return lacking_in_words(self._lost_requests, len(self._lost))

    def last_requests(self, count: int) -> list[RequestRecord]:
        """Return the last ``count`` requests that were read, in the order of arrival."""
        with self._lock:
            # In the order in which they were read, which is replica by replica.
            read = list(self._requests)
        return nlargest(count, read, key=lambda record: record.arrived_at)[::-1]

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


def lacking_in_words(lost_requests: int, lost_replicas: int) -> str:
    """Return in words what lacks, such as ``7 records missing``; empty when nothing does."""
    parts = []
    if lost_requests:
        parts.append(f"{lost_requests:,} record{'' if lost_requests == 1 else 's'} missing")
    if lost_replicas == 1:
        parts.append("1 replica gone, its last records may be missing")
    elif lost_replicas:
        parts.append(f"{lost_replicas} replicas gone, their last records may be missing")
    return ", ".join(parts)


def _frame(kind: type[Any], records: list[Any]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame.from_records(records, columns=kind._fields)
    for name in kind._fields:
        if name.endswith("_at"):
            frame[name] = pd.to_datetime(frame[name], unit="s", utc=True)
    return frame
