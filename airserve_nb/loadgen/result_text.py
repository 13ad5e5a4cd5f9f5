"""A probe's result as JSON text, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.loadgen.outcomes import ClientReport
from airserve_nb.loadgen.records import ServerRecords

if TYPE_CHECKING:
    from airserve_nb.loadgen.result import ProbeResult

__all__ = ["from_json", "to_json"]

FORMAT = "airserve_nb probe 1"
_FRAMES = ("requests", "batches")
_PARTS = {"plan": LoadPlan, "client": ClientReport, "records": ServerRecords, "settings": BatchSettings}
_PLAIN = ("target", "url", "elapsed_s", "interrupted", "replicas", "started_at", "answers_not_kept")


def to_json(result: ProbeResult) -> str:
    """Return ``result`` as text."""
    parts: dict[str, Any] = {"format": FORMAT} | {name: getattr(result, name) for name in _PLAIN}
    for name in _PARTS:
        value = getattr(result, name)
        parts[name] = None if value is None else asdict(value)
    for name in _FRAMES:
        parts[name] = _columns(getattr(result, name))
    return json.dumps(parts)


def from_json(text: str) -> dict[str, Any]:
    """Return the fields of the result that ``text`` holds.

    Raises
    ------
    ProbeError
        When ``text`` is something else.
    """
    try:
        parts = json.loads(text)
        if parts.pop("format") != FORMAT:
            raise ValueError  # noqa: TRY301 - answered as whatever else is wrong
        for name, kind in _PARTS.items():
            if parts[name] is not None:
                parts[name] = kind(**{key: _tuple(value) for key, value in parts[name].items()})
        for name in _FRAMES:
            parts[name] = _frame(parts[name])
        parts["requests"].index.name = "request"
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ProbeError("The text holds no probe's result; give what to_json() returned.") from None
    return dict(parts)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        str(name): {"type": str(column.dtype), "values": _values(column)} for name, column in frame.items()
    }


def _values(column: pd.Series[Any]) -> list[Any]:
    if column.dtype.kind == "M":
        return list(column.dt.as_unit("ns").astype("int64"))
    values = column.astype(object)
    return values.where(values.notna(), None).tolist() if column.dtype.kind == "f" else values.tolist()


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: _column(**column) for name, column in columns.items()})


def _column(type: str, values: list[Any]) -> pd.Series[Any]:  # noqa: A002 - the key in the text
    if type.startswith("datetime"):
        moments: Any = pd.Series(pd.to_datetime(values, unit="ns", utc=True))
        return moments.astype(type)  # type: ignore[no-any-return] # as below
    made: Any = pd.Series(values, dtype=object)
    return made.astype(type)  # type: ignore[no-any-return] # a Series of whatever the text says
