"""The pictures of models: what stands in them, into which axes they go, and that they can be repeated."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from airserve_nb.capacity import plan_capacity
from airserve_nb.service_time import fit_service_time
from airserve_nb.simulation import simulate
from airserve_nb.telemetry import BatchRecord

MODEL = (0.020, 0.0002)
BATCHES = [
    BatchRecord("b", 0.0, rows, rows, 3 + 0.5 * rows + rows % 3 / 10, "full", 0, 0, "v1", "r1")
    for rows in (1, 2, 4, 8, 16, 32, 64, 64)
]
curve = fit_service_time(BATCHES)
run = simulate(MODEL, 400, 32, requests=2000)
plan = plan_capacity(MODEL, 1500, 60)
PLOTS = [curve.plot, run.plot, plan.plot]
IDS = ["service time", "simulation", "capacity"]


def png(ax: Axes) -> bytes:
    buffer = io.BytesIO()
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


@pytest.mark.parametrize("plot", PLOTS, ids=IDS)
def test_axes_in_axes_out(plot: Callable[..., Axes]) -> None:
    """Given axes are drawn into and returned; without, there is a new figure that a notebook shows without pyplot."""
    ax = Figure().subplots()
    assert plot(ax=ax) is ax
    figure = plot().get_figure(root=True)
    assert figure is not None
    assert hasattr(figure, "_repr_png_")


@pytest.mark.parametrize("plot", PLOTS, ids=IDS)
def test_the_same_data_gives_the_same_picture(plot: Callable[..., Axes]) -> None:
    """Two drawings are equal to the byte, and named on both axes."""
    assert png(plot()) == png(plot())
    ax = plot()
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.get_title(loc="left")


def test_service_time_points_and_line() -> None:
    """Every size is a point at its median, the line is the curve, and where it stops paying is marked."""
    ax = curve.plot()
    (points,) = [one for one in ax.collections if isinstance(one, PathCollection)]
    assert np.asarray(points.get_offsets()).tolist() == [
        [rows, pytest.approx(1e3 * seconds)] for rows, seconds, _ in curve.points
    ]
    line = ax.lines[0]
    assert np.asarray(line.get_ydata())[0] == pytest.approx(1e3 * curve.fixed_s)
    assert f"stops paying at {curve.pays_up_to} rows" in [one.get_label() for one in ax.lines]


def test_percentile_curve() -> None:
    """The line starts at the fastest request and goes through the median; p99.9 needs a thousand requests."""
    ax = run.plot()
    latency = np.asarray(ax.lines[0].get_ydata())
    assert latency[0] == pytest.approx(run.latencies_ms.min())
    assert (np.diff(latency) >= 0).all()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["min", "p50", "p90", "p99", "p99.9"]
    few = simulate(MODEL, 400, 32, requests=150).plot()
    assert [label.get_text() for label in few.get_xticklabels()] == ["min", "p50", "p90", "p99"]


def test_capacity_curve() -> None:
    """The choice stands on the p99 line, below the limit."""
    ax = plan.plot()
    lines = {str(line.get_label()): line for line in ax.lines}
    replicas, latency = (np.asarray(lines["p99"].get_data()[axis]).tolist() for axis in (0, 1))
    assert latency[replicas.index(plan.replicas)] == plan.best.p99_ms
    assert np.asarray(lines["chosen"].get_data()).ravel().tolist() == [plan.replicas, plan.best.p99_ms]
    assert any("at most 60 ms" in text.get_text() for text in ax.texts)
