"""The figures that a diagnosis is made of: counted and averaged over the records, judged elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from airserve_nb._diagnosis_tables import ABSURD, Batches, Floats, Requests, under_present_limits
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.telemetry import BatchRecord, RequestRecord

__all__ = ["Facts", "LatencyParts", "Trend"]

FIRST_ERROR_STATUS = 400
REFUSED = 503
THIRD = 3
A_MOMENT = 1e-6
"""Seconds; the records tell no shorter time."""


@dataclass(frozen=True, slots=True)
class LatencyParts:
    """Where the time of a mean successful request went, in milliseconds."""

    requests: int
    model_wait_ms: float
    """In the queue while the model was busy."""
    batch_wait_ms: float
    """In the queue on purpose, while the model was idle: at most the wait that the settings allow."""
    predict_ms: float
    overhead_ms: float

    @property
    def total_ms(self) -> float:
        """The mean latency."""
        return self.model_wait_ms + self.batch_wait_ms + self.predict_ms + self.overhead_ms


@dataclass(frozen=True, slots=True)
class Trend:
    """How many requests waited when a batch left, a replica: the means of each third of the time."""

    first: float
    middle: float
    last: float
    per_s: float
    """By how many requests the queue of a replica grew a second."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at. All figures are finite; shares lie between 0 and 1."""

    requests: int
    """Requests that ended, in whatever way."""
    refused: int
    """Those among them that found the queue full (503)."""
    rate: float
    """Requests a second, from the first arrival to the last answer; 0 when that is no time."""
    calls: int
    """Batches released from the queue; parts that were tried again do not count."""
    mean_size: float
    """Requests in one of these."""
    shares: dict[str, float]
    """Release reason -> share of the batched requests that rode in such batches."""
    full_rows: float
    """Rows in a full batch, on average; 0 without one."""
    full_by_rows: bool
    """Whether full batches hold fewer requests than allowed, so that their rows were the limit."""
    full_depth: float
    """Requests that still waited when a full batch left, on average."""
    others: float
    """Requests of other signatures that waited when a batch left, on average."""
    size_if_alike: float
    """The mean size if those could have been stacked with it."""
    retries: int
    """Calls of predict that tried a part of a failed batch again."""
    failed: int
    """Calls of predict that failed."""
    utilisation: float
    """Share of the time in which a model predicted, averaged over the replicas."""
    replicas: int
    in_flight_peak: int
    """Requests that were under way at once, at most."""
    in_flight_mean: float
    """And on average, over the time in which any was."""
    latency: LatencyParts | None
    """None without a successful request whose batch is known."""
    trend: Trend | None
    """None when there are too few batches."""
    settled: bool
    """False when older batches were left out because they ran under other limits."""

    @property
    def steady_in_flight(self) -> int | None:
        """How many requests are under way at once if that hardly changes, as with clients that wait for answers."""
        return self.in_flight_peak if self.in_flight_mean >= STEADY * self.in_flight_peak > 0 else None

    @classmethod
    def of(
        cls,
        requests: Iterable[RequestRecord],
        batches: Iterable[BatchRecord],
        limits: BatchSettings,
        *,
        replicas: int | None,
        since: float | None,
    ) -> Facts:
        """Count the records that ended after ``since``."""
        start = -np.inf if since is None else since
        table, calls = Requests.of(requests, start), Batches.of(batches, start)
        table, calls, settled = under_present_limits(table, calls, limits)
        replicas = replicas or max(1, len(set(calls.replica)))
        first = calls.where((calls.reason != "retry") & (calls.reason != "drain"))
        full = first.where(first.reason == "full")
        peak, mean = _in_flight(table)
        return cls(
            requests=len(table),
            refused=int((table.status == REFUSED).sum()),
            rate=_rate(table),
            calls=len(first),
            mean_size=_mean(first.size),
            shares=_shares(first),
            full_rows=_mean(full.rows),
            full_by_rows=bool(len(full)) and _mean(full.size) < limits.members_at_most,
            full_depth=_mean(full.depth),
            others=_mean(first.others),
            size_if_alike=_mean(np.minimum(first.size + first.others, limits.members_at_most)),
            retries=int((calls.reason == "retry").sum()),
            failed=int((calls.error != None).sum()),  # noqa: E711 - of each one
            utilisation=_utilisation(calls, replicas),
            replicas=replicas,
            in_flight_peak=peak,
            in_flight_mean=mean,
            latency=_latency(table, calls, limits),
            trend=_trend(table, first),
            settled=settled,
        )


