"""The figures of a probe, as an object that prints as some sentences."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airserve_nb.loadgen.limits import MOST_REQUESTS
from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.loadgen.outcomes import ClientReport
from airserve_nb.loadgen.records import ServerRecords

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PERCENTILES", "Percentile", "ProbeSummary", "counted", "duration", "percentile", "summarise"]

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
BUSY_SHARE = 0.9
"""Of a core: from there on a client has nothing left to be quicker with."""
OWN_SHARE = 0.1
"""A client whose own delay is more than this of a latency has measured itself."""
OWN_MS = 1.0
"""What is less is the machine's noise, not a limit."""
UNREAD_MS = 0.2
"""The same of answers that lie unread, in the median."""


@dataclass(frozen=True, slots=True)
class Percentile:
    """One percentile of the latency."""

    name: str
    """Such as ``p99``."""
    ms: float | None
    """None with too few samples: at least one of them must lie beyond it."""
    samples: int
    """Of how many latencies."""


@dataclass(frozen=True, repr=False)
class ProbeSummary:
    """The figures of a probe; printed, it is some sentences."""

    requests: int
    """How many there were; the five below add up to it."""
    ok: int
    http_errors: int
    timeouts: int
    connection_errors: int
    cancelled: int
    statuses: dict[int, int]
    """Answers by HTTP status."""
    batches: int
    """Calls of predict that answered them; 0 when the server does not tell."""
    mean_batch_size: float
    """Requests a batch; NaN without one."""
    elapsed_s: float
    requests_per_s: float
    """Successful answers a second; NaN without one."""
    percentiles: tuple[Percentile, ...]
    """Of the successful answers' latency, from the planned send time."""
    service_percentiles: tuple[Percentile, ...]
    """The same, from the moment at which the request was really sent: what a client that waits would tell."""
    mean_queue_ms: float
    mean_predict_ms: float
    """Of a request; NaN when the server does not tell, like the other two means."""
    mean_overhead_ms: float
    interrupted: bool
    most_frequent_error: str | None
    """The sentence that most of the failed requests share."""
    client: ClientReport
    """What the client says of itself."""
    client_limited: bool
    """Whether the client, and not the server, was the limit: the figures are then those of the client."""
    records: ServerRecords | None
    """How the server's own records agree; None when it has none."""
    plan: LoadPlan
    """How the requests were planned."""
    answers_not_kept: int
    """Answers that were counted and thrown away, see ``ProbeResult.requests``."""

    @property
    def failed(self) -> int:
        """Requests without a successful answer, for whatever reason."""
        return self.requests - self.ok

    @property
    def samples(self) -> int:
        """How many latencies the percentiles are taken of."""
        return self.ok

    @property
    def p50_ms(self) -> float | None:
        """Median latency of the successful answers; None without one."""
        return self.percentiles[0].ms

    @property
    def p90_ms(self) -> float | None:
        """Their 90th percentile; None below 10 of them."""
        return self.percentiles[1].ms

    @property
    def p99_ms(self) -> float | None:
        """Their 99th percentile; None below 100 of them."""
        return self.percentiles[2].ms

    @property
    def p999_ms(self) -> float | None:
        """Their 99.9th percentile; None below 1,000 of them."""
        return self.percentiles[3].ms

    def __str__(self) -> str:
        sentences = [self._outcomes(), *self._latencies()]
        if self.most_frequent_error is not None:
            sentences.append(self._error())
        return " ".join([*sentences, *self.remarks()])

    __repr__ = __str__

    def remarks(self) -> list[str]:
        """Return what one should know before one believes the figures, a sentence each."""
        return [*self._client_remarks(), *self._record_remarks()]

    def _client_remarks(self) -> list[str]:
        client, found = self.client, []
        if self.client_limited:
            delay = f"answers lay {client.loop_p50_ms:.1f} ms before it read them (median)"
            if self.plan.kind == "open":
                delay = f"it sent requests {client.lag_p50_ms:.1f} ms late (median; p99 {client.lag_p99_ms:.1f} ms)"
            cause = f"with {client.cpu_share:.0%} of a core in use"
            if client.cpu_share < BUSY_SHARE:
                cause = "because others kept this machine busy"
            found.append(f"The client was the limit: {delay}, {cause}; the server may be faster than this.")
        if client.held_back:
            found.append(
                f"{counted(client.held_back, 'request')} had to wait for one of {client.most_in_flight} in flight to end, "
                f"{client.held_back_ms:.0f} ms at most; that time is in their latency."
            )
        if self.plan.kind == "closed" and self.plan.requests is None and self.requests >= MOST_REQUESTS:
            found.append(f"It ended early, with the {MOST_REQUESTS:,} requests that a probe can hold.")
        return found

    def _record_remarks(self) -> list[str]:
        found = []
        if self.records is not None and self.records.missing:
            found.append(
                f"The server's records lack {self.records.missing} of {counted(self.records.answered, 'answered request')}: "
                "a replica died with them, or they are more than are kept."
            )
        if self.answers_not_kept:
            found.append(
                f"The answers of {counted(self.answers_not_kept, 'request')} were not kept: they are too big."
            )
        return found

    def _outcomes(self) -> str:
        parts = [f"{self.ok} of {counted(self.requests, 'request')} ok in {duration(self.elapsed_s)}"]
        if self.plan.kind != "burst" and not math.isnan(self.requests_per_s):
            parts[0] += f" ({self.requests_per_s:,.0f} a second)"
        if self.batches:
            parts.append(f"in {counted(self.batches, 'batch')} of {self.mean_batch_size:.1f} on average")
        parts += [
            counted(number, word)
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
        sentences = [f"Latency: {_known(self.percentiles)}."]
        if self.plan.kind == "open" and self.service_percentiles[0].ms is not None:
            sentences = [self._open_latencies()]
        if not math.isnan(self.mean_predict_ms):
            sentences.append(
                f"A mean request waited {self.mean_queue_ms:.1f} ms, was predicted in {self.mean_predict_ms:.1f} ms, "
                f"and took {self.mean_overhead_ms:.1f} ms besides."
            )
        return sentences

    def _open_latencies(self) -> str:
        planned, real = _known(self.percentiles), _known(self.service_percentiles)
        return f"Latency from the planned send time: {planned} (from the real one: {real})."

    def _error(self) -> str:
        if self.connection_errors == self.requests:
            return f"No request reached the server. {self.most_frequent_error}"
        return f"Most frequent error: {self.most_frequent_error}"


def summarise(
    requests: pd.DataFrame,
    batches: pd.DataFrame,
    *,
    elapsed_s: float,
    interrupted: bool,
    plan: LoadPlan,
    client: ClientReport,
    records: ServerRecords | None,
    answers_not_kept: int,
) -> ProbeSummary:
    """Make the summary of the two frames of a ``ProbeResult`` and what is known besides."""
    kinds = Counter(requests["outcome"])
    good = requests[requests["outcome"] == "ok"]
    failed = requests[requests["outcome"] != "cancelled"]
    errors = Counter(failed["error"].dropna()).most_common(1)
    latencies = _percentiles(good["total_ms"])
    return ProbeSummary(
        requests=len(requests),
        ok=kinds["ok"],
        http_errors=kinds["http_error"],
        timeouts=kinds["timeout"],
        connection_errors=kinds["connection_error"],
        cancelled=kinds["cancelled"],
        statuses=dict(sorted(Counter(requests["status"].dropna().astype(int)).items())),
        batches=len(batches),
        mean_batch_size=float(batches["batch_size"].mean()) if len(batches) else math.nan,
        elapsed_s=elapsed_s,
        requests_per_s=len(good) / elapsed_s if len(good) and elapsed_s else math.nan,
        percentiles=latencies,
        service_percentiles=_percentiles(good["service_ms"]),
        mean_queue_ms=float(good["queue_ms"].mean()),
        mean_predict_ms=float(good["predict_ms"].mean()),
        mean_overhead_ms=float(good["overhead_ms"].mean()),
        interrupted=interrupted,
        most_frequent_error=errors[0][0] if errors else None,
        client=client,
        client_limited=_client_limited(client, latencies, plan),
        records=records,
        plan=plan,
        answers_not_kept=answers_not_kept,
    )


def _known(percentiles: tuple[Percentile, ...]) -> str:
    return ", ".join(f"{one.name} {one.ms:.1f} ms" for one in percentiles if one.ms is not None)


def _percentiles(latencies: pd.Series[float]) -> tuple[Percentile, ...]:
    return tuple(
        Percentile(name, percentile(latencies, share), len(latencies)) for name, share in PERCENTILES.items()
    )


def percentile(latencies: pd.Series[float], share: float) -> float | None:
    """Return the latency that ``share`` of them stay below; None where too few could lie beyond it."""
    if not len(latencies) or (share > 0.5 and len(latencies) * (1 - share) < 1 - 1e-9):  # noqa: PLR2004 - a median is one of any
        return None
    return float(latencies.quantile(share))


def _client_limited(client: ClientReport, latencies: tuple[Percentile, ...], plan: LoadPlan) -> bool:
    """Judge whether the client's own delays are a considerable part of what was measured.

    A burst is no load in time: how late its last request leaves is the burst itself.
    """
    if plan.kind == "burst" or latencies[0].ms is None:
        return False
    if client.cpu_share >= BUSY_SHARE:
        return True
    if client.loop_p50_ms > max(UNREAD_MS, OWN_SHARE * latencies[0].ms):
        return True
    own = [(client.lag_p50_ms, latencies[0].ms)]
    if latencies[2].ms is not None:
        own.append((client.lag_p99_ms, latencies[2].ms))
    return any(delay > OWN_MS and delay > OWN_SHARE * latency for delay, latency in own)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is due."""
    if noun == "cancelled" or number == 1:
        return f"{number} {noun}"
    return f"{number} {noun}{'es' if noun.endswith('ch') else 's'}"


def duration(seconds: float) -> str:
    """Return seconds as text."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
