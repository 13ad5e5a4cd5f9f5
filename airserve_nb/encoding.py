r"""The model's answers as JSON bytes: one policy, stated here.

===============================================  =====================================================
Python                                           JSON
===============================================  =====================================================
None, NaN, NaT, NA, a masked element             ``null``
infinity                                         ``"Infinity"``, ``"-Infinity"``
integers (uint64 too), booleans                  the exact integer; ``true``, ``false``
float16, float32                                 widened to double: 1/3 is ``0.3333333432674408``
complex                                          ``{"real": ..., "imag": ...}``
timestamps, dates, times                         ISO 8601 text, with the offset when there is a zone
timedeltas                                       ISO 8601 duration: ``"PT1.5S"``, ``"-P1DT2H"``
bytes                                            the text when it is UTF-8, else ``{"base64": "..."}``
Decimal, UUID, path, Interval, Period            their ``str``
Enum; exception                                  its value; its ``str``
array, Series, Index, Categorical                (nested) list
DataFrame                                        list of records; the index is left out
record array, dataclass, pydantic model          object
list, tuple, set, deque, range                   list
dict                                             object; a key is the text of its JSON form
===============================================  =====================================================

Anything else is a :class:`~airserve_nb.errors.BadOutputError`, whose sentence names the type and the place; so is
a value that contains itself, and a frame or dict in which two labels would become the same key.
Text that is no valid Unicode (a lone surrogate) is sent as ``\udXXX``, as JSON allows.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import json
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from airserve_nb.errors import BadOutputError

__all__ = ["encode"]

# Above what models return, and below what Python's stack and common JSON readers bear.
_DEEPEST = 100
_LONGEST_PLACE = 60

# Without NaN the fast ways below can try first and look afterwards.
_compact = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
).encode
_compact_ascii = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode

_PLAIN_KINDS = frozenset("biuf")
_ATOMS = frozenset({str, int, bool, type(None)})


class _NoJsonFormError(Exception):
    """What can't be encoded; every container on the way out adds where it stood."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place: list[str] = []


