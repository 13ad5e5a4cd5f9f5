"""JSON text to a DataFrame: ``pandas.read_json``, and a short cut to the same frame."""

from __future__ import annotations

import json
import re
import warnings
from functools import lru_cache
from io import StringIO
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airserve_nb._adapter_errors import refusal_for_fields
from airserve_nb._adapter_read import query_pairs
from airserve_nb.errors import BadInputError

__all__ = ["FRAME_EXAMPLE", "FrameOptions", "frame_from_body", "frame_options"]

FRAME_EXAMPLE = '[{"a": 1.5, "b": 2}]'


class FrameOptions(BaseModel):
    """The query parameters of ``pandas_read_json``: those of ``pandas.read_json`` that make sense for a body."""

    model_config = ConfigDict(frozen=True)

    orient: Literal["records", "columns", "index", "split", "values", "table"] | None = Field(
        default=None,
        description="How the JSON is laid out; without it, a list of records or an object of columns.",
    )
    typ: Literal["frame"] = Field(
        default="frame", description="Only frames: a Series can't be batched by row."
    )
    dtype: bool | None = Field(default=None, description="Whether to infer the columns' dtypes.")
    convert_axes: bool | None = Field(
        default=None, description="Whether to convert the labels to numbers and dates."
    )
    convert_dates: bool = Field(
        default=True, description="Whether to convert columns whose name says that they are dates."
    )
    keep_default_dates: bool = Field(
        default=True, description="Whether names such as 'date' and '…_at' say so."
    )
    precise_float: bool = Field(
        default=True,
        description="Whether to read every digit; pandas' faster reading can be off by the last one.",
    )
    date_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None, description="The unit of dates given as numbers."
    )
    lines: bool = Field(default=False, description="Whether every line of the body is one record.")
    nrows: int | None = Field(default=None, ge=0, description="With lines, how many to read.")
    dtype_backend: Literal["numpy_nullable"] | None = Field(
        default=None, description="Use pandas' nullable dtypes."
    )


_DEFAULTS = FrameOptions()
_RECORDS = FrameOptions(orient="records")

# Integers up to here have a double of their own.
_EXACT = 2**53
_A_DATE_OR_NUMBER = 2_000_000_000
_NO_NUMBER = re.compile(r"[A-HJ-MO-Za-hj-mo-z]")


def frame_options(query_string: bytes) -> FrameOptions:
    """Return the options of a query; a parameter that is sent twice counts as sent last."""
    if not query_string:
        return _DEFAULTS
    try:
        return FrameOptions.model_validate(dict(query_pairs(query_string)))
    except ValidationError as error:
        raise refusal_for_fields(error.errors(), source="query") from None


