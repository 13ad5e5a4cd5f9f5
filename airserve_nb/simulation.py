"""The batching policy under a virtual clock: what loads would do that this machine can't make.

:func:`simulate` drives the very same :class:`~airserve_nb.batching.policy.BatchQueue` as the server does, one for
each replica, with a model of which only the time is known that a batch of so many rows takes.

What is modelled: the policy, exactly; one model a replica, which predicts one batch at a time and takes the next one
at the moment it is free; and the routing, by the number of requests that each replica has in it, waiting or being
predicted, known at once and exactly. Ray Serve's own router picks two replicas at random and takes the one
with fewer (``routing="two_choices"``); its fast ingress, HAProxy, takes the one with the fewest of all, in turn where
several have as few (``"least_busy"``). What is not modelled: clients that give up, full queues, failures, cores
that replicas share, and the time that HTTP and encoding take, unless it is given as ``overhead_ms``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from airserve_nb._virtual_clock import Log, Routing, run
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import OptionError
from airserve_nb.service_time import timer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Simulation", "check_overhead", "inoue_bound", "simulate"]

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
            f"{self.requests} requests at {self.requests_per_s:.4g}/s on {_replicas(self.replicas)}: mean {self.mean_ms:.1f} ms"
            f"{', ' if known else ''}{known}, {self.mean_batch_size:.1f} requests a batch, models busy {self.utilisation:.0%}."
        )

    def __repr__(self) -> str:
        return f"<Simulation: {self}>"


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def simulate(  # noqa: PLR0913 - the parameters of a model, all but two of them optional
    service_time: Any,
    rate: float | Sequence[float] | Floats,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.0,
    *,
    replicas: int = 1,
    requests: int = 100_000,
    seed: int = 0,
    overhead_ms: float = 0.0,
    routing: Routing = "two_choices",
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
    routing
        Which replica gets a request; see the module.

    Raises
    ------
    OptionError
        When a number can't be, or the times do not ascend.

    Examples
    --------
    >>> simulate((0.020, 0.0002), rate=400, max_batch_size=32, requests=10_000)
    <Simulation: 10000 requests at 402.3/s on 1 replica: mean 32.9 ms, p50 32.9 ms, p90 41.5 ms, p99 44.1 ms, 8.7 requests a batch, models busy 100%.>
    """
    settings = BatchSettings(max_batch_size=max_batch_size, batch_wait_timeout_s=batch_wait_timeout_s)
    check_overhead(overhead_ms)
    _check_seed(seed)
    if routing not in get_args(Routing):
        raise OptionError(
            f"routing is {routing!r}, but must be one of {', '.join(map(repr, get_args(Routing)))}."
        )
    arrivals = _arrivals(rate, requests, seed)
    count, time_of, log = _whole("replicas", replicas), timer(service_time, seed), Log()
    run(arrivals.tolist(), settings, count, time_of, log, routing, seed)
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


def check_overhead(value: Any) -> None:
    """Refuse what is no overhead.

    Raises
    ------
    OptionError
        When ``value`` is not milliseconds, 0 or more.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise OptionError(f"overhead_ms is {value!r}, but must be milliseconds, 0 or more.")


def _check_seed(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise OptionError(f"seed is {value!r}, but must be a whole number, 0 or more.")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise OptionError(f"{name} is {value!r}, but must be a whole number, 1 or more.")
    return int(value)


def _arrivals(rate: Any, requests: int, seed: int) -> Floats:
    """Return the times at which requests arrive, ascending, in seconds."""
    if isinstance(rate, numbers.Real):
        if rate is True or not 0 < float(rate) < math.inf:
            raise OptionError(
                f"rate is {rate!r}, but must be requests a second, more than 0, or arrival times."
            )
        gaps = np.random.default_rng(seed).exponential(1 / float(rate), _whole("requests", requests))
        return np.cumsum(gaps)
    try:
        times = np.asarray(rate, dtype=float)
    except (TypeError, ValueError):
        raise OptionError(f"rate is {rate!r}, but must be requests a second, or arrival times.") from None
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise OptionError(
            "The arrival times in rate must be one or more finite numbers of seconds, ascending."
        )
    return times


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
