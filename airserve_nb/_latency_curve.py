"""The whole distribution of latency: what it was for the median, for one in ten, for one in a thousand.

The x axis counts nines: each step to the right is ten times rarer, so that the tail, where users complain, has as much
room as the middle. The curve ends where there are samples for no more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from airserve_nb._figure_base import axes_or_new, strip_down

__all__ = ["latency_curve"]

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
STYLES = ("-", "--", "-.", ":")
MARKED = (0.5, 0.9, 0.99, 0.999)
Floats = npt.NDArray[np.float64]


def latency_curve(
    requests: Mapping[str, pd.DataFrame], ax: Axes | None = None, *, open_loop: bool = False
) -> Axes:
    """Draw the latency of the successful answers at each percentile.

    Parameters
    ----------
    requests
        Frames by name, each with the columns ``outcome``, ``total_ms`` and ``service_ms``.
    ax
        Where to draw; None makes a figure.
    open_loop
        Whether to draw, of a single frame, the time from the real sending too: what lies between the two is the
        waiting that a client which waits for answers would not have seen.
    """
    ax = axes_or_new(ax, (7, 4))
    strip_down(ax)
    ax.set_xscale("log")
    longest = 0
    for number, (name, frame) in enumerate(requests.items()):
        good = frame[frame["outcome"] == "ok"]
        longest = max(longest, len(good))
        _draw(ax, good, name, LINES[number % len(LINES)], STYLES[number % len(STYLES)])
        if open_loop and len(requests) == 1:
            _draw_service(ax, good)
    _draw_axes(ax, longest)
    ax.set_title(_title(requests), loc="left")
    if ax.lines and (len(requests) > 1 or open_loop):
        ax.legend(frameon=False, loc="lower right", fontsize="small")
    return ax


def _curve(latencies: pd.Series[float]) -> tuple[Floats, Floats]:
    """Return how rare, as 1 / (1 - percentile), and how long."""
    ordered: Floats = np.sort(latencies.to_numpy(dtype=np.float64))
    ranks = np.arange(len(ordered))
    return np.asarray(len(ordered) / (len(ordered) - ranks)), ordered


def _draw(ax: Axes, good: pd.DataFrame, name: str, color: str, style: str) -> None:
    if good.empty:
        return
    rarity, latency = _curve(good["total_ms"])
    ax.plot(
        rarity,
        latency,
        color=color,
        linestyle=style,
        lw=2,
        drawstyle="steps-post",
        label=name or "from the planned send time",
    )
    for share in MARKED:
        if len(good) * (1 - share) >= 1 - 1e-9 or share == MARKED[0]:
            value = float(good["total_ms"].quantile(share))
            ax.plot([1 / (1 - share)], [value], "o", color=color, markersize=5)
            if not name:
                ax.annotate(
                    f"{value:,.1f}" if value < 100 else f"{value:,.0f}",  # noqa: PLR2004 - digits
                    (1 / (1 - share), value),
                    xytext=(-4, 5),
                    textcoords="offset points",
                    ha="right",
                    fontsize="small",
                )


def _draw_service(ax: Axes, good: pd.DataFrame) -> None:
    if good.empty:
        return
    rarity, service = _curve(good["service_ms"])
    _, latency = _curve(good["total_ms"])
    ax.plot(
        rarity,
        service,
        color="#7A7A7A",
        lw=1.4,
        linestyle="--",
        drawstyle="steps-post",
        label="from the real send time",
    )
    ax.fill_between(rarity, service, latency, step="post", color=LINES[0], alpha=0.12, linewidth=0)


def _draw_axes(ax: Axes, samples: int) -> None:
    ax.set_xlim(1, max(20, samples) * 1.05)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.08)  # room for the figures above a curve that is level
    shares = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999]
    ax.xaxis.set_major_locator(FixedLocator([1 / (1 - share) for share in shares]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rarity, _: f"{100 * (1 - 1 / rarity):.6g}"))
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.grid(axis="both", color="#808080", alpha=0.2, linewidth=0.8)
    ax.set_xlabel("percent of the answers that were at least as quick")
    ax.set_ylabel("latency (ms)")


def _title(requests: Mapping[str, pd.DataFrame]) -> str:
    """State the finding."""
    good = {name: frame.loc[frame["outcome"] == "ok", "total_ms"] for name, frame in requests.items()}
    fewest = min((len(latencies) for latencies in good.values()), default=0)
    if not fewest:
        return "No answers" if len(good) < 2 else "Latency of each answer"  # noqa: PLR2004 - several
    share = next(
        share for share in (0.99, 0.9, 0.5) if fewest * (1 - share) >= 1 - 1e-9 or share == MARKED[0]
    )
    if len(good) > 1:
        texts = [f"{name} {latencies.quantile(share):,.0f} ms" for name, latencies in good.items()]
        return f"p{100 * share:g}: {', '.join(texts)}"
    what = "Half" if share == MARKED[0] else f"{share:.0%}"
    (latencies,) = good.values()
    (frame,) = requests.values()
    failed = int((~frame["outcome"].isin(("ok", "cancelled"))).sum())
    rest = f"; {failed:,} requests failed" if failed > 1 else "; 1 request failed" if failed else ""
    return f"{what} of {len(latencies):,} answers came within {latencies.quantile(share):,.0f} ms{rest}"
