"""The batching policy under a virtual clock: what loads would do that this machine can't make.

:func:`simulate` drives the very same :class:`~airserve_nb.batching.policy.BatchQueue` as the server does, one for
each replica, with a model of which only the time is known that a batch of so many rows takes.

What is modelled: the policy, exactly; one model a replica, which predicts one batch at a time and takes the next one
at the moment it is free; and the routing of Ray Serve, which picks two replicas at random for each request and
takes the one with fewer requests in it, waiting or being predicted, as if their numbers were known at once and
exactly. (The fast ingress takes the least busy of all, which does at least as well.) What is not: clients
that give up, full queues, failures, the time that HTTP and encoding take, unless given as ``overhead_ms``, and cores
that replicas share.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from airserve_nb.batching.policy import BatchQueue, Waiting
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import OptionError
from airserve_nb.service_time import timer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Simulation", "inoue_bound", "simulate"]

Floats = npt.NDArray[np.float64]

SAMPLES_BEYOND = 1 - 1e-6
"""A percentile is given when at least one of the requests lies beyond it; less a hair for rounding."""


@dataclass(frozen=True, repr=False, eq=False)
class Simulation:
    """What became of each request and each batch; times in milliseconds."""

    latencies_ms: Floats
    """From arrival to answer, one a request, in the order of arrival."""
    batch_sizes: npt.NDArray[np.int64]
    """Requests in each batch, in the order of release."""
    release_reasons: dict[str, int]
    """Batches by release reason."""
    utilisation: float
    """Share of the time from the first arrival to the last answer in which a model predicted, averaged over the replicas."""
    elapsed_s: float
    """From the first arrival to the last answer, in seconds of the virtual clock."""
    max_batch_size: int
    batch_wait_timeout_s: float
    replicas: int

    @property
    def requests(self) -> int:
        """How many requests there were."""
        return len(self.latencies_ms)

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return self.requests / self.elapsed_s

    @property
    def mean_ms(self) -> float:
        """The mean latency."""
        return float(self.latencies_ms.mean())

    @property
    def mean_batch_size(self) -> float:
        """Requests a batch."""
        return float(self.batch_sizes.mean())

    def percentile(self, q: float) -> float | None:
        """Return the latency that ``q`` percent of the requests stay below; None where no request is beyond it."""
        if self.requests * (100 - q) / 100 < SAMPLES_BEYOND:
            return None
        return float(np.percentile(self.latencies_ms, q))

    @property
    def p50_ms(self) -> float | None:
        """The median latency; None of a single request."""
        return self.percentile(50)

    @property
    def p90_ms(self) -> float | None:
        """The 90th percentile; None below 10 requests."""
        return self.percentile(90)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile; None below 100 requests."""
        return self.percentile(99)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the latency against the share of requests that stay below it, up to p99.9."""
        from airserve_nb._model_figures import percentile_curve

        return percentile_curve(self.latencies_ms, ax=ax)

    def __str__(self) -> str:
        parts = {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}
        known = ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items() if value is not None)
        return (
            f"{self.requests} requests at {self.requests_per_s:.4g}/s on {self.replicas} replica(s): mean {self.mean_ms:.1f} ms"
            f"{', ' if known else ''}{known}, {self.mean_batch_size:.1f} requests a batch, models busy {self.utilisation:.0%}."
        )

    def __repr__(self) -> str:
        return f"<Simulation: {self}>"


def simulate(
    service_time: Any,
    rate: float | Sequence[float] | Floats,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.0,
    *,
    replicas: int = 1,
    requests: int = 100_000,
    seed: int = 0,
    overhead_ms: float = 0.0,
) -> Simulation:
    """Run the batching policy under a virtual clock; a million requests take some ten seconds.

    Parameters
    ----------
    service_time
        How long predict takes: a fitted ``ServiceTime`` (which scatters as what it was fitted to does), a pair
        ``(t, a)`` of seconds for T(b) = t + a·b with b rows, or any function of rows that returns seconds.
    rate
        Requests a second, as a Poisson process; or the times of the arrivals, ascending, in seconds.
    max_batch_size, batch_wait_timeout_s
        The limits of a batch, as of a deployment.
    replicas
        How many models there are.
    requests
        How many requests arrive; times that are given say that themselves. The queues are empty at the start, so
        near saturation, where a queue needs long to build up, more are needed.
    seed
        The same seed gives the same arrivals, and the same figures.
    overhead_ms
        Added to each latency: what HTTP, adapter and encoding take.

    Raises
    ------
    OptionError
        When a number can't be, or the times do not ascend.

    Examples
    --------
    >>> simulate((0.020, 0.0002), rate=400, max_batch_size=32, requests=10_000)
    <Simulation: 10000 requests at 400/s on 1 replica(s): mean 33.0 ms, p50 32.4 ms, p90 43.3 ms, p99 50.5 ms, 8.7 requests a batch, models busy 100%.>
    """
    settings = BatchSettings(max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_timeout_s)
    arrivals = _arrivals(rate, requests, seed)
    log = _Log()
    _run(arrivals.tolist(), settings, _whole("replicas", replicas), timer(service_time, seed), log, seed)
    order = np.array(log.members)
    latencies = np.empty(len(arrivals))
    latencies[order] = np.repeat(log.ended, log.sizes) - arrivals[order]
    elapsed_s = max(log.ended) - float(arrivals[0])
    return Simulation(
        latencies_ms=latencies * 1e3 + overhead_ms,
        batch_sizes=np.array(log.sizes),
        release_reasons=log.reasons,
        utilisation=log.busy_s / (elapsed_s * replicas) if elapsed_s else 1.0,
        elapsed_s=elapsed_s,
        max_batch_size=max_batch_size,
        batch_wait_timeout_s=float(batch_wait_timeout_s),
        replicas=replicas,
    )


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} is {value!r}, but must be a whole number, 1 or more.")
    return value


def _arrivals(rate: float | Sequence[float] | Floats, requests: int, seed: int) -> Floats:
    if isinstance(rate, int | float):
        if not 0 < rate < math.inf:
            raise OptionError(
                f"rate is {rate!r}, but must be requests a second, more than 0, or arrival times."
            )
        gaps = np.random.default_rng(seed).exponential(1 / rate, _whole("requests", requests))
        return np.cumsum(gaps)
    times = np.asarray(rate, dtype=float)
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise OptionError(
            "The arrival times in rate must be one or more finite numbers of seconds, ascending."
        )
    return times


@dataclass
class _Log:
    """What is kept of the batches."""

    members: list[int] = field(default_factory=list)
    """The requests' numbers, batch by batch."""
    sizes: list[int] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    busy_s: float = 0.0


