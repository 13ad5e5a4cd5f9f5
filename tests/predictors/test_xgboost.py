"""XGBoost: the served model predicts what the trained one predicts, whatever way the columns come."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

from airserve_nb.checkpoint import FILES_KEY, Checkpoint
from airserve_nb.errors import CheckpointError, PredictorError
from airserve_nb.predictors.xgboost import XGBoostCheckpoint, XGBoostPredictor

BINARY = {"objective": "binary:logistic", "max_depth": 2, "tree_method": "approx"}


@pytest.fixture(scope="module")
def features() -> pd.DataFrame:
    frame: pd.DataFrame = load_breast_cancer(as_frame=True).data
    return frame


@pytest.fixture(scope="module")
def booster(features: pd.DataFrame) -> Any:
    labels = load_breast_cancer().target
    return xgboost.train(BINARY, xgboost.DMatrix(features, labels), 5)


@pytest.fixture(scope="module")
def expected(booster: Any, features: pd.DataFrame) -> np.ndarray[Any, Any]:
    answer: np.ndarray[Any, Any] = booster.predict(xgboost.DMatrix(features))
    return answer


@pytest.fixture(scope="module")
def predictor(booster: Any) -> XGBoostPredictor:
    return XGBoostPredictor.from_checkpoint(XGBoostCheckpoint.from_model(booster))


@pytest.fixture(scope="module")
def categorical() -> XGBoostPredictor:
    """Return a model that says 0.8 for c = b, 0.08 otherwise; k is a category of small whole numbers."""
    frame = pd.DataFrame(
        {
            "c": pd.Categorical(list("abc") * 30),
            "k": pd.Categorical(np.array([10, 20, 30] * 30, dtype=np.int8)),
            "x": 1.0,
        }
    )
    matrix = xgboost.DMatrix(frame, frame["c"] == "b", enable_categorical=True)
    return XGBoostPredictor(xgboost.train({**BINARY, "tree_method": "hist"}, matrix, 5))


class TestCheckpoint:
    def test_model_and_preprocessor_come_back(self, booster: Any, features: pd.DataFrame) -> None:
        """The model comes back the same, names included, from every form of the checkpoint."""
        checkpoint = XGBoostCheckpoint.from_model(booster, StandardScaler())
        with checkpoint.as_directory() as path:
            assert sorted(entry.name for entry in Path(path).iterdir()) == ["_preprocessor", "model.ubj"]
            forms = [
                checkpoint,
                XGBoostCheckpoint.from_directory(path),
                pickle.loads(pickle.dumps(checkpoint)),
                XGBoostCheckpoint.of(checkpoint.to_uri("memory://xgboost/model")),
                XGBoostCheckpoint.from_bytes(checkpoint.to_bytes()),
            ]
            for form in forms:
                assert form.get_model().save_raw("ubj") == booster.save_raw("ubj")
                assert isinstance(form.get_preprocessor(), StandardScaler)

    @pytest.mark.parametrize("name", ["model.ubj", "model.json", "model"])
    def test_others_model_files(self, name: str, booster: Any, tmp_path: Path) -> None:
        """Files of Ray Train's callback, of its checkpoint class and of Ray AIR are found."""
        (tmp_path / name).write_bytes(booster.save_raw("json" if name.endswith("json") else "ubj"))
        directory = Checkpoint.from_directory(tmp_path)
        for checkpoint in (directory, Checkpoint.from_dict(directory.to_dict()), str(tmp_path)):
            model = XGBoostPredictor.from_checkpoint(checkpoint).model
            assert model.feature_names == booster.feature_names

    def test_model_key(self, booster: Any, features: pd.DataFrame) -> None:
        """A dict with a Booster, a wrapper or a model's bytes under model is a checkpoint too."""
        wrapper = xgboost.XGBClassifier(n_estimators=1).fit(features, features["mean area"] > 600)
        for model in (booster, wrapper, bytes(booster.save_raw("ubj"))):
            loaded = XGBoostPredictor.from_checkpoint({"model": model}).model
            assert loaded.feature_names == list(features.columns)
        with Checkpoint.from_dict({"model": booster}).as_directory() as path:
            assert XGBoostCheckpoint.from_directory(path).get_model().num_boosted_rounds() == 5


