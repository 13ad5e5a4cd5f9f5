"""One answer a request out of one output, and never a row of somebody else's.

Rows of frames find their way home by label wherever the output still shows which row is which, and by
position where it has exactly one row for each that went in. Where neither holds, or where the two would
disagree without a way to tell which is meant, every request of the batch gets an error: a wrong guess
would hand one client's rows to another.

What can't be seen from here: a frame whose rows were moved and then renumbered (``sort_values`` followed by
``reset_index(drop=True)``, or a ``merge`` that drops one row and doubles another) looks like one that was
never touched. A predictor that keeps the index of its batch is always safe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airserve_nb.batching.provenance import Batch, Positions, batch_rows, row_labels

__all__ = ["split"]

_NUMBERS = "biuf"


def split(output: Any, inputs: Sequence[Any]) -> list[Any]:
    """Divide the output of one ``predict`` among the requests of its batch.

    Parameters
    ----------
    output
        What ``predict`` returned: an ndarray (or what numpy makes one of: a tensor, a Categorical), a list,
        a Series, a DataFrame, or a dict of arrays, lists or Series.
    inputs
        The inputs that were collated, in the same order.

    Returns
    -------
    list
        One answer a request, in the order of ``inputs``, sharing no memory with ``output``.

        Requests that are frames get their own rows, the leading axis kept: a slice of an array or
        a list, or a Series or DataFrame under a fresh RangeIndex. Rows of frames go by the labels of
        the batch's index (or of a column ``airserve_row``, which ``reset_index()`` makes of it and which
        is dropped), in any order, missing or repeated; without these labels by position. A batch of one
        request keeps all rows of a frame, however many there are.

        Requests that are arrays or dicts get one element: the leading axis is gone. Of a 1-d array that
        is a numpy scalar, of a Series a plain Python value, of a DataFrame a dict of column to value.

    Raises
    ------
    BadOutputError
        The output is of another type or length, or it is uncertain whose rows are whose.
    """
    if not inputs:
        return []
    if _is_plain(output, inputs):
        return _elements(output)
    batch = Batch.of(inputs)
    if not isinstance(output, Mapping):
        return _split_values(output, batch, "predict returned")
    parts = {}
    for key, values in output.items():
        came = f"predict returned a dict that has under {key!r}"
        if isinstance(values, (Mapping, pd.DataFrame)):
            raise batch.refusal(came, values, "return a dict of arrays")
        parts[key] = _split_values(values, batch, came)
    return [{key: part[i] for key, part in parts.items()} for i in range(len(inputs))]


def _is_plain(output: Any, inputs: Sequence[Any]) -> bool:
    """Whether it is the common case, which needs none of the care below: numbers for arrays or dicts."""
    return (
        type(output) is np.ndarray
        and output.shape[:1] == (len(inputs),)
        and output.dtype.kind in _NUMBERS
        and not isinstance(inputs[0], pd.DataFrame)
    )


def _elements(values: npt.NDArray[Any]) -> list[Any]:
    """Give each request its element, and no view of its neighbours'."""
    return list(values) if values.ndim == 1 else [part.copy() for part in values]


def _split_values(output: Any, batch: Batch, came: str) -> list[Any]:
    if isinstance(output, pd.DataFrame):
        return _split_frame(output, batch, came)
    if isinstance(output, pd.Series):
        return _split_series(output, batch, came)
    if isinstance(output, list):
        if len(output) != batch.rows:
            raise batch.refusal(came, output, batch.one_each)
        items = [_own(item) for item in output]
        return [items[part] for part in batch.slices()] if batch.framed else items
    return _split_array(_to_array(output, batch, came), batch, came)


def _split_array(values: npt.NDArray[Any], batch: Batch, came: str) -> list[Any]:
    if values.ndim == 0 or len(values) != batch.rows:
        raise batch.refusal(came, values, batch.one_each)
    if batch.framed:
        return [values[part].copy() for part in batch.slices()]
    if values.ndim == 1 and values.dtype.kind in "OV":  # an element of a structured array is a view of it
        return [_own(item) for item in values]
    return _elements(values)


