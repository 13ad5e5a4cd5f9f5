"""A probe's result as HTML: a table of figures, the picture, and what one should know besides.

The picture is drawn for white paper. Where the notebook is dark, its lightness is turned round and its hues are kept,
by the page's style; so it is no white block, and it is stored once.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING

from airserve_nb.loadgen.summary import ProbeSummary, counted, duration

if TYPE_CHECKING:
    from airserve_nb.loadgen.result import ProbeResult

__all__ = ["result_html"]

ERRORS_SHOWN = 3
# JupyterLab and Notebook, VS Code, Colab.
_DARK = ('[data-jp-theme-light="false"]', ".vscode-dark", ".vscode-high-contrast", 'html[theme="dark"]')
STYLE = (
    f"<style>:is({','.join(_DARK)}) .airserve-probe img"
    "{filter:invert(1) hue-rotate(180deg) !important;background:none !important}</style>"
)


def result_html(result: ProbeResult, headline: str, picture: str) -> str:
    """Return the HTML of a result; ``picture`` is its PNG, transparent, in base64."""
    summary = result.summary()
    cells = "".join(
        f'<div style="margin:0 2em .3em 0"><div style="font-size:1.35em;font-weight:600">{escape(value)}</div>'
        f'<div style="opacity:.7">{escape(name)}</div></div>'
        for name, value in _figures(summary)
    )
    return (
        f'{STYLE}<div class="airserve-probe" style="font-family:var(--jp-ui-font-family,system-ui,sans-serif);'
        'color:var(--jp-ui-font-color1,inherit);font-size:13px;max-width:1000px;margin-bottom:.8em">'
        f'<div style="margin:.3em 0 .6em">Probe of <b>{escape(result.target)}</b> '
        f'<code style="background:none">{escape(result.url)}</code> &middot; {escape(result.plan.in_words())}'
        f"{_mark(summary)}</div>"
        f'<div style="display:flex;flex-wrap:wrap;margin-bottom:.6em">{cells}</div>'
        f'<img alt="{escape(f"Timeline of {result.target}: {headline}")}" '
        'style="max-width:100%;background:#fff;border-radius:4px" '
        f'src="data:image/png;base64,{picture}">{_list(_sentences(result, summary))}</div>'
    )


def _sentences(result: ProbeResult, summary: ProbeSummary) -> list[str]:
    errors = Counter(result.requests["error"].dropna()).most_common(ERRORS_SHOWN)
    found = [str(result.diagnose())] if result.settings is not None and len(result.batches) else []
    return [*found, *summary.remarks(), *(f"{count} of them: {sentence}" for sentence, count in errors)]


def _list(sentences: list[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f'<li style="margin:.15em 0">{escape(sentence)}</li>' for sentence in sentences)
    return f'<ul style="margin:.6em 0;padding-left:1.3em">{items}</ul>'


def _mark(summary: ProbeSummary) -> str:
    words = [
        word
        for word, holds in (("interrupted", summary.interrupted), ("client-limited", summary.client_limited))
        if holds
    ]
    return "".join(f' &middot; <b style="color:var(--jp-error-color1,#d32f2f)">{word}</b>' for word in words)


def _figures(summary: ProbeSummary) -> list[tuple[str, str]]:
    """Return names and texts of the table above the picture."""
    pairs = [("of " + counted(summary.requests, "request") + " ok", str(summary.ok))]
    failed = summary.failed - summary.cancelled
    pairs += [
        (word, str(count)) for word, count in (("failed", failed), ("cancelled", summary.cancelled)) if count
    ]
    if summary.batches:
        pairs.append(("batch" if summary.batches == 1 else "batches", str(summary.batches)))
        pairs.append(("requests a batch", f"{summary.mean_batch_size:.1f}"))
    if summary.plan.kind != "burst" and summary.ok:
        pairs.append(("requests a second", f"{summary.requests_per_s:,.0f}"))
    pairs += [
        (f"latency {one.name}", f"{one.ms:.1f} ms") for one in summary.percentiles if one.ms is not None
    ]
    return [*pairs, ("elapsed", duration(summary.elapsed_s))]
