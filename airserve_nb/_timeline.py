"""The timeline: the picture that explains micro-batching.

One bar a request, grey while it waits, in its batch's colour while the model predicts it. The members of a batch
share one call of predict, so their coloured parts stand exactly below each other, and a strip with the batch's
size and release reason holds them together. Neighbouring batches differ in lightness too.

A bar that is thinner than a hair tells nothing, as of a probe that goes on for a minute. Then the picture shows how
many requests were where, over time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator

from airserve_nb._batch_strips import Group, draw_strips, groups_of
from airserve_nb._figure_base import COLORS, FAILED, HATCHES, axes_or_new, strip_down
from airserve_nb._occupancy import draw_occupancy

__all__ = ["timeline"]

WAITING, OTHER, UNKNOWN = COLORS["waiting"], COLORS["overhead"], COLORS["under way"]
FINE = ("ok", "cancelled")
"""Outcomes that are no failure: what a stopped probe gave up says nothing of the server."""

FEWEST_ROWS = 4
"""The picture has room for so many bars at least: a lone one would be a wall."""
DENSE = 60
"""From so many requests on, bars touch: gaps would eat them."""
MOST_BARS = 5_000
LEAST_SHARE = 0.005
"""What is less rounds to 0 %."""
THINNEST = 0.015
"""Of the picture's width: what is shorter is no bar any more."""

Floats = npt.NDArray[np.float64]


