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
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airserve_nb.loadgen.outcomes import Outcomes, Run

__all__ = ["BATCH_COLUMNS", "REQUEST_COLUMNS", "batch_table", "request_table"]

REQUEST_COLUMNS = (
    *(
        "request_id",
        "step",
        "planned",
        "sent",
        "first_byte",
        "done",
        "status",
        "outcome",
        "batch_id",
        "batch_size",
    ),
    *(
        "queue_ms",
        "predict_ms",
        "overhead_ms",
        "service_ms",
        "total_ms",
        "version",
        "replica",
        "answer",
        "error",
    ),
)
BATCH_COLUMNS = (
    *("batch_id", "batch_size", "rows", "released", "released_at", "predict_ms", "release_reason"),
    *("queue_depth", "other_signatures", "version", "replica"),
)

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a token of HTTP's grammar
_PARAMETER = rf'\s*;\s*({_TOKEN})\s*=\s*("(?:\\.|[^"\\])*"|[^,;\s]*)'
_METRIC = re.compile(rf"\s*({_TOKEN})((?:{_PARAMETER})*)\s*(?:,|$)")
Floats = npt.NDArray[np.float64]


def request_table(run: Run, steps: Sequence[int] | npt.NDArray[np.int64] | None = None) -> pd.DataFrame:
    """Make the frame of requests, one row each, its index the request's number in the plan.

    Parameters
    ----------
    run
        What became of them.
    steps
        The step of each; None: all are of step 0.
    """
    outcomes = run.outcomes
    times = {
        name: np.array(getattr(outcomes, name), dtype=float)
        for name in ("planned", "sent", "first_byte", "done")
    }
    server = pd.DataFrame(
        [_server_part(text) for text in outcomes.timing],
        columns=["batch_id", "batch_size", "queue_ms", "predict_ms"],
    )
    service_ms = (times["done"] - times["sent"]) * 1000
    queue_ms, predict_ms = (server[name].to_numpy(float) for name in ("queue_ms", "predict_ms"))
    status = pd.Series(np.array(outcomes.status, dtype=int))
    columns = {
        **times,
        "request_id": _texts(outcomes.request_id),
        "step": np.zeros(len(outcomes), dtype=int) if steps is None else np.asarray(steps, dtype=int),
        "status": status.where(status > 0) if (status == 0).any() else status,  # NaN equals no number
        "outcome": pd.Series(outcomes.kinds(), dtype=object),
        "batch_id": server["batch_id"].astype(object).where(server["batch_id"].notna(), None),
        "batch_size": server["batch_size"].astype(int),
        "queue_ms": queue_ms,
        "predict_ms": predict_ms,
        "overhead_ms": service_ms - queue_ms - predict_ms,
        "service_ms": service_ms,
        "total_ms": (times["done"] - times["planned"]) * 1000,
        "version": _texts(outcomes.version),
        "replica": _texts([""] * len(outcomes)),
        **_answers(outcomes),
    }
    frame = pd.DataFrame({name: columns[name] for name in REQUEST_COLUMNS})
    frame.index = pd.RangeIndex(len(frame), name="request")
    return frame


def _texts(texts: list[str]) -> pd.Series[Any]:
    return pd.Series([text or None for text in texts], dtype=object)


def _server_part(header: str) -> tuple[str | None, int, float, float]:
    """Return batch id and size, and milliseconds of queue and predict."""
    if not header:
        return None, 0, math.nan, math.nan
    timing = _server_timing(header)
    return *_batch(timing), _duration(timing, "queue"), _duration(timing, "predict")


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


def _answers(outcomes: Outcomes) -> dict[str, pd.Series[Any]]:
    pairs = [_answer(outcomes, request) for request in range(len(outcomes))]
    return {
        name: pd.Series([pair[place] for pair in pairs], dtype=object)
        for place, name in enumerate(("answer", "error"))
    }


