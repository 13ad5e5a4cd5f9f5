"""How many requests were where, as time goes by: the timeline of a probe whose single bars would be too thin to see.

The parts stack up to the number of requests under way. The lowest is those being predicted, so its height is the size
of the running batch (of all replicas together); each column of the picture is the exact mean over its span of time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from airserve_nb._figure_base import COLORS, HATCHES

__all__ = ["draw_occupancy", "mean_occupancy"]

COLUMNS = 150
VISIBLE = 0.01
"""Of the height: every request is sent some microseconds late, and that is no part of the picture."""
Floats = npt.NDArray[np.float64]


def mean_occupancy(starts: Floats, ends: Floats, edges: Floats) -> Floats:
    """Return how many of the intervals were open on average between neighbouring ``edges``.

    Parameters
    ----------
    starts, ends
        Of each interval; those with a NaN or an end before their start count for nothing.
    edges
        Ascending, one more than is returned.
    """
    known = (ends > starts) & np.isfinite(starts) & np.isfinite(ends)
    spent = _spent(starts[known], edges) - _spent(ends[known], edges)
    return np.asarray(np.diff(spent) / np.diff(edges))


def _spent(moments: Floats, edges: Floats) -> Floats:
    """Return, for each edge, the time since each earlier moment, added up."""
    ordered = np.sort(moments)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    before = np.searchsorted(ordered, edges)
    return np.asarray(before * edges - sums[before])


def draw_occupancy(ax: Axes, rows: pd.DataFrame, end: float, scale: float) -> list[tuple[str, str]]:
    """Draw the parts of all requests under way over time.

    Parameters
    ----------
    ax
        Where to draw.
    rows
        Columns ``planned``, ``sent``, ``done`` and ``start`` (of predict; NaN where unknown), in seconds, and
        ``queue_ms``, ``predict_ms``.
    end
        The last moment, in seconds.
    scale
        Units of the x axis in a second.

    Returns
    -------
    list of (str, str)
        Name and colour of each part that is there, from the lowest on.
    """
    edges = np.linspace(0, end or 1.0, COLUMNS + 1)
    parts = {name: mean_occupancy(*interval, edges) for name, interval in _intervals(rows).items()}
    everything = mean_occupancy(rows["planned"].to_numpy(float), rows["done"].to_numpy(float), edges)
    known = sum((parts[name] for name in ("predicting", "waiting", "not yet sent")), np.zeros(COLUMNS))
    rest = "overhead" if parts["predicting"].any() else "under way"
    parts[rest] = np.maximum(everything - known, 0)
    return _stack(ax, edges * scale, parts, everything.max(initial=0))


def _stack(ax: Axes, edges: Floats, parts: Mapping[str, Floats], most: float) -> list[tuple[str, str]]:
    base = np.zeros(COLUMNS)
    shown = []
    for name, height in parts.items():
        least = VISIBLE if name == "not yet sent" else 1e-9
        if height.max(initial=0) <= least * most:
            continue
        top = base + height
        ax.fill_between(
            edges,
            np.append(base, base[-1]),
            np.append(top, top[-1]),
            step="post",
            facecolor=COLORS[name],
            hatch=HATCHES.get(name),
            edgecolor="#FFFFFF",
            linewidth=0,
        )
        base = top
        shown.append((name, COLORS[name]))
    ax.set_ylim(0, max(1.0, base.max(initial=0) * 1.06))
    return shown


def _intervals(rows: pd.DataFrame) -> dict[str, tuple[Floats, Floats]]:
    planned, sent, start = _columns(rows, "planned", "sent", "start")
    queue_s, predict_s = (column / 1000 for column in _columns(rows, "queue_ms", "predict_ms"))
    return {
        "predicting": (start, start + predict_s),
        "waiting": (np.maximum(sent, start - queue_s), start),
        "not yet sent": (planned, sent),
    }


def _columns(rows: pd.DataFrame, *names: str) -> list[Floats]:
    return [rows[name].to_numpy(float) for name in names]
