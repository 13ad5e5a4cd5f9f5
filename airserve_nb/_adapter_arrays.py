"""JSON lists to NumPy arrays, exactly or not at all.

NumPy does the work where its own reading of a nested list is right: lists of numbers and booleans. It turns
``null`` into NaN, and numbers beside text into text, so whatever it does not read as plain numbers is walked
value by value, which either converts it or finds the value to blame.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from airserve_nb._adapter_read import show, suggestion
from airserve_nb.errors import BadInputError

__all__ = ["ARRAY_EXAMPLE", "MAX_DIMENSIONS", "array_from_payload"]

Array = npt.NDArray[Any]

MAX_DIMENSIONS = 31
"""One less than the fewest that a supported NumPy can hold: batching adds a leading axis."""

_FIELDS = frozenset({"array", "shape", "dtype"})
_FLOAT64 = np.dtype(np.float64)
ARRAY_EXAMPLE = '{"array": [40]}'
# Python's float() takes underscores and any script's digits as well; JSON clients mean neither.
_NUMBER_TEXT = re.compile(
    r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity|nan)\s*", re.IGNORECASE | re.ASCII
)
_INTEGER_TEXT = re.compile(r"\s*[+-]?\d{1,20}\s*", re.ASCII)


def array_from_payload(payload: object, where: str = "") -> Array:
    """Return the array that ``{"array": ..., "shape": ..., "dtype": ...}`` describes.

    ``where`` begins the sentences of errors when the payload is a part of the body, such as ``key "a": ``.

    Raises
    ------
    BadInputError
        With one sentence, whatever is wrong.
    """
    try:
        return _build(payload)
    except BadInputError as error:
        if not where:
            raise
        raise BadInputError(where + str(error), status=error.status) from None


def _build(payload: object) -> Array:
    if not isinstance(payload, dict):
        raise BadInputError(f"An object such as {ARRAY_EXAMPLE} is expected, not {show(payload)}.")
    if "array" not in payload:
        unknown = sorted(payload.keys() - _FIELDS)
        hint = suggestion(unknown[0], {"array"}) if unknown else f"; send an object such as {ARRAY_EXAMPLE}."
        found = f" (but {show(unknown[0])})" if unknown else ""
        raise BadInputError(f"The field 'array' is missing{found}{hint}")
    if len(payload) == 1:
        return _read(payload["array"], None)
    for name in payload:
        if name not in _FIELDS:
            raise BadInputError(f"The field {show(name)} is unknown{suggestion(name, _FIELDS)}")
    array = _read(payload["array"], _read_dtype(payload.get("dtype")))
    shape = payload.get("shape")
    return array if shape is None else _reshape(array, shape)


def _read(data: object, dtype: np.dtype[Any] | None) -> Array:
    """Return the nested list ``data`` as an array of ``dtype`` (None: float64)."""
    if not isinstance(data, list):
        raise BadInputError(f"The array is {show(data)}, but a list is expected; send {ARRAY_EXAMPLE}.")
    try:
        plain = np.array(data)
    except (ValueError, OverflowError, RecursionError):  # ragged, or too deep: the walk says where
        plain = None
    if plain is not None and plain.ndim <= MAX_DIMENSIONS and plain.dtype.kind in "iufb":
        if dtype is None:
            return plain if plain.dtype is _FLOAT64 else plain.astype(_FLOAT64)
        return _cast(data, dtype)
    return _cast(_walk(data, dtype, _shape_of(data), ()), dtype or _FLOAT64)


def _cast(data: list[Any], dtype: np.dtype[Any]) -> Array:
    """Convert from the list itself: by way of float64, large integers would be rounded."""
    try:
        with np.errstate(over="raise", invalid="raise"):
            if dtype.kind in "iu":
                _check_range(data, dtype)
            array: Array = np.array(data, dtype=dtype)
            return array
    except (ValueError, TypeError, OverflowError, FloatingPointError, RecursionError):
        raise BadInputError(f"The array {show(data)} does not fit the dtype '{dtype.name}'.") from None


def _check_range(data: list[Any], dtype: np.dtype[Any]) -> None:
    """Refuse floats outside an integer dtype: NumPy would wrap them silently."""
    floats = np.array(data)
    if floats.dtype.kind == "f":
        limits = np.iinfo(dtype)
        # Truncated first, as the cast does: -0.5 is a fine uint8.
        whole = np.trunc(floats)
        # 2**63 - 1 has no float64: its neighbour above, 2**63, is already outside.
        if not ((whole >= float(limits.min)) & (whole < float(limits.max) + 1.0)).all() and not _fits(
            data, limits.min, limits.max
        ):
            raise OverflowError


def _fits(data: Any, low: int, high: int) -> bool:
    """Whether every value, truncated, lies between ``low`` and ``high``; exact, and slower."""
    if isinstance(data, list):
        return all(_fits(item, low, high) for item in data)
    return math.isfinite(data) and low <= int(data) <= high


def _shape_of(data: list[Any]) -> tuple[int, ...]:
    """Return the shape that the first values of each level promise."""
    shape: list[int] = []
    level: Any = data
    while isinstance(level, list):
        shape.append(len(level))
        if len(shape) > MAX_DIMENSIONS:
            raise BadInputError(
                f"The array is nested more than {MAX_DIMENSIONS} levels deep; send a flat list and its 'shape'."
            )
        level = level[0] if level else None
    return tuple(shape)


def _walk(
    data: Any, dtype: np.dtype[Any] | None, shape: tuple[int, ...], index: tuple[int, ...]
) -> list[Any]:
    """Convert value by value, and check every list against ``shape``."""
    depth = len(index)
    if len(data) != shape[depth]:
        raise BadInputError(
            f"The array is ragged: the list at {_place(index)} has {len(data)} values where {shape[depth]} are"
            " expected; lists of one level must be equally long."
        )
    converted = []
    for number, item in enumerate(data):
        inner = (*index, number)
        if depth + 1 < len(shape):
            if not isinstance(item, list):
                raise BadInputError(
                    f"The array mixes depths: {show(item)} stands at {_place(inner)} where a list is expected."
                )
            converted.append(_walk(item, dtype, shape, inner))
        else:
            converted.append(_leaf(item, dtype, inner))
    return converted


def _leaf(item: object, dtype: np.dtype[Any] | None, index: tuple[int, ...]) -> Any:
    """Return one value as the Python number (or, for the dtype ``str``, text) to convert from."""
    if isinstance(item, list):
        raise BadInputError(
            f"The array mixes depths: a list stands at {_place(index)} where a number is expected."
        )
    if isinstance(item, str):
        return item if dtype is not None and dtype.kind == "U" else _number(item, dtype, index)
    if isinstance(item, int | float):
        return item
    kind = "null" if item is None else f"the object {show(item)}"
    advice = "; send NaN for a missing number." if item is None else "."
    raise BadInputError(f"The array holds {kind} at {_place(index)}, but a number is expected{advice}")


def _number(text: str, dtype: np.dtype[Any] | None, index: tuple[int, ...]) -> Any:
    """Return the number that ``text`` spells: ``"1.5"``, ``"NaN"``, ``"-Infinity"``."""
    if _INTEGER_TEXT.fullmatch(text):
        return int(text)
    if _NUMBER_TEXT.fullmatch(text):
        return float(text)
    if dtype is not None and dtype.kind == "c":
        try:
            return complex(text)
        except ValueError:
            pass
    raise BadInputError(
        f"The array holds the text {show(text)} at {_place(index)}, but a number is expected."
    )


def _place(index: tuple[int, ...]) -> str:
    return "array" + "".join(f"[{number}]" for number in index)


def _read_dtype(name: object) -> np.dtype[Any] | None:
    if name is None:
        return None
    if not isinstance(name, str):
        raise BadInputError(f"The dtype is {show(name)}, but a name such as 'float32' is expected.")
    dtype = _known_dtypes().get(name.lstrip("<>=|"))
    if dtype is None:
        raise BadInputError(
            f"The dtype {show(name)} is not one of booleans, integers, floats, complex numbers or 'str'"
            f"{suggestion(name, _COMMON_DTYPES)}"
        )
    return dtype


_COMMON_DTYPES = ("bool", "float16", "float32", "float64", "int8", "int32", "int64", "str", "uint8", "uint64")


@lru_cache(maxsize=1)
def _known_dtypes() -> dict[str, np.dtype[Any]]:
    """Return the dtypes that a request may name, in the byte order of this machine.

    A closed list: NumPy's own reading of a name also takes records, objects and widths that fill the memory.
    """
    kinds: tuple[type[np.generic], ...] = (
        np.bool_,
        np.int8,
        np.int16,
        np.int32,
        np.int64,
        np.uint8,
        np.uint16,
        np.uint32,
        np.uint64,
    )
    kinds += (np.float16, np.float32, np.float64, np.longdouble, np.complex64, np.complex128)
    kinds += (np.intc, np.uintc, np.intp, np.uintp, np.longlong, np.ulonglong)
    known: dict[str, np.dtype[Any]] = {
        "str": np.dtype(str),
        "U": np.dtype(str),
        "double": np.dtype(np.double),
    }
    known |= {plain.__name__: np.dtype(plain) for plain in (bool, int, float, complex)}
    known |= {"uint": np.dtype(np.uint), "half": np.dtype(np.half), "single": np.dtype(np.single)}
    for kind in kinds:
        dtype = np.dtype(kind)
        for name in (dtype.name, dtype.char, dtype.str.lstrip("<>=|"), kind.__name__):
            known.setdefault(name, dtype)
    return known


def _reshape(array: Array, shape: object) -> Array:
    if not isinstance(shape, list) or not all(type(length) is int for length in shape):
        raise BadInputError(f"The shape is {show(shape)}, but a list of integers such as [2, 2] is expected.")
    if len(shape) > MAX_DIMENSIONS:
        raise BadInputError(f"The shape has {len(shape)} dimensions, but at most {MAX_DIMENSIONS} are taken.")
    if any(length < -1 for length in shape) or shape.count(-1) > 1:
        raise BadInputError(
            f"The shape is {show(shape)}, but lengths of 0 or more are expected, and -1 at most once for the rest."
        )
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError):
        raise BadInputError(f"The array's {array.size} values don't fit the shape {show(shape)}.") from None
