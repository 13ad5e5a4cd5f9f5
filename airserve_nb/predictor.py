"""A predictor turns a checkpoint into predictions; write a model's own by subclassing :class:`Predictor`.

A subclass says how it is made from a checkpoint (``from_checkpoint``) and how it predicts, in one of two
ways: it overrides ``predict`` and does everything itself, or it fills in a hook, ``_predict_pandas`` or
``_predict_numpy``, and leaves the preprocessor and the formats to the base class. With a hook, the format
that comes in goes out: frame in, frame out; array or dict in, array or dict out.

A predictor lives where it was made. What travels to a replica is the class and the checkpoint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, NoReturn, Self

import pandas as pd

from airserve_nb._data import TENSOR_COLUMN, Data, as_answer, check_input, preprocessed, to_arrays, to_frame
from airserve_nb.checkpoint import Checkpoint
from airserve_nb.errors import PredictorError

__all__ = ["TENSOR_COLUMN", "Data", "Predictor"]


class Predictor(ABC):
    """The base of every predictor.

    Parameters
    ----------
    preprocessor
        A fitted preprocessor that the hooks' data pass first: Ray Data's (``transform_batch``) or
        scikit-learn's (``transform``). A subclass need not call this constructor when it has none.

    Examples
    --------
    >>> import numpy as np
    >>> class Adder(Predictor):
    ...     def __init__(self, increment):
    ...         super().__init__()
    ...         self.increment = increment
    ...
    ...     @classmethod
    ...     def from_checkpoint(cls, checkpoint):
    ...         return cls(checkpoint.to_dict()["increment"])
    ...
    ...     def _predict_numpy(self, data):
    ...         return data + self.increment
    >>> Adder.from_checkpoint(Checkpoint.from_dict({"increment": 2})).predict(np.array([40]))
    array([42])
    """

    # On the class: a subclass that skips __init__ has no preprocessor, and works.
    _preprocessor: Any = None

    def __init__(self, preprocessor: Any = None) -> None:
        self._preprocessor = preprocessor

    @classmethod
    @abstractmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Self:
        """Make the predictor from ``checkpoint``; ``kwargs`` are the deployment's further arguments."""

    @classmethod
    def from_pandas_udf(cls, udf: Callable[..., Any]) -> Predictor:
        """Make a predictor of a function: frame in, frame (or Series, or array) out.

        >>> double = Predictor.from_pandas_udf(lambda frame: frame * 2)
        >>> double.predict(pd.DataFrame({"x": [1, 2]}))["x"].tolist()
        [2, 4]
        """
        if not callable(udf):
            raise PredictorError(
                f"from_pandas_udf takes a function of a DataFrame, not a {type(udf).__name__}; "
                "write lambda frame: ..."
            )
        return _FunctionPredictor(udf)

    def get_preprocessor(self) -> Any:
        """Return the preprocessor, None without one."""
        return self._preprocessor

    def set_preprocessor(self, preprocessor: Any) -> None:
        """Replace the preprocessor; None takes it out."""
        self._preprocessor = preprocessor

    @classmethod
    def preferred_batch_format(cls) -> Literal["pandas", "numpy"]:
        """Return which hook is used when a subclass has both."""
        return "pandas"

    def predict(self, data: Any, **kwargs: Any) -> Any:
        """Predict for the rows of ``data``.

        Parameters
        ----------
        data
            An array (rows along the first axis), a dict of such arrays, or a DataFrame.
        **kwargs
            Handed to the hook.

        Returns
        -------
        A DataFrame for a DataFrame, with its index where the hook left the rows' number alone; for an array
        or a dict, an array (the hook answered one column) or a dict of arrays (several).

        Raises
        ------
        PredictorError
            If ``data`` is none of these, or the preprocessor refuses it, or a hook is missing or returns
            something else. What a hook itself raises is not touched.
        """
        ready = preprocessed(self._preprocessor, check_input(data))
        index = ready.index if isinstance(ready, pd.DataFrame) else None
        if self._hook() == "pandas":
            # A view of its own: a hook may add columns to the frame it is given.
            frame = to_frame(ready)
            own = frame.copy(deep=False) if frame is data else frame
            return as_answer(
                self._predict_pandas(own, **kwargs), asked=data, index=index, hook="_predict_pandas"
            )
        output = self._predict_numpy(to_arrays(ready), **kwargs)
        return as_answer(output, asked=data, index=index, hook="_predict_numpy")

    def _predict_pandas(self, data: pd.DataFrame, **kwargs: Any) -> Any:
        """Predict for a frame; fill in this hook or the other."""
        raise NotImplementedError

    def _predict_numpy(self, data: Any, **kwargs: Any) -> Any:
        """Predict for an array or a dict of arrays; fill in this hook or the other."""
        raise NotImplementedError

    @classmethod
    def _hook(cls) -> Literal["pandas", "numpy"]:
        has_pandas = cls._predict_pandas is not Predictor._predict_pandas
        has_numpy = cls._predict_numpy is not Predictor._predict_numpy
        if has_pandas and has_numpy:
            return cls.preferred_batch_format()
        if not has_pandas and not has_numpy:
            raise PredictorError(
                f"{cls.__name__} says nowhere how to predict; define predict(self, data), or one of the hooks "
                "_predict_pandas and _predict_numpy."
            )
        return "pandas" if has_pandas else "numpy"

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise PredictorError(
            f"An instance of {name} can't travel to another process; give the class {name} and its checkpoint, and "
            "it is made there."
        )


class _FunctionPredictor(Predictor):
    """What ``from_pandas_udf`` makes."""

    def __init__(self, udf: Callable[..., Any]) -> None:
        super().__init__()
        self._udf = udf

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Self:  # noqa: ARG003 - the base's signature
        """Refuse: the function is not in a checkpoint."""
        raise PredictorError(
            "A predictor made by from_pandas_udf has no checkpoint; subclass Predictor instead."
        )

    def _predict_pandas(self, data: pd.DataFrame, **kwargs: Any) -> Any:
        return self._udf(data, **kwargs)
