"""XGBoost models: their checkpoint and their predictor.

The checkpoint keeps the model as the file ``model.ubj``, XGBoost's own stable format and the name that
Ray Train uses. The predictor hands frames to XGBoost with the columns in the order of the training data
and their dtypes kept, so categorical columns and missing values mean what they meant there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import xgboost

from airserve_nb._data import Data, check_input, preprocessed, to_frame
from airserve_nb.checkpoint import FILES_KEY, Checkpoint
from airserve_nb.errors import CheckpointError, PredictorError
from airserve_nb.predictor import Predictor
from airserve_nb.predictors import _xgboost_columns as columns

__all__ = ["MODEL_KEY", "XGBoostCheckpoint", "XGBoostPredictor"]

MODEL_KEY = "model"
"""Key of the model in a dict checkpoint: a Booster, a scikit-learn wrapper, or the bytes of a model file."""

_MODEL_FILE = "model.ubj"
# Ours and RayTrainReportCallback's; ray.train.xgboost.XGBoostCheckpoint's; Ray AIR's.
_MODEL_FILES = (_MODEL_FILE, "model.json", "model")
_COLUMN = "predictions"


class XGBoostCheckpoint(Checkpoint):
    """A checkpoint that holds an XGBoost model, and perhaps a preprocessor."""

    @classmethod
    def from_model(cls, booster: Any, preprocessor: Any = None) -> Self:
        """Make a checkpoint of a trained model.

        Parameters
        ----------
        booster
            An ``xgboost.Booster`` or a fitted scikit-learn wrapper such as ``XGBClassifier``. Of a wrapper
            the booster is kept: it predicts probabilities, with all its trees, and NaN is what is missing.
        preprocessor
            What the training data went through, fitted; requests go through it too.
        """
        data: dict[str, Any] = {FILES_KEY: {_MODEL_FILE: bytes(_booster(booster).save_raw("ubj"))}}
        checkpoint = cls.from_dict(data)
        if preprocessor is not None:
            checkpoint.set_preprocessor(preprocessor)
        return checkpoint

    def get_model(self) -> xgboost.Booster:
        """Return the model as a new ``xgboost.Booster``.

        Found under the key ``model``, or in the file ``model.ubj``, ``model.json`` or ``model``.
        """
        with self._local() as local:
            if local.path is None:
                return _model_of_dict(local.to_dict())
            for name in _MODEL_FILES:
                file = Path(local.path, name)
                if file.is_file():
                    return _loaded(file.read_bytes(), name)
            return _model_of_dict(local.to_dict())


class XGBoostPredictor(Predictor):
    """Predicts with an XGBoost model.

    Parameters
    ----------
    model
        An ``xgboost.Booster`` or a fitted scikit-learn wrapper (of which the booster is used).
    preprocessor
        A fitted preprocessor that all data pass first.

    Attributes
    ----------
    model
        The booster.
    """

    def __init__(self, model: Any, preprocessor: Any = None) -> None:
        super().__init__(preprocessor)
        self.model = _booster(model)
        # Asked of the library once: each question costs some microseconds of every request.
        self._features = columns.Features.of(self.model)

    @classmethod
    def from_checkpoint(cls, checkpoint: Any, **kwargs: Any) -> Self:
        """Make the predictor of a checkpoint that holds an XGBoost model.

        Parameters
        ----------
        checkpoint
            An :class:`XGBoostCheckpoint`, any Checkpoint with the same content, a ``ray.train.Checkpoint``
            with a model file, or what ``Checkpoint.of`` takes. Its preprocessor is used.
        **kwargs
            None are known; any is refused.
        """
        if kwargs:
            raise PredictorError(
                f"{cls.__name__}.from_checkpoint knows no argument {next(iter(kwargs))!r}; options of predict go "
                "into predict_kwargs."
            )
        with XGBoostCheckpoint.of(checkpoint)._local() as local:  # noqa: SLF001 - one download for both
            return cls(local.get_model(), local.get_preprocessor())

    def predict(
        self,
        data: Data,
        feature_columns: Sequence[Hashable] | None = None,
        dmatrix_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict for the rows of ``data``.

        Parameters
        ----------
        data
            A DataFrame, a dict of columns, or an array of shape (rows, features). If the model knows the
            names of its features, the columns of frames and dicts are put in its order, further ones are
            dropped, and a missing one is an error; otherwise, and in arrays, position counts. Strings and
            numbers become categories where the model was trained on some.
        feature_columns
            Use these columns only: names for frames and dicts, positions for arrays.
        dmatrix_kwargs
            Further arguments of ``xgboost.DMatrix``, for example ``missing``.
        **kwargs
            Further arguments of ``Booster.predict``, for example ``output_margin`` or ``iteration_range``.

        Returns
        -------
        For a frame: a frame with its index and the column ``predictions``, or ``predictions_0``,
        ``predictions_1``, ... if the model answers several values a row. For an array or a dict: an array
        of shape (rows,), or a dict of such arrays under these names.

        Raises
        ------
        PredictorError
            If the data do not fit the model; the sentence names the column or the widths.
        """
        features = preprocessed(self._preprocessor, check_input(data))
        if isinstance(features, dict):
            features = to_frame(features)
        index = features.index if isinstance(features, pd.DataFrame) else None
        matrix = self._features.matrix(features, feature_columns, dmatrix_kwargs or {})
        with _in_a_sentence():
            # The columns are checked above; the library's own check costs and says less.
            answer = self.model.predict(matrix, **{"validate_features": False, **kwargs})
        named = _named(answer[: len(features)])
        if isinstance(data, pd.DataFrame):
            return pd.DataFrame(
                {name: column if column.ndim == 1 else list(column) for name, column in named.items()},
                index=index,
            )
        return named.get(_COLUMN, named)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._features}, preprocessor={type(self._preprocessor).__name__})"


