"""Predictor: what comes in goes out in the same format, and mistakes are answered by a sentence."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Self

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from airserve_nb.checkpoint import Checkpoint
from airserve_nb.errors import PredictorError
from airserve_nb.predictor import TENSOR_COLUMN, Predictor


class Plain(Predictor):
    """A predictor without a checkpoint."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Self:
        return cls(checkpoint.get_preprocessor(), **kwargs)


class Frames(Plain):
    def _predict_pandas(self, data: pd.DataFrame, **kwargs: Any) -> Any:
        data["doubled"] = 2 * data.iloc[:, 0]
        return data[["doubled"]]


class Arrays(Plain):
    def _predict_numpy(self, data: Any, **kwargs: Any) -> Any:
        if isinstance(data, dict):
            return {key: 2 * value for key, value in data.items()}
        return 2 * data


class Both(Arrays):
    def _predict_pandas(self, data: pd.DataFrame, **kwargs: Any) -> Any:
        return data.assign(hook="pandas")


class Adder(Predictor):
    """The guide's: it overrides predict and never calls the base constructor."""

    def __init__(self, increment: int) -> None:
        self.increment = increment

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Self:
        return cls(checkpoint.to_dict()["increment"])

    def predict(self, data: Any, **kwargs: Any) -> Any:
        return data + self.increment


def returning(output: Any) -> Predictor:
    return Predictor.from_pandas_udf(lambda frame: output)


class TestFormats:
    @settings(deadline=None)
    @given(rows=st.integers(0, 4), shape=st.lists(st.integers(1, 3), max_size=2))
    def test_array(self, rows: int, shape: list[int]) -> None:
        """An array of any depth comes back as an array, from either hook."""
        data = np.arange(rows * int(np.prod(shape)), dtype=float).reshape(rows, *shape)
        for predictor in (Frames(), Arrays()):
            answer = predictor.predict(data)
            assert isinstance(answer, np.ndarray)
            if rows:
                np.testing.assert_array_equal(answer, 2 * data)

    def test_dict(self) -> None:
        """A dict gives an array for one answered column, a dict for several."""
        data = {"a": np.array([1, 2]), "b": np.array([[1, 2], [3, 4]])}
        answer = Arrays().predict(data)
        np.testing.assert_array_equal(answer["b"], [[2, 4], [6, 8]])
        np.testing.assert_array_equal(Frames().predict(data), [2, 4])
        assert set(Both().predict(data)) == {"a", "b", "hook"}

    def test_frame(self) -> None:
        """A frame gives a frame with its index, from either hook."""
        data = pd.DataFrame({"x": [1, 2], "y": [3, 4]}, index=[7, 5])
        pd.testing.assert_frame_equal(Arrays().predict(data), 2 * data)
        pd.testing.assert_frame_equal(Frames().predict(data), pd.DataFrame({"doubled": [2, 4]}, index=[7, 5]))

    def test_one_column(self) -> None:
        """A frame of one column reaches the array hook as an array; the answer is named predictions."""
        answer = Arrays().predict(pd.DataFrame({"x": [1, 2]}, index=[7, 5]))
        pd.testing.assert_frame_equal(answer, pd.DataFrame({"predictions": [2, 4]}, index=[7, 5]))

    def test_tensor_column(self) -> None:
        """An array reaches the frame hook under the documented column name."""
        names = Predictor.from_pandas_udf(lambda frame: pd.Series([list(frame.columns)] * len(frame)))
        assert list(names.predict(np.zeros((2, 2)))) == [[TENSOR_COLUMN]] * 2

    def test_subclasses_are_welcome(self) -> None:
        """Subclasses of the three kinds are taken."""
        kinds: list[Any] = [
            type("A", (np.ndarray,), {}),
            type("D", (dict,), {}),
            type("F", (pd.DataFrame,), {}),
        ]
        array = np.arange(2).view(kinds[0])
        for data in (array, kinds[1](x=array), kinds[2]({"x": [0, 1]})):
            assert np.asarray(Frames().predict(data)).ravel().tolist() == [0, 2]

    @pytest.mark.parametrize("data", [pd.DataFrame({"x": [1]}), {"x": np.array([1])}, np.array([1])])
    def test_input_stays(self, data: Any) -> None:
        """A hook that writes into its frame does not change the caller's data."""
        before = pickle.dumps(data)
        Frames().predict(data)
        assert pickle.dumps(data) == before

    def test_function(self) -> None:
        """from_pandas_udf makes an instance; frames, Series, arrays and options pass."""
        scale = Predictor.from_pandas_udf(lambda frame, by=1: frame["x"] * by)
        assert isinstance(scale, Predictor)
        data = pd.DataFrame({"x": [1, 2]}, index=[3, 1])
        pd.testing.assert_frame_equal(scale.predict(data, by=2), 2 * data)
        answer = Predictor.from_pandas_udf(lambda frame: frame["x"].to_numpy()).predict(data)
        pd.testing.assert_frame_equal(answer, pd.DataFrame({"predictions": [1, 2]}, index=[3, 1]))


