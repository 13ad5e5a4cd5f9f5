"""XGBoostTrainer: the arguments of old on today's Ray Train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

from airserve_nb.checkpoint import Checkpoint
from airserve_nb.errors import OptionError
from airserve_nb.predictors.xgboost import XGBoostCheckpoint, XGBoostPredictor
from airserve_nb.trainers import XGBoostTrainer

PARAMS = {
    "tree_method": "approx",
    "objective": "binary:logistic",
    "eval_metric": ["logloss", "error"],
    "max_depth": 2,
}
FRAME = pd.DataFrame({"x": [1.0, 2.0], "target": [0, 1]})


def trainer(**changed: Any) -> XGBoostTrainer:
    return XGBoostTrainer(
        **{"label_column": "target", "params": PARAMS, "datasets": {"train": FRAME}, **changed}
    )


@pytest.fixture(scope="module")
def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = load_breast_cancer(as_frame=True).frame
    # An odd number of rows: two equal parts can't hold them all.
    return frame.iloc[:397], frame.iloc[397:]


def plain_metrics(train: pd.DataFrame, valid: pd.DataFrame) -> dict[str, float]:
    """Train the same in this process."""
    import xgboost

    history: dict[str, Any] = {}
    matrices = [
        (xgboost.DMatrix(frame.drop(columns="target"), frame["target"]), name)
        for name, frame in (("train", train), ("valid", valid))
    ]
    xgboost.train(PARAMS, matrices[0][0], 5, evals=matrices, evals_result=history, verbose_eval=False)
    return {f"{name}-{metric}": values[-1] for name in history for metric, values in history[name].items()}


@pytest.mark.ray
class TestTraining:
    def test_one_worker_with_ray_datas_scaler(self, ray_cluster: Any, frames: Any) -> None:
        """Metrics are those of plain XGBoost; model and fitted scaler come in one checkpoint."""
        import ray.data
        from ray.data.preprocessors import StandardScaler as RayStandardScaler

        train, valid = frames
        result = trainer(
            datasets={"train": ray.data.from_pandas(train), "valid": ray.data.from_pandas(valid)},
            preprocessor=RayStandardScaler(columns=["mean radius", "mean texture"]),
            num_boost_round=5,
        ).fit()
        assert result.metrics is not None
        # Scaling by column changes no split of a tree but for rounding.
        assert result.metrics == pytest.approx(plain_metrics(train, valid), rel=0.02)
        assert isinstance(result.checkpoint, XGBoostCheckpoint)
        predictor = XGBoostPredictor.from_checkpoint(result.checkpoint)
        answer = predictor.predict(valid.drop(columns="target"))["predictions"]
        assert np.mean((answer > 0.5) != valid["target"]) == pytest.approx(result.metrics["valid-error"])
        fitted = predictor.get_preprocessor()
        assert fitted.stats_["mean(mean radius)"] == pytest.approx(train["mean radius"].mean())

    def test_two_workers_with_frames_and_sklearn(self, ray_cluster: Any, frames: Any) -> None:
        """Two workers train on all rows together, on frames, with a scikit-learn scaler."""
        import ray.train

        train, valid = frames
        shuffled = valid[list(valid.columns[::-1])]
        result = trainer(
            datasets={"train": train, "valid": shuffled},
            preprocessor=StandardScaler(),
            num_boost_round=5,
            scaling_config=ray.train.ScalingConfig(num_workers=2),
        ).fit()
        assert result.metrics is not None
        # The quantile sketches of two parts are merged, so splits may differ a little.
        assert result.metrics["train-logloss"] == pytest.approx(
            plain_metrics(train, valid)["train-logloss"], rel=0.1
        )
        predictor = XGBoostPredictor.from_checkpoint(Checkpoint.of(result.checkpoint))
        answer = predictor.predict(train.drop(columns="target"))["predictions"]
        # Only if no row was dropped on the way does the reported error equal that over all rows.
        assert np.mean((answer > 0.5) != train["target"]) == pytest.approx(result.metrics["train-error"])

    @pytest.mark.parametrize(
        ("changed", "sentence"),
        [
            ({"label_column": "diagnosis"}, "no column 'diagnosis'"),
            ({"datasets": {"train": FRAME, "valid": FRAME[["target"]]}}, "'valid' lacks the column 'x'"),
            ({"datasets": {"train": FRAME.iloc[:0]}}, "has 0 rows for 1 workers"),
        ],
    )
    def test_datasets_that_do_not_fit(self, changed: dict[str, Any], sentence: str, ray_cluster: Any) -> None:
        """What only a look at the data shows is said before any worker starts."""
        with pytest.raises(OptionError, match=sentence):
            trainer(**changed).fit()


class TestMisuse:
    @pytest.mark.parametrize(
        ("wrong", "sentence"),
        [
            (lambda: trainer(datasets={"training": FRAME}), "'training', but no 'train'"),
            (lambda: trainer(datasets={}), "nothing, but no 'train'"),
            (lambda: trainer(datasets=FRAME), "not a DataFrame"),
            (lambda: trainer(datasets={"train": [1]}), "'train' is a list"),
            (lambda: trainer(num_boost_round=0), "num_boost_round is 0"),
            (lambda: trainer(num_boost_round=True), "num_boost_round is True"),
            (lambda: trainer(params=None), "not a NoneType"),
            (lambda: trainer(preprocessor=3), "has fit and transform"),
        ],
    )
    def test_a_sentence_helps(self, wrong: Callable[[], Any], sentence: str) -> None:
        """Each mistake is answered when the trainer is made, without starting Ray."""
        with pytest.raises(OptionError, match=sentence) as raised:
            wrong()
        assert str(raised.value).endswith(".")
