"""What happened to each request and each batch, kept where it can be read without being consumed.

A replica writes one :class:`RequestRecord` a request and one :class:`BatchRecord` a batch into a
:class:`Recorder`: two ring buffers with running numbers, and counters that never wrap. A reader asks
for everything after the number it saw last, so any number of readers can follow the same replica, and
each can tell how many records it missed.

All times are seconds of the wall clock (``time.time``) where a record says *at*, and milliseconds
where a name ends in ``_ms``.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

__all__ = [
    "BatchRecord",
    "BatchStatistics",
    "Counters",
    "Cursor",
    "Page",
    "Recorder",
    "ReleaseReason",
    "ReplicaState",
    "RequestRecord",
    "bucket",
    "preview",
    "shown_preview",
    "sum_counters",
]

ReleaseReason = Literal["full", "timeout", "model_free", "retry", "drain"]
"""Why a batch was released when it was.

``full``: it held as much as one batch may. ``timeout``: the model was idle and the oldest member's wait
ended. ``model_free``: it was ready earlier and waited for the model. ``retry``: part of a batch that
failed. ``drain``: the version was being replaced or stopped.
"""

# A probe of some thousand requests fits, and a replica's memory stays below some 10 MB.
RING_SIZE = 10_000
# Bytes of a body that are kept to be shown.
PREVIEW_LENGTH = 200
# Frames have any number of rows; a counter for each would never end.
LARGEST_EXACT_BUCKET = 32


class RequestRecord(NamedTuple):
    """One answered request."""

    request_id: str
    """The server's id of the request, also in the answer's ``X-Airserve-Request-Id`` header."""
    arrived_at: float
    """When its last byte was read, seconds of the wall clock."""
    status: int
    """HTTP status of the answer; 499 when the client left before it."""
    batch_id: str | None
    """The batch it rode in; None when it reached no batch."""
    batch_size: int
    """Requests in that batch, 0 without one."""
    queue_ms: float
    """From arrival in the queue to the release of the batch that answered it."""
    predict_ms: float
    """How long the call of predict took that answered it."""
    overhead_ms: float
    """All the rest: adapter, collating, splitting, encoding, hand-over between threads."""
    total_ms: float
    """From arrival to the encoded answer; queue + predict + overhead."""
    version: str
    """The version that answered."""
    replica: str
    """The replica that answered."""
    error: str | None = None
    """One sentence when the answer is an error."""
    payload: bytes = b""
    """The beginning of the body, or of the query of a request without one; see :func:`preview`."""
    answer: bytes = b""
    """The beginning of the answer's body; see :func:`preview`."""


class BatchRecord(NamedTuple):
    """One call of predict."""

    batch_id: str
    released_at: float
    """When the batch left the queue, seconds of the wall clock."""
    batch_size: int
    """Requests in it."""
    rows: int
    """Rows in it: of frames, their rows; else the same as ``batch_size``."""
    predict_ms: float
    release_reason: ReleaseReason
    queue_depth: int
    """Requests that still waited when it was released."""
    other_signatures: int
    """Those among them that could not be stacked with it."""
    version: str
    replica: str
    error: str | None = None