def _answer(outcomes: Outcomes, request: int) -> tuple[Any, str | None]:
    """Return the decoded answer and None; for what is no success, the same sentence twice."""
    if outcomes.error[request] >= 0:
        sentence = outcomes.errors[outcomes.error[request]]
        return sentence, sentence
    text = outcomes.bodies[request].decode(errors="replace")
    status = outcomes.status[request]
    answer: Any = text
    if outcomes.length[request] < 0:
        answer = None  # not kept
    else:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = text
    if outcomes.kind[request] == 0:
        return answer, None
    sentence = _http_sentence(status, outcomes.location[request], answer)
    return sentence, sentence


def _http_sentence(status: int, location: str, answer: Any) -> str:
    """Prefer the server's own sentence (``error``, or FastAPI's ``detail``) to its whole body."""
    if 300 <= status < 400:  # noqa: PLR2004 - redirections
        place = location or "another place"
        return f"HTTP {status}: redirected to {place}, which the probe does not follow; probe that URL."
    if isinstance(answer, dict):
        answer = answer.get("error") or answer.get("detail") or answer
    text = answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer)
    return f"HTTP {status}: {_shortened(' '.join(text.split()))}" if text else f"HTTP {status}."


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
    members = requests[requests["batch_id"].notna()]
    groups = members.groupby("batch_id", sort=False)
    frame = pd.DataFrame(
        {
            "batch_size": groups["batch_size"].max(),
            "version": groups["version"].first(),
            "told_ms": groups["predict_ms"].max(),
            "earliest": (members["sent"] + members["queue_ms"].fillna(0) / 1000)
            .groupby(members["batch_id"])
            .max(),
            "first_byte": groups["first_byte"].min(),
        }
    )
    known = pd.DataFrame(columns=[*_RECORDED, "version"]) if records is None else _by_batch(records)
    for name in _RECORDED:
        frame[name] = known[name].reindex(frame.index) if name in known else None
    frame["predict_ms"] = frame["predict_ms"].astype(float).fillna(frame["told_ms"])
    recorded = _seconds(frame["released_at"]) - run.started_at
    latest = frame["first_byte"] - frame["predict_ms"] / 1000
    released = np.fmax(frame["earliest"], np.fmin(recorded, latest)).astype(float)
    frame["released"] = released
    frame["released_at"] = pd.to_datetime(run.started_at + released, unit="s", utc=True)
    requests["replica"] = _nothing_is_none(requests["batch_id"].map(frame["replica"].to_dict()))
    return _tidied(frame)


def _tidied(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.rename_axis("batch_id").reset_index()[list(BATCH_COLUMNS)]
    for name in ("batch_id", "release_reason", "version", "replica"):
        frame[name] = _nothing_is_none(frame[name])
    for name in ("rows", "queue_depth", "other_signatures"):
        frame[name] = pd.to_numeric(frame[name])
    return frame.sort_values("released", kind="stable", ignore_index=True)


_RECORDED = (
    "rows",
    "released_at",
    "predict_ms",
    "release_reason",
    "queue_depth",
    "other_signatures",
    "replica",
)


def _by_batch(records: pd.DataFrame) -> pd.DataFrame:
    return records.drop_duplicates("batch_id", keep="last").set_index("batch_id")


def _nothing_is_none(column: pd.Series[Any]) -> pd.Series[Any]:
    column = column.astype(object)
    return column.where(column.notna(), None)


def _seconds(moments: pd.Series[Any]) -> pd.Series[float]:
    """Return moments of the wall clock, timestamps or seconds, as seconds; long ago where there is none."""
    if isinstance(moments.dtype, pd.DatetimeTZDtype):
        epoch = pd.Timestamp(0, tz="UTC")
        return ((moments - epoch) / pd.Timedelta(seconds=1)).fillna(-math.inf)
    return pd.to_numeric(moments).astype(float).fillna(-math.inf)
