"""What a panel shows, kept up to date by a collector's ticks.

State, not events: the last minute is held second by second, and a message has the seconds that changed since the
last one. So messages that a slow page could not take are merged by leaving them out, and whoever comes late is
told the same things as everybody else. Pure: no thread, no clock, no widget.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from airserve_nb.collector import Tick, lacking_in_words
from airserve_nb.telemetry import BatchRecord, Counters, RequestRecord, shown_preview

__all__ = ["KEPT_ROWS", "WINDOW_S", "Picture", "encode", "totals"]

WINDOW_S = 60
"""How far the lines and the sliding histogram go back."""
KEPT_ROWS = 1_000
"""How many requests the log lists."""
RECENT_S = 10
"""What the diagnosis looks at."""
MOST_RECENT = 10_000
# Requests come with the tick that has their batch, or a few later.
KNOWN_BATCHES = 4 * KEPT_ROWS
# Places in a row, see Picture.row_without_texts.
_REASON, _PAYLOAD = 7, 11


@dataclass(slots=True)
class _Second:
    """What ended within one second."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    batched: int = 0
    """Requests of a batch: of the others, such as those whose client left, nobody knows where their time went."""
    queue_ms: float = 0.0
    predict_ms: float = 0.0
    overhead_ms: float = 0.0
    waiting: int = 0
    sizes: Counter[tuple[int, str]] = field(default_factory=Counter)
    rows: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, record: RequestRecord) -> None:
        self.latencies.append(record.total_ms)
        self.errors += record.status >= 400  # noqa: PLR2004 - the first HTTP error status
        if record.batch_id is not None:
            self.batched += 1
            self.queue_ms += record.queue_ms
            self.predict_ms += record.predict_ms
            self.overhead_ms += record.overhead_ms

    def wire(self, second: int) -> list[Any]:
        """Return what the browser draws: second, requests, errors, p50, p99, queue, predict, overhead, waiting, sizes, rows."""
        count = len(self.latencies)
        ordered = sorted(self.latencies)
        means = [
            _short(total / self.batched) if self.batched else 0
            for total in (self.queue_ms, self.predict_ms, self.overhead_ms)
        ]
        return [
            second, count, self.errors, _quantile(ordered, 0.5), _quantile(ordered, 0.99), *means, self.waiting,
            _triples(self.sizes), _triples(self.rows),
        ]  # fmt: skip


