"""How long predict takes for a batch of so many rows: the curve T(b) = t + a·b, fitted to the batches that ran.

The fit is robust, because a predict that shared its core with something else says nothing of the model: of the batches
of each size the median counts, and of the slopes between all pairs of medians their weighted median (Theil and
Sen's estimator), so that neither some slow batches nor some odd sizes move it. A pair weighs as much as it
tells: its distance, times the batches behind it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from airserve_nb.errors import FitError, OptionError
from airserve_nb.telemetry import BatchRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ServiceTime", "fit_service_time", "timer"]

Floats = npt.NDArray[np.float64]

FEWEST_BATCHES = 5
MOST_SIZES = 64
"""Neighbouring sizes are taken together when there are more: all pairs of them are looked at."""
RESAMPLES = 400
SPREAD = 200
"""So many quantiles describe how the times scatter about the curve."""
PAYS = 0.9
"""A larger batch stops paying where this share of the greatest throughput, 1/a rows a second, is reached."""


@dataclass(frozen=True, repr=False, eq=False)
class ServiceTime:
    """The time of a batch by its rows, T(b) = t + a·b; called with rows it returns seconds.

    Intervals are meant to hold the true value with a probability of 95 %. They are found by resampling (bootstrap) how
    the times scatter about the curve; of fewer than 20 batches they are too narrow, and hold it in some 85 %.
    """

    fixed_s: float
    """t: what a batch takes, however small it is; seconds."""
    per_row_s: float
    """a: what each row adds; seconds."""
    fixed_interval_s: tuple[float, float]
    per_row_interval_s: tuple[float, float]
    batches: int
    """How many batches it was fitted to."""
    points: tuple[tuple[float, float, int], ...]
    """What it was fitted to: rows, their median seconds, and how many batches that is the median of."""
    spread: tuple[float, ...]
    """Quantiles of measured over fitted time, ascending, each as likely as the others."""

    def __call__(self, rows: float) -> float:
        """Return how long a batch of ``rows`` takes, in seconds."""
        return self.fixed_s + self.per_row_s * rows

    def draw(self, rows: int, chance: random.Random) -> float:
        """Return how long one such batch took, at random, scattered as the measured ones were."""
        return self(rows) * chance.choice(self.spread)

    @property
    def pays_up_to(self) -> int | None:
        """Rows with which a batch reaches 90 % of the greatest throughput; None when there is no greatest one.

        Throughput is b/T(b), and its limit 1/a. Beyond, a batch that is twice as large gains some 5 % and no more.
        """
        if self.per_row_s <= 0:
            return None
        # b·a / (t + a·b) = share; a hair less, so that rounding does not add a row.
        return max(1, math.ceil(PAYS / (1 - PAYS) * self.fixed_s / self.per_row_s - 1e-9))

    @property
    def largest(self) -> float:
        """Rows of the largest batches that were measured; beyond, the curve is a guess."""
        return self.points[-1][0]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the curve, its confidence, and the points that it was fitted to."""
        from airserve_nb._model_figures import service_time_curve

        return service_time_curve(self, ax=ax)

    def __str__(self) -> str:
        low, high = (1e3 * bound for bound in self.fixed_interval_s)
        row_low, row_high = (1e3 * bound for bound in self.per_row_interval_s)
        curve = (
            f"A batch takes {1e3 * self.fixed_s:.3g} ms ({low:.3g} to {high:.3g}) and {1e3 * self.per_row_s:.3g} ms "
            f"({row_low:.3g} to {row_high:.3g}) a row"
        )
        rows = self.pays_up_to
        if rows is None:
            return f"{curve}, so the larger it is, the better."
        beyond = f", beyond the largest that was measured ({self.largest:g})" if rows > self.largest else ""
        return f"{curve}; it stops paying at {rows} rows{beyond}."

    def __repr__(self) -> str:
        return f"<ServiceTime: {self}>"


