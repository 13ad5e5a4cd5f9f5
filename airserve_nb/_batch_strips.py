"""The batches of the timeline: which bars belong to each, its colour, and the strip that holds them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

__all__ = ["BATCH_COLORS", "Group", "draw_strips", "groups_of"]

BATCH_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")


@dataclass(frozen=True)
class Group:
    """The bars of one batch."""

    rows: npt.NDArray[np.int64]
    """Their places in the picture, ascending, from 0."""
    start: float
    """When predict began, in seconds."""
    predict_s: float
    color: str
    label: str

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield first and last place of each stretch of neighbouring bars."""
        for run in np.split(self.rows, np.flatnonzero(np.diff(self.rows) > 1) + 1):
            yield int(run[0]), int(run[-1])


def groups_of(rows: pd.DataFrame, batches: pd.DataFrame) -> list[Group]:
    """Return the batches in the order of their release, those without a bar left out."""
    places = rows.groupby("batch_id", sort=False).indices
    groups = []
    for number, batch in enumerate(batches.sort_values("released", kind="stable").to_dict("records")):
        if batch["batch_id"] in places:
            reason = batch["release_reason"]
            label = f"batch of {batch['batch_size']}"
            groups.append(
                Group(
                    rows=np.sort(places[batch["batch_id"]]),
                    start=batch["released"],
                    predict_s=batch["predict_ms"] / 1000,
                    color=BATCH_COLORS[number % len(BATCH_COLORS)],
                    label=f"{label} · {reason.replace('_', ' ')}" if isinstance(reason, str) else label,
                )
            )
    return groups


def draw_strips(ax: Axes, groups: list[Group]) -> bool:
    """Hold each batch together by a strip at the right edge; label them where there is room to name most.

    Returns whether they are labelled.
    """
    across = blended_transform_factory(ax.transAxes, ax.transData)
    room = _rows_a_line(ax)
    labels: list[tuple[float, str]] = []
    for group in groups:
        runs = list(group.runs())
        for first, last in runs:
            y = [first + 0.62, last + 1.38]
            ax.plot(
                [1.012] * 2,
                y,
                color=group.color,
                lw=3,
                solid_capstyle="butt",
                transform=across,
                clip_on=False,
            )
        first, last = max(runs, key=_length)
        middle = (first + last) / 2 + 1
        if not labels or middle - labels[-1][0] >= room:
            labels.append((middle, group.label))
    if 2 * len(labels) < len(groups):
        return False  # a choice of a few among many would only look like the truth
    for middle, label in labels:
        ax.text(1.026, middle, label, transform=across, va="center", ha="left", fontsize="small")
    return True


def _length(run: tuple[int, int]) -> int:
    return run[1] - run[0]


def _rows_a_line(ax: Axes) -> float:
    """Return how many bars are as high as a line of small text, by the size of the figure."""
    figure = ax.get_figure(root=True)
    height_pt = (
        (figure.get_figheight() if figure is not None else 4.0) * 72 * 0.7
    )  # titles and labels take the rest
    low, high = ax.get_ylim()
    return abs(high - low) / height_pt * 13
