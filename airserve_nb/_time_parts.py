"""Where the time goes: a mean request's milliseconds, divided into what was done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from airserve_nb._figure_base import COLORS, HATCHES, axes_or_new, strip_down

__all__ = ["draw_parts", "mean_parts", "time_parts"]

WINDOWS = 40
A_WINDOW = 10
"""Answers on average, at least: one without any is then no chance."""
ENOUGH = 200
"""Below so many requests a course over time would be noise: one bar then."""
WORDS = {
    "late_ms": "not yet sent",
    "queue_ms": "waiting",
    "predict_ms": "predicting",
    "overhead_ms": "overhead",
}
PHRASES = {
    "late_ms": "being held back at the client",
    "queue_ms": "waiting in the queue",
    "predict_ms": "being predicted",
    "overhead_ms": "on the way, outside queue and predict",
}
LEAST = 0.005
"""Of the whole: what is less can't be seen."""
BAR_HATCHES = {**HATCHES, "overhead": ".."}
Floats = npt.NDArray[np.float64]


def time_parts(requests: pd.DataFrame, steps: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw how long a mean request waited, was predicted, and took besides: a bar a step, or over time.

    Parameters
    ----------
    requests, steps
        As in ``ProbeResult``.
    ax
        Where to draw; None makes a figure.
    """
    ax = axes_or_new(ax, (7, 4))
    good = requests[requests["outcome"] == "ok"]
    if len(steps) > 1:
        means = _parts(good).groupby(good["step"]).mean().reindex(steps.index).fillna(0)
        labels = [f"{rate:g}" for rate in steps["rate"]]
        draw_parts(ax, labels, means)
        ax.set_xlabel("planned requests a second")
    elif len(good) >= ENOUGH:
        _draw_course(ax, good, float(requests.loc[requests["sent"].notna(), "planned"].max()))
    else:
        draw_parts(ax, [""], pd.DataFrame([mean_parts(requests)]))
        ax.set_xlabel("a mean request")
    ax.set_title(_title(mean_parts(requests)), loc="left", pad=26)
    return ax


def mean_parts(requests: pd.DataFrame) -> Mapping[str, float]:
    """Return the mean milliseconds of each part, of the successful answers; 0 where they are unknown."""
    parts = _parts(requests[requests["outcome"] == "ok"])
    return {name: float(np.nan_to_num(parts[name].mean())) if len(parts) else 0.0 for name in WORDS}


def _parts(good: pd.DataFrame) -> pd.DataFrame:
    known = good["predict_ms"].notna()
    return pd.DataFrame(
        {
            "late_ms": (good["total_ms"] - good["service_ms"]).clip(lower=0),
            "queue_ms": good["queue_ms"],
            "predict_ms": good["predict_ms"],
            # Of a server that does not tell, all is overhead.
            "overhead_ms": good["overhead_ms"].where(known, good["service_ms"]),
        }
    ).fillna(0)


def draw_parts(ax: Axes, labels: Sequence[str], means: pd.DataFrame, *, columns: int = 4) -> None:
    """Draw one stacked bar for each row of ``means``, with its total on top; the legend in so many columns."""
    strip_down(ax)
    base = np.zeros(len(means))
    for name in _there(means):
        height = means[name].to_numpy(float)
        ax.bar(
            range(len(means)),
            height,
            bottom=base,
            color=COLORS[WORDS[name]],
            width=0.7,
            hatch=BAR_HATCHES.get(WORDS[name]),
            edgecolor="#FFFFFF",
            linewidth=0,
        )
        base += height
    for place, total in enumerate(means[list(WORDS)].sum(axis=1)):
        ax.annotate(
            f"{total:,.1f}" if total else "no answers",
            (place, total),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize="small",
        )
    ax.set_xticks(range(len(means)), labels)
    margin = 0.7 if len(means) > 1 else 1.2
    ax.set_xlim(-margin, len(means) - 1 + margin)
    ax.margins(y=0.1)
    ax.set_ylabel("milliseconds of a mean request")
    _legend(ax, _there(means), columns)


def _draw_course(ax: Axes, good: pd.DataFrame, end: float) -> None:
    """Draw the means of windows of time; one in which nothing was answered stays empty."""
    strip_down(ax)
    count = min(WINDOWS, len(good) // A_WINDOW)
    edges = np.linspace(0, end or 1.0, count + 1)
    window = np.clip(np.searchsorted(edges, good["planned"], side="right") - 1, 0, count - 1)
    means = _parts(good).groupby(window).mean().reindex(range(count)).fillna(0)
    base = np.zeros(count)
    for name in _there(means):
        top = base + means[name].to_numpy(float)
        ax.fill_between(
            edges, np.append(base, base[-1]), np.append(top, top[-1]),
            step="post", facecolor=COLORS[WORDS[name]], hatch=BAR_HATCHES.get(WORDS[name]), edgecolor="#FFFFFF", linewidth=0,
        )  # fmt: skip
        base = top
    ax.set_xlim(0, edges[-1])
    ax.set_ylim(0, base.max() * 1.08)
    ax.set_xlabel("planned time since the probe started (s)")
    ax.set_ylabel("milliseconds of a mean request")
    _legend(ax, _there(means))


def _there(means: pd.DataFrame) -> list[str]:
    """Return the parts that are worth a colour."""
    totals = means.sum()
    return [name for name in WORDS if totals[name] > LEAST * totals.sum()]


def _legend(ax: Axes, names: Sequence[str], columns: int = 4) -> None:
    ax.legend(
        [Patch(facecolor=COLORS[WORDS[name]], hatch=BAR_HATCHES.get(WORDS[name]), edgecolor="#FFFFFF", linewidth=0) for name in names],
        [WORDS[name] for name in names],
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize="small",
        borderaxespad=0.2, borderpad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def _title(parts: Mapping[str, float]) -> str:
    """State the finding."""
    total = sum(parts.values())
    if not total:
        return "No answers"
    largest = max(parts, key=lambda name: parts[name])
    return f"{parts[largest] / total:.0%} of {total:,.1f} ms goes into {PHRASES[largest]}"
