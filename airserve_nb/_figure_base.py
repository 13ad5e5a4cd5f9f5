"""What all pictures share: a figure that notebooks show without pyplot, and plain axes."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["PortableFigure", "axes_or_new", "strip_down"]


class PortableFigure(Figure):
    """A figure that a notebook shows although pyplot has not been imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return ``ax``, or the axes of a new figure of this size in inches."""
    return ax if ax is not None else PortableFigure(figsize=size, layout="constrained").subplots()


def strip_down(ax: Axes) -> None:
    """Leave the axes only what carries information."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=3)
    ax.set_axisbelow(True)
