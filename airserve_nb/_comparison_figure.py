"""Before and after, side by side: both latencies at each percentile, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from airserve_nb._figure_base import PortableFigure
from airserve_nb._latency_curve import latency_curve
from airserve_nb._time_parts import draw_parts, mean_parts

__all__ = ["compare_figure"]


def compare_figure(requests: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the latencies of several probes in one picture, and the parts of a mean request beside it.

    Parameters
    ----------
    requests
        By name; the frames are those of ``ProbeResult``.
    """
    figure = PortableFigure(figsize=(10, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    latency_curve(requests, ax=left)
    draw_parts(
        right, list(requests), pd.DataFrame([mean_parts(frame) for frame in requests.values()]), columns=2
    )
    right.set_title("Where the time goes", loc="left", pad=40)
    return figure
