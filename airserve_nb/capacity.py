"""How many replicas a load needs, and with which settings: a search over simulations.

The search looks at *one* replica under a Poisson share of the load, rate/n: what it would get if requests were dealt
out at random. Serve sends each to the one of two that holds fewer, which evens the shares out: p99 is a few percent
lower (and the median higher, for a replica that holds few is often one whose batch has only just begun). So what is
found is where the second step begins: all replicas are simulated, with Serve's routing, fewer and fewer of them as
long as the latency holds, or more until it does.

There is no batch_wait_timeout_s in the search. Where replicas are as few as can be their models are nearly always busy, and
a wait only acts while a model is idle.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from airserve_nb.errors import OptionError
from airserve_nb.service_time import timer
from airserve_nb.simulation import Simulation, simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CapacityPlan", "CapacityPoint", "plan_capacity"]

ONE_REPLICA_REQUESTS = 20_000
ALL_REPLICAS_REQUESTS = 100_000
A_REPLICA_AT_LEAST = 1_000
"""Of a simulation of many replicas: so many requests each, or their queues would still be filling up at its end."""
MOST_REQUESTS = 400_000
WARM_UP = 0.2
"""Share of the requests that are left out at the beginning, when the queues are empty."""
MOST_REPLICAS = 100_000
CURVE = (0.9, 0.95, 1.05, 1.1, 1.25, 1.5)
"""Numbers of replicas, as parts of the best one, that show what one more or less would do."""
SAMPLES = 400
"""Times of a batch that are drawn to know its mean."""


@dataclass(frozen=True)
class CapacityPoint:
    """One simulated setting."""

    replicas: int
    max_batch_size: int
    p50_ms: float
    p99_ms: float
    utilisation: float
    """Share of the time in which the models predict."""
    mean_batch_size: float
    """Requests a batch."""
    largest_batch: int
    """Requests in the largest batch."""
    whole: bool
    """Whether all replicas were simulated, with Serve's routing; else one of them, under its share of the load."""