def fit_service_time(batches: pd.DataFrame | Iterable[BatchRecord], *, seed: int = 0) -> ServiceTime:
    """Fit T(b) = t + a·b, with b the rows of a batch, to the batches that ran.

    Parameters
    ----------
    batches
        Records, or a frame with the columns ``rows`` and ``predict_ms``, as ``Service.batches()`` and
        ``ProbeResult.batches`` are. Failed calls do not count, where a column ``error`` tells them.
    seed
        The same seed gives the same intervals.

    Raises
    ------
    FitError
        When the batches don't allow it: fewer than five, or all of one size; or when they are none.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [1, 2, 4, 8, 16]
    >>> fit_service_time(pd.DataFrame({"rows": rows, "predict_ms": [20 + 2 * b for b in rows]}))
    <ServiceTime: A batch takes 20 ms (20 to 20) and 2 ms (2 to 2) a row; it stops paying at 90 rows, beyond the largest that was measured (16).>
    """
    rows, seconds = _measured(batches)
    if len(rows) < FEWEST_BATCHES:
        raise FitError(
            f"There are {len(rows)} batches with rows and predict time, too few for a curve; run {FEWEST_BATCHES} or more."
        )
    sizes, group = _groups(rows)
    if len(sizes) < 2:  # noqa: PLR2004 - a line has two points
        raise FitError(
            f"All {len(rows)} batches have {rows[0]:g} rows, so what a row adds can't be told; let the load or "
            "max_batch_size vary."
        )
    counts = np.bincount(group)
    medians = _medians(seconds[None, :], group, len(sizes))
    fixed_s, per_row_s = (float(one[0]) for one in _line(sizes, medians, counts))
    ratios = seconds / (fixed_s + per_row_s * rows)
    chosen = np.random.default_rng(seed).integers(len(rows), size=(RESAMPLES, len(rows)))
    resampled = _medians((fixed_s + per_row_s * rows) * ratios[chosen], group, len(sizes))
    again = _line(sizes, resampled, counts)
    intervals = [tuple(map(float, np.quantile(values, (0.025, 0.975)))) for values in again]
    return ServiceTime(
        fixed_s=fixed_s,
        per_row_s=per_row_s,
        fixed_interval_s=(intervals[0][0], intervals[0][1]),
        per_row_interval_s=(intervals[1][0], intervals[1][1]),
        batches=len(rows),
        points=tuple(zip(sizes.tolist(), medians[0].tolist(), counts.tolist(), strict=True)),
        spread=tuple(np.quantile(ratios, (np.arange(SPREAD) + 0.5) / SPREAD).tolist()),
    )


def _measured(batches: pd.DataFrame | Iterable[BatchRecord]) -> tuple[Floats, Floats]:
    """Return rows and seconds of the calls of predict that succeeded."""
    if hasattr(batches, "columns"):
        frame: Any = batches
        missing = [name for name in ("rows", "predict_ms") if name not in frame.columns]
        if missing:
            raise FitError(
                f"The frame of batches has no column {missing[0]!r}; give that of service.batches()."
            )
        rows = frame["rows"].astype(float).to_numpy()
        times = frame["predict_ms"].astype(float).to_numpy()
        fine = (
            frame["error"].isna().to_numpy() if "error" in frame.columns else np.ones(len(rows), dtype=bool)
        )
    else:
        records = _records(batches)
        rows = np.array([record.rows for record in records], dtype=float)
        times = np.array([record.predict_ms for record in records], dtype=float)
        fine = np.array([record.error is None for record in records], dtype=bool)
    rows, times, fine = np.asarray(rows, float), np.asarray(times, float), np.asarray(fine, bool)
    fine = fine & np.isfinite(rows) & np.isfinite(times) & (rows >= 1) & (times > 0)
    return rows[fine], times[fine] / 1e3


