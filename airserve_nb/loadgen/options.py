"""What a probe was asked for, checked: which requests, when, how many at once."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.limits import MOST_REQUESTS

__all__ = ["LoadPlan", "ProbeOptions", "read_options", "seconds"]

HAIR = 1e-9
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|m|h)?\s*")
Floats = npt.NDArray[np.float64]


class ProbeOptions(TypedDict, total=False):
    """The options of ``probe``; see there."""

    requests: int | None
    concurrency: int | None
    rate: float | Iterable[float] | None
    duration: float | str | None
    arrivals: str | Iterable[float]
    seed: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How a probe's requests were planned."""

    kind: Literal["burst", "closed", "open"]
    """``burst``: all at once. ``closed``: each answer lets the next one go. ``open``: at planned times."""
    timeout_s: float = 30.0
    """How long one request may take, in seconds from its sending."""
    requests: int | None = None
    """How many; None where times or a duration decide."""
    concurrency: int | None = None
    """Requests in flight at most; None: no limit."""
    duration_s: float | None = None
    """How long requests are sent, each step of rates for itself."""
    rates: tuple[float, ...] = ()
    """Requests a second, one a step; empty where no rate was given."""
    arrivals: Literal["poisson", "constant", "given"] | None = None
    """How the times were chosen; None where there are none."""
    seed: int = 0
    """Of the Poisson arrivals."""
    times: tuple[float, ...] = ()
    """The times, in seconds, where they were given."""

    def planned(self) -> tuple[Floats, npt.NDArray[np.int64]] | None:
        """Return each request's planned time in seconds, ascending, and its step; None for a closed loop."""
        if self.kind == "closed":
            return None
        if self.kind == "burst":
            times = np.zeros(self.requests or 0)
        elif self.arrivals == "given":
            times = np.sort(np.array(self.times))
        else:
            parts = [self._step(number, rate) for number, rate in enumerate(self.rates)]
            starts = np.arange(len(parts)) * (self.duration_s or 0.0)
            times = np.concatenate([start + part for start, part in zip(starts, parts, strict=True)])
            return times, np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return times, np.zeros(len(times), dtype=np.int64)

    def _step(self, number: int, rate: float) -> Floats:
        """Return the times of one step, from its start."""
        count = self.requests
        if self.arrivals == "constant":
            # 1.1 s at 10 a second are 11 requests, though 1.1 * 10 is a hair more.
            return np.arange(count or math.ceil((self.duration_s or 0.0) * rate - HAIR)) / rate
        # Each step has a stream of its own: another first rate does not change the second one's arrivals.
        random = np.random.default_rng([self.seed, number])
        if count is not None:
            return np.cumsum(random.exponential(1 / rate, count))
        expected = (self.duration_s or 0.0) * rate
        many = int(expected + 10 * math.sqrt(expected) + 20)  # ten standard deviations more than are needed
        times = np.cumsum(random.exponential(1 / rate, many))
        return times[times < (self.duration_s or 0.0)]

    def in_words(self) -> str:
        """Say it in a few words, such as ``open loop, 200 req/s (Poisson) for 10 s``."""
        limit = "" if self.concurrency is None else f", at most {self.concurrency} in flight"
        if self.kind == "burst":
            return "all at once"
        if self.kind == "closed":
            span = "" if self.duration_s is None else f" for {self.duration_s:g} s"
            return f"closed loop, {self.concurrency} in flight{span}"
        if self.arrivals == "given":
            return f"open loop, at given times{limit}"
        rates = " then ".join(f"{rate:g}" for rate in self.rates)
        span = (
            "" if self.duration_s is None else f" for {self.duration_s:g} s{' each' * (len(self.rates) > 1)}"
        )
        name = "Poisson" if self.arrivals == "poisson" else "constant"
        return f"open loop, {rates} req/s ({name}){span}{limit}"


def read_options(
    *,
    requests: int | None = None,
    concurrency: int | None = None,
    rate: float | Iterable[float] | None = None,
    duration: float | str | None = None,
    arrivals: str | Iterable[float] = "poisson",
    seed: int = 0,
    timeout_s: float = 30,
) -> LoadPlan:
    """Check the options of ``probe``, alone and together.

    Raises
    ------
    ProbeError
        For a value that can't be, and for options that contradict each other.
    """
    for name, value in (("requests", requests), ("concurrency", concurrency)):
        if value is not None:
            _check_whole(name, value)
    _check_positive("timeout_s", timeout_s, "seconds")
    duration_s = None if duration is None else seconds("duration", duration)
    if duration_s is not None and requests is not None:
        raise ProbeError(
            f"There are both requests={requests} and duration={duration!r}, but either ends the probe; leave one out."
        )
    # A whole number of NumPy's has no JSON form.
    requests, concurrency = (None if one is None else int(one) for one in (requests, concurrency))
    limits: dict[str, Any] = {"timeout_s": float(timeout_s), "concurrency": concurrency}
    if rate is not None:
        return _open(rate, requests, duration_s, arrivals, seed, limits)
    if not isinstance(arrivals, str):
        if requests is not None or duration_s is not None:
            raise ProbeError("The arrivals are given as times, so leave out requests and duration.")
        times = _times(arrivals)
        return LoadPlan("open", arrivals="given", times=times, requests=len(times), **limits)
    return _without_times(requests, duration, duration_s, arrivals, limits)