def frame_from_body(body: bytes, options: FrameOptions) -> pd.DataFrame:
    """Return the frame that ``body`` holds.

    Raises
    ------
    BadInputError
        With one sentence: the body is empty, not UTF-8, not JSON, or no frame in that orientation.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"The body is not valid UTF-8 at byte {error.start}; send JSON as UTF-8."
        ) from None
    if not text.strip():
        raise BadInputError(f"The request has no body; send a POST with JSON such as {FRAME_EXAMPLE}.")
    return _read(text, options)


def _read(text: str, options: FrameOptions) -> pd.DataFrame:
    if options in (_DEFAULTS, _RECORDS):
        frame = _short_cut(text)
        if frame is not None:
            return frame
    given: dict[str, Any] = options.model_dump(exclude_defaults=True) | {
        "precise_float": options.precise_float
    }
    try:
        with warnings.catch_warnings():
            # pandas means to drop some of these options; its users need not hear that at every request.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            # Always in StringIO: pandas takes bare text for a path or a URL, and would open it.
            read: pd.DataFrame = pd.read_json(StringIO(text), **given)
            return read
    except RecursionError:
        raise BadInputError("The body's JSON is nested too deeply to be read; send a flatter one.") from None
    except Exception as error:  # noqa: BLE001 - pandas raises ten kinds for bad input, KeyError and TypeError too
        raise _refusal(text, options, error) from None


def _short_cut(text: str) -> pd.DataFrame | None:
    """Return what ``pandas.read_json`` would, some 30 times faster; None when only pandas knows what that is.

    It knows one layout, a list of records with the same plain values in the same columns. pandas' inference
    looks at labels and at values: of the labels it is asked once (:func:`_labels`), and of the values only those
    are taken here whose dtype leaves no doubt. The one difference: pandas refuses floats below 2.3e-308.
    """
    try:
        records = json.loads(text)
    except (ValueError, RecursionError):  # pandas has the last word on what is JSON
        return None
    if type(records) is not list or not records or type(records[0]) is not dict or not records[0]:
        return None
    names = tuple(records[0])
    labels = _labels(names)
    if labels is None or not all(type(record) is dict and tuple(record) == names for record in records):
        return None
    columns = []
    for values in zip(*(record.values() for record in records), strict=True):
        column = _column(values)
        if column is None:
            return None
        columns.append(column)
    return _assemble(columns, labels)


@lru_cache(maxsize=256)
def _labels(names: tuple[str, ...]) -> pd.Index[Any] | None:
    """Return the column labels as pandas makes them, or None when it would take some for numbers or dates.

    The value tried is a number that is a date of 2033 in a column that pandas takes for dates.
    """
    try:
        frame = pd.read_json(StringIO(json.dumps([dict.fromkeys(names, _A_DATE_OR_NUMBER)])))
    except Exception:  # noqa: BLE001 - labels that pandas can't read: let it say so
        return None
    kept = list(frame.columns) == list(names) and type(frame.index) is pd.RangeIndex
    numbers = all(dtype == np.int64 for dtype in frame.dtypes)
    return frame.columns if kept and numbers else None


def _column(values: tuple[Any, ...]) -> Any:
    """Return the values as a column's data, or None in doubt."""
    kinds = set(map(type, values))
    if kinds <= {int, float}:
        if not all(-_EXACT <= value <= _EXACT for value in values):  # NaN is in no range
            return None
        array = np.array(values)
        if array.dtype.kind == "f":
            # pandas makes integers of floats that are all whole.
            whole = array.astype(np.int64)
            return whole if (whole == array).all() else array
        return array.astype(np.int64, copy=False)
    if kinds == {bool}:
        return np.array(values)
    # Text that starts with such a letter spells no number, not "nan" nor "inf" either.
    if kinds == {str} and all(map(str.isascii, values)) and any(map(_NO_NUMBER.match, values)):
        return list(values)
    return None


def _assemble(columns: list[Any], labels: pd.Index[Any]) -> pd.DataFrame:
    dtypes = {getattr(column, "dtype", None) for column in columns}
    if len(dtypes) == 1 and None not in dtypes:
        # One block: twenty times faster than column by column.
        return pd.DataFrame(np.array(columns).T, columns=labels)
    frame = pd.DataFrame(dict(enumerate(columns)))
    frame.columns = labels
    return frame


def _refusal(text: str, options: FrameOptions, error: Exception) -> BadInputError:
    start = text.lstrip()[:1]
    if "all scalar values" in str(error):
        return BadInputError(
            f"The body is one object of plain values, but a frame's rows are expected; send a list of"
            f" records such as {FRAME_EXAMPLE}."
        )
    if start not in ("{", "["):
        return BadInputError(f"The body is not a JSON table; send a list of records such as {FRAME_EXAMPLE}.")
    reason = str(error).strip().rstrip(".") or type(error).__name__
    layout = f" with orient={options.orient}" if options.orient else ""
    return BadInputError(
        f"The body can't be read as a table{layout} ({reason}); send a list of records such as {FRAME_EXAMPLE}."
    )
