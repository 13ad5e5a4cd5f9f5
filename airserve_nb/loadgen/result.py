"""What a probe found: two frames, a summary, a picture, and a display that stays in the saved notebook."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from airserve_nb import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ProbeResult", "ProbeSummary"]

P99_NEEDS = 100
"""Below so many answers the 99th percentile would be their maximum under another name."""
SIZES_SHOWN = 8
ERRORS_SHOWN = 3


@dataclass(frozen=True, repr=False)
class ProbeSummary:
    """The figures of a probe; printed, it is a sentence or two."""

    requests: int
    """How many were planned; the five below add up to it."""
    ok: int
    http_errors: int
    timeouts: int
    connection_errors: int
    cancelled: int
    batches: int
    """Calls of predict that answered them; 0 when the server does not tell."""
    mean_batch_size: float
    """Requests a batch; NaN without one."""
    elapsed_s: float
    requests_per_s: float
    """Successful answers a second; NaN without one."""
    p50_ms: float | None
    """Median latency of the successful answers, as the client saw it; None without one."""
    p99_ms: float | None
    """Their 99th percentile; None below 100 of them."""
    mean_queue_ms: float
    mean_predict_ms: float
    """Of a request; NaN when the server does not tell, like the other two means."""
    mean_overhead_ms: float
    interrupted: bool
    most_frequent_error: str | None
    """The sentence that most of the failed requests share."""

    @property
    def failed(self) -> int:
        """Requests without a successful answer, for whatever reason."""
        return self.requests - self.ok

    def __str__(self) -> str:
        sentences = [self._outcomes(), *self._latencies()]
        if self.most_frequent_error is not None:
            sentences.append(self._error())
        return " ".join(sentences)

    __repr__ = __str__

    def _outcomes(self) -> str:
        parts = [f"{self.ok} of {_count(self.requests, 'request')} ok in {_duration(self.elapsed_s)}"]
        if self.batches:
            parts.append(f"in {_count(self.batches, 'batch')} of {self.mean_batch_size:.1f} on average")
        parts += [
            _count(number, word)
            for number, word in (
                (self.http_errors, "HTTP error"),
                (self.timeouts, "timeout"),
                (self.connection_errors, "connection error"),
                (self.cancelled, "cancelled"),
            )
            if number
        ]
        stopped = "Interrupted: " if self.interrupted else ""
        return f"{stopped}{', '.join(parts)}."

    def _latencies(self) -> list[str]:
        if self.p50_ms is None:
            return []
        p99 = f", p99 {self.p99_ms:.1f} ms" if self.p99_ms is not None else ""
        sentences = [f"Latency: p50 {self.p50_ms:.1f} ms{p99}."]
        if not math.isnan(self.mean_predict_ms):
            sentences.append(
                f"A mean request waited {self.mean_queue_ms:.1f} ms, was predicted in {self.mean_predict_ms:.1f} ms, "
                f"and took {self.mean_overhead_ms:.1f} ms besides."
            )
        return sentences

    def _error(self) -> str:
        if self.connection_errors == self.requests:
            return f"No request reached the server. {self.most_frequent_error}"
        return f"Most frequent error: {self.most_frequent_error}"


@dataclass(frozen=True, repr=False, eq=False)
class ProbeResult:
    """What became of each request of a probe, and in which batches they rode.

    Displayed in a notebook it is a table and a picture, kept in the saved file.
    """

    target: str
    """Name of the deployment, or the path of a bare URL."""
    url: str
    requests: pd.DataFrame
    """One row a request, in the order of the plan.

    ``request_id`` (the server's), ``planned``, ``sent``, ``first_byte``, ``done`` (seconds from the start of
    the probe; NaN: it never came to that), ``status`` (HTTP; NaN without an answer), ``outcome`` (``ok``,
    ``http_error``, ``timeout``, ``connection_error`` or ``cancelled``), ``batch_id``, ``batch_size`` (0
    without a batch), ``queue_ms``, ``predict_ms`` (the server's figures), ``overhead_ms`` (all the rest of
    ``total_ms``, network and client included), ``total_ms`` (from ``sent`` to ``done``), ``version``, ``replica``,
    ``answer`` (decoded JSON, else text; of a failure its sentence), ``error`` (the sentence; None when ok).
    """
    batches: pd.DataFrame
    """One row a batch that answered one of them, in the order of release.

    ``batch_id``, ``batch_size``, ``rows``, ``released`` (seconds from the start of the probe, on the client's
    clock), ``released_at`` (the same moment, UTC), ``predict_ms``, ``release_reason``, ``queue_depth``,
    ``version``, ``replica``. Empty when the server does not tell; of a bare URL without rows, reason, depth.
    """
    elapsed_s: float
    """From the first sending to the end of the last request, in seconds."""
    interrupted: bool
    """Whether it was stopped before its end."""

    def summary(self) -> ProbeSummary:
        """Return counts and latencies as an object that prints as a sentence or two."""
        requests = self.requests
        kinds = Counter(requests["outcome"])
        good = requests[requests["outcome"] == "ok"]
        errors = Counter(requests["error"].dropna()).most_common(1)
        return ProbeSummary(
            requests=len(requests),
            ok=kinds["ok"],
            http_errors=kinds["http_error"],
            timeouts=kinds["timeout"],
            connection_errors=kinds["connection_error"],
            cancelled=kinds["cancelled"],
            batches=len(self.batches),
            mean_batch_size=float(self.batches["batch_size"].mean()) if len(self.batches) else float("nan"),
            elapsed_s=self.elapsed_s,
            requests_per_s=len(good) / self.elapsed_s if len(good) and self.elapsed_s else float("nan"),
            p50_ms=float(good["total_ms"].quantile(0.5)) if len(good) else None,
            p99_ms=float(good["total_ms"].quantile(0.99)) if len(good) >= P99_NEEDS else None,
            mean_queue_ms=float(good["queue_ms"].mean()),
            mean_predict_ms=float(good["predict_ms"].mean()),
            mean_overhead_ms=float(good["overhead_ms"].mean()),
            interrupted=self.interrupted,
            most_frequent_error=errors[0][0] if errors else None,
        )

    def plot(self) -> Figure:
        """Draw the timeline, one bar a request, and the batch sizes beside it where the server tells them."""
        return figures.probe_figure(self.requests, self.batches)

    def __repr__(self) -> str:
        """Hold nothing that differs from run to run but the batches themselves: no times, no ids."""
        return f"<ProbeResult {self.target}: {self._headline()}>"

    def _headline(self) -> str:
        kinds = Counter(self.requests["outcome"])
        parts = [f"{_count(len(self.requests), 'request')}, {kinds.pop('ok', 0)} ok"]
        parts += [f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(kinds.items())]
        if len(self.batches):
            parts.append(f"{_count(len(self.batches), 'batch')} of {self._sizes()}")
        if self.interrupted:
            parts.append("interrupted")
        return ", ".join(parts)

    def _sizes(self) -> str:
        """List the batch sizes in order of release; of many batches, how often each size came."""
        sizes = [int(size) for size in self.batches["batch_size"]]
        if len(sizes) <= SIZES_SHOWN:
            return " + ".join(map(str, sizes))
        common = sorted(Counter(sizes).items(), key=lambda item: (-item[1], -item[0]))
        shown = [f"{size} (x{count})" for size, count in common[:SIZES_SHOWN]]
        return "size " + ", ".join(shown) + (", ..." if len(common) > SIZES_SHOWN else "")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:  # noqa: ARG002 - IPython's
        picture = self._png()
        return {"text/plain": repr(self), "text/html": self._html(picture), "image/png": picture}

    def _repr_html_(self) -> str:
        return self._html(self._png())

    def _png(self) -> str:
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png")
        return b64encode(buffer.getvalue()).decode("ascii")

    def _html(self, picture: str) -> str:
        cells = "".join(
            f'<div style="margin-right:2em"><div style="font-size:1.35em;font-weight:600">{escape(value)}</div>'
            f'<div style="opacity:.7">{escape(name)}</div></div>'
            for name, value in self._figures()
        )
        errors = "".join(
            f'<li style="margin:.15em 0">{escape(f"{count} of them: {sentence}")}</li>'
            for sentence, count in Counter(self.requests["error"].dropna()).most_common(ERRORS_SHOWN)
        )
        return (
            '<div style="font-family:var(--jp-ui-font-family,system-ui,sans-serif);'
            'color:var(--jp-ui-font-color1,inherit);font-size:13px;max-width:1000px;margin-bottom:.8em">'
            f'<div style="margin:.3em 0 .6em">Probe of <b>{escape(self.target)}</b> '
            f'<code style="background:none">{escape(self.url)}</code>{self._mark()}</div>'
            f'<div style="display:flex;flex-wrap:wrap;margin-bottom:.6em">{cells}</div>'
            f'<img alt="{escape(f"Timeline of {self.target}: {self._headline()}")}" '
            'style="max-width:100%;background:#fff;border-radius:4px" '
            f'src="data:image/png;base64,{picture}">'
            + (f'<ul style="margin:.6em 0;padding-left:1.3em">{errors}</ul>' if errors else "")
            + "</div>"
        )

    def _mark(self) -> str:
        return (
            ' &middot; <b style="color:var(--jp-error-color1,#d32f2f)">interrupted</b>'
            if self.interrupted
            else ""
        )

    def _figures(self) -> list[tuple[str, str]]:
        """Return names and texts of the table above the picture."""
        summary = self.summary()
        pairs = [("of " + _count(summary.requests, "request") + " ok", str(summary.ok))]
        if summary.failed:
            pairs.append(("failed", str(summary.failed)))
        if summary.batches:
            pairs.append(("batch" if summary.batches == 1 else "batches", str(summary.batches)))
            pairs.append(("requests a batch", f"{summary.mean_batch_size:.1f}"))
        if summary.p50_ms is not None:
            pairs.append(("latency p50", f"{summary.p50_ms:.1f} ms"))
        if summary.p99_ms is not None:
            pairs.append(("latency p99", f"{summary.p99_ms:.1f} ms"))
        return [*pairs, ("elapsed", _duration(summary.elapsed_s))]


def _count(number: int, noun: str) -> str:
    if noun == "cancelled" or number == 1:
        return f"{number} {noun}"
    return f"{number} {noun}{'es' if noun.endswith('ch') else 's'}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