def _without_times(
    requests: int | None, duration: Any, duration_s: float | None, arrivals: str, limits: dict[str, Any]
) -> LoadPlan:
    """Plan a burst or a closed loop."""
    concurrency = limits["concurrency"]
    if arrivals != "poisson":
        raise ProbeError(f"arrivals is {arrivals!r} and there is no rate; give one too, such as rate=100.")
    if concurrency is None and duration_s is not None:
        raise ProbeError(
            f"There is duration={duration!r} alone; say how to send, with rate=100 (requests a second) or concurrency=8."
        )
    kind: Literal["burst", "closed"] = "burst" if concurrency is None else "closed"
    return LoadPlan(
        kind, requests=None if duration_s else _at_most(requests or 10), duration_s=duration_s, **limits
    )


def _open(
    rate: float | Iterable[float],
    requests: int | None,
    duration_s: float | None,
    arrivals: str | Iterable[float],
    seed: int,
    limits: dict[str, Any],
) -> LoadPlan:
    rates = _rates(rate)
    if not isinstance(arrivals, str):
        raise ProbeError("There are both a rate and the times of arrivals; leave one out.")
    if arrivals not in {"poisson", "constant"}:
        raise ProbeError(f'arrivals is {arrivals!r}; give "poisson", "constant" or a list of seconds.')
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ProbeError(f"seed is {seed!r}; give a whole number from 0 on.")
    if len(rates) > 1 and duration_s is None:
        raise ProbeError('rate has several steps, so say how long each takes, such as duration="10s".')
    if duration_s is None:
        requests = _at_most(requests or 10)
    else:
        _at_most(math.ceil(sum(rates) * duration_s))
    kind: Literal["poisson", "constant"] = "poisson" if arrivals == "poisson" else "constant"
    made = LoadPlan(
        "open", requests=requests, duration_s=duration_s, rates=rates, arrivals=kind, seed=int(seed), **limits
    )
    planned = made.planned()
    if planned is None or not len(planned[0]):
        raise ProbeError(
            f"At {sum(rates):g} req/s no request comes within {duration_s:g} s; give a longer duration."
        )
    return made


def seconds(name: str, value: Any) -> float:
    """Read a duration: seconds, or a text such as ``"10s"``, ``"500ms"`` or ``"2m"``.

    Raises
    ------
    ProbeError
        When it is neither.
    """
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None or not float(match[1]):
            raise ProbeError(f'{name} is {value!r}; give seconds, or a text such as "10s", "500ms" or "2m".')
        return float(match[1]) * _UNITS[match[2] or "s"]
    _check_positive(name, value, "seconds")
    return float(value)


def _rates(rate: Any) -> tuple[float, ...]:
    if isinstance(rate, np.ndarray):
        rate = rate.tolist()  # of no dimension: a number
    rates = list(rate) if isinstance(rate, Iterable) and not isinstance(rate, str) else [rate]
    if not rates:
        raise ProbeError(
            "rate is an empty list; give requests a second, such as rate=100 or rate=[50, 100, 200]."
        )
    for one in rates:
        _check_positive("rate", one, "requests a second")
    return tuple(map(float, rates))


def _times(arrivals: Iterable[Any]) -> tuple[float, ...]:
    if not isinstance(arrivals, Iterable):
        raise ProbeError(f'arrivals is {arrivals!r}; give "poisson", "constant" or a list of seconds.')
    # One more than may be: an endless iterator must end.
    times = list(itertools.islice(arrivals, MOST_REQUESTS + 1))
    if not times:
        raise ProbeError("arrivals is an empty list; give at least one time, in seconds from the start.")
    _at_most(len(times))
    for one in times:
        if isinstance(one, bool) or not isinstance(one, int | float | np.number) or not 0 <= one < math.inf:
            raise ProbeError(f"arrivals has {one!r}; give seconds from the start, 0 or more.")
    return tuple(map(float, times))


def _at_most(count: int) -> int:
    if count > MOST_REQUESTS:
        raise ProbeError(f"That is {count:,} requests; a probe can hold {MOST_REQUESTS:,}, so ask for fewer.")
    return count


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ProbeError(f"{name} is {value!r}; give a whole number from 1 on.")


def _check_positive(name: str, value: Any, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise ProbeError(f"{name} is {value!r}; give a number of {unit} above 0.")
