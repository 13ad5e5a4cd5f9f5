"""A sweep's result as HTML: a sentence, the pictures, and the table."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from html import escape
from typing import Any

import pandas as pd

from airserve_nb.loadgen.result_html import STYLE

__all__ = ["sweep_html"]

_HEADS = (
    "max batch size",
    "wait",
    "p50",
    "p99",
    "steady p99",
    "answers",
    "a second",
    "mean batch",
    "busy",
    "errors",
    "rounds",
)


def sweep_html(target: str, headline: str, table: pd.DataFrame, picture: str) -> str:
    """Return the HTML of a result; ``picture`` is its PNG, transparent, in base64."""
    heads = "".join(f"<th>{escape(head)}</th>" for head in _HEADS)
    rows = "".join(_row(row) for row in table.to_dict("records"))
    return (
        f'{STYLE}<div class="airserve-probe" style="font-family:var(--jp-ui-font-family,system-ui,sans-serif);'
        'color:var(--jp-ui-font-color1,inherit);font-size:13px;max-width:1000px;margin-bottom:.8em">'
        f'<div style="margin:.3em 0 .6em">Sweep of <b>{escape(target)}</b> &middot; {escape(headline)}</div>'
        f'<img alt="{escape(f"Latency of {target} by setting: {headline}")}" '
        'style="max-width:100%;background:#fff;border-radius:4px" '
        f'src="data:image/png;base64,{picture}">'
        f"<details><summary>All settings</summary><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></details></div>"
    )


def _row(row: Mapping[Hashable, Any]) -> str:
    cells = (
        str(row["max_batch_size"]),
        f"{1e3 * row['batch_wait_timeout_s']:g} ms",
        _number(row["p50_ms"], "{:.1f} ms"),
        _number(row["p99_ms"], "{:.1f} ms"),
        _number(row["steady_p99_ms"], "{:.1f} ms"),
        str(row["samples"]),
        _number(row["requests_per_s"], "{:.0f}"),
        _number(row["mean_batch_size"], "{:.1f}"),
        _number(row["utilisation"], "{:.0%}"),
        str(row["errors"]),
        str(row["rounds"]) if row["keeps_up"] else "fell behind",
    )
    weight = ' style="font-weight:600"' if row["front"] else ""
    return f"<tr{weight}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _number(value: float, words: str) -> str:
    return "-" if math.isnan(value) else words.format(value)
