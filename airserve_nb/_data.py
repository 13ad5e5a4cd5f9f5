"""Model data between its three forms: an array, a dict of arrays, a frame.

======== ================================================ ===========================================
from     to a frame                                       to arrays
======== ================================================ ===========================================
array    the one column ``__value__``, a row an element   itself
dict     a column a key                                   itself
frame    itself                                           one column: an array; several: a dict
======== ================================================ ===========================================

An array of more than one dimension becomes a column of sub-arrays, and such a column becomes the array
again.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from airserve_nb.errors import PredictorError

__all__ = ["TENSOR_COLUMN", "Data", "as_answer", "check_input", "preprocessed", "to_arrays", "to_frame"]

Data: TypeAlias = "np.ndarray[Any, Any] | dict[Any, Any] | pd.DataFrame"
"""What predictors take and return."""

TENSOR_COLUMN = "__value__"
"""The column that holds an array which came without a name."""
_ANSWER_COLUMN = "predictions"

_ADVICE = {
    "list": "wrap it as np.asarray(...) or pd.DataFrame(...)",
    "tuple": "wrap it as np.asarray(...) or pd.DataFrame(...)",
    "Series": "give series.to_frame() or series.to_numpy()",
}


def check_input(data: Any) -> Data:
    """Return ``data`` if predictors take it; subclasses of the three kinds are welcome."""
    if isinstance(data, np.ndarray) and data.ndim == 0:
        raise PredictorError(f"The array {data!r} has no rows; give at least one dimension, [{data!r:.20}].")
    if isinstance(data, (np.ndarray, dict, pd.DataFrame)):
        return data
    kind = type(data).__name__
    advice = _ADVICE.get(kind, "give one of these")
    raise PredictorError(f"predict takes an array, a dict of arrays or a DataFrame, not a {kind}; {advice}.")


# --- conversions --------------------------------------------------------------------------------------


def to_frame(data: Data) -> pd.DataFrame:
    """Return ``data`` as a frame, rows along the first axis."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, np.ndarray):
        return pd.DataFrame({TENSOR_COLUMN: _cells(data)})
    columns = {key: _cells(_as_column(key, value)) for key, value in data.items()}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise PredictorError(f"The arrays of a dict need the same number of rows, but it holds {lengths}.")
    return pd.DataFrame(columns)


def to_arrays(data: Data) -> np.ndarray[Any, Any] | dict[Any, Any]:
    """Return ``data`` as an array, or as a dict of arrays."""
    if not isinstance(data, pd.DataFrame):
        return data
    if len(data.columns) == 1:
        return _stacked(data.iloc[:, 0])
    return {name: _stacked(data[name]) for name in data.columns}


def _as_column(key: Any, value: Any) -> np.ndarray[Any, Any]:
    column = np.asarray(value)
    if column.ndim == 0:
        raise PredictorError(
            f"The dict's value under {key!r} is {value!r:.40}, which has no rows; give an array, [{value!r:.40}]."
        )
    return column


def _cells(array: np.ndarray[Any, Any]) -> Any:
    """Return what a frame takes as a column: sub-arrays where there is more than one dimension."""
    return array if array.ndim == 1 else pd.Series(list(array), dtype=object)


def _stacked(column: pd.Series[Any]) -> np.ndarray[Any, Any]:
    values = column.to_numpy()
    if values.dtype == object and len(values) and all(isinstance(cell, np.ndarray) for cell in values):
        shapes = {cell.shape for cell in values}
        if len(shapes) == 1:
            return np.stack(list(values))
    return values


# --- what a hook returned -----------------------------------------------------------------------------


def as_answer(output: Any, *, asked: Data, index: pd.Index[Any] | None, hook: str) -> Data:
    """Return a hook's ``output`` in the format that was asked in.

    ``index`` labels the rows of a frame's answer when it has as many; ``hook`` names the hook in errors.
    """
    if isinstance(output, pd.Series):
        output = output.to_frame(output.name if output.name is not None else _ANSWER_COLUMN)
    if not isinstance(output, (np.ndarray, dict, pd.DataFrame)):
        raise PredictorError(
            f"{hook} returned {_kind_of(output)}; return an array, a dict of arrays, a DataFrame or a Series."
        )
    if not isinstance(asked, pd.DataFrame):
        return to_arrays(output)
    if isinstance(output, pd.DataFrame):
        return output
    frame = to_frame({_ANSWER_COLUMN: output} if isinstance(output, np.ndarray) else output)
    if index is not None and len(index) == len(frame):
        frame.index = index
    return frame


def _kind_of(output: Any) -> str:
    return "nothing (None)" if output is None else f"a {type(output).__name__}"


# --- preprocessors ------------------------------------------------------------------------------------


def preprocessed(preprocessor: Any, data: Data) -> Data:
    """Apply a fitted preprocessor: Ray Data's (``transform_batch``) or scikit-learn's (``transform``).

    A frame stays a frame with its index; an error becomes one sentence.
    """
    if preprocessor is None:
        return data
    try:
        if hasattr(preprocessor, "transform_batch"):
            # Ray Data's preprocessors write into the frame or the dict they are given.
            own = data.copy(deep=False) if isinstance(data, pd.DataFrame) else _copied(data)
            return check_input(preprocessor.transform_batch(own))
        if hasattr(preprocessor, "transform"):
            return _sklearn_transformed(preprocessor, data)
    except PredictorError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise PredictorError(
            f"The preprocessor {type(preprocessor).__name__} refused the data ({type(error).__name__}: "
            f"{reason:.200}); give it what it was fitted on."
        ) from error
    raise PredictorError(
        f"A preprocessor has transform_batch (Ray Data) or transform (scikit-learn), but a "
        f"{type(preprocessor).__name__} has neither."
    )


def _copied(data: Any) -> Data:
    return dict(data) if isinstance(data, dict) else data.copy()


def _sklearn_transformed(preprocessor: Any, data: Data) -> Data:
    if isinstance(data, np.ndarray):
        return check_input(_dense(preprocessor.transform(data)))
    frame = _in_fitted_order(preprocessor, to_frame(data))
    output = _dense(preprocessor.transform(frame))
    if isinstance(output, np.ndarray) and output.ndim == 2:  # noqa: PLR2004 - rows and columns
        return pd.DataFrame(output, index=frame.index, columns=_names_out(preprocessor, output.shape[1]))
    return check_input(output)


def _in_fitted_order(preprocessor: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """Put the columns as they were at fit: scikit-learn refuses any other order, and any column more."""
    fitted = getattr(preprocessor, "feature_names_in_", None)
    if fitted is None or list(frame.columns) == list(fitted):
        return frame
    missing = [name for name in fitted if name not in frame.columns]
    if missing:
        raise PredictorError(
            f"The data lack the column {missing[0]!r} ({len(missing)} of {len(fitted)} missing) that the "
            f"preprocessor {type(preprocessor).__name__} was fitted on; send it too."
        )
    return frame[list(fitted)]


def _names_out(preprocessor: Any, width: int) -> Any:
    """Return the names of the output columns as far as the preprocessor knows them."""
    try:
        names = list(preprocessor.get_feature_names_out())
    except Exception:  # noqa: BLE001 - any transformer may fail here in its own way; names are a help only
        names = []
    return names if len(names) == width else None


def _dense(output: Any) -> Any:
    return output.toarray() if hasattr(output, "toarray") else output
