"""Pictures of requests and batches: frames in, matplotlib Axes out.

Nothing here uses pyplot: no global state, safe in any thread, and the same data gives the same picture. Text, fonts
and backgrounds follow matplotlib's rcParams.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from airserve_nb._comparison_figure import compare_figure
from airserve_nb._figure_base import PortableFigure, axes_or_new, strip_down
from airserve_nb._latency_curve import latency_curve
from airserve_nb._sweep_figures import prediction, sweep_figure, sweep_front, sweep_grid
from airserve_nb._throughput_curve import throughput_curve
from airserve_nb._time_parts import time_parts
from airserve_nb._timeline import is_dense, timeline

__all__ = [
    "batch_size_histogram",
    "compare_figure",
    "latency_curve",
    "prediction",
    "probe_figure",
    "sweep_figure",
    "sweep_front",
    "sweep_grid",
    "throughput_curve",
    "time_parts",
    "timeline",
]

EXACT_SIZES = 32
"""Up to this size each batch size has a bar of its own; beyond, a bar holds a power of two of them."""

LETTERS = 24
"""So many stand side by side below, or above, the bars."""
SHARP_DPI = 150
"""Screens of today have more pixels than 100 an inch, and a page scales a picture down at no loss."""


def probe_figure(requests: pd.DataFrame, batches: pd.DataFrame) -> Figure:
    """Draw the timeline and, where batches are known, the histogram of their sizes beside it.

    Parameters
    ----------
    requests, batches
        As in ``ProbeResult``.
    """
    height = 3.4 if is_dense(requests) else float(np.clip(1.5 + 0.18 * len(requests), 2.6, 5.4))
    if batches.empty:
        figure = PortableFigure(figsize=(8, height), dpi=SHARP_DPI, layout="constrained")
        timeline(requests, batches, ax=figure.subplots())
        return figure
    figure = PortableFigure(figsize=(10, height), dpi=SHARP_DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3.2, 1))
    figure.get_layout_engine().set(wspace=0.06, w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg] # the constrained one, asked for above
    timeline(requests, batches, ax=left)
    batch_size_histogram(batches, ax=right)
    return figure


def batch_size_histogram(
    batches: pd.DataFrame, ax: Axes | None = None, *, max_batch_size: int | None = None
) -> Axes:
    """Draw how often each batch size came.

    Parameters
    ----------
    batches
        Column ``batch_size``: requests in each batch.
    ax
        Where to draw; None makes a figure.
    max_batch_size
        The limit that the deployment was given, marked by a line.
    """
    ax = axes_or_new(ax, (4, 4))
    sizes = batches["batch_size"].astype(int).tolist()
    counts = _size_counts(sizes, max_batch_size or 0)
    strip_down(ax)
    bars = ax.bar(range(len(counts)), list(counts.values()), color="#4D5B66", width=0.75)
    numbers = [str(count) for count in counts.values() if count]
    if len(numbers) <= 12 and len(max(numbers, key=len, default="")) * len(numbers) <= LETTERS:  # noqa: PLR2004 - more numbers than that run into each other
        ax.bar_label(bars, labels=[str(count) if count else "" for count in counts.values()], padding=2)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    else:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    step = -(-len(counts) // 8)
    names = list(counts)[::step]
    ax.set_xticks(range(0, len(counts), step), names)
    if len(names) * max(map(len, names)) > LETTERS:  # each has as much room as the longest needs
        ax.tick_params(axis="x", rotation=45)
    ax.set_xlim(-0.8, len(counts) - 0.2)
    ax.margins(y=0.12)
    if max_batch_size is not None:
        _mark_limit(ax, list(counts), max_batch_size)
    ax.set_xlabel("requests in a batch")
    ax.set_ylabel("batches")
    title = f"Mean batch size {np.mean(sizes):.1f}" if sizes else "No batches yet"
    ax.set_title(title, loc="left", pad=26)
    return ax


def _size_counts(sizes: list[int], at_least: int) -> dict[str, int]:
    """Count batches by size: each size from 1 on, or powers of two when there are larger ones than 32."""
    largest = max([*sizes, at_least, 1])
    if largest <= EXACT_SIZES:
        return {str(size): sizes.count(size) for size in range(1, largest + 1)}
    edges = [2**power for power in range((largest - 1).bit_length() + 1)]
    lows = [1, *(edge // 2 + 1 for edge in edges[1:])]
    return {
        str(high) if low == high else f"{low}-{high}": sum(low <= size <= high for size in sizes)
        for low, high in zip(lows, edges, strict=True)
    }


def _mark_limit(ax: Axes, labels: list[str], limit: int) -> None:
    """Draw a line right of the bar that holds the limit."""
    place = next(number for number, label in enumerate(labels) if limit <= int(label.rpartition("-")[2]))
    ax.axvline(place + 0.5, color="#666666", linestyle="--", linewidth=1)
    ax.annotate(
        f"limit {limit}",
        (place + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize="small",
        color="#666666",
    )
