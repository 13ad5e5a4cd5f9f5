"""What all pictures share: a figure that notebooks show without pyplot, plain axes, and one colour for one thing.

The colours are those of Okabe and Ito's palette that are told apart on white in every kind of colour blindness;
they differ in lightness too, so that they are told apart in grey print.
"""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLORS", "FAILED", "HATCHES", "PortableFigure", "axes_or_new", "strip_down"]

FAILED = "#B3261E"
COLORS = {
    "predicting": "#0072B2",
    "waiting": "#A6A6A6",
    "overhead": "#D3D3D3",
    "not yet sent": "#E69F00",
    "under way": "#8FB8D4",
}
"""Where a request is, and how that is drawn, in every picture."""
HATCHES = {"not yet sent": "//"}
"""What would be as grey in print as what waits."""


class PortableFigure(Figure):
    """A figure that a notebook shows although pyplot has not been imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return ``ax``, or the axes of a new figure of this size in inches."""
    return ax if ax is not None else PortableFigure(figsize=size, dpi=150, layout="constrained").subplots()


def strip_down(ax: Axes) -> None:
    """Leave the axes only what carries information."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=3)
    ax.set_axisbelow(True)
