"""Gather the records of every replica of one deployment.

A replica's ring buffer forgets; what was read once stays here, also when the replica is gone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airserve_nb.telemetry import BatchRecord, BatchStatistics, Counters, Cursor, Page, RequestRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Collector"]

# Some 30 MB of records.
KEPT = 100_000


class Collector:
    """Pulls new records from the replicas and keeps them.

    Parameters
    ----------
    pull_pages
        Asks every live replica for its records since its cursor.
    """

    def __init__(self, pull_pages: Callable[[Mapping[str, Cursor]], Iterable[tuple[str, Page]]]) -> None:
        self._pull_pages = pull_pages
        self._lock = threading.Lock()
        self._cursors: dict[str, Cursor] = {}
        self._counters: dict[str, Counters] = {}
        self._requests: deque[RequestRecord] = deque(maxlen=KEPT)
        self._batches: deque[BatchRecord] = deque(maxlen=KEPT)

    def pull(self) -> None:
        """Read what is new; safe to call from any thread."""
        with self._lock:
            complete = False
            while not complete:
                complete = True
                for replica, page in self._pull_pages(self._cursors):
                    self._take(replica, page)
                    complete &= page.complete

    def _take(self, replica: str, page: Page) -> None:
        self._cursors[replica] = page.cursor
        self._counters[replica] = page.counters
        self._requests.extend(page.requests)
        self._batches.extend(page.batches)

    def statistics(self) -> BatchStatistics:
        """Return the figures of all replicas that were ever read."""
        with self._lock:
            return BatchStatistics.from_counters(self._counters.values())

    def requests(self) -> pd.DataFrame:
        """Return one row a request, in the order of arrival."""
        with self._lock:
            records = sorted(self._requests, key=lambda record: record.arrived_at)
        return _frame(RequestRecord, records)

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
