"""One batch out of many inputs, made anew so that a predictor may write into it.

The batch never shares memory with the inputs: when a predictor raises, its batch is collated again from
the same inputs, and what the first try changed must not show. A batch of frames is numbered
0 .. N-1 by an index named ``airserve_row``. Rows that come back under that name are recognised wherever
they went: :func:`split` relies on it.

The other three functions of the trade are offered from here too: :func:`signature` and :func:`rows` for
those who gather a batch, :func:`split` for those who take one apart.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from airserve_nb.batching.signature import EXACT_LIMIT, ROW_LABEL, as_array, rows, signature
from airserve_nb.batching.split import split

__all__ = ["collate", "rows", "signature", "split"]

_INT = np.dtype("int64")
_FLOAT = np.dtype("float64")
_OBJECT = np.dtype("object")
_PLAIN = "biufc"
# What JSON and numpy put into the cells of object columns and what a predictor could change in place.
_MUTABLE = (list, dict, set, bytearray, np.ndarray)


def collate(values: Sequence[Any]) -> Any:
    """Stack inputs of one signature into a batch.

    Parameters
    ----------
    values
        One input a request, at least one, all with the same :func:`signature` (which isn't checked again).

    Returns
    -------
    ndarray, DataFrame or dict
        Arrays of shape ``s`` become one of shape ``(len(values), *s)``. Frames are concatenated by row, in
        order, under a RangeIndex named ``airserve_row``; their own index and ``attrs`` are dropped. Dicts
        are stacked per key, in the key order of the first.

    Raises
    ------
    ValueError
        There are no values.
    """
    if not values:
        raise ValueError("A batch needs at least one input.")
    first = values[0]
    if isinstance(first, pd.DataFrame):
        return _collate_frames(values)
    if isinstance(first, dict):
        return {key: _stack([as_array(key, value[key]) for value in values]) for key in first}
    return _stack([np.asarray(value) for value in values])


def _stack(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    if arrays[0].dtype.kind in _PLAIN:
        # What np.stack gives, at a fifth of the price for small arrays: all have one shape and dtype.
        return np.array(arrays)
    batch = np.stack(arrays)
    if batch.dtype.kind == "O":
        flat = batch.reshape(-1)  # a view: np.stack gives contiguous memory
        for i, cell in enumerate(flat):
            flat[i] = _own(cell)
    return batch


def _own(cell: Any) -> Any:
    """Copy what can be changed in place; strings, numbers and foreign objects stay what they are."""
    return copy.deepcopy(cell) if isinstance(cell, _MUTABLE) else cell


def _collate_frames(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    first = frames[0]
    numbers = _concat_numbers(frames) if len(frames) > 1 else None
    if numbers is not None:
        batch = numbers
    elif len(frames) > 1:
        batch = pd.concat(map(pd.DataFrame, frames), ignore_index=True)
    else:
        batch = pd.DataFrame(first).copy()
    batch.attrs = {}
    # A copy (of the object, not of the names in it): `batch.columns.name = ...` must not reach the input.
    batch.columns = first.columns.copy()
    batch.index = pd.RangeIndex(len(batch), name=ROW_LABEL)
    if numbers is None:
        _own_cells(batch)
    return batch


def _own_cells(batch: pd.DataFrame) -> None:
    for i, dtype in enumerate(batch.dtypes):
        if dtype == _OBJECT:
            cells = batch.iloc[:, i].tolist()
            if any(isinstance(cell, _MUTABLE) for cell in cells):
                batch.isetitem(i, pd.Series([_own(cell) for cell in cells], dtype=object).array)


def _concat_numbers(frames: Sequence[pd.DataFrame]) -> pd.DataFrame | None:
    """Concatenate frames of int64 and float64 only; None if there is anything else.

    It gives what ``pd.concat`` gives, in about half the time: one conversion to float64 a frame, instead of
    one a column. Signatures see to it that integers which share a batch with floats survive that.
    """
    always_int = np.ones(frames[0].shape[1], dtype=bool)
    for frame in frames:
        dtypes = frame.dtypes.to_numpy()
        is_int = dtypes == _INT
        if not (is_int | (dtypes == _FLOAT)).all():
            return None
        always_int &= is_int
    dtype = _INT if always_int.all() else _FLOAT
    values = np.concatenate([frame.to_numpy(dtype=dtype) for frame in frames])
    if dtype == _INT or not always_int.any():
        return pd.DataFrame(values, copy=False)
    if not (np.abs(values[:, always_int]) < EXACT_LIMIT).all():
        return None
    return pd.DataFrame(
        {i: values[:, i].astype(_INT) if whole else values[:, i] for i, whole in enumerate(always_int)}
    )