class TestFrames:
    def test_index_and_order(
        self, predictor: XGBoostPredictor, features: pd.DataFrame, expected: Any
    ) -> None:
        """Columns in any order, and more of them, give each row its own answer under its own label."""
        shuffled = features.sample(frac=1, random_state=0)[list(features.columns[::-1])]
        for data in (shuffled, shuffled.assign(extra="text")):
            answer = predictor.predict(data)
            assert list(answer.columns) == ["predictions"]
            pd.testing.assert_index_equal(answer.index, data.index)
            np.testing.assert_array_equal(answer["predictions"].sort_index(), expected)

    def test_mixed_dtypes(self, predictor: XGBoostPredictor, features: pd.DataFrame) -> None:
        """Integers, booleans, nulls and nullable columns mean what they mean to XGBoost itself."""
        data = features.iloc[:3].copy()
        data["mean area"] = data["mean area"].round().astype(int)
        data["mean radius"] = data["mean radius"] > 18
        data["worst area"] = pd.array([1, None, 3], dtype="Int64")
        wanted = predictor.model.predict(xgboost.DMatrix(data))
        np.testing.assert_array_equal(predictor.predict(data)["predictions"], wanted)
        objects = data.assign(**{"worst area": pd.Series([1, None, 3], dtype=object)})
        np.testing.assert_array_equal(predictor.predict(objects)["predictions"], wanted)
        nothing = data.assign(**{"worst area": pd.Series([None] * 3, dtype=object)})
        missing = predictor.predict(data.assign(**{"worst area": np.nan}))
        pd.testing.assert_frame_equal(predictor.predict(nothing), missing)

    def test_no_rows(self, predictor: XGBoostPredictor, features: pd.DataFrame) -> None:
        """No rows in, no rows out, without a warning."""
        answer = predictor.predict(features.iloc[:0])
        assert list(answer.columns) == ["predictions"]
        assert len(answer) == 0
        assert predictor.predict(np.zeros((0, 30))).shape == (0,)

    def test_caller_keeps_what_it_gave(self, predictor: XGBoostPredictor, features: pd.DataFrame) -> None:
        """Neither the frame nor the options are changed."""
        data, options = features.iloc[:2].copy(), {"missing": 0.0}
        predictor.predict(data, dmatrix_kwargs=options)
        pd.testing.assert_frame_equal(data, features.iloc[:2])
        assert options == {"missing": 0.0}

    def test_a_model_without_names(self, booster: Any, features: pd.DataFrame, expected: Any) -> None:
        """A model trained on an array takes frames by position."""
        labels = load_breast_cancer().target
        nameless = xgboost.train(BINARY, xgboost.DMatrix(features.to_numpy(), labels), 5)
        answer = XGBoostPredictor(nameless).predict(features)
        np.testing.assert_array_equal(answer["predictions"], expected)


class TestCategories:
    def test_values_as_json_brings_them(self, categorical: XGBoostPredictor) -> None:
        """Strings and whole numbers are matched with the training's categories by value, nulls are missing."""
        rows = [
            {"x": 1, "k": 20, "c": "b"},
            {"x": 1, "k": None, "c": "b"},
            {"x": 1, "k": 20, "c": None},
            {"x": 1, "k": 10, "c": "a"},
        ]
        together = categorical.predict(pd.DataFrame(rows))["predictions"]
        assert list(together > 0.5) == [True, True, False, False]
        for row, answer in zip(rows, together, strict=True):
            assert categorical.predict(pd.DataFrame([row]))["predictions"].item() == answer

    def test_categories_in_another_order(self, categorical: XGBoostPredictor) -> None:
        """A frame's own category codes do not matter, only the values."""
        data = pd.DataFrame({"c": pd.Categorical(["b"]), "k": pd.Categorical([20]), "x": [1.0]})
        assert categorical.predict(data)["predictions"].item() > 0.5

    def test_unknown_category(self, categorical: XGBoostPredictor) -> None:
        """A category that the training never saw is named."""
        with pytest.raises(PredictorError, match=r"'c' holds 'z', a category .* knows 'a', 'b', 'c'"):
            categorical.predict(pd.DataFrame([{"x": 1, "k": 20, "c": "z"}]))


class TestArraysAndDicts:
    def test_array(self, predictor: XGBoostPredictor, features: pd.DataFrame, expected: Any) -> None:
        """An array of any number type gives an array of shape (rows,)."""
        for data in (
            features.to_numpy(),
            features.to_numpy(dtype=np.float32),
            features.to_numpy(dtype=object),
        ):
            np.testing.assert_array_equal(predictor.predict(data), expected)

    def test_dict(self, predictor: XGBoostPredictor, features: pd.DataFrame, expected: Any) -> None:
        """A dict of columns is put in order by name."""
        data = {name: features[name].to_numpy() for name in reversed(features.columns)}
        np.testing.assert_array_equal(predictor.predict(data), expected)

    def test_several_values_a_row(self, features: pd.DataFrame) -> None:
        """Of several classes each gets a column, in both formats."""
        model = xgboost.XGBClassifier(n_estimators=2).fit(features, np.arange(len(features)) % 3)
        predictor = XGBoostPredictor(model)
        frame = predictor.predict(features.iloc[:4])
        arrays = predictor.predict(features.iloc[:4].to_numpy())
        assert list(frame.columns) == list(arrays) == [f"predictions_{number}" for number in range(3)]
        np.testing.assert_array_equal(frame.to_numpy(), model.predict_proba(features.iloc[:4]))
        np.testing.assert_array_equal(np.stack(list(arrays.values()), axis=1), frame.to_numpy())