class TestSubclassing:
    def test_the_guides_adder(self) -> None:
        """A predictor that overrides predict and skips the base constructor works."""
        adder = Adder.from_checkpoint(Checkpoint.from_dict({"increment": 2}))
        assert adder.predict(np.array([40])).tolist() == [42]
        assert adder.get_preprocessor() is None

    def test_the_preferred_hook(self) -> None:
        """With both hooks, the preferred format decides."""
        data = pd.DataFrame({"x": [1], "y": [2]})

        class Numpy(Both):
            @classmethod
            def preferred_batch_format(cls) -> Any:
                return "numpy"

        assert list(Both().predict(data)) == ["x", "y", "hook"]
        pd.testing.assert_frame_equal(Numpy().predict(data), 2 * data)

    def test_an_instance_does_not_travel(self) -> None:
        """Pickling an instance says that class and checkpoint travel; the class itself travels."""
        for dumps in (pickle.dumps, cloudpickle.dumps):
            with pytest.raises(PredictorError, match="the class Adder and its checkpoint"):
                dumps(Adder(2))
        assert cloudpickle.loads(cloudpickle.dumps(Adder))(2).predict(np.array([1])).tolist() == [3]


class TestPreprocessor:
    def test_ray_data(self) -> None:
        """A preprocessor with transform_batch comes first, and can't change the caller's data."""

        class Shift:
            def transform_batch(self, data: pd.DataFrame) -> pd.DataFrame:
                data["x"] = data["x"] + 10
                return data

        data = pd.DataFrame({"x": [1, 2]})
        assert Frames(Shift()).predict(data)["doubled"].tolist() == [22, 24]
        assert data["x"].tolist() == [1, 2]

    def test_sklearn_keeps_frames(self) -> None:
        """A scikit-learn transformer leaves names and index, in its own column order."""
        train = pd.DataFrame({"a": [0.0, 2.0], "b": [0.0, 20.0]})
        predictor = Predictor.from_pandas_udf(lambda frame: frame)
        predictor.set_preprocessor(StandardScaler().fit(train))
        answer = predictor.predict(pd.DataFrame({"extra": [0], "b": [20.0], "a": [0.0]}, index=[9]))
        pd.testing.assert_frame_equal(answer, pd.DataFrame({"a": [-1.0], "b": [1.0]}, index=[9]))
        assert set(predictor.predict({"a": np.array([0.0]), "b": np.array([20.0])})) == {"a", "b"}

    def test_sklearn_encoders_and_arrays(self) -> None:
        """Sparse output becomes a frame with the encoder's names; arrays stay arrays."""
        train = pd.DataFrame({"c": ["u", "v"], "n": [1.0, 2.0]})
        encoder = ColumnTransformer(
            [("c", OneHotEncoder(), ["c"])], remainder="passthrough", sparse_threshold=1
        )
        predictor = Predictor.from_pandas_udf(lambda frame: frame)
        predictor.set_preprocessor(encoder.fit(train))
        assert list(predictor.predict(train)) == ["c__c_u", "c__c_v", "remainder__n"]
        scaler = StandardScaler().fit(np.array([[0.0], [2.0]]))
        np.testing.assert_array_equal(Arrays(scaler).predict(np.array([[2.0]])), [[2.0]])


class TestMisuse:
    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            (lambda: Frames().predict([1, 2]), r"not a list; wrap it as np\.asarray"),
            (lambda: Frames().predict(pd.Series([1])), r"series\.to_frame"),
            (lambda: Frames().predict(3), "not a int"),
            (lambda: Frames().predict(np.array(3)), "no rows"),
            (lambda: Frames().predict({"x": 3}), "'x' is 3, which has no rows"),
            (lambda: Frames().predict({"x": [1], "y": [1, 2]}), "same number of rows"),
            (lambda: Plain().predict(np.zeros(1)), "says nowhere how to predict"),
            (lambda: returning(None).predict(np.zeros(1)), r"returned nothing \(None\)"),
            (lambda: returning((1, 2)).predict(np.zeros(1)), "returned a tuple"),
            (lambda: Frames(object()).predict(np.zeros(1)), "has neither"),
            (lambda: Frames(StandardScaler()).predict(np.zeros((1, 1))), "StandardScaler refused the data"),
            (
                lambda: Frames(StandardScaler().fit(pd.DataFrame({"q": [1.0]}))).predict(
                    pd.DataFrame({"x": [1]})
                ),
                "lack the column 'q'",
            ),
            (lambda: Predictor.from_pandas_udf(pd.DataFrame({"x": [1]})), "takes a function"),  # type: ignore[arg-type]
            (lambda: type(returning(1)).from_checkpoint(Checkpoint.from_dict({})), "no checkpoint"),
        ],
    )
    def test_a_sentence_helps(self, wrong: Callable[[], Any], sentence: str) -> None:
        """Each mistake is answered by one sentence that says what to do."""
        with pytest.raises(PredictorError, match=sentence) as raised:
            wrong()
        assert str(raised.value).endswith(".")
        assert "\n" not in str(raised.value)

    def test_a_hooks_own_error_is_untouched(self) -> None:
        """What the model code raises is the user's own error."""
        with pytest.raises(KeyError, match="nope"):
            Predictor.from_pandas_udf(lambda frame: frame["nope"]).predict(pd.DataFrame({"x": [1]}))