def _split_series(output: pd.Series[Any], batch: Batch, came: str) -> list[Any]:
    groups = _rows_by_request(output, output.index, batch, came)
    if batch.framed:
        return [_renumbered(output.take(positions)) for positions in groups]
    return output.take(_only_rows(output, groups, batch, came)).tolist()


def _split_frame(output: pd.DataFrame, batch: Batch, came: str) -> list[Any]:
    labels, output = row_labels(output, batch)
    groups = _rows_by_request(output, labels, batch, came)
    if batch.framed:
        return _frame_parts(output, groups)
    if not output.columns.is_unique:
        twice = output.columns[output.columns.duplicated()][0]
        raise batch.refusal(came, output, f"rename one of its columns {twice!r}, a record can hold only one")
    return output.take(_only_rows(output, groups, batch, came)).to_dict(orient="records")


def _frame_parts(output: pd.DataFrame, groups: list[Positions]) -> list[Any]:
    dtypes = output.dtypes.tolist()
    plain = all(
        isinstance(dtype, np.dtype) and dtype.kind in "biuf" and dtype == dtypes[0] for dtype in dtypes
    )
    if not (dtypes and plain):
        return [_renumbered(output.take(positions)) for positions in groups]
    # Predictions of one number type: cutting the values is three times as fast as cutting the frame.
    values = output.to_numpy()
    return [pd.DataFrame(values[positions], columns=output.columns, copy=False) for positions in groups]


def _renumbered(part: Any) -> Any:
    """Put a fresh RangeIndex on a part of our own: the batch's labels mean nothing to a client."""
    part.index = pd.RangeIndex(len(part))
    return part


def _only_rows(output: Any, groups: list[Positions], batch: Batch, came: str) -> Positions:
    """Positions of the requests' rows where each must have exactly one."""
    if any(len(positions) != 1 for positions in groups):
        raise batch.refusal(came, output, batch.one_each)
    return np.concatenate(groups)


def _rows_by_request(output: Any, labels: pd.Index[Any], batch: Batch, came: str) -> list[Positions]:
    """Positions in a frame or Series of each request's rows, in the output's order."""
    if batch.framed and len(batch.inputs) == 1:
        return [np.arange(len(output))]
    return batch.groups(batch_rows(output, labels, batch, came))


def _own(item: Any) -> Any:
    """Copy an array: it may be a view of one that holds the other requests' elements too."""
    return item.copy() if isinstance(item, (np.ndarray, np.void)) else item


def _to_array(output: Any, batch: Batch, came: str) -> npt.NDArray[Any]:
    """Make an array of what numpy can make one of, and refuse all else with advice that fits it."""
    if isinstance(output, np.ma.MaskedArray):
        raise batch.refusal(came, output, "fill the masked elements, for example with filled(numpy.nan)")
    if isinstance(output, np.ndarray):
        return np.asarray(output)
    for applies, advice in _ADVICE:
        if applies(output):
            if inspect.iscoroutine(output):
                output.close()  # or Python would warn that it was never awaited
            raise batch.refusal(came, output, advice)
    if not hasattr(output, "__array__"):
        raise batch.refusal(
            came, output, "return an array, a DataFrame, a Series, a list or a dict of arrays"
        )
    try:
        return np.asarray(output)
    except Exception as error:  # tensors raise what they like, for example when they are on a GPU
        raise batch.refusal(
            came,
            output,
            "it can't be made a numpy array, so return one (for a tensor: detach().cpu().numpy())",
        ) from error


_ADVICE: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: isinstance(value, tuple), "return a list, or stack mean and std into one array"),
    (lambda value: value is None, "end predict with a return statement"),
    (inspect.isawaitable, "declare predict with `async def`, or return the awaited value"),
    (
        lambda value: inspect.isgenerator(value) or inspect.isasyncgen(value),
        "return a list of what it yields",
    ),
    (lambda value: hasattr(value, "toarray"), "return its toarray()"),
)
