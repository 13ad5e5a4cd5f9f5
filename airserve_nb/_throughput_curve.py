"""Throughput against latency over a ramp of rates: how much it takes before it gets slow.

The knee is where throughput over latency is largest (Kleinrock's power of a queueing system): to the left of it the
server idles, to the right each further request costs more waiting than it is worth.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

from airserve_nb._figure_base import axes_or_new, strip_down

__all__ = ["knee", "throughput_curve"]

LINES = {"p99_ms": ("#0072B2", "o", "p99"), "p50_ms": ("#E69F00", "s", "p50")}
FEWEST = 3
"""Points without which there is no knee."""


def throughput_curve(steps: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the latency of each step over its successful answers a second.

    Parameters
    ----------
    steps
        As in ``ProbeResult``.
    ax
        Where to draw; None makes a figure.
    """
    ax = axes_or_new(ax, (7, 4))
    strip_down(ax)
    ax.set_yscale("log")
    for name, (color, marker, word) in LINES.items():
        known = steps.dropna(subset=[name, "requests_per_s"])
        ax.plot(
            known["requests_per_s"], known[name], color=color, marker=marker, markersize=5, lw=1.8, label=word
        )
    _name_points(ax, steps)
    best = knee(steps)
    if best is not None and best != steps.index[-1]:
        _mark(ax, float(steps["requests_per_s"][best]))
    ax.set_title(_title(steps, best), loc="left")
    _draw_axes(ax)
    if steps[["p99_ms", "p50_ms"]].notna().any(axis=None):
        ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def _name_points(ax: Axes, steps: pd.DataFrame) -> None:
    """Write the planned rate above each point."""
    top = steps[["p99_ms", "p50_ms"]].max(axis=1)
    for rate, reached, latency in zip(steps["rate"], steps["requests_per_s"], top, strict=True):
        if rate == rate and latency == latency:  # noqa: PLR0124 - not NaN
            ax.annotate(
                f"{rate:g}",
                (reached, latency),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize="small",
                color="#6A6A6A",
            )


def _draw_axes(ax: Axes) -> None:
    ax.set_xlabel("successful answers a second (at each point: the planned rate)")
    ax.set_ylabel("latency (ms)")
    ax.set_xlim(left=0)
    ax.margins(x=0.08, y=0.15)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(99, 99)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="#808080", alpha=0.2, linewidth=0.8)


def knee(steps: pd.DataFrame) -> int | None:
    """Return the step at the knee; None with fewer than three steps, or without latencies."""
    power = (steps["requests_per_s"] / steps[_judged_by(steps)]).dropna()
    return int(power.index[int(power.to_numpy().argmax())]) if len(power) >= FEWEST else None


def _judged_by(steps: pd.DataFrame) -> str:
    """Return p99 where each step that was answered has one, else p50."""
    answered = steps[steps["p50_ms"].notna()]
    return "p99_ms" if answered["p99_ms"].notna().all() else "p50_ms"


def _mark(ax: Axes, reached: float) -> None:
    ax.axvline(reached, color="#6A6A6A", linestyle=":", linewidth=1.4, zorder=0)
    ax.annotate(
        "knee",
        (reached, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 2),
        textcoords="offset points",
        fontsize="small",
        color="#6A6A6A",
    )


def _title(steps: pd.DataFrame, best: int | None) -> str:
    """State the finding."""
    most = steps["requests_per_s"].max()
    if best is None:
        return f"{most:,.0f} requests a second at most"
    if best == steps.index[-1]:
        return f"No knee up to {most:,.0f} requests a second: it takes more"
    step, name = steps.loc[best], _judged_by(steps)
    return f"The knee: {step['requests_per_s']:,.0f} requests a second, with a {LINES[name][2]} of {step[name]:,.0f} ms"
