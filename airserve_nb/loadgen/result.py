"""What a probe found: two frames, a summary, pictures, and a display that stays in the saved notebook."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from airserve_nb import figures
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import ProbeError
from airserve_nb.loadgen import result_text
from airserve_nb.loadgen.comparison import Comparison
from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.loadgen.outcomes import ClientReport
from airserve_nb.loadgen.records import ServerRecords
from airserve_nb.loadgen.result_html import result_html
from airserve_nb.loadgen.slo import check_slo
from airserve_nb.loadgen.steps import step_table
from airserve_nb.loadgen.summary import ProbeSummary, counted, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from airserve_nb.diagnosis import Diagnosis
    from airserve_nb.service_time import ServiceTime

__all__ = ["ProbeResult"]

SIZES_SHOWN = 8


@dataclass(frozen=True, repr=False, eq=False)
class ProbeResult:
    """What became of each request of a probe, and in which batches they rode.

    Displayed in a notebook it is a table and a picture, kept in the saved file.
    """

    target: str
    """Name of the deployment, or the path of a bare URL."""
    url: str
    """Where the requests went; without a user and password that were in it."""
    requests: pd.DataFrame
    """One row a request, in the order of the plan.

    ``request_id`` (the server's), ``step`` (of the rates, from 0), ``planned``, ``sent``, ``first_byte``, ``done``
    (seconds from the start of the probe; NaN: it never came to that), ``status`` (HTTP; NaN without an answer),
    ``outcome`` (``ok``, ``http_error``, ``timeout``, ``connection_error`` or ``cancelled``), ``batch_id``,
    ``batch_size`` (0 without a batch), ``queue_ms``, ``predict_ms`` (the server's figures), ``overhead_ms`` (all the
    rest of ``service_ms``, network and client included), ``service_ms`` (from ``sent`` to ``done``), ``total_ms`` (the
    latency: from ``planned`` to ``done``), ``version``, ``replica``, ``answer`` (decoded JSON, else text; of a failure
    its sentence; None beyond the first 32 MB of answers), ``error`` (the sentence; None when ok).
    """
    batches: pd.DataFrame
    """One row a batch that answered one of them, in the order of release.

    ``batch_id``, ``batch_size``, ``rows``, ``released`` (seconds from the start of the probe, on the client's
    clock), ``released_at`` (the same moment, UTC), ``predict_ms``, ``release_reason``, ``queue_depth``,
    ``other_signatures``, ``version``, ``replica``. Empty when the server does not tell; of a bare URL without
    what only the records have: rows, reason, depth, replica.
    """
    elapsed_s: float
    """From the first sending to the end of the last request, in seconds."""
    interrupted: bool
    """Whether it was stopped before its end."""
    plan: LoadPlan = field(default_factory=lambda: LoadPlan("burst"))
    """How the requests were planned."""
    client: ClientReport = field(default_factory=ClientReport)
    """What the client says of itself."""
    records: ServerRecords | None = None
    """How the server's own records agree; None when it has none."""
    settings: BatchSettings | None = None
    """By which limits the service batched when the probe began; None of a bare URL."""
    replicas: int | None = None
    """How many replicas it was asked to have then."""
    started_at: float = math.nan
    """When it started, in seconds of the wall clock: the zero of all other times."""
    answers_not_kept: int = 0
    """Answers beyond the first 32 MB: counted, timed, and thrown away."""

    def summary(self) -> ProbeSummary:
        """Return counts and latencies as an object that prints as some sentences."""
        return summarise(
            self.requests,
            self.batches,
            elapsed_s=self.elapsed_s,
            interrupted=self.interrupted,
            plan=self.plan,
            client=self.client,
            records=self.records,
            answers_not_kept=self.answers_not_kept,
        )

    @property
    def steps(self) -> pd.DataFrame:
        """Return one row a step of rates; one row in all without steps.

        ``rate`` (planned requests a second; NaN in a closed loop), ``requests``, ``ok``, ``failed`` (without those
        that a stopped probe gave up), ``requests_per_s`` (successful answers that came within the step, a second;
        NaN of a step that a stopped probe never came to), ``p50_ms``, ``p99_ms`` (of the latency; NaN with too few
        samples), ``late_ms``, ``queue_ms``, ``predict_ms``, ``overhead_ms`` (means; ``late_ms`` is how long a
        request waited to be sent), ``mean_batch_size``.
        """
        return step_table(self.requests, self.plan, self.elapsed_s, interrupted=self.interrupted)

    # -- deciding -------------------------------------------------------------------------------

    def compare(self, other: ProbeResult, *, labels: tuple[str, str] = ("before", "after")) -> Comparison:
        """Set this result beside a later one.

        Parameters
        ----------
        other
            The later one.
        labels
            What to call the two.

        Raises
        ------
        ProbeError
            When ``other`` is no result, or the labels are not two different texts.
        """
        if not isinstance(other, ProbeResult):
            raise ProbeError(
                f"A result is compared with another one, and got {other!r}; give what probe() returned."
            )
        if isinstance(labels, str) or len(labels) != 2 or labels[0] == labels[1]:  # noqa: PLR2004 - before and after
            raise ProbeError(f'labels is {labels!r}; give two different texts, such as ("before", "after").')
        return Comparison(before=self, after=other, labels=labels)

    def assert_slo(
        self,
        *,
        p50_ms: float | None = None,
        p90_ms: float | None = None,
        p99_ms: float | None = None,
        p999_ms: float | None = None,
        error_rate: float | None = None,
        requests_per_s: float | None = None,
    ) -> None:
        """Raise unless all these objectives were met; for use in tests.

        Parameters
        ----------
        p50_ms, p90_ms, p99_ms, p999_ms
            Milliseconds that so many percent of the successful answers' latencies may reach. Without an
            ``error_rate`` a failed request counts as one that takes longer.
        error_rate
            Share of the requests, from 0 to 1, that may fail; those that a stopped probe cancelled do not count.
        requests_per_s
            Successful answers a second, at least.

        Raises
        ------
        SloMissedError
            An ``AssertionError`` that names each objective that was missed, with its figure.
        ProbeError
            When there are too few requests to say.
        """
        limits = {"p50": p50_ms, "p90": p90_ms, "p99": p99_ms, "p99.9": p999_ms}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        check_slo(self.summary(), self.target, given, error_rate, requests_per_s)

    def diagnose(self) -> Diagnosis:
        """Say what limits the size of the batches, and what limits latency.

        Raises
        ------
        ProbeError
            When it is not known by which limits the target batches, as of a bare URL.
        """
        from airserve_nb.diagnosis import diagnose, records_from_frames

        if self.settings is None:
            raise ProbeError(
                f"{self.target} was probed by its URL, which does not tell its limits; probe the Service itself."
            )
        # For the server a request begins when it is sent.
        requests = self.requests.assign(total_ms=self.requests["service_ms"])
        return diagnose(
            *records_from_frames(requests, self.batches),
            self.settings,
            replicas=self.replicas,
            concurrency=self.plan.concurrency if self.plan.kind == "closed" else None,
        )

    def fit_service_time(self, *, seed: int = 0) -> ServiceTime:
        """Fit how long a batch takes by its rows, to the batches of this probe; see ``airserve_nb.fit_service_time``.

        Batches that answered none of the requests do not count: their call of predict failed.
        """
        from airserve_nb.service_time import fit_service_time

        answered = self.requests.loc[self.requests["outcome"] == "ok", "batch_id"]
        return fit_service_time(self.batches[self.batches["batch_id"].isin(set(answered))], seed=seed)

    # -- keeping --------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Return the whole result as text, from which :meth:`from_json` makes an equal one."""
        return result_text.to_json(self)

    @classmethod
    def from_json(cls, text: str) -> ProbeResult:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ProbeError
            When it is something else.
        """
        return cls(**result_text.from_json(text))

    # -- pictures -------------------------------------------------------------------------------

    def plot(self) -> Figure:
        """Draw the timeline, one bar a request, and the batch sizes beside it where the server tells them."""
        return figures.probe_figure(self.requests, self.batches)

    def plot_timeline(self, ax: Axes | None = None) -> Axes:
        """Draw which request waited when, and in which batch it rode."""
        return figures.timeline(self.requests, self.batches, ax)

    def plot_batch_sizes(self, ax: Axes | None = None) -> Axes:
        """Draw how often each batch size came."""
        limit = None if self.settings is None else self.settings.members_at_most
        return figures.batch_size_histogram(self.batches, ax, max_batch_size=limit)

    def plot_latency(self, ax: Axes | None = None) -> Axes:
        """Draw the latency at each percentile, up to the highest that there are samples for."""
        return figures.latency_curve({"": self.requests}, ax, open_loop=self.plan.kind == "open")

    def plot_parts(self, ax: Axes | None = None) -> Axes:
        """Draw where the time goes: by step where there are several, else as time goes by."""
        return figures.time_parts(self.requests, self.steps, ax)

    def plot_throughput(self, ax: Axes | None = None) -> Axes:
        """Draw latency against throughput, a point a step, with the knee marked."""
        return figures.throughput_curve(self.steps, ax)

    # -- showing it -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Hold nothing that differs from run to run but the batches themselves: no times, no ids."""
        return f"<ProbeResult {self.target}: {self._headline()}>"

    def _headline(self) -> str:
        kinds = Counter(self.requests["outcome"])
        parts = [f"{counted(len(self.requests), 'request')}, {kinds.pop('ok', 0)} ok"]
        parts += [f"{number} {kind.replace('_', ' ')}" for kind, number in sorted(kinds.items())]
        if len(self.batches):
            parts.append(f"{counted(len(self.batches), 'batch')} of {self._sizes()}")
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
        return {"text/plain": repr(self), "text/html": self._repr_html_(), "image/png": self._png()}

    def _repr_html_(self) -> str:
        return result_html(self, self._headline(), self._png(transparent=True))

    def _png(self, *, transparent: bool = False) -> str:
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png", transparent=transparent)
        return b64encode(buffer.getvalue()).decode("ascii")