class Picture:
    """The last minute by seconds, the last requests, and the totals."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.error: str | None = None
        self._seconds: dict[int, _Second] = {}
        self._dirty: set[int] = set()
        self._rows: deque[list[Any]] = deque(maxlen=KEPT_ROWS)
        self._new_rows = 0
        self._reasons: OrderedDict[str, str] = OrderedDict()
        self._last_batch: list[Any] | None = None
        self._lacking = ""
        self._states: list[list[Any]] = []
        self._told: dict[str, Any] = {}
        self._recent_requests: deque[RequestRecord] = deque(maxlen=MOST_RECENT)
        self._recent_batches: deque[BatchRecord] = deque(maxlen=MOST_RECENT)

    def absorb(self, tick: Tick, now: float) -> None:
        """Take a tick in; ``now`` is the time of the wall clock."""
        oldest = int(now) - WINDOW_S
        # They come replica by replica; the first tick has thousands of each.
        requests, batches = sorted(tick.requests, key=_ended), sorted(tick.batches, key=_ended)
        for batch in batches[-KNOWN_BATCHES:]:
            self._reasons[batch.batch_id] = batch.release_reason
        while len(self._reasons) > KNOWN_BATCHES:
            self._reasons.popitem(last=False)
        for batch in batches:
            ended = int(_ended(batch))
            if ended >= oldest:
                self._count_batch(batch, ended)
        for record in requests:
            ended = int(_ended(record))
            if ended >= oldest:
                self._second(ended).add(record)
                self._recent_requests.append(record)
        newest = requests[-KEPT_ROWS:]
        self._rows.extend(self._row(record) for record in newest)
        self._new_rows = min(self._new_rows + len(newest), len(self._rows))
        self._note_states(tick, now)
        self._forget_before(oldest, now - RECENT_S)

    def _count_batch(self, batch: BatchRecord, ended: int) -> None:
        second = self._second(ended)
        second.sizes[batch.batch_size, batch.release_reason] += 1
        second.rows[batch.rows, batch.release_reason] += 1
        self._recent_batches.append(batch)
        self._last_batch = [batch.batch_id, batch.batch_size, batch.rows, batch.release_reason]

    def _note_states(self, tick: Tick, now: float) -> None:
        self.counters, self.error = tick.counters, tick.error
        self._lacking = lacking_in_words(tick.lost_requests, tick.lost_replicas)
        self._states = [
            [
                name,
                state.version,
                state.batching,
                state.max_batch_size,
                state.batch_wait_timeout_s,
                state.waiting,
            ]
            for name, state in sorted(tick.states.items())
        ]
        waiting = sum(state.waiting for state in tick.states.values())
        # After a reading that failed, the states are those of the one before.
        if waiting and tick.error is None:
            second = self._second(int(now))
            second.waiting = max(second.waiting, waiting)

    def _second(self, second: int) -> _Second:
        self._dirty.add(second)
        return self._seconds.setdefault(second, _Second())

    def _forget_before(self, oldest: int, recent: float) -> None:
        for second in [each for each in self._seconds if each < oldest]:
            del self._seconds[second]
            self._dirty.discard(second)
        # By their end: of an overloaded service, those that came more than ten seconds ago are what is to be seen.
        while self._recent_requests and _ended(self._recent_requests[0]) < recent:
            self._recent_requests.popleft()
        while self._recent_batches and _ended(self._recent_batches[0]) < recent:
            self._recent_batches.popleft()

    def _row(self, record: RequestRecord) -> list[Any]:
        row = self.row_without_texts(record)
        row[_REASON] = self._reasons.get(record.batch_id or "")
        return [*row[:_PAYLOAD], shown_preview(record.payload), shown_preview(record.answer), record.error]

    @staticmethod
    def row_without_texts(record: RequestRecord) -> list[Any]:
        """Return a request as the browser lists it, without what was sent and answered."""
        return [
            record.request_id, record.arrived_at, record.status, record.version, record.replica, record.batch_id,
            record.batch_size, None, _short(record.queue_ms), _short(record.predict_ms), _short(record.total_ms),
            "", "", record.error,
        ]  # fmt: skip

    # -- reading --------------------------------------------------------------------------------

    @property
    def recent(self) -> tuple[list[RequestRecord], list[BatchRecord]]:
        """The requests and batches that ended in the last ten seconds."""
        return list(self._recent_requests), list(self._recent_batches)

    def latency(self) -> list[float] | None:
        """Return median, 99th percentile and number of the latencies of the last ten seconds; None without any."""
        ordered = sorted(record.total_ms for record in self._recent_requests)
        return [_quantile(ordered, 0.5), _quantile(ordered, 0.99), len(ordered)] if ordered else None

    @property
    def replicas(self) -> int:
        """How many replicas answered last."""
        return len(self._states)

    @property
    def waiting(self) -> int:
        """How many requests waited in their queues."""
        return sum(state[-1] for state in self._states)

    def changes(self, **extra: Any) -> dict[str, Any]:
        """Return what is new since the last call, by parts; empty when nothing is. ``extra`` are parts of others."""
        parts = self._small_parts() | extra
        changed = {name: part for name, part in parts.items() if self._told.get(name) != part}
        self._told = parts
        if self._dirty:
            changed["seconds"] = [self._seconds[second].wire(second) for second in sorted(self._dirty)]
            self._dirty.clear()
        if self._new_rows:
            changed["rows"] = list(islice(self._rows, len(self._rows) - self._new_rows, None))
            self._new_rows = 0
        return changed

    def everything(self, **extra: Any) -> dict[str, Any]:
        """Return all that there is to show, for a page that knows nothing."""
        self._told = {}
        self._dirty = set(self._seconds)
        self._new_rows = len(self._rows)
        return self.changes(**extra) | {"reset": True}

    def _small_parts(self) -> dict[str, Any]:
        counters = self.counters
        return {
            "totals": totals(counters, self._lacking),
            "sizes": _triples(counters.sizes),
            "row_sizes": _triples(counters.row_sizes),
            "states": self._states,
            "last": self._last_batch,
            "error": self.error,
        }


def totals(counters: Counters, lacking: str) -> dict[str, Any]:
    """Return the totals, and in words what lacks."""
    return {
        "requests": counters.requests,
        "errors": counters.errors,
        "batches": counters.batches,
        "batched": counters.batched_requests,
        "rows": counters.rows,
        "lacking": lacking,
    }


def encode(parts: dict[str, Any]) -> bytes:
    """Return a message's body: JSON in ASCII, whatever its texts hold."""
    return json.dumps(parts, separators=(",", ":")).encode("ascii")


def _ended(record: RequestRecord | BatchRecord) -> float:
    """Return when a request was answered, or a batch predicted."""
    if isinstance(record, RequestRecord):
        return record.arrived_at + record.total_ms / 1e3
    return record.released_at + record.predict_ms / 1e3


def _triples(counts: Counter[tuple[int, str]]) -> list[list[Any]]:
    return [[size, reason, count] for (size, reason), count in sorted(counts.items())]


def _short(milliseconds: float) -> float:
    return round(milliseconds, 2)


def _quantile(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0
    return _short(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
