"""Pictures of a sweep: each setting's p99 against its throughput, the same as a grid, and predicted against measured."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

from airserve_nb._figure_base import PortableFigure, axes_or_new, strip_down

__all__ = ["prediction", "sweep_figure", "sweep_front", "sweep_grid"]

INK, SOFT, BLUE, ORANGE, AMBER = "#4D5B66", "#6A6A6A", "#0072B2", "#D55E00", "#E69F00"
MARKERS = "osD^vPXph*"
DARK = 0.55
"""From here on black is hard to read."""
WIDE = 12.0
"""A ratio from which on only some labels of an axis have room."""
NARROW = 3.0
"""A ratio of the largest to the smallest value up to which whole decades say nothing."""


def sweep_figure(table: pd.DataFrame, *, rate: float | None) -> Figure:
    """Draw both pictures of a sweep side by side."""
    figure = PortableFigure(figsize=(10.5, 4.1), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    figure.get_layout_engine().set(wspace=0.06, w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg] # the constrained one, asked for above
    sweep_front(table, left, rate=rate)
    sweep_grid(table, right)
    return figure


def sweep_front(table: pd.DataFrame, ax: Axes | None = None, *, rate: float | None = None) -> Axes:
    """Draw p99 over answers a second of model time: a colour a batch size, a shape a wait, hollow where it is no choice.

    Parameters
    ----------
    table
        As of ``SweepResult``.
    ax
        Where to draw; None makes a figure.
    rate
        Requests a second that were asked for, marked by a line.
    """
    ax = axes_or_new(ax, (7, 4.2))
    strip_down(ax)
    sizes, waits = sorted(set(table["max_batch_size"])), sorted(set(table["batch_wait_timeout_s"]))
    shades = dict(zip(sizes, colormaps["viridis"](np.linspace(0.0, 0.88, len(sizes))), strict=True))
    known = table.dropna(subset=["steady_p99_ms", "model_requests_per_s"])
    for row in known.to_dict("records"):
        color = shades[row["max_batch_size"]]
        ax.plot(
            row["model_requests_per_s"], row["steady_p99_ms"], ls="", ms=8, mew=1.6, color=color, alpha=0.9,
            marker=_marker(waits, row["batch_wait_timeout_s"]), mfc="none" if _words_against(row) else color,
        )  # fmt: skip
    front = known[known["front"]].sort_values("model_requests_per_s")
    ax.plot(front["model_requests_per_s"], front["steady_p99_ms"], color=ORANGE, lw=1.4, zorder=0)
    ax.plot(
        front["model_requests_per_s"],
        front["steady_p99_ms"],
        ls="",
        marker="o",
        ms=15,
        mfc="none",
        mec=ORANGE,
        mew=1.8,
    )
    if rate is not None:
        _mark_rate(ax, rate)
    _log_latency(ax, known["steady_p99_ms"])
    ax.set_xlim(0, max([*known["model_requests_per_s"], rate or 0, 1]) * 1.12)
    ax.set_xlabel("answers a second of model time")
    ax.set_ylabel("steady p99 latency (ms)")
    ax.set_title(_front_title(table), loc="left")
    _legend(ax, shades, waits, table)
    return ax


def _words_against(row: Mapping[Hashable, Any]) -> str:
    """Return why a setting is no choice, whatever its latency; "" where nothing is against it."""
    if row["rounds"] and not row["keeps_up"]:
        return "falls\nbehind"
    return f"{row['errors']:,}\nfailed" if row["errors"] else ""


def _marker(waits: list[float], wait: float) -> str:
    return MARKERS[waits.index(wait) % len(MARKERS)]


def _mark_rate(ax: Axes, rate: float) -> None:
    ax.axvline(rate, color=SOFT, ls=":", lw=1.3, zorder=0)
    ax.annotate(
        f"{rate:g} a second asked for", (rate, 1), xycoords=("data", "axes fraction"), xytext=(4, -3),
        textcoords="offset points", va="top", fontsize="small", color=SOFT,
    )  # fmt: skip


def _log_latency(ax: Axes, values: pd.Series[float]) -> None:
    if values.empty:
        return
    ax.set_yscale("log")
    low, high = values.min() / 1.25, values.max() * 1.3
    ax.set_ylim(low, max(high, low * NARROW))
    ax.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if high > WIDE * low else (1, 1.5, 2, 3, 5, 7), numticks=99)
    )
    ax.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(99, 99)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color="#808080", alpha=0.2, linewidth=0.8)


def _legend(ax: Axes, shades: dict[int, Any], waits: list[float], table: pd.DataFrame) -> None:
    entries = [
        Line2D([], [], ls="", marker="s", ms=8, color=shade, label=f"up to {size}")
        for size, shade in shades.items()
    ]
    entries += [
        Line2D(
            [],
            [],
            ls="",
            marker=_marker(waits, wait),
            ms=7,
            color=INK,
            label=f"wait {wait * 1e3:g} ms",
        )
        for wait in waits
    ]
    entries.append(
        Line2D([], [], ls="", marker="o", ms=11, mfc="none", mec=ORANGE, mew=1.6, label="the front")
    )
    shown = table[table["steady_p99_ms"].notna()]
    against = [
        words
        for words, holds in (("fell behind", ~shown["keeps_up"]), ("requests failed", shown["errors"] > 0))
        if holds.any()
    ]
    if against:
        label = f"hollow: {' or '.join(against)}"
        entries.append(Line2D([], [], ls="", marker="s", ms=7, mfc="none", color=SOFT, label=label))
    ax.legend(handles=entries, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _front_title(table: pd.DataFrame) -> str:
    front = table[table["front"]]
    if front.empty:
        return "No setting keeps up"
    best = front.sort_values("steady_p99_ms").iloc[0]
    return f"Lowest p99: {best['steady_p99_ms']:.0f} ms, with up to {best['max_batch_size']:g}, wait {best['batch_wait_timeout_s'] * 1e3:g} ms"


def sweep_grid(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw p99 as a grid, light where it is low; a ring marks the lowest, words what fell behind or failed.

    Parameters
    ----------
    table
        As of ``SweepResult``.
    ax
        Where to draw; None makes a figure.
    """
    ax = axes_or_new(ax, (5.2, 3.6))
    sizes, waits = sorted(set(table["max_batch_size"])), sorted(set(table["batch_wait_timeout_s"]))
    kept = table[table["keeps_up"] & (table["errors"] == 0)]
    values = (
        kept.pivot_table(
            index="batch_wait_timeout_s", columns="max_batch_size", values="steady_p99_ms", dropna=False
        )
        .reindex(index=waits, columns=sizes)
        .to_numpy(dtype=float)
    )
    ax.set_facecolor("#E9E9E9")
    known = values[np.isfinite(values)]
    if len(known):
        norm = LogNorm(known.min(), max(known.max(), known.min() * NARROW))
        ax.imshow(np.ma.masked_invalid(values), cmap="Blues", norm=norm, aspect="auto", alpha=0.85)
    for row in table.to_dict("records"):
        value, against = row["steady_p99_ms"], _words_against(row)
        place = (sizes.index(row["max_batch_size"]), waits.index(row["batch_wait_timeout_s"]))
        if against or not np.isfinite(value):
            ax.text(*place, against or "-", ha="center", va="center", fontsize="x-small", color=SOFT)
        else:
            color = "white" if norm(value) > DARK else "#222222"
            ax.text(*place, f"{value:.0f}", ha="center", va="center", color=color)
    if len(known):
        down, across = divmod(int(np.nanargmin(values)), len(sizes))
        ax.plot(across, down, marker="o", ms=30, mfc="none", mec=ORANGE, mew=2)
    ax.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    ax.set_yticks(range(len(waits)), [f"{wait * 1e3:g}" for wait in waits])
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.set_ylim(len(waits) - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("max_batch_size")
    ax.set_ylabel("wait (ms)")
    ax.set_title("Steady p99 of each setting (ms)", loc="left")
    return ax


def prediction(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw predicted over measured latency, two points a setting; on the line they are the same.

    Parameters
    ----------
    table
        As of ``Prediction``.
    ax
        Where to draw; None makes a figure.
    """
    ax = axes_or_new(ax, (5.4, 4.8))
    strip_down(ax)
    columns = [f"{name}{kind}_ms" for name in ("p50", "steady_p99") for kind in ("", "_predicted")]
    values = table[columns].to_numpy(dtype=float)
    low, high = float(values.min()) / 1.15, float(values.max()) * 1.15
    line = np.array([low, high])
    ax.fill_between(line, line * 0.9, line * 1.1, color=INK, alpha=0.14, lw=0, label="within 10%")
    ax.plot(line, line, color=INK, lw=1)
    for name, color, marker in (("p50", AMBER, "s"), ("steady_p99", BLUE, "o")):
        ax.scatter(
            table[f"{name}_ms"], table[f"{name}_predicted_ms"], s=42, color=color, marker=marker,
            edgecolors="white", lw=0.7, zorder=3, label=name.replace("_", " "),
        )  # fmt: skip
    for axis, scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
        scale("log")
        axis.set_major_locator(
            LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if high < WIDE * low else (1, 3), numticks=99)
        )
        axis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(99, 99)))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    ax.grid(color="#808080", alpha=0.2, linewidth=0.8)
    off = pd.concat([table["p50_error"], table["steady_p99_error"]]).abs().median()
    ax.set_title(f"Predicted within {off:.0%} (median of {2 * len(table)})", loc="left")
    ax.set_xlabel("measured (ms)")
    ax.set_ylabel("predicted (ms)")
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax
