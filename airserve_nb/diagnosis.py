"""Why batches have the size they have, and what limits latency: two sentences made of the records.

Everything here is rules over records, with neither clock nor thread, so a panel, a probe and a test get the same
answer from the same data. Some thousand records take a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airserve_nb._diagnosis_case import Case, Finding, Rule
from airserve_nb._diagnosis_facts import Facts
from airserve_nb._diagnosis_latency import LATENCY_RULES
from airserve_nb._diagnosis_size import SIZE_RULES
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.telemetry import BatchRecord, ReplicaState, RequestRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagnosis", "Finding", "diagnose", "records_from_frames"]

WINDOW_S = 10.0
"""What is older than this says little of now."""


@dataclass(frozen=True, slots=True, repr=False)
class Diagnosis:
    """Both answers; printed, it is one or two sentences."""

    size: Finding
    """Why batches have the size they have."""
    latency: Finding | None
    """What limits latency; None without a successful request whose batch is known."""

    def __str__(self) -> str:
        return self.size.sentence if self.latency is None else f"{self.size.sentence} {self.latency.sentence}"

    def __repr__(self) -> str:
        return f"<Diagnosis: {self}>"


def diagnose(
    requests: Iterable[RequestRecord],
    batches: Iterable[BatchRecord],
    settings: BatchSettings | ReplicaState,
    *,
    replicas: int | None = None,
    max_ongoing_requests: int | None = None,
    concurrency: int | None = None,
    waiting: int = 0,
    now: float | None = None,
) -> Diagnosis:
    """Say what limits the size of the batches, and what limits latency.

    The causes for the size are ``off``, ``no_data``, ``failing``, ``few_data``, ``full``, ``full_rows``,
    ``signatures``, ``max_ongoing``, ``few_clients``, ``split``, ``unknown``, ``no_wait``, ``slow_arrivals``,
    ``wait_elapsed`` and ``model_busy``, which is how it should be. Those for latency: ``overload``, ``model_queue``,
    ``batch_wait``, ``predict`` and ``overhead``.

    Parameters
    ----------
    requests, batches
        The records, in any order; of a ``ProbeResult`` or of a ``Service``'s frames by :func:`records_from_frames`.
        Batches that show that they ran under other limits, and all before them, are left out.
    settings
        The limits in force: a ``BatchSettings``, or the state that a replica tells.
    replicas
        How many serve; None: as many as the batches name.
    max_ongoing_requests
        Serve's limit of requests in one replica, where it is known.
    concurrency
        How many requests clients have under way at once, where it is known, as of a closed loop; None: that is
        judged by the records.
    waiting
        Requests that wait in all queues together now.
    now
        With it, only what ended in the ten seconds before counts; seconds, on the clock of the records.

    Returns
    -------
    Diagnosis
        Never raises for what the records hold.

    Examples
    --------
    >>> print(diagnose([], [], BatchSettings()))
    No batch yet, so send some requests.
    """
    limits = settings if isinstance(settings, BatchSettings) else _limits(settings)
    since = None if now is None else now - WINDOW_S
    facts = Facts.of(requests, batches, limits, replicas=replicas, since=since)
    case = Case(facts, limits, max_ongoing_requests, concurrency, waiting)
    size = _first(SIZE_RULES, case)
    assert size is not None  # noqa: S101 - the last of these rules takes whatever is left
    return Diagnosis(size, _first(LATENCY_RULES, case))


def _first(rules: tuple[Rule, ...], case: Case) -> Finding | None:
    return next((finding for rule in rules if (finding := rule(case)) is not None), None)


def _limits(state: ReplicaState) -> BatchSettings:
    return BatchSettings(
        max_batch_size=state.max_batch_size,
        batch_wait_timeout_s=state.batch_wait_timeout_s,
        enabled=state.batching,
    )


def records_from_frames(
    requests: pd.DataFrame, batches: pd.DataFrame
) -> tuple[list[RequestRecord], list[BatchRecord]]:
    """Make records of the two frames of a ``ProbeResult``, or of ``Service.requests()`` and ``Service.batches()``.

    Of a probe the times are the client's: a request arrives when it is sent, and the network is overhead. Columns
    that a frame lacks are unknown.
    """
    arrived = "sent" if "sent" in requests.columns else "arrived_at"
    released = "released" if "released" in batches.columns else "released_at"
    return (
        list(map(RequestRecord, *_columns(requests, RequestRecord, {"arrived_at": arrived}))),
        list(map(BatchRecord, *_columns(batches, BatchRecord, {"released_at": released}))),
    )


def _columns(frame: pd.DataFrame, record: type[Any], renamed: dict[str, str]) -> list[list[Any]]:
    """Return a list of values for each field of ``record``, in their order."""
    columns = []
    for name in record._fields:
        source = renamed.get(name, name)
        if source not in frame.columns:
            columns.append([record._field_defaults.get(name, _UNKNOWN.get(name))] * len(frame))
            continue
        column = frame[source]
        if column.dtype.kind == "M":
            column = column.dt.as_unit("ns").astype("int64") / 1e9
        columns.append(column.astype(object).where(column.notna(), _UNKNOWN.get(name)).tolist())
    return columns


_UNKNOWN = {
    **dict.fromkeys(
        ("arrived_at", "queue_ms", "predict_ms", "overhead_ms", "total_ms", "released_at"), float("nan")
    ),
    **dict.fromkeys(("rows", "queue_depth", "other_signatures"), float("nan")),
    **dict.fromkeys(("batch_size", "status"), 0),
}