STEADY = 0.8
"""Clients that wait for their answers keep the number in flight at its peak: on average nine tenths of it and more.
Of requests that come as they like it is about a half, and at most three quarters."""


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0


def _rate(requests: Requests) -> float:
    span = float(requests.ended.max() - requests.arrived.min()) if len(requests) else 0.0
    # Within a microsecond nothing can be said of a second.
    return len(requests) / span if span > A_MOMENT else 0.0


def _shares(batches: Batches) -> dict[str, float]:
    total = float(batches.size.sum())
    reasons = {"full", "timeout", "model_free"}
    return {
        reason: float(batches.size[batches.reason == reason].sum()) / (total or 1.0) for reason in reasons
    }


def _utilisation(batches: Batches, replicas: int) -> float:
    if not len(batches):
        return 0.0
    span = float(batches.ended.max() - batches.released.min())
    busy = float(batches.predict.sum()) / 1e3
    return min(1.0, busy / (span * replicas)) if span > A_MOMENT else 1.0


def _in_flight(requests: Requests) -> tuple[int, float]:
    """Return the most requests that were under way at once, and the mean over the time in which any was."""
    if not len(requests):
        return 0, 0.0
    # To the microsecond: an answer and the request that it lets go are no two requests at once.
    begins = np.round(requests.arrived, 6)
    ends = np.round(requests.ended, 6)
    times = np.concatenate([begins, ends])
    steps = np.repeat([1, -1], len(begins))
    order = np.lexsort((steps, times))
    level = np.cumsum(steps[order])
    lasted = np.diff(times[order])
    busy = float(lasted[level[:-1] > 0].sum())
    peak = int(max(level.max(), 1))
    return peak, min(float(peak), float((level[:-1] * lasted).sum()) / busy) if busy > 0 else 0.0


def _latency(requests: Requests, batches: Batches, limits: BatchSettings) -> LatencyParts | None:
    places = {batch_id: number for number, batch_id in enumerate(batches.batch_id)}
    batch = np.array([places.get(batch_id, -1) for batch_id in requests.batch_id], dtype=int)
    known = (requests.status < FIRST_ERROR_STATUS) & (batch >= 0)
    known &= np.isfinite(requests.queue + requests.predict + requests.overhead)
    if not known.any():
        return None
    answered = requests.where(known)
    queue = answered.queue.clip(0)
    idle = np.minimum(_idle_before_ms(batches), limits.batch_wait_timeout_s * 1e3)[batch[known]]
    on_purpose = np.minimum(queue, idle)
    return LatencyParts(
        requests=len(answered),
        model_wait_ms=_mean(queue - on_purpose),
        batch_wait_ms=_mean(on_purpose),
        predict_ms=_mean(answered.predict.clip(0)),
        overhead_ms=_mean(answered.overhead.clip(0)),
    )


def _idle_before_ms(batches: Batches) -> Floats:
    """Return how long the model had been idle when each batch left; 0 where it had been busy to that moment."""
    idle = np.zeros(len(batches))
    waited = (batches.reason == "full") | (batches.reason == "timeout")
    for replica in set(batches.replica):
        mine = np.flatnonzero(batches.replica == replica)
        free_since = np.maximum.accumulate(batches.ended[mine])
        idle[mine[0]] = ABSURD
        idle[mine[1:]] = (batches.released[mine[1:]] - free_since[:-1]).clip(0) * 1e3
    return np.where(waited, idle, 0.0)


def _trend(requests: Requests, batches: Batches) -> Trend | None:
    if not len(requests):
        return None
    # After the last arrival a queue can only shrink.
    coming = batches.where(batches.released <= requests.arrived.max())
    if len(coming) >= THIRD * THIRD:
        batches = coming
    if len(batches) < THIRD * THIRD:
        return None
    first, middle, last = np.array_split(batches.depth, THIRD)
    times = np.array_split(batches.released, THIRD)
    passed = float(times[2].mean() - times[0].mean())
    if passed < A_MOMENT:
        return None
    return Trend(_mean(first), _mean(middle), _mean(last), (_mean(last) - _mean(first)) / passed)
