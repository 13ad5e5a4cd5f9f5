"""From a run's outcomes, and the server's own records where there are any, to two frames.

The server tells its part in the answer's headers: ``Server-Timing: queue;dur=…, predict;dur=…,
batch;desc="<batch id>/<size>"`` (milliseconds), ``X-Airserve-Request-Id`` and ``X-Airserve-Version``. Of a server
that sends none of these, the client's columns are filled and the others are empty.

Where a batch stood in time is worked out on the client's clock, not copied from the server's. No member
can have been predicted before it was sent and had waited in the queue, and none can have been answered
before predict had ended: each batch lies between the two, and the server's own release time only
chooses the place between them. So a clock that is wrong by a second does not move a bar.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pandas as pd

from airserve_nb.loadgen.plan import Outcome, Run

__all__ = ["BATCH_COLUMNS", "REQUEST_COLUMNS", "batch_table", "request_table"]

REQUEST_COLUMNS = (
    *("request_id", "planned", "sent", "first_byte", "done", "status", "outcome", "batch_id", "batch_size"),
    *("queue_ms", "predict_ms", "overhead_ms", "total_ms", "version", "replica", "answer", "error"),
)
BATCH_COLUMNS = (
    *("batch_id", "batch_size", "rows", "released", "released_at", "predict_ms", "release_reason"),
    *("queue_depth", "version", "replica"),
)

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a token of HTTP's grammar
_PARAMETER = rf'\s*;\s*({_TOKEN})\s*=\s*("(?:\\.|[^"\\])*"|[^,;\s]*)'
_METRIC = re.compile(rf"\s*({_TOKEN})((?:{_PARAMETER})*)\s*(?:,|$)")


def request_table(run: Run) -> pd.DataFrame:
    """Make the frame of requests, one row each, its index the request's number in the plan."""
    rows = [_request_row(outcome) for outcome in run.outcomes]
    frame = pd.DataFrame(rows, columns=list(REQUEST_COLUMNS), index=pd.RangeIndex(len(rows), name="request"))
    for name in (
        "planned",
        "sent",
        "first_byte",
        "done",
        "queue_ms",
        "predict_ms",
        "overhead_ms",
        "total_ms",
    ):
        frame[name] = frame[name].astype("float64")
    frame["status"] = pd.to_numeric(frame["status"])  # whole numbers, or NaN among them
    for name in ("request_id", "outcome", "batch_id", "version", "replica", "answer", "error"):
        frame[name] = (
            frame[name].astype(object).where(frame[name].notna(), None) if name != "answer" else frame[name]
        )
    return frame


def _request_row(outcome: Outcome) -> dict[str, Any]:
    timing = _server_timing(outcome.headers.get("server-timing", ""))
    batch_id, batch_size = _batch(timing)
    queue_ms, predict_ms = _duration(timing, "queue"), _duration(timing, "predict")
    total_ms = math.nan
    if outcome.sent is not None and outcome.done is not None:
        total_ms = (outcome.done - outcome.sent) * 1000
    answer, error = _answer(outcome)
    return {
        "request_id": outcome.headers.get("x-airserve-request-id", outcome.headers.get("x-request-id")),
        "planned": outcome.planned,
        "sent": outcome.sent,
        "first_byte": outcome.first_byte,
        "done": outcome.done,
        "status": outcome.status,
        "outcome": outcome.kind,
        "batch_id": batch_id,
        "batch_size": batch_size,
        "queue_ms": queue_ms,
        "predict_ms": predict_ms,
        "overhead_ms": total_ms - queue_ms - predict_ms,
        "total_ms": total_ms,
        "version": outcome.headers.get("x-airserve-version"),
        "answer": answer,
        "error": error,
    }


def _server_timing(header: str) -> dict[str, dict[str, str]]:
    """Read the header into its metrics and their parameters; what is no metric is passed over."""
    metrics = {}
    for name, parameters, *_ in _METRIC.findall(header):
        values = {
            key: value[1:-1] if value[:1] == '"' else value
            for key, value in re.findall(_PARAMETER, parameters)
        }
        metrics[name] = values
    return metrics