class TestOptions:
    def test_feature_columns(self, features: pd.DataFrame) -> None:
        """feature_columns picks by name in frames and by position in arrays."""
        chosen = features[["mean area", "mean radius"]]
        model = xgboost.train(BINARY, xgboost.DMatrix(chosen.to_numpy(), load_breast_cancer().target), 3)
        predictor = XGBoostPredictor(model)
        positions = [list(features.columns).index(name) for name in chosen.columns]
        by_position = predictor.predict(features.to_numpy(), feature_columns=positions)
        by_name = predictor.predict(features, feature_columns=list(chosen.columns))
        np.testing.assert_array_equal(by_name["predictions"], by_position)
        np.testing.assert_array_equal(by_position, model.predict(xgboost.DMatrix(chosen.to_numpy())))

    def test_options_of_predict(self, predictor: XGBoostPredictor, features: pd.DataFrame) -> None:
        """Further options reach Booster.predict and DMatrix."""
        margin = predictor.predict(features.iloc[:2], output_margin=True)["predictions"]
        probability = predictor.predict(features.iloc[:2])["predictions"]
        np.testing.assert_allclose(1 / (1 + np.exp(-margin)), probability, rtol=1e-6)
        assert predictor.predict(features.iloc[:2], pred_contribs=True).shape == (2, 31)
        value = float(features.to_numpy()[0, 0])
        odd = predictor.predict(features.iloc[:1], dmatrix_kwargs={"missing": value})
        blank = predictor.predict(features.iloc[:1].replace(value, np.nan))
        pd.testing.assert_frame_equal(odd, blank)

    def test_preprocessor(self, features: pd.DataFrame) -> None:
        """A scikit-learn scaler in the checkpoint is applied, in whatever order columns come."""
        scaler = StandardScaler().fit(features)
        scaled = pd.DataFrame(scaler.transform(features), columns=features.columns)
        model = xgboost.train(BINARY, xgboost.DMatrix(scaled, load_breast_cancer().target), 3)
        predictor = XGBoostPredictor.from_checkpoint(XGBoostCheckpoint.from_model(model, scaler))
        answer = predictor.predict(features.iloc[5:9, ::-1])
        wanted = model.predict(xgboost.DMatrix(scaled.iloc[5:9]))
        np.testing.assert_array_equal(answer["predictions"], wanted)
        assert list(answer.index) == [5, 6, 7, 8]


class TestMisuse:
    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            (lambda p, x: p.predict(x.drop(columns="mean area")), "lack the column 'mean area' that"),
            (lambda p, x: p.predict(x.drop(columns=["mean area", "worst area"])), "'mean area' and 1 more"),
            (lambda p, x: p.predict(np.zeros(30)), r"shape \(rows, 30\), but this one has shape \(30,\)"),
            (lambda p, x: p.predict(np.zeros((2, 3))), "takes 30 features a row, but the data have 3"),
            (lambda p, x: p.predict(np.full((1, 30), np.inf)), "infinite or too large"),
            (lambda p, x: p.predict(x * 1e300), "infinite or too large"),
            (lambda p, x: p.predict(np.array([["a"] * 30])), "array of numbers"),
            (lambda p, x: p.predict(x.assign(**{"mean area": "big"})), "'mean area' holds 'big'"),
            (lambda p, x: p.predict(x.to_dict("records")), "not a list"),
            (lambda p, x: p.predict(x, feature_columns=["nope"]), "'nope', which is no column"),
            (lambda p, x: p.predict(x.to_numpy(), feature_columns=[99]), "counted from 0"),
            (lambda p, x: p.predict(x, nonsense=1), "nonsense"),
            (lambda p, x: p.predict(x, dmatrix_kwargs={"nonsense": 1}), "nonsense"),
            (lambda p, x: XGBoostPredictor(xgboost.Booster()), "not trained yet"),
            (lambda p, x: XGBoostPredictor(xgboost.XGBClassifier()), "not trained yet"),
            (lambda p, x: XGBoostPredictor("model.ubj"), "not a str"),
            (lambda p, x: XGBoostPredictor.from_checkpoint({"model": p.model}, use_gpu=True), "'use_gpu'"),
            (lambda p, x: XGBoostPredictor.from_checkpoint({"weights": 1}), "no XGBoost model but 'weights'"),
            (lambda p, x: XGBoostPredictor.from_checkpoint({}), "but nothing"),
            (
                lambda p, x: XGBoostPredictor.from_checkpoint({FILES_KEY: {"model": b"x"}}),
                "not an XGBoost model",
            ),
        ],
    )
    def test_a_sentence_helps(
        self,
        wrong: Callable[[XGBoostPredictor, pd.DataFrame], Any],
        sentence: str,
        predictor: XGBoostPredictor,
        features: pd.DataFrame,
    ) -> None:
        """Each mistake is answered by one sentence, without XGBoost's stack trace."""
        with pytest.raises((PredictorError, CheckpointError), match=sentence) as raised:
            wrong(predictor, features.iloc[:2])
        assert str(raised.value).endswith(".")
        assert "\n" not in str(raised.value)