def encode(value: object) -> bytes:
    """Return ``value`` as compact JSON in UTF-8, by the table above.

    Examples
    --------
    >>> encode({"score": float("nan"), "when": datetime.date(2024, 2, 29)})
    b'{"score":null,"when":"2024-02-29"}'

    Raises
    ------
    BadOutputError
        The value has no JSON form; the sentence names the type and the place.
    """
    if (type(value) is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in _PLAIN_KINDS:
        # The request path's common case: right away, and only if that fails (NaN) with a look at each value.
        try:
            return _compact(value.tolist()).encode()
        except (ValueError, TypeError):
            pass
    try:
        plain = _plain(value, 0)
        try:
            return _compact(plain).encode()
        except UnicodeEncodeError:
            return _compact_ascii(plain).encode()
    except _NoJsonFormError as error:
        reason, place = error.reason, "".join(reversed(error.place))
        place = place if len(place) <= _LONGEST_PLACE else f"{place[:_LONGEST_PLACE]}…"
    except RecursionError:
        reason, place = "is nested too deeply or contains itself", ""
    except Exception as error:  # noqa: BLE001 - a value's own methods may raise anything
        reason, place = f"raised {type(error).__name__} while it was read ({error})", ""
    raise BadOutputError(
        f"The answer has no JSON form: {f'at {place}, it' if place else 'it'} {reason};"
        " return numbers, text, lists, dicts, arrays or frames."
    )


def _plain(value: Any, depth: int) -> Any:
    """Return ``value`` made of what the JSON encoder takes as it is."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is float:
        return value if math.isfinite(value) else _not_finite(value)
    if depth > _DEEPEST:
        raise _NoJsonFormError(f"is nested more than {_DEEPEST} levels deep, or contains itself")
    convert = _CONVERTERS.get(kind)
    if convert is None:
        convert = _find_converter(value, kind)
    return convert(value, depth)


def _not_finite(value: float) -> str | None:
    if value != value:  # noqa: PLR0124 - NaN
        return None
    return "Infinity" if value > 0 else "-Infinity"


def _float(value: Any, _depth: int) -> Any:
    number = float(value)
    return number if math.isfinite(number) else _not_finite(number)


def _list(values: Iterable[Any], depth: int) -> list[Any]:
    result = []
    for number, item in enumerate(values):
        try:
            result.append(_plain(item, depth + 1))
        except _NoJsonFormError as error:
            error.place.append(f"[{number}]")
            raise
    return result


def _dict(values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in values.items():
        name = key if type(key) is str else _key(key, depth)
        if name in result:
            raise _NoJsonFormError(f"has two keys that both become {name!r}")
        try:
            result[name] = _plain(item, depth + 1)
        except _NoJsonFormError as error:
            error.place.append(f"[{name!r}]")
            raise
    return result


def _key(label: Any, depth: int) -> str:
    """Return the text of a label's JSON form; of a tuple (a column of several levels), its ``str``."""
    if isinstance(label, tuple | frozenset):
        return str(label)
    plain = _plain(label, depth + 1)
    return plain if isinstance(plain, str) else _compact(plain)


def _set(values: Iterable[Any], depth: int) -> list[Any]:
    try:
        values = sorted(values)  # the same answer every time, where the values allow it
    except Exception:  # noqa: BLE001 - comparing may raise anything
        values = list(values)
    return _list(values, depth)


def _array(value: Any, depth: int) -> Any:
    kind = value.dtype.kind
    if isinstance(value, np.ma.MaskedArray):
        return _plain(value.tolist(), depth)
    if kind in "biuU" or (kind == "f" and value.dtype.itemsize <= 8 and np.isfinite(value).all()):  # noqa: PLR2004 - bytes of a double
        return value.tolist()
    return _plain(value[()], depth + 1) if value.ndim == 0 else _list(value, depth)


def _record(value: Any, depth: int) -> Any:
    if value.dtype.names is None:
        return _bytes(bytes(value), depth)
    return _dict({name: value[name] for name in value.dtype.names}, depth)


def _bytes(value: Any, _depth: int) -> Any:
    content = bytes(value)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _complex(value: Any, depth: int) -> dict[str, Any]:
    return {"real": _float(value.real, depth), "imag": _float(value.imag, depth)}


def _series(value: Any, depth: int) -> list[Any]:
    """Return a column, an index or an extension array as a list."""
    dtype = value.dtype
    items = value.tolist()
    if isinstance(dtype, np.dtype) and (
        dtype.kind in "biu" or (dtype.kind == "f" and np.isfinite(value).all())
    ):
        result: list[Any] = items
        return result
    return _list(items, depth)


def _frame(value: pd.DataFrame, depth: int) -> list[dict[str, Any]]:
    names = [name if type(name) is str else _key(name, depth) for name in value.columns.tolist()]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise _NoJsonFormError(f"is a frame in which two columns are named {double!r}; rename one")
    # As objects every cell keeps its own type (integers beside floats, zones), and for the few rows of a
    # request this is many times faster than going through the columns.
    rows = value.to_numpy(dtype=object).tolist()
    return _list((dict(zip(names, row, strict=True)) for row in rows), depth)


def _isoformat(value: Any, _depth: int) -> str | None:
    return None if value is pd.NaT else str(value.isoformat())


def _datetime64(value: Any, _depth: int) -> str | None:
    if np.isnat(value):
        return None
    try:
        return pd.Timestamp(value).isoformat()
    except (ValueError, OverflowError):  # beyond pandas' years
        return str(np.datetime_as_string(value))


_ATTOSECONDS = {"as": 1, "fs": 10**3, "ps": 10**6, "ns": 10**9, "us": 10**12, "ms": 10**15, "s": 10**18}
_ATTOSECONDS |= {"m": 60 * 10**18, "h": 3600 * 10**18, "D": 86400 * 10**18, "W": 7 * 86400 * 10**18}


def _timedelta64(value: Any, _depth: int) -> Any:
    if np.isnat(value):
        return None
    unit, step = np.datetime_data(value.dtype)
    count = int(value.astype(np.int64)) * step
    if unit in {"Y", "M"}:  # no fixed number of days
        return f"{'-' if count < 0 else ''}P{abs(count)}{unit}"
    return _duration(count * _ATTOSECONDS[unit]) if unit in _ATTOSECONDS else count


def _timedelta(value: Any, _depth: int) -> str:
    nanoseconds = getattr(value, "nanoseconds", 0)
    seconds = value.days * 86400 + value.seconds
    return _duration(seconds * 10**18 + value.microseconds * 10**12 + nanoseconds * 10**9)


def _duration(attoseconds: int) -> str:
    """Return an ISO 8601 duration; every unit that is 0 is left out."""
    sign = "-" if attoseconds < 0 else ""
    seconds, fraction = divmod(abs(attoseconds), 10**18)
    days, seconds = divmod(seconds, 86400)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    digits = f".{fraction:018d}".rstrip("0") if fraction else ""
    time = f"{hours}H" * (hours > 0) + f"{minutes}M" * (minutes > 0)
    time += f"{seconds}{digits}S" if seconds or fraction or not (time or days) else ""
    return f"{sign}P{f'{days}D' if days else ''}{'T' + time if time else ''}"


def _decimal(value: Decimal, _depth: int) -> str | None:
    return None if value.is_nan() else str(value)


def _model(value: BaseModel, depth: int) -> Any:
    return _plain(value.model_dump(by_alias=True), depth + 1)


def _dataclass(value: Any, depth: int) -> dict[str, Any]:
    return _dict({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, depth)


def _nothing(_value: Any, _depth: int) -> None:
    return None


def _text(value: Any, _depth: int) -> str:
    return str(value)


def _enum(value: enum.Enum, depth: int) -> Any:
    return _plain(value.value, depth + 1)


def _array_like(value: Any, depth: int) -> Any:
    """Convert a tensor of another library, which knows how to become an array."""
    return _array(np.asarray(value), depth + 1)


_Converter = Callable[[Any, int], Any]

# Looked through in this order for types that are not in _CONVERTERS: subclasses before what they derive from.
_BY_BASE: tuple[tuple[type | tuple[type, ...], _Converter], ...] = (
    (enum.Enum, _enum),
    (type(pd.NaT), _nothing),
    (type(pd.NA), _nothing),
    (np.bool_, lambda value, _depth: bool(value)),
    ((np.floating, float), _float),
    (np.timedelta64, _timedelta64),  # NumPy counts it among the integers
    (np.datetime64, _datetime64),
    ((np.integer, int), lambda value, _depth: int(value)),
    ((np.complexfloating, complex), _complex),
    ((str,), lambda value, _depth: str.__str__(value)),
    ((bytes, bytearray, memoryview), _bytes),
    (np.void, _record),
    (np.ndarray, _array),
    (pd.DataFrame, _frame),
    ((pd.Series, pd.Index, pd.api.extensions.ExtensionArray), _series),
    ((dt.date, dt.time), _isoformat),
    (dt.timedelta, _timedelta),
    (Decimal, _decimal),
    ((uuid.UUID, PurePath, pd.Interval, pd.Period), _text),
    (BaseException, _text),
    (BaseModel, _model),
    (Mapping, _dict),
    (AbstractSet, _set),
    ((Sequence, deque, ValuesView), _list),
)

_CONVERTERS: dict[type, _Converter] = {
    np.ndarray: _array,
    pd.DataFrame: _frame,
    pd.Series: _series,
    dict: _dict,
    list: _list,
    tuple: _list,
    np.float64: _float,
    np.float32: _float,
    pd.Timestamp: _isoformat,
    dt.datetime: _isoformat,
}
"""The common types, found without a search."""


def _find_converter(value: Any, kind: type) -> _Converter:
    for base, convert in _BY_BASE:
        if isinstance(value, base):
            return convert
    if dataclasses.is_dataclass(kind):
        return _dataclass
    if hasattr(kind, "__array__"):
        return _array_like
    advice = "is the class" if kind is type else "is of the type"
    name = value.__name__ if kind is type else f"{kind.__module__}.{kind.__qualname__}"
    raise _NoJsonFormError(f"{advice} {name}")
