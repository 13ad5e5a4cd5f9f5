"""The search of the capacity planning: which settings are simulated, each of them once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from airserve_nb.errors import OptionError
from airserve_nb.service_time import timer
from airserve_nb.simulation import Simulation, check_overhead, simulate

__all__ = ["MOST_REPLICAS", "CapacityPoint", "Search"]

ONE_REPLICA_REQUESTS = 20_000
ALL_REPLICAS_REQUESTS = 100_000
A_REPLICA_AT_LEAST = 1_000
"""Of a simulation of many replicas: so many requests each, or their queues would still be filling up at its end."""
MOST_REQUESTS = 400_000
WARM_UP = 0.2
"""Share of the requests that are left out at the beginning, when the queues are empty."""
MOST_REPLICAS = 100_000
FINALISTS = 3
"""So many batch sizes, the best ones by one replica, are simulated with all replicas."""
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


class Search:
    """Simulates settings, each once, and remembers them."""

    def __init__(self, service_time: Any, rate: float, p99_ms: float, overhead_ms: float, seed: int) -> None:
        for name, value in (("rate", rate), ("p99_ms", p99_ms)):
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float | np.number)
                or not 0 < value < math.inf
            ):
                raise OptionError(f"{name} is {value!r}, but must be a number, more than 0.")
        check_overhead(overhead_ms)
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
        near = [size for size, enough in found.items() if enough == count]
        wholes = []
        for size in sorted(near, key=lambda size: self._cost(self._one(size, count)))[:FINALISTS]:
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
        """Return a point of another limit if no batch comes to the smaller of the two: all goes the same way then."""
        for (limit, replicas, all_of_them), point in self.points.items():
            untouched = point.largest_batch < limit or limit > size
            if (replicas, all_of_them) == (count, whole) and untouched and point.largest_batch <= size:
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