@dataclass(slots=True)
class Counters:
    """Totals since the replica started; they count what the ring buffers have forgotten too."""

    requests: int = 0
    errors: int = 0
    """Requests answered with a status of 400 or more."""
    batches: int = 0
    batched_requests: int = 0
    rows: int = 0
    predict_ms: float = 0.0
    queue_ms: float = 0.0
    total_ms: float = 0.0
    sizes: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Batches by their number of requests and release reason."""
    row_sizes: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Batches by their number of rows, see :func:`bucket`, and release reason."""


Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has read: the running numbers of the next request and batch record."""

    request: int = 0
    batch: int = 0


class ReplicaState(NamedTuple):
    """How a replica does at one moment."""

    version: str
    """The version that serves."""
    batching: bool
    """Whether it batches."""
    max_batch_size: int
    batch_wait_timeout_s: float
    waiting: int
    """Requests in its queue."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a reader had not seen yet."""

    requests: tuple[RequestRecord, ...]
    batches: tuple[BatchRecord, ...]
    cursor: Cursor
    """Where to go on reading."""
    lost_requests: int
    """Request records that the ring buffer had dropped before this reading."""
    lost_batches: int
    complete: bool
    """False when there is more behind ``cursor`` already."""
    counters: Counters
    state: ReplicaState | None = None
    """How the replica does at the moment of reading, where the reader asked an endpoint."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Plain tuples are pickled in a third of the time: their class need not be told for each.
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return _unpickled, (
            fields | {name: tuple(map(tuple, fields[name])) for name in ("requests", "batches")},
        )


def _unpickled(fields: dict[str, Any]) -> Page:
    fields["requests"] = tuple(map(RequestRecord._make, fields["requests"]))
    fields["batches"] = tuple(map(BatchRecord._make, fields["batches"]))
    return Page(**fields)


class _Ring(Generic[Record]):
    """The newest ``size`` records and the running number of the next one."""

    def __init__(self, size: int) -> None:
        self._records: deque[Record] = deque(maxlen=size)
        self.next_number = 0

    def append(self, record: Record) -> None:
        self._records.append(record)
        self.next_number += 1

    def since(self, number: int, limit: int | None) -> tuple[tuple[Record, ...], int, int]:
        """Return records from ``number`` on, how many of them are already gone, and where to go on."""
        first_kept = self.next_number - len(self._records)
        lost = max(0, first_kept - number)
        skip = max(0, number - first_kept)
        stop = None if limit is None else skip + limit
        found = tuple(itertools.islice(self._records, skip, stop))
        return found, lost, max(number, first_kept) + len(found)


class Recorder:
    """Takes records from any thread; hands out what a reader has not seen."""

    def __init__(self, size: int = RING_SIZE) -> None:
        self._lock = threading.Lock()
        self._requests: _Ring[RequestRecord] = _Ring(size)
        self._batches: _Ring[BatchRecord] = _Ring(size)
        self._counters = Counters()

    def add_request(self, record: RequestRecord) -> None:
        """Keep one request."""
        with self._lock:
            self._requests.append(record)
            counters = self._counters
            counters.requests += 1
            counters.errors += record.status >= 400  # noqa: PLR2004 - the first HTTP error status
            counters.queue_ms += record.queue_ms
            counters.total_ms += record.total_ms

    def add_batch(self, record: BatchRecord) -> None:
        """Keep one batch."""
        with self._lock:
            self._batches.append(record)
            counters = self._counters
            counters.batches += 1
            counters.batched_requests += record.batch_size
            counters.rows += record.rows
            counters.predict_ms += record.predict_ms
            counters.sizes[record.batch_size, record.release_reason] += 1
            counters.row_sizes[bucket(record.rows), record.release_reason] += 1

    def since(self, cursor: Cursor = Cursor(), limit: int | None = None) -> Page:
        """Return what comes after ``cursor``: at most ``limit`` records of each kind. Reading takes nothing away."""
        with self._lock:
            requests, lost_requests, next_request = self._requests.since(cursor.request, limit)
            batches, lost_batches, next_batch = self._batches.since(cursor.batch, limit)
            newest = Cursor(self._requests.next_number, self._batches.next_number)
            return Page(
                requests=requests,
                batches=batches,
                cursor=Cursor(next_request, next_batch),
                lost_requests=lost_requests,
                lost_batches=lost_batches,
                complete=Cursor(next_request, next_batch) == newest,
                counters=sum_counters([self._counters]),
            )


def sum_counters(parts: Iterable[Counters]) -> Counters:
    """Add the counters of several replicas."""
    total = Counters()
    for part in parts:
        total.requests += part.requests
        total.errors += part.errors
        total.batches += part.batches
        total.batched_requests += part.batched_requests
        total.rows += part.rows
        total.predict_ms += part.predict_ms
        total.queue_ms += part.queue_ms
        total.total_ms += part.total_ms
        total.sizes.update(part.sizes)
        total.row_sizes.update(part.row_sizes)
    return total


def preview(content: bytes) -> bytes:
    """Return the beginning of a body: enough to show, and one byte more than is shown, to tell that there is more."""
    return content[: PREVIEW_LENGTH + 1]


def shown_preview(content: bytes) -> str:
    """Return a preview as text, with an ellipsis where something is left out."""
    text = content[:PREVIEW_LENGTH].decode(errors="replace")
    return f"{text}…" if len(content) > PREVIEW_LENGTH else text


def bucket(rows: int) -> int:
    """Return the number under which batches of this many rows are counted: exact up to 32, then powers of two, rounded up.

    So 64 stands for 33 to 64, as in the panel's histogram.
    """
    return rows if rows <= LARGEST_EXACT_BUCKET else 1 << (rows - 1).bit_length()


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Figures of a deployment, over all its replicas since each started."""

    requests: int
    errors: int
    batches: int
    mean_batch_size: float
    """Requests a batch; NaN before the first."""
    mean_queue_ms: float
    mean_predict_ms: float
    """Of a batch."""
    mean_total_ms: float
    batch_sizes: dict[int, int]
    """Batches by batch size, ascending."""
    release_reasons: dict[str, int]
    """Batches by release reason."""
    replicas: int

    def __str__(self) -> str:
        """Return the figures, a line each."""
        sizes = ", ".join(f"{count} of {size}" for size, count in self.batch_sizes.items())
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.release_reasons.items())
        return "\n".join(
            [
                f"requests         {self.requests} ({self.errors} errors) on {self.replicas} replica(s)",
                f"batches          {self.batches}, {self.mean_batch_size:.2f} requests each",
                f"batch sizes      {sizes or '-'}",
                f"release reasons  {reasons or '-'}",
                f"mean queue       {self.mean_queue_ms:.2f} ms a request",
                f"mean predict     {self.mean_predict_ms:.2f} ms a batch",
                f"mean total       {self.mean_total_ms:.2f} ms a request",
            ]
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text("..." if cycle else str(self))

    @classmethod
    def from_counters(cls, parts: Iterable[Counters]) -> BatchStatistics:
        """Make the statistics of the replicas whose counters are ``parts``."""
        counters = list(parts)
        total = sum_counters(counters)
        sizes: Counter[int] = Counter()
        reasons: Counter[str] = Counter()
        for (size, reason), count in total.sizes.items():
            sizes[size] += count
            reasons[reason] += count
        return cls(
            requests=total.requests,
            errors=total.errors,
            batches=total.batches,
            mean_batch_size=_mean(total.batched_requests, total.batches),
            mean_queue_ms=_mean(total.queue_ms, total.requests),
            mean_predict_ms=_mean(total.predict_ms, total.batches),
            mean_total_ms=_mean(total.total_ms, total.requests),
            batch_sizes=dict(sorted(sizes.items())),
            release_reasons=dict(sorted(reasons.items())),
            replicas=len(counters),
        )


def _mean(total: float, count: int) -> float:
    return total / count if count else float("nan")
