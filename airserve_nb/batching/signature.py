"""What may be stacked with what: the signature of one model input.

Two inputs with equal signatures can share a batch without any value changing. Arrays must agree
exactly, because that is cheap to demand of them. Frames that come from JSON can't: a column whose value
happens to be ``3`` is an integer and ``3.5`` a float, so exact dtypes would shatter batches. Their columns
only have to be of one *family*, within which concatenation keeps every value.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from airserve_nb.errors import BadInputError

__all__ = ["EXACT_LIMIT", "ROW_LABEL", "as_array", "rows", "signature"]

ROW_LABEL = "airserve_row"
"""The name of a batch's index: it tells rows that still carry the batch's labels from fresh ones."""

EXACT_LIMIT = 2**53
"""The integers that float64 holds exactly reach from ``-EXACT_LIMIT`` to ``EXACT_LIMIT``."""

_NUMBER = "number"
# Strings of different length share a batch: numpy pads them to the longest and strips that again.
_TEXT = {"U": np.dtype("U"), "S": np.dtype("S")}


def rows(value: Any) -> int:
    """Count the rows that an input brings into a batch.

    Parameters
    ----------
    value
        A model input.

    Returns
    -------
    int
        The number of rows of a frame; 1 for an array or a dict, which is one sample.
    """
    return len(value) if isinstance(value, pd.DataFrame) else 1


def signature(value: Any) -> Hashable:
    """Tell with which other inputs this one can be stacked.

    Parameters
    ----------
    value
        An ndarray (one sample of any shape), a DataFrame (any number of rows), or a dict of arrays,
        Python scalars or nested lists (one sample). A masked array counts as its plain data.

    Returns
    -------
    Hashable
        Equal for inputs that :func:`~airserve_nb.batching.collate.collate` stacks without changing a
        value. Arrays: shape and dtype (strings of any length are one). Dicts: the keys in any order, and
        each value's shape and dtype; plain Python numbers and lists of them are of one family. Frames:
        the column names in order, and the family of each column's dtype: numbers, booleans, objects,
        datetimes of one zone, durations; categories and other extension dtypes exactly. Integers
        beyond 2**53, which a float can't hold, keep their exact dtype.

    Raises
    ------
    BadInputError
        The value is of another type, or a list in a dict is ragged.
    """
    if isinstance(value, np.ndarray):
        return "array", value.shape, _TEXT.get(value.dtype.kind, value.dtype)
    if isinstance(value, pd.DataFrame):
        return _frame_signature(value)
    if isinstance(value, dict):
        return "dict", frozenset([(key, _entry_signature(key, entry)) for key, entry in value.items()])
    raise BadInputError(
        f"A model input of type {type(value).__name__} can't be batched: let the HTTP adapter return a numpy "
        "array, a pandas DataFrame or a dict of arrays, or turn batching off (batching_params=False)."
    )


def as_array(key: Hashable, value: Any) -> np.ndarray[Any, Any]:
    """Give a dict's value as a plain array; a scalar becomes a 0-d one.

    Parameters
    ----------
    key
        Where the value stands in its dict; for the message.
    value
        An array, a scalar or a nested list.

    Returns
    -------
    ndarray
        The same data, not copied where it is an array already.

    Raises
    ------
    BadInputError
        The value is a frame, or a list that is ragged.
    """
    if isinstance(value, pd.DataFrame):
        raise BadInputError(
            f"The dict's value under {key!r} is a DataFrame: send the frame itself, or an array for each key."
        )
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a foreign type's __array__ raises is about this input
        raise BadInputError(
            f"The dict's value under {key!r} ({type(value).__name__}) can't be made an array: "
            f"send a number, or lists of equal length in each dimension."
        ) from error


def _entry_signature(key: Hashable, value: Any) -> Hashable:
    kind = type(value)
    if kind is float or (kind is int and -EXACT_LIMIT <= value <= EXACT_LIMIT):
        return (), _NUMBER
    array = as_array(key, value)
    if isinstance(value, list) and _is_number(array.dtype) and _fits_float(array):
        return array.shape, _NUMBER
    # In a pair with its shape, a dtype is only ever compared with a dtype or with _NUMBER.
    return array.shape, ("exact", _TEXT.get(array.dtype.kind, array.dtype))


def _frame_signature(frame: pd.DataFrame) -> Hashable:
    columns = frame.columns
    names = (columns.dtype, tuple(columns.names), tuple(columns.tolist()))
    dtypes = frame.dtypes.tolist()
    numbers = [i for i, dtype in enumerate(dtypes) if _is_number(dtype)]
    if len(numbers) == len(dtypes):
        fit = _all_fit_float(frame, dtypes)
        if fit:  # by far the commonest
            return "frame", names, (_NUMBER,) * len(dtypes)
    else:  # one look at all numbers together is cheaper than one at each column
        fit = _all_fit_float(frame.iloc[:, numbers], [dtypes[i] for i in numbers])
    families = [
        _NUMBER if fit and _is_number(dtype) else _family(dtype, frame, i) for i, dtype in enumerate(dtypes)
    ]
    return "frame", names, tuple(families)


def _is_number(dtype: Any) -> bool:
    """Whether it is one of numpy's real numbers (pandas' nullable ones call their kind the same)."""
    return isinstance(dtype, np.dtype) and dtype.kind in "iuf"


def _all_fit_float(frame: pd.DataFrame, dtypes: Iterable[Any]) -> bool:
    """Whether no integer of an all-number frame is beyond 2**53 (False too where a float is)."""
    if all(dtype.kind == "f" or dtype.itemsize < np.dtype("int64").itemsize for dtype in dtypes):
        return True
    values = frame.to_numpy()
    # With the limit itself excluded: 2**53 + 1 beside a float column has been rounded to it.
    return not ((values >= EXACT_LIMIT).any() or (values <= -EXACT_LIMIT).any())


def _fits_float(values: np.ndarray[Any, Any]) -> bool:
    if values.dtype.kind == "f":
        return True
    return not ((values > EXACT_LIMIT).any() or (values < -EXACT_LIMIT).any())


def _family(dtype: Any, frame: pd.DataFrame, position: int) -> Hashable:
    """Give the family of one column, or its exact dtype where a promotion could change a value."""
    if isinstance(dtype, pd.CategoricalDtype):
        return _category_key(dtype)
    if isinstance(dtype, pd.DatetimeTZDtype):
        zone = ("datetime", str(type(dtype.tz)), str(dtype.tz))
        return zone if _fits_nanoseconds(frame, position, dtype.unit) else (*zone, dtype.unit)
    if not isinstance(dtype, np.dtype):
        return "exact", dtype
    if dtype.kind in "iuf" and _fits_float(frame.iloc[:, position].to_numpy()):
        return _NUMBER
    if dtype.kind in "mM" and _fits_nanoseconds(frame, position, np.datetime_data(dtype)[0]):
        return dtype.kind
    return "exact", dtype


def _category_key(dtype: pd.CategoricalDtype) -> Hashable:
    """Give the categories in their order: models see their codes, and pandas calls {a, b} and {b, a} equal."""
    categories = dtype.categories
    names = categories.tolist()
    # 1, 1.0 and True are equal and hash alike: only their types tell them apart.
    types = tuple(map(type, names)) if categories.dtype == object else ()
    return "category", dtype.ordered, str(categories.dtype), tuple(names), types


def _fits_nanoseconds(frame: pd.DataFrame, position: int, unit: str) -> bool:
    """Whether a time column of another unit can be promoted to nanoseconds (years 1678 to 2261)."""
    if unit == "ns":
        return True
    column = frame.iloc[:, position]
    kind = "m" if column.dtype.kind == "m" else "M"
    values = np.asarray(column, dtype=f"{kind}8[{unit}]").view("int64")
    known = values[values != np.iinfo("int64").min]  # which stands for NaT
    limit = np.iinfo("int64").max // int(np.timedelta64(1, unit) / np.timedelta64(1, "ns"))  # type: ignore[call-overload]  # the unit is one of pandas'
    return bool((np.abs(known) < limit).all())