def _duration(timing: dict[str, dict[str, str]], name: str) -> float:
    try:
        return float(timing[name]["dur"])
    except (KeyError, ValueError):
        return math.nan


def _batch(timing: dict[str, dict[str, str]]) -> tuple[str | None, int]:
    batch_id, _, size = timing.get("batch", {}).get("desc", "").rpartition("/")
    return (batch_id, int(size)) if batch_id and size.isdecimal() else (None, 0)


def _answer(outcome: Outcome) -> tuple[Any, str | None]:
    """Return the decoded answer and None; for what is no success, the same sentence twice."""
    if outcome.status is None:
        return outcome.error, outcome.error
    text = outcome.body.decode(errors="replace")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = text
    if outcome.kind == "ok":
        return answer, None
    sentence = _http_sentence(outcome, answer)
    return sentence, sentence


def _http_sentence(outcome: Outcome, answer: Any) -> str:
    """Prefer the server's own sentence (``error``, or FastAPI's ``detail``) to its whole body."""
    if outcome.status is not None and 300 <= outcome.status < 400:  # noqa: PLR2004 - redirections
        place = outcome.headers.get("location", "another place")
        return (
            f"HTTP {outcome.status}: redirected to {place}, which the probe does not follow; probe that URL."
        )
    if isinstance(answer, dict):
        answer = answer.get("error") or answer.get("detail") or answer
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return (
        f"HTTP {outcome.status}: {_shortened(' '.join(text.split()))}" if text else f"HTTP {outcome.status}."
    )


def _shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def batch_table(requests: pd.DataFrame, run: Run, records: pd.DataFrame | None) -> pd.DataFrame:
    """Make the frame of the batches that answered ``requests``, in the order of their release.

    Parameters
    ----------
    requests
        What :func:`request_table` made; its ``replica`` column is filled in where the records name it.
    run
        The run it was made of.
    records
        The server's records of its batches, of this probe and others; None when there are none. What
        they do not hold is taken from the answers' headers, as far as these tell.
    """
    known = {} if records is None else {record["batch_id"]: record for record in records.to_dict("records")}
    rows = []
    for batch_id, members in requests.dropna(subset=["batch_id"]).groupby("batch_id", sort=False):
        record: dict[Any, Any] = known.get(batch_id, {})
        predict_ms = record.get("predict_ms", members["predict_ms"].max())
        released = _placed(members, predict_ms, _seconds(record.get("released_at")) - run.started_at)
        rows.append(
            {
                "batch_id": batch_id,
                "batch_size": int(members["batch_size"].max()),
                "version": members["version"].iloc[0],
                **record,
                "predict_ms": predict_ms,
                "released": released,
                "released_at": pd.Timestamp(run.started_at + released, unit="s", tz="UTC"),
            }
        )
        requests.loc[members.index, "replica"] = record.get("replica")
    frame = pd.DataFrame(rows, columns=list(BATCH_COLUMNS))
    if frame.empty:  # the type of its columns does not depend on there being batches
        frame["released_at"] = pd.to_datetime(frame["released_at"], unit="s", utc=True)
    for name in ("release_reason", "version", "replica"):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame.sort_values("released", kind="stable", ignore_index=True)


def _seconds(moment: Any) -> float:
    """Return a moment of the wall clock, a timestamp or seconds, as seconds; long ago when there is none."""
    if moment is None or pd.isna(moment):
        return -math.inf
    return moment.timestamp() if isinstance(moment, pd.Timestamp) else float(moment)


def _placed(members: pd.DataFrame, predict_ms: float, released: float) -> float:
    """Return when the batch began, in seconds from the start, as near to ``released`` as can be true."""
    earliest = (members["sent"] + members["queue_ms"].fillna(0) / 1000).max()
    latest = members["first_byte"].min() - predict_ms / 1000
    return float(max(earliest, min(released, latest)))
