"""How many replicas a load needs, and with which settings: a search over simulations.

The search looks at *one* replica under a Poisson share of the load, rate/n: what it would get if requests were dealt
out at random. Serve sends each to the one of two that holds fewer, which evens the shares out: p99 is a few percent
lower (and the median higher, for a replica that holds few is often one whose batch has only just begun). So what is
found is where the second step begins: all replicas are simulated, with Serve's routing, fewer and fewer of them as
long as the latency holds, or more until it does. (The fast ingress, which asks all replicas, does as well or better.)

There is no batch_wait_timeout_s in the search. Where replicas are as few as can be their models are nearly always
busy, and a wait only acts while a model is idle.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airserve_nb._capacity_search import MOST_REPLICAS, CapacityPoint, Search
from airserve_nb.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CapacityPlan", "CapacityPoint", "plan_capacity"]


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
        When no number of replicas can keep the limit, because even a lone request takes longer, or it takes more than
        100,000.

    Examples
    --------
    >>> plan = plan_capacity((0.020, 0.0002), rate=2_000, p99_ms=80)
    >>> plan.settings
    {'num_replicas': 1, 'max_batch_size': 128, 'batch_wait_timeout_s': 0.0}
    """
    search = Search(service_time, rate, p99_ms, overhead_ms, seed)
    sizes = [2**power for power in range(_checked(largest_batch).bit_length())]
    best = search.fewest(sizes)
    if best is None:
        raise OptionError(_why_none(search))
    search.look_around(best)
    points = sorted(search.points.values(), key=lambda one: (one.max_batch_size, one.replicas, one.whole))
    return CapacityPlan(best=best, points=tuple(points), rate=float(rate), p99_ms=float(p99_ms))


def _why_none(search: Search) -> str:
    alone_ms = search.alone_ms()
    if alone_ms > search.limit_ms:
        return (
            f"A p99 of {search.limit_ms:g} ms can't be kept: of lone requests it is {alone_ms:.3g} ms already; "
            "allow more, or make the model faster."
        )
    return (
        f"{search.rate:g} requests/s with p99 at most {search.limit_ms:g} ms take more than {MOST_REPLICAS:,} replicas; "
        "ask for less, allow more time, or make the model faster."
    )


def _checked(largest_batch: Any) -> int:
    if (
        isinstance(largest_batch, bool)
        or not isinstance(largest_batch, numbers.Integral)
        or largest_batch < 1
    ):
        raise OptionError(f"largest_batch is {largest_batch!r}, but must be a whole number, 1 or more.")
    return int(largest_batch)