def _records(batches: Any) -> list[Any]:
    records = list(batches) if isinstance(batches, Iterable) and not isinstance(batches, str) else [batches]
    for one in records:
        if not hasattr(one, "rows") or not hasattr(one, "predict_ms"):
            raise FitError(
                f"A curve is fitted to batches, and {one!r} is none; give those of service.batches() or of a probe's "
                "result.batches."
            )
    return records


def _groups(rows: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the sizes, ascending, and to which of them each batch belongs."""
    sizes, group = np.unique(rows, return_inverse=True)
    if len(sizes) <= MOST_SIZES:
        return sizes, group
    # As many batches in each, as far as equal ones stay together.
    place = np.searchsorted(np.sort(rows), rows) * MOST_SIZES // len(rows)
    names, group = np.unique(place, return_inverse=True)
    return np.array([np.median(rows[group == number]) for number in range(len(names))]), group


def _medians(seconds: Floats, group: npt.NDArray[np.int64], count: int) -> Floats:
    """Return the median of each group, for each row of ``seconds``."""
    return np.stack([np.median(seconds[:, group == number], axis=1) for number in range(count)], axis=1)


def _line(sizes: Floats, medians: Floats, counts: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return fixed part and slope of the line through each row of ``medians``; neither is less than 0."""
    left, right = np.triu_indices(len(sizes), 1)
    distance = sizes[right] - sizes[left]
    weight = distance * np.sqrt(np.minimum(counts[left], counts[right]))
    slope = _weighted_median((medians[:, right] - medians[:, left]) / distance, weight).clip(0)
    fixed = _weighted_median(medians - slope[:, None] * sizes, counts.astype(float))
    # Without a fixed part, what a row takes is all there is.
    through_zero = _weighted_median(medians / sizes, counts * sizes)
    return fixed.clip(0), np.where(fixed < 0, through_zero, slope)


def _weighted_median(values: Floats, weights: Floats) -> Floats:
    """Return the middle of each row of ``values`` by weight."""
    order = np.argsort(values, axis=1)
    reached = np.cumsum(weights[order], axis=1)
    middle = (reached >= reached[:, -1:] / 2).argmax(axis=1)
    chosen: Floats = np.take_along_axis(values, np.take_along_axis(order, middle[:, None], 1), 1)[:, 0]
    return chosen


def timer(service_time: Any, seed: int = 0) -> Callable[[int], float]:
    """Return a function of rows that gives the seconds which the next batch takes.

    Parameters
    ----------
    service_time
        A fitted :class:`ServiceTime` (its times scatter), a pair of seconds ``(t, a)`` for t + a·rows, or any function
        of rows that returns seconds.
    seed
        For what scatters.

    Raises
    ------
    OptionError
        When it is none of these, or a time is not more than 0.
    """
    if isinstance(service_time, ServiceTime):
        chance = random.Random(seed)  # noqa: S311 - a simulation's
        return lambda rows: service_time.draw(rows, chance)
    if not callable(service_time):
        return _linear(service_time)
    known: dict[int, float] = {}

    def remembered(rows: int) -> float:
        if rows not in known:
            known[rows] = _seconds(service_time(rows), rows)
        return known[rows]

    return remembered


def _linear(pair: Any) -> Callable[[int], float]:
    try:
        fixed_s, per_row_s = map(float, pair)
    except (TypeError, ValueError):
        raise OptionError(
            f"service_time is {pair!r}, but must be a fitted ServiceTime, a pair of seconds (t, a) for "
            "t + a·rows, or a function of rows."
        ) from None
    if per_row_s < 0:
        raise OptionError(f"service_time is {pair!r}, but what a row adds can't be less than 0 s.")
    _seconds(fixed_s + per_row_s, 1)
    return lambda rows: fixed_s + per_row_s * rows


def _seconds(value: Any, rows: int) -> float:
    if not isinstance(value, int | float | np.floating) or not 0 < value < math.inf:
        raise OptionError(
            f"By service_time a batch of {rows} rows takes {value!r}, but it must be seconds, more than 0."
        )
    return float(value)