class _Replica:
    """One queue and one model."""

    __slots__ = ("busy", "free_since", "inside", "last_size", "log", "next_at", "queue", "time_of")

    def __init__(self, settings: BatchSettings, time_of: Callable[[int], float], log: _Log) -> None:
        self.queue = BatchQueue(settings)
        self.time_of = time_of
        self.log = log
        self.busy = False
        self.free_since = 0.0
        self.inside = 0
        """Requests that wait or are being predicted."""
        self.last_size = 0
        self.next_at = math.inf
        """When something happens next, if nothing arrives."""

    def add(self, now: float, number: int) -> bool:
        """Take a request in; True when ``next_at`` is another than before."""
        self.inside += 1
        queue = self.queue
        queue.add(Waiting(now, None, 1, number))
        if self.busy or self.next_at <= now:
            return False
        ready_at = queue.ready_at()
        assert ready_at is not None  # noqa: S101 - there is one in it
        next_at = max(now, ready_at)
        changed = next_at < self.next_at
        self.next_at = next_at
        return changed

    def step(self, now: float) -> None:
        """Let the model be free, if it was busy, and take the next batch, if one is ready."""
        if self.busy:
            self.busy = False
            self.inside -= self.last_size
            self.free_since = now
        release = self.queue.take(now, self.free_since)
        if release is None:
            ready_at = self.queue.ready_at()
            self.next_at = math.inf if ready_at is None else ready_at
            return
        members, log = release.members, self.log
        size = self.last_size = len(members)
        takes = self.time_of(size)
        self.busy = True
        self.next_at = now + takes
        log.members.extend([member.payload for member in members])
        log.sizes.append(size)
        log.ended.append(self.next_at)
        log.reasons[release.reason] = log.reasons.get(release.reason, 0) + 1
        log.busy_s += takes


def _run(
    arrivals: list[float],
    settings: BatchSettings,
    count: int,
    time_of: Callable[[int], float],
    log: _Log,
    seed: int,
) -> None:
    """Let all requests arrive and be answered."""
    replicas = [_Replica(settings, time_of, log) for _ in range(count)]
    choose = _router(replicas, seed)
    events: list[tuple[float, int]] = []
    numbers = {id(replica): number for number, replica in enumerate(replicas)}

    def happen() -> None:
        now, number = heapq.heappop(events)
        replica = replicas[number]
        if replica.next_at == now:  # or a full batch left before its wait was over
            replica.step(now)
            if replica.next_at < math.inf:
                heapq.heappush(events, (replica.next_at, number))

    for number, time in enumerate(arrivals):
        # Requests that arrive at the same moment as a model is free ride along.
        while events and events[0][0] < time:
            happen()
        replica = choose()
        if replica.add(time, number):
            heapq.heappush(events, (replica.next_at, numbers[id(replica)]))
    while events:
        happen()


def _router(replicas: list[_Replica], seed: int) -> Callable[[], _Replica]:
    """Return the function that chooses a replica: of two picked at random the one with fewer requests."""
    count = len(replicas)
    if count == 1:
        return lambda: replicas[0]
    pick = random.Random(seed).random  # noqa: S311 - a simulation's

    def choose() -> _Replica:
        first, other = int(pick() * count), int(pick() * (count - 1))
        one, two = replicas[first], replicas[other + (other >= first)]
        return one if one.inside <= two.inside else two

    return choose


def inoue_bound(rate: float, fixed_s: float, per_row_s: float) -> float:
    """Return an upper bound of the mean latency, in seconds, that is close to the mean itself.

    For Poisson arrivals, a wait of 0, no limit of the batch size, and T(b) = fixed_s + per_row_s · b: the smaller of the
    two closed forms of Y. Inoue, "Queueing analysis of GPU-based inference servers with dynamic batching: A
    closed-form characterization", Performance Evaluation 147 (2021), arXiv:1912.06322.

    Parameters
    ----------
    rate
        Requests a second, less than 1 / per_row_s.

    Examples
    --------
    >>> [round(inoue_bound(rate, 0.020, 0.0002) * 1e3, 2) for rate in (400, 1000)]
    [32.82, 37.73]
    """
    load = rate * per_row_s
    if not 0 <= load < 1:
        raise OptionError(
            f"At {rate!r} requests/s and {per_row_s!r} s a row a batch without limit grows for ever; the rate "
            "must be less than 1 / per_row_s."
        )
    waits = rate * fixed_s
    few = (per_row_s + fixed_s) / (2 * (1 - load)) * (1 + 2 * waits + (1 - waits) / (1 + load))
    many = 3 * fixed_s / (2 * (1 - load)) + per_row_s / 2 * (load + 2) / (1 - load**2)
    return min(few, many)
