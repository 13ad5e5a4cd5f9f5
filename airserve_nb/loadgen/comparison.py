"""Two probes side by side: what a change has brought."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from airserve_nb import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from airserve_nb.loadgen.result import ProbeResult
    from airserve_nb.loadgen.summary import ProbeSummary

__all__ = ["Comparison"]


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """Two results and what differs; printed, it is a table."""

    before: ProbeResult
    after: ProbeResult
    labels: tuple[str, str] = ("before", "after")
    """What the two are called."""

    @property
    def table(self) -> pd.DataFrame:
        """One row a figure: both values, and ``change``, the second over the first less 1 (NaN where one is missing)."""
        columns = [_figures(result.summary()) for result in (self.before, self.after)]
        frame = pd.DataFrame(dict(zip(self.labels, columns, strict=True)))
        first, second = (frame[label] for label in self.labels)
        frame["change"] = (second / first.where(first != 0) - 1).astype(float)
        return frame.rename_axis("figure")

    def plot(self) -> Figure:
        """Draw the two latencies at each percentile in one picture, and where the time went beside it."""
        return figures.compare_figure(
            {
                label: result.requests
                for label, result in zip(self.labels, (self.before, self.after), strict=True)
            }
        )

    def __repr__(self) -> str:
        return "\n".join(
            f"{name:<16} {_number(first):>10} -> {_number(second):>10}  {_change(change)}".rstrip()
            for name, first, second, change in self.table.itertuples(name=None)
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(str(name))}</td><td>{_number(first)}</td><td>{_number(second)}</td><td>{_change(change)}</td></tr>"
            for name, first, second, change in self.table.itertuples(name=None)
        )
        heads = "".join(f"<th>{escape(text)}</th>" for text in ("", *self.labels, "change"))
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png")
        return buffer.getvalue()


def _figures(summary: ProbeSummary) -> pd.Series[float]:
    latencies = {f"{one.name} ms": math.nan if one.ms is None else one.ms for one in summary.percentiles}
    return pd.Series(
        {
            "requests": summary.requests,
            "failed": summary.failed - summary.cancelled,
            "requests a second": summary.requests_per_s,
            **latencies,
            "queue ms": summary.mean_queue_ms,
            "predict ms": summary.mean_predict_ms,
            "overhead ms": summary.mean_overhead_ms,
            "requests a batch": summary.mean_batch_size,
        },
        dtype=float,
    )


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.1f}"  # noqa: PLR2004 - digits


def _change(share: float) -> str:
    return "" if math.isnan(share) else f"{share:+.0%}"