def timeline(requests: pd.DataFrame, batches: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw one bar a request, in the order of sending: waiting, predicting, the rest.

    Parameters
    ----------
    requests
        Columns ``sent``, ``done`` (seconds), ``outcome``, ``batch_id``, ``queue_ms``, ``predict_ms``. Requests that
        were never sent are left out.
    batches
        Columns ``batch_id``, ``batch_size``, ``release_reason``, ``released`` (seconds), ``predict_ms``; may be empty.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        Its x axis is in milliseconds from the start, or in seconds from ten on.
    """
    ax = axes_or_new(ax, (9, 4))
    rows = _ordered(requests.dropna(subset=["sent"]), batches)
    end = float(
        rows[["sent", "done"]]
        .to_numpy(float)
        .max(initial=0.0, where=rows[["sent", "done"]].notna().to_numpy())
    )
    rows["done"] = rows["done"].fillna(end)  # stopped while under way: open to the end
    scale, unit = (1.0, "s") if end >= 10 else (1000.0, "ms")  # noqa: PLR2004 - 10,000 ms is hard to read
    strip_down(ax)
    ax.set_title(_timeline_title(requests, batches), loc="left", pad=26)
    ax.set_xlabel(f"time since the probe started ({unit})")
    ax.set_xlim(0, end * scale * 1.01 or 1)
    if is_dense(requests):
        _draw_dense(ax, rows, batches, end, scale)
    else:
        _draw_each(ax, rows, batches, scale)
    return ax


def is_dense(requests: pd.DataFrame) -> bool:
    """Return whether single requests would be too thin to see, so that the timeline shows how many there were."""
    sent = requests.dropna(subset=["sent"])
    if len(sent) <= DENSE:
        return False
    # What is seen of a request is its coloured part, where there is one.
    parts = (sent["done"] - sent["sent"], sent["predict_ms"] / 1000)
    typical = np.nanmin([np.inf, *(float(part.median()) for part in parts)])
    span = float(sent["done"].max() - sent["sent"].min())
    return len(sent) > MOST_BARS or bool(typical < THINNEST * span)


def _draw_each(ax: Axes, rows: pd.DataFrame, batches: pd.DataFrame, scale: float) -> None:
    """Draw one bar a request."""
    groups = groups_of(rows, batches)
    _draw_bars(ax, rows, groups, scale)
    _draw_failures(ax, rows, rows.index.to_numpy(float) + 1, scale)
    ax.set_ylabel("requests, by batch" if groups else "requests, as sent")
    ax.set_ylim(max(len(rows), FEWEST_ROWS) + 0.6, 0.4)
    few = len(rows) <= 12  # noqa: PLR2004 - more numbers than that stand too close
    ax.yaxis.set_major_locator(
        FixedLocator(range(1, len(rows) + 1)) if few else MaxNLocator(8, integer=True, steps=[1, 2, 5, 10])
    )
    if not draw_strips(ax, groups):
        _tell_reasons(ax, batches)
    _legend(ax, rows, _parts_of_bars(rows, groups))


def _draw_dense(ax: Axes, rows: pd.DataFrame, batches: pd.DataFrame, end: float, scale: float) -> None:
    """Draw how many requests were where."""
    start = rows["batch_id"].map(batches.set_index("batch_id")["released"]) if len(batches) else np.nan
    planned = rows["planned"] if "planned" in rows else rows["sent"]
    shown = draw_occupancy(ax, rows.assign(start=start, planned=planned), end, scale)
    _draw_failures(ax, rows, np.zeros(len(rows)), scale)
    ax.set_ylabel("requests under way")
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _tell_reasons(ax, batches)
    words = {"predicting": "predicting (the running batch)"}
    patches = [
        Patch(facecolor=color, hatch=HATCHES.get(name), edgecolor="#FFFFFF", linewidth=0)
        for name, color in shown
    ]
    _legend(ax, rows, list(zip(patches, [words.get(name, name) for name, _ in shown], strict=True)))


def _tell_reasons(ax: Axes, batches: pd.DataFrame) -> None:
    """Say, on a line of its own below the axis, how many batches were released for which reason."""
    reasons = batches["release_reason"].dropna().value_counts(normalize=True)
    if reasons.empty:
        return
    shares = [
        f"{str(reason).replace('_', ' ')} {share:.0%}"
        for reason, share in reasons.items()
        if share >= LEAST_SHARE
    ]
    ax.annotate(
        "batches released: " + " · ".join(shares),
        (0.5, 0),
        xycoords="axes fraction",
        xytext=(0, -43),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize="small",
    )


def _ordered(requests: pd.DataFrame, batches: pd.DataFrame) -> pd.DataFrame:
    """Sort by the start of predict, then by sending, so that a batch's bars are neighbours.

    What reached no batch comes where it ended. Requests of a burst leave within microseconds, so their order
    of sending alone would say nothing and tear the batches apart.
    """
    if batches.empty:
        return requests.sort_values("sent", kind="stable", ignore_index=True)
    start = requests["batch_id"].map(batches.set_index("batch_id")["released"]).astype(float)
    keyed = requests.assign(_start=start.fillna(requests["done"]))
    return keyed.sort_values(["_start", "batch_id", "sent"], kind="stable", ignore_index=True)


def _draw_bars(ax: Axes, rows: pd.DataFrame, groups: Iterable[Group], scale: float) -> None:
    """Draw, for each request: the whole bar, what it waited, what it was predicted."""
    half = 0.5 if len(rows) >= DENSE else 0.39
    sent, done = rows["sent"].to_numpy(float), rows["done"].to_numpy(float)
    grouped = np.zeros(len(rows), dtype=bool)
    for group in groups:
        grouped[group.rows] = True
    answered, stopped = ((rows["outcome"] == outcome).to_numpy(bool) for outcome in ("ok", "cancelled"))
    everywhere = np.arange(len(rows))
    _bars(ax, everywhere[~answered & ~stopped], sent, done, half, OTHER, scale)
    _bars(ax, everywhere[stopped], sent, done, half, UNKNOWN, scale)
    _bars(ax, everywhere[answered & ~grouped], sent, done, half, UNKNOWN, scale)
    _bars(ax, everywhere[answered & grouped], sent, done, half, OTHER, scale)
    for group in groups:
        start = np.full(len(rows), group.start)
        queued = rows["queue_ms"].fillna(0).to_numpy(float) / 1000
        _bars(ax, group.rows, np.maximum(sent, start - queued), start, half, WAITING, scale)
        _bars(ax, group.rows, start, start + group.predict_s, half, group.color, scale)


def _bars(
    ax: Axes,
    places: npt.NDArray[np.int64],
    left: Floats,
    right: Floats,
    half: float,
    color: str,
    scale: float,
) -> None:
    """Draw bars at ``places`` as one collection: some thousand patches would be slow."""
    if not len(places):
        return
    x0, x1, y = left[places] * scale, right[places] * scale, places + 1.0
    corners = [(x0, y - half), (x0, y + half), (x1, y + half), (x1, y - half)]
    vertices = list(np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1))
    ax.add_collection(PolyCollection(vertices, facecolors=color, edgecolors="none", antialiased=half < 0.5))  # noqa: PLR2004


def _draw_failures(ax: Axes, rows: pd.DataFrame, places: Floats, scale: float) -> None:
    """Put a cross where every request without a successful answer ended."""
    failed = _failed(rows).to_numpy(bool)
    if not failed.any():  # an unclipped line without points would count as one at the picture's corner
        return
    size = 6 if len(rows) < DENSE else 4
    ax.plot(
        rows["done"].to_numpy(float)[failed] * scale,
        places[failed],
        "x",
        color=FAILED,
        markersize=size,
        markeredgewidth=1.5,
        clip_on=False,
    )


def _failed(requests: pd.DataFrame) -> pd.Series[bool]:
    return ~requests["outcome"].isin(FINE)


def _parts_of_bars(rows: pd.DataFrame, groups: list[Group]) -> list[tuple[Any, str]]:
    stopped = [(Patch(color=UNKNOWN), "stopped")] if (rows["outcome"] == "cancelled").any() else []
    if groups:
        colors = list(dict.fromkeys(group.color for group in groups))[:3]
        return [
            (Patch(color=WAITING), "waiting"),
            (tuple(Patch(color=color) for color in colors), "predicting (a colour a batch)"),
            (Patch(color=OTHER), "overhead"),
            *stopped,
        ]
    answered = [(Patch(color=UNKNOWN), "answered")] if (rows["outcome"] == "ok").any() else []
    return answered or stopped


def _legend(ax: Axes, rows: pd.DataFrame, entries: list[tuple[Any, str]]) -> None:
    """Name the parts that are there, above the picture."""
    if _failed(rows).any():
        entries.append(
            (Line2D([], [], color=FAILED, marker="x", linestyle="none", markeredgewidth=1.5), "failed")
        )
    if entries:
        handles, labels = zip(*entries, strict=True)
        ax.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(entries),
            frameon=False,
            fontsize="small",
            borderaxespad=0.2,
            borderpad=0.2,
            handlelength=1.6,
            columnspacing=1.4,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        )


def _timeline_title(requests: pd.DataFrame, batches: pd.DataFrame) -> str:
    """State the finding."""
    if requests.empty:
        return "No requests"
    rode = int(requests["batch_id"].notna().sum())
    failed, stopped = int(_failed(requests).sum()), int((requests["outcome"] == "cancelled").sum())
    noun = "request" if len(requests) == 1 else "requests"
    rest = "".join(
        f", {count} {word}" for count, word in ((failed, "failed"), (stopped, "cancelled")) if count
    )
    if len(batches):
        batch = "batch" if len(batches) == 1 else "batches"
        share = f"{rode} of {len(requests)}" if rode < len(requests) else f"{rode}"
        return f"{share} {noun} rode in {len(batches)} {batch}{rest}"
    if stopped:
        return f"{len(requests) - failed - stopped} of {len(requests)} {noun} answered{rest}"
    if not failed:
        return f"{len(requests)} {noun}, all answered" if len(requests) > 1 else "1 request, answered"
    return f"{failed} of {len(requests)} {noun} failed"