def _named(answer: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of an answer by name."""
    if answer.ndim == 1:
        return {_COLUMN: answer}
    if answer.shape[1] == 1:
        return {_COLUMN: answer[:, 0]}
    return {f"{_COLUMN}_{number}": answer[:, number] for number in range(answer.shape[1])}


def _booster(model: Any) -> xgboost.Booster:
    if isinstance(model, xgboost.Booster):
        return model
    if hasattr(model, "get_booster"):
        try:
            return model.get_booster()
        except Exception as error:
            raise PredictorError(
                f"The {type(model).__name__} is not trained yet; call its fit before you put it in a checkpoint."
            ) from error
    raise PredictorError(
        f"An XGBoost model is an xgboost.Booster or a fitted scikit-learn wrapper, not a {type(model).__name__}; "
        "train one with xgboost.train."
    )


def _model_of_dict(data: dict[Any, Any]) -> xgboost.Booster:
    for name in _MODEL_FILES:
        content = data.get(FILES_KEY, {}).get(name)
        if content is not None:
            return _loaded(content, name)
    if MODEL_KEY not in data:
        held = ", ".join(sorted(map(repr, [*data, *data.get(FILES_KEY, {})]))) or "nothing"
        raise CheckpointError(
            f"The checkpoint holds no XGBoost model but {held:.200}; make it with XGBoostCheckpoint.from_model, or put "
            f"a Booster under the key {MODEL_KEY!r}."
        )
    model = data[MODEL_KEY]
    return _loaded(bytes(model), MODEL_KEY) if isinstance(model, (bytes, bytearray)) else _booster(model)


def _loaded(content: bytes, name: str) -> xgboost.Booster:
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(content))
    except xgboost.core.XGBoostError as error:
        raise CheckpointError(
            f"The checkpoint's {name!r} is not an XGBoost model in UBJSON or JSON format; save it with "
            "Booster.save_model."
        ) from error
    return booster


@contextlib.contextmanager
def _in_a_sentence() -> Any:
    """Turn the library's errors, which come with a stack trace, into one sentence."""
    try:
        yield
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        raise columns.refused(error) from error