@dataclass(frozen=True, repr=False)
class CapacityPlan:
    """The cheapest setting that keeps the limit, and what else was looked at."""

    best: CapacityPoint
    """Fewest replicas; among the batch sizes that do with as few, the one with the lowest p99, and the smaller where that is as good."""
    points: tuple[CapacityPoint, ...]
    """Every simulated setting, by batch size and replicas."""
    rate: float
    p99_ms: float
    """The limit that was asked for."""

    @property
    def replicas(self) -> int:
        """How many are needed."""
        return self.best.replicas

    @property
    def settings(self) -> dict[str, Any]:
        """What to give ``deploy()``."""
        return {
            "num_replicas": self.best.replicas,
            "max_batch_size": self.best.max_batch_size,
            "batch_wait_timeout_s": 0.0,
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw p99 against the number of replicas, with the limit and the choice."""
        from airserve_nb._model_figures import capacity_curve

        return capacity_curve(self, ax=ax)

    def __str__(self) -> str:
        best = self.best
        noun = "replica" if best.replicas == 1 else "replicas"
        return (
            f"{self.rate:g} requests/s with p99 at most {self.p99_ms:g} ms: {best.replicas} {noun} with "
            f"max_batch_size={best.max_batch_size}, p99 {best.p99_ms:.1f} ms, {best.mean_batch_size:.1f} requests a batch, "
            f"models busy {best.utilisation:.0%}."
        )

    def __repr__(self) -> str:
        return f"<CapacityPlan: {self}>"


def plan_capacity(
    service_time: Any,
    rate: float = 50_000,
    p99_ms: float = 100,
    *,
    largest_batch: int = 512,
    overhead_ms: float = 0.0,
    seed: int = 0,
) -> CapacityPlan:
    """Find the fewest replicas, and the settings, with which 99 of 100 requests are answered in time.

    Parameters
    ----------
    service_time
        As in :func:`~airserve_nb.simulation.simulate`.
    rate
        Requests a second, Poisson arrivals.
    p99_ms
        The limit, in milliseconds.
    largest_batch
        ``max_batch_size`` is searched among the powers of two up to it.
    overhead_ms
        Added to each latency: what HTTP, adapter and encoding take.
    seed
        The same seed gives the same plan.

    Raises
    ------
    OptionError
        When no number of replicas can keep the limit, because even a lone request takes longer.

    Examples
    --------
    >>> plan = plan_capacity((0.020, 0.0002), rate=2_000, p99_ms=80)
    >>> plan.settings
    {'num_replicas': 1, 'max_batch_size': 128, 'batch_wait_timeout_s': 0.0}
    """
    search = _Search(service_time, rate, p99_ms, overhead_ms, seed)
    sizes = [2**power for power in range(_checked(largest_batch).bit_length())]
    best = search.fewest(sizes)
    if best is None:
        raise OptionError(
            f"A p99 of {p99_ms:g} ms can't be kept: of lone requests it is {search.alone_ms():.3g} ms already; "
            "allow more, or make the model faster."
        )
    search.look_around(best)
    points = sorted(search.points.values(), key=lambda one: (one.max_batch_size, one.replicas, one.whole))
    return CapacityPlan(best=best, points=tuple(points), rate=float(rate), p99_ms=float(p99_ms))


def _checked(largest_batch: Any) -> int:
    if isinstance(largest_batch, bool) or not isinstance(largest_batch, int) or largest_batch < 1:
        raise OptionError(f"largest_batch is {largest_batch!r}, but must be a whole number, 1 or more.")
    return largest_batch


class _Search:
    """Simulates settings, each once, and remembers them."""

    def __init__(self, service_time: Any, rate: float, p99_ms: float, overhead_ms: float, seed: int) -> None:
        for name, value in (("rate", rate), ("p99_ms", p99_ms)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise OptionError(f"{name} is {value!r}, but must be a number, more than 0.")
        self.service_time = service_time
        self.rate = rate
        self.limit_ms = p99_ms
        self.overhead_ms = overhead_ms
        self.seed = seed
        self.points: dict[tuple[int, int, bool], CapacityPoint] = {}

    def alone_ms(self) -> float:
        """Return p99 of requests that meet no other."""
        time_of = timer(self.service_time, self.seed)
        return float(np.percentile([time_of(1) for _ in range(SAMPLES)], 99)) * 1e3 + self.overhead_ms

    def fewest(self, sizes: list[int]) -> CapacityPoint | None:
        """Return the setting with the fewest replicas; None where none keeps the limit."""
        if self.alone_ms() > self.limit_ms:
            return None
        found: dict[int, int] = {}
        # Large batches first: where the time of a batch grows less than its size they need the fewest replicas.
        for size in reversed(sizes):
            enough = self._enough(size, min(found.values(), default=MOST_REPLICAS))
            if enough is not None:
                found[size] = enough
        if not found:
            return None
        count = min(found.values())
        wholes = []
        for size in [size for size, enough in found.items() if enough == count]:
            point = self._with_routing(size, count)
            wholes.append(point)
            if self._keeps(point):
                count = point.replicas
        return min(wholes, key=self._cost)

    def _cost(self, point: CapacityPoint) -> tuple[bool, int, float, int]:
        # Of batch sizes that are as good to a hundredth, the smaller: it bounds what an overload can do.
        return (
            not self._keeps(point),
            point.replicas,
            round(100 * point.p99_ms / self.limit_ms),
            point.max_batch_size,
        )

    def look_around(self, best: CapacityPoint) -> None:
        """Simulate some numbers of replicas about the best one, for the curve."""
        low = self._stable(best.max_batch_size)
        for factor in CURVE:
            count = round(best.replicas * factor)
            if count >= low:
                self._all(best.max_batch_size, count)

    def _enough(self, size: int, at_most: int) -> int | None:
        """Return how many replicas keep the limit, judged by one of them; None for more than ``at_most``."""
        low = self._stable(size)
        if low > at_most:
            return None
        if at_most < MOST_REPLICAS:
            return self._bisected(lambda count: self._one(size, count), low, at_most)
        high = low
        while not self._keeps(self._one(size, high)):
            if high >= MOST_REPLICAS:
                return None
            high *= 2
        return self._bisected(lambda count: self._one(size, count), max(low, high // 2), high)

    def _bisected(self, point_of: Callable[[int], CapacityPoint], low: int, high: int) -> int | None:
        """Return the smallest count between the two that keeps the limit; None where the largest does not."""
        if not self._keeps(point_of(high)):
            return None
        if low < high and not self._keeps(point_of(high - 1)):
            return high  # the usual case, of all batch sizes but the first
        while low < high:
            middle = (low + high) // 2
            if self._keeps(point_of(middle)):
                high = middle
            else:
                low = middle + 1
        return high

    def _with_routing(self, size: int, count: int) -> CapacityPoint:
        """Simulate all replicas, as few as keep the limit; look for them from ``count`` on."""
        high = count
        while not self._keeps(self._all(size, high)) and high < MOST_REPLICAS:
            high += 1 + high // 10
        low = self._stable(size) if high == count else count
        fewest = self._bisected(lambda number: self._all(size, number), min(low, high), high)
        return self._all(size, high if fewest is None else fewest)

    def _stable(self, size: int) -> int:
        """Return how many replicas it takes for no queue to grow for ever."""
        time_of = timer(self.service_time, self.seed)
        throughput = max(
            rows / float(np.mean([time_of(rows) for _ in range(SAMPLES)]))
            for rows in {1, size, max(1, size // 2)}
        )
        return max(1, math.floor(self.rate / throughput) + 1)

    def _keeps(self, point: CapacityPoint) -> bool:
        return point.p99_ms <= self.limit_ms

    def _one(self, size: int, count: int) -> CapacityPoint:
        return self._point(size, count, whole=False)

    def _all(self, size: int, count: int) -> CapacityPoint:
        return self._point(size, count, whole=True)

    def _same(self, size: int, count: int, whole: bool) -> CapacityPoint | None:
        """Return the point of a larger limit that no batch came to: with this limit all goes the same way."""
        for (larger, replicas, all_of_them), point in self.points.items():
            if (replicas, all_of_them) == (count, whole) and larger > size >= point.largest_batch:
                return point
        return None

    def _point(self, size: int, count: int, *, whole: bool) -> CapacityPoint:
        whole |= count == 1
        key = (size, count, whole)
        if key not in self.points and (same := self._same(*key)) is not None:
            self.points[key] = dataclasses.replace(same, max_batch_size=size)
        if key not in self.points:
            simulated = count if whole else 1
            wanted = ONE_REPLICA_REQUESTS if simulated == 1 else ALL_REPLICAS_REQUESTS
            run = simulate(
                self.service_time,
                self.rate * simulated / count,
                max_batch_size=size,
                replicas=simulated,
                requests=min(MOST_REQUESTS, max(wanted, A_REPLICA_AT_LEAST * simulated)),
                seed=self.seed,
                overhead_ms=self.overhead_ms,
            )
            self.points[key] = _point_of(run, count, whole=whole)
        return self.points[key]


def _point_of(run: Simulation, count: int, *, whole: bool) -> CapacityPoint:
    settled = run.latencies_ms[int(WARM_UP * run.requests) :]
    p50, p99 = np.percentile(settled, (50, 99))
    return CapacityPoint(
        replicas=count,
        max_batch_size=run.max_batch_size,
        p50_ms=float(p50),
        p99_ms=float(p99),
        utilisation=run.utilisation,
        mean_batch_size=run.mean_batch_size,
        largest_batch=int(run.batch_sizes.max()),
        whole=whole,
    )
