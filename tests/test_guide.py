"""Ray AIR's serving guide, cell by cell, on the shared Ray: the same calls, and every value as printed there.

Training belongs to the tests of the trainers; here XGBoost is trained by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests

from airserve_nb import (
    Checkpoint,
    Predictor,
    PredictorDeployment,
    Service,
    XGBoostCheckpoint,
    XGBoostPredictor,
)
from airserve_nb.http_adapters import pandas_read_json

pytestmark = pytest.mark.ray


def array_predictor() -> Any:
    class AdderPredictor(Predictor):
        def __init__(self, increment: int) -> None:
            self.increment = increment

        @classmethod
        def from_checkpoint(cls, ckpt: Checkpoint) -> AdderPredictor:  # type: ignore[override]  # as the guide has it
            return cls(ckpt.to_dict()["increment"])

        def predict(self, inp: Any) -> Any:  # type: ignore[override]  # as the guide has it
            return inp + self.increment

    return AdderPredictor


def frame_predictor() -> Any:
    class DataFramePredictor(array_predictor()):  # type: ignore[misc]  # a class made by a function
        def predict(self, inp: Any) -> Any:
            inp["prediction"] = inp["base"] * inp["multiplier"] + self.increment
            return inp

    return DataFramePredictor


def size_predictor() -> Any:
    class BatchSizePredictor(Predictor):
        @classmethod
        def from_checkpoint(cls, _: Checkpoint) -> BatchSizePredictor:  # type: ignore[override]  # as the guide has it
            return cls()

        def predict(self, inp: Any) -> Any:  # type: ignore[override]  # as the guide has it
            time.sleep(0.5)  # the guide's stand-in for a model; not a wait of the test's
            return [(i, len(inp), inp) for i in inp]

    return BatchSizePredictor


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.from_dict({"increment": 2})


@pytest.fixture(scope="module")
def run(ray_cluster: str) -> Iterator[Any]:
    """``serve.run`` with nothing said about names and routes, as in the guide."""
    from ray import serve

    yield serve.run
    serve.delete("default")


def test_the_predictor_alone(checkpoint: Checkpoint) -> None:
    """A predictor can be tried before it is served."""
    predictor = array_predictor().from_checkpoint(checkpoint)
    assert predictor.predict(np.array([40])) == np.array([42])


def test_arrays(run: Any, ray_cluster: str, checkpoint: Checkpoint) -> None:
    """[40] is answered [42.0], at the root, and Service.connect() watches it."""
    run(
        PredictorDeployment.options(name="Adder").bind(predictor_cls=array_predictor(), checkpoint=checkpoint)
    )
    answer = requests.post(f"{ray_cluster}/", json={"array": [40]}, timeout=30)
    answer.raise_for_status()
    assert answer.json() == [42.0]
    service = Service.connect()
    assert service.url.rstrip("/") == ray_cluster
    assert service.requests().status.tolist() == [200]
    assert service.request({"array": [[1, 2], [3, 4]]}).json() == [[3.0, 4.0], [5.0, 6.0]]
    assert service.request({"array": [1, 2, 3, 4], "shape": [2, 2], "dtype": "int64"}).text == "[[3,4],[5,6]]"


def test_frames(run: Any, ray_cluster: str, checkpoint: Checkpoint) -> None:
    """Two records come back with their prediction, as the very text of the guide."""
    run(
        PredictorDeployment.options(name="DataFramePredictor").bind(
            predictor_cls=frame_predictor(), checkpoint=checkpoint, http_adapter=pandas_read_json
        )
    )
    answer = requests.post(
        f"{ray_cluster}/",
        json=[{"base": 1, "multiplier": 2}, {"base": 3, "multiplier": 4}],
        params={"orient": "records"},
        timeout=30,
    )
    answer.raise_for_status()
    assert answer.text == (
        '[{"base":1,"multiplier":2,"prediction":4},{"base":3,"multiplier":4,"prediction":14}]'
    )


def test_an_adapter_of_ones_own(run: Any, ray_cluster: str, checkpoint: Checkpoint) -> None:
    """An annotated function takes the query's parameters: 10 * 4 + 2 is 42; the app is replaced without a pause in names."""

    def our_own_http_adapter(base: int, multiplier: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 - as the guide has it
        return pd.DataFrame([{"base": base, "multiplier": multiplier}])

    run(
        PredictorDeployment.options(name="DataFramePredictor").bind(
            predictor_cls=frame_predictor(), checkpoint=checkpoint, http_adapter=our_own_http_adapter
        )
    )
    answer = requests.post(f"{ray_cluster}/", params={"base": 10, "multiplier": 4}, timeout=30)
    answer.raise_for_status()
    assert answer.text == '[{"base":10,"multiplier":4,"prediction":42}]'
    refused = requests.post(f"{ray_cluster}/", params={"base": "ten", "multiplier": "4"}, timeout=30)
    assert refused.status_code == 422
    assert "base" in refused.json()["error"]


def ten_at_once(url: str) -> list[Any]:
    """Send ten requests from ten threads, as the guide does."""
    with ThreadPoolExecutor(max_workers=10) as pool:
        futures = [pool.submit(requests.post, f"{url}/", json={"array": [i]}, timeout=60) for i in range(10)]
        wait(futures)
    return [future.result().json() for future in futures]


def test_batching_by_default(run: Any, ray_cluster: str, checkpoint: Checkpoint) -> None:
    """With the defaults ten requests at once need at most two batches, and each gets its own row back."""
    run(
        PredictorDeployment.options(name="BatchSizePredictor").bind(
            predictor_cls=size_predictor(), checkpoint=checkpoint
        )
    )
    answers = ten_at_once(ray_cluster)
    assert [answer[0] for answer in answers] == [[float(i)] for i in range(10)]
    groups = {str(answer[2]) for answer in answers}
    assert len(groups) <= 2
    assert all(size == len(group) for _, size, group in answers)
    assert len(Service.connect().batches()) == len(groups)


def test_batching_tuned(run: Any, ray_cluster: str, checkpoint: Checkpoint) -> None:
    """With size 10 and a wait of 5 s all ten requests share one batch, which does not wait once it is full."""
    run(
        PredictorDeployment.options(name="BatchSizePredictor").bind(
            predictor_cls=size_predictor(),
            checkpoint=checkpoint,
            batching_params={"max_batch_size": 10, "batch_wait_timeout_s": 5},
        )
    )
    answers = ten_at_once(ray_cluster)
    assert {size for _, size, _ in answers} == {10}
    assert len({str(group) for _, _, group in answers}) == 1
    batches = Service.connect().batches()
    assert batches.batch_size.tolist() == [10]
    assert batches.release_reason.tolist() == ["full"]


def test_batching_off(run: Any, ray_cluster: str, checkpoint: Checkpoint) -> None:
    """With batching off predict sees the adapter's array, without a leading axis."""
    run(
        PredictorDeployment.options(name="Adder").bind(
            predictor_cls=array_predictor(), checkpoint=checkpoint, batching_params=False
        )
    )
    assert requests.post(f"{ray_cluster}/", json={"array": [40]}, timeout=30).json() == [42.0]
    assert Service.connect().batches().batch_size.tolist() == [1]


def test_xgboost(run: Any, ray_cluster: str) -> None:
    """A trained booster answers one record with one prediction in the column ``predictions``."""
    import xgboost
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    frame, target = data.data, data.target
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 2, "nthread": 1},
        xgboost.DMatrix(frame, label=target),
        num_boost_round=5,
    )
    run(
        PredictorDeployment.options(name="XGBoostService").bind(
            XGBoostPredictor, XGBoostCheckpoint.from_model(booster), http_adapter=pandas_read_json
        )
    )
    sample = dict(frame.iloc[0])
    answer = requests.post(f"{ray_cluster}/", json=[sample], timeout=30)
    answer.raise_for_status()
    expected = booster.predict(xgboost.DMatrix(frame.head(1)))[0]
    assert answer.json() == [{"predictions": pytest.approx(float(expected), abs=1e-6)}]
    incomplete = requests.post(f"{ray_cluster}/", json=[{"mean radius": 1.0}], timeout=30)
    assert incomplete.status_code >= 400
    assert "mean texture" in incomplete.json()["error"]
