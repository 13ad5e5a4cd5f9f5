"""Pictures of what a model of the service says: latencies, the time of a batch, how many replicas a load needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from airserve_nb._figure_base import axes_or_new, strip_down

if TYPE_CHECKING:
    from airserve_nb.capacity import CapacityPlan
    from airserve_nb.service_time import ServiceTime

__all__ = ["capacity_curve", "percentile_curve", "service_time_curve"]

SIZE = (6.4, 4.0)
INK = "#4D5B66"
BLUE = "#0072B2"
ORANGE = "#D55E00"
AMBER = "#E69F00"
PERCENTILES = (0, 50, 90, 99, 99.9)


def percentile_curve(latencies_ms: npt.NDArray[np.float64], ax: Axes | None = None) -> Axes:
    """Draw the latency against the share of requests that stay below it.

    Parameters
    ----------
    latencies_ms
        One a request.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Its x axis is stretched towards 100 %, and ends where one request is left beyond.
    """
    ax = axes_or_new(ax, SIZE)
    highest = min(99.9, 100 - 100 / max(2, len(latencies_ms)))
    beyond = np.geomspace(100, 100 - highest, 400)
    ax.plot(_stretched(100 - beyond), np.percentile(latencies_ms, 100 - beyond), color=BLUE, lw=2)
    ticks = [q for q in PERCENTILES if q <= highest]
    ax.xaxis.set_major_locator(FixedLocator([float(_stretched(np.array(q))) for q in ticks]))
    ax.set_xticklabels(["min" if q == 0 else f"p{q:g}" for q in ticks])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("share of requests that stay below")
    ax.set_ylabel("latency (ms)")
    ax.set_title(f"Median latency {np.median(latencies_ms):.1f} ms", loc="left")
    strip_down(ax)
    return ax


def _stretched(percent: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Place percents so that each further nine takes as much room."""
    return -np.log10((100 - percent) / 100)


def service_time_curve(curve: ServiceTime, ax: Axes | None = None) -> Axes:
    """Draw the time of a batch by its rows: the points, as large as the batches behind them are many, and the line."""
    ax = axes_or_new(ax, SIZE)
    sizes, seconds, counts = (np.array(column) for column in zip(*curve.points, strict=True))
    rows = np.linspace(0, sizes.max() * 1.05, 50)
    # Both ends of both intervals together: no exact band, but one that the eye may trust.
    low = curve.fixed_interval_s[0] + curve.per_row_interval_s[0] * rows
    high = curve.fixed_interval_s[1] + curve.per_row_interval_s[1] * rows
    ax.fill_between(
        rows, low * 1e3, high * 1e3, color=BLUE, alpha=0.18, lw=0, label="95% intervals of t and a"
    )
    label = f"t + a·b = {1e3 * curve.fixed_s:.3g} ms + {1e3 * curve.per_row_s:.3g} ms · rows"
    ax.plot(rows, curve.fixed_s * 1e3 + curve.per_row_s * 1e3 * rows, color=BLUE, lw=2, label=label)
    area = 20 + 60 * np.sqrt(counts / counts.max())
    ax.scatter(
        sizes,
        seconds * 1e3,
        s=area,
        color=INK,
        edgecolors="white",
        lw=0.7,
        zorder=3,
        label="measured (median)",
    )
    limit = curve.pays_up_to
    if limit is not None and limit <= rows.max():
        ax.axvline(limit, color=ORANGE, linestyle="--", lw=1.2, label=f"stops paying at {limit} rows")
    ax.set_xlim(0, rows.max())
    ax.set_ylim(0, max(float(high.max()), float(seconds.max())) * 1.1e3)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("rows in a batch")
    ax.set_ylabel("predict (ms)")
    ax.set_title(f"{1e3 * curve.fixed_s:.3g} ms a batch, {1e3 * curve.per_row_s:.3g} ms a row", loc="left")
    ax.legend(loc="lower right", framealpha=0.9, edgecolor="none", fontsize="small")
    strip_down(ax)
    return ax


def capacity_curve(plan: CapacityPlan, ax: Axes | None = None) -> Axes:
    """Draw p99 and p50 by the number of replicas, with the chosen batch size, and mark the choice."""
    ax = axes_or_new(ax, SIZE)
    best = plan.best
    points = {
        point.replicas: point
        for point in plan.points
        if point.whole and point.max_batch_size == best.max_batch_size
    }
    replicas = sorted(points)
    slow, middle = ([getattr(points[n], name) for n in replicas] for name in ("p99_ms", "p50_ms"))
    ax.plot(replicas, slow, color=BLUE, marker="o", ms=4, lw=2, label="p99")
    ax.plot(replicas, middle, color=AMBER, marker="s", ms=4, lw=1.5, ls="--", label="p50")
    ax.plot(best.replicas, best.p99_ms, "o", ms=13, mfc="none", mec=ORANGE, mew=2, label="chosen")
    ax.axhline(plan.p99_ms, color=INK, ls=":", lw=1.2)
    ax.annotate(
        f"at most {plan.p99_ms:g} ms", (1, plan.p99_ms), xycoords=("axes fraction", "data"), xytext=(-3, 3),
        textcoords="offset points", ha="right", fontsize="small", color=INK,
    )  # fmt: skip
    ax.set_ylim(0, min(max(*slow, plan.p99_ms) * 1.25, plan.p99_ms * 3))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel(f"replicas, each with max_batch_size {best.max_batch_size}")
    ax.set_ylabel("latency (ms)")
    noun = "replica" if best.replicas == 1 else "replicas"
    ax.set_title(f"{best.replicas} {noun} for {plan.rate:g} requests/s", loc="left")
    ax.legend(loc="lower right", ncols=3, frameon=False, fontsize="small")
    strip_down(ax)
    return ax
