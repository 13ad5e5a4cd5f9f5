"""PredictorDeployment: what ``bind`` refuses, and what a bound application does on Ray Serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from airserve_nb import Checkpoint, CheckpointError, OptionError, Predictor, PredictorDeployment, Service
from airserve_nb.deployment import DEFAULT_ACTOR_OPTIONS, build_app
from airserve_nb.replica import _changed_spec, _with_gpu
from airserve_nb.version import make_spec


def adder_class(**extra: Any) -> Any:
    class Adder(Predictor):
        def __init__(self, increment: float) -> None:
            super().__init__()
            self.increment = increment

        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Adder:
            return cls(checkpoint.to_dict()["increment"] * kwargs.get("times", 1))

        def predict(self, data: Any, **kwargs: Any) -> Any:
            return data + self.increment + kwargs.get("plus", 0)

    return Adder


TWO = Checkpoint.from_dict({"increment": 2})


class Abstract(Predictor):
    pass


def untyped(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - that it is untyped is the test
    return x


# -- what bind refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"predictor_cls": Abstract}, ["Abstract", "from_checkpoint"]),
        ({"predictor_cls": int}, ["int", "Predictor"]),
        ({"predictor_cls": 5}, ["5", "Predictor"]),
        ({"predictor_cls": "nowhere"}, ["nowhere", "package.module:name"]),
        ({"predictor_cls": "no.such:Thing"}, ["no.such", "imported"]),
        ({"predictor_cls": "airserve_nb.predictor:Nothing"}, ["Nothing", "imported"]),
        ({"predictor_cls": "airserve_nb.errors:OptionError"}, ["OptionError", "Predictor"]),
        ({"http_adapter": lambda x: x}, ["annotated"]),
        ({"http_adapter": untyped}, ["untyped", "annotated", "'x'"]),
        ({"http_adapter": 5}, ["5"]),
        ({"http_adapter": "no.such:adapter"}, ["no.such"]),
        ({"http_adapter": int}, ["int"]),
        ({"batching_params": {"max_batchsize": 3}}, ["max_batchsize", "did you mean max_batch_size?"]),
        ({"batching_params": {"max_batch_size": 0}}, ["max_batch_size", "0"]),
        ({"batching_params": {"max_batch_size": True}}, ["max_batch_size", "True"]),
        ({"batching_params": {"batch_wait_timeout_s": -1}}, ["batch_wait_timeout_s", "-1"]),
        ({"batching_params": {"batch_wait_timeout_s": float("nan")}}, ["batch_wait_timeout_s", "nan"]),
        ({"batching_params": {"enabled": False}}, ["enabled"]),
        ({"batching_params": True}, ["True", "False"]),
        ({"batching_params": 32}, ["32"]),
        ({"predict_kwargs": [1]}, ["predict_kwargs", "dict"]),
    ],
)
def test_what_could_not_be_served_is_refused_at_bind(changes: dict[str, Any], parts: list[str]) -> None:
    """A mistake is told in the cell that makes it, in one sentence that names the value."""
    arguments = {"predictor_cls": adder_class(), "checkpoint": TWO, **changes}
    with pytest.raises(OptionError) as refusal:
        PredictorDeployment.options(name="Adder").bind(**arguments)
    sentence = str(refusal.value)
    for part in parts:
        assert part in sentence
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))


def test_an_instance_is_not_a_class() -> None:
    """Giving a predictor instead of its class is answered with what to give."""
    with pytest.raises(OptionError, match="give the class itself"):
        PredictorDeployment.bind(adder_class()(2), TWO)


@pytest.mark.parametrize("checkpoint", [5, ["a"], "no-such-scheme://x", "/no/such/folder"])
def test_what_is_no_checkpoint_is_refused(checkpoint: Any) -> None:
    """A checkpoint that is none, or can't be reached, is refused when the deployment is made."""
    with pytest.raises(CheckpointError) as refusal:
        PredictorDeployment.bind(adder_class(), checkpoint)
    assert str(refusal.value).endswith((".", "?"))


@pytest.mark.parametrize(
    "options", [{"nmae": "a"}, {"num_replicas": -1}, {"num_replicas": "many"}, {"ray_actor_options": 5}]
)
def test_a_wrong_option_is_refused(options: dict[str, Any]) -> None:
    """An option that Serve does not have, or a value that can't be, is refused by name at once."""
    with pytest.raises(OptionError) as refusal:
        PredictorDeployment.options(**options).bind(adder_class(), TWO)
    assert next(iter(options)) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_are_a_copy() -> None:
    """``options`` changes a copy: one PredictorDeployment is shared by all notebooks' cells."""
    first = PredictorDeployment.options(name="First", num_replicas=2)
    second = first.options(name="Second")
    assert PredictorDeployment.deployment_options == {}
    assert (first.deployment_options["name"], second.deployment_options["name"]) == ("First", "Second")
    assert second.deployment_options["num_replicas"] == 2


def deployment_of(app: Any) -> Any:
    return app._bound_deployment


def test_a_replica_asks_for_little() -> None:
    """A replica asks for 0.1 CPU, so that a rolling update fits on 2 cores, unless it is told otherwise."""
    bare = deployment_of(PredictorDeployment.bind(adder_class(), TWO))
    assert bare.ray_actor_options["num_cpus"] == DEFAULT_ACTOR_OPTIONS["num_cpus"] == 0.1
    asked = PredictorDeployment.options(ray_actor_options={"num_cpus": 1}).bind(adder_class(), TWO)
    assert deployment_of(asked).ray_actor_options["num_cpus"] == 1
    other = PredictorDeployment.options(ray_actor_options={"memory": 10}).bind(adder_class(), TWO)
    assert deployment_of(other).ray_actor_options["num_cpus"] == 0.1


def test_waiting_happens_in_our_queue() -> None:
    """Serve's own limit lies well above queue and batch together, for the defaults and for large ones."""
    for params in (None, {"max_queue_size": 50_000, "max_batch_size": 500}):
        app = PredictorDeployment.bind(adder_class(), TWO, batching_params=params)
        size, queue = (10, 1_000) if params is None else (params["max_batch_size"], params["max_queue_size"])
        assert deployment_of(app).max_ongoing_requests >= queue + 2 * size


def test_serves_own_access_log_is_off() -> None:
    """Our request log says more, and Serve's stops a replica at times; who wants it can have it."""
    app = PredictorDeployment.bind(adder_class(), TWO)
    assert deployment_of(app).logging_config["enable_access_log"] is False
    app = PredictorDeployment.options(logging_config={"enable_access_log": True}).bind(adder_class(), TWO)
    assert deployment_of(app).logging_config["enable_access_log"] is True


# -- building from strings --------------------------------------------------------------------------


def test_build_app_takes_strings(tmp_path: Path) -> None:
    """All arguments can be strings and plain values, as in a YAML file."""
    Checkpoint.from_dict({"increment": 2}).to_directory(tmp_path / "model")
    app = build_app(
        {
            "predictor_cls": "airserve_nb.predictors.xgboost:XGBoostPredictor",
            "checkpoint": f"file://{tmp_path}/model",
            "http_adapter": "airserve_nb.http_adapters:pandas_read_json",
            "batching_params": {"max_batch_size": 32, "batch_wait_timeout_s": 0.01},
            "deployment_options": {"name": "Churn", "num_replicas": 2},
        }
    )
    assert deployment_of(app).name == "Churn"
    assert deployment_of(app).num_replicas == 2


@pytest.mark.parametrize("missing", ["predictor_cls", "checkpoint"])
def test_build_app_names_what_is_missing(missing: str) -> None:
    """An application's args without a needed one are refused by its name."""
    args = {"predictor_cls": "airserve_nb.predictors.xgboost:XGBoostPredictor", "checkpoint": "file:///tmp"}
    del args[missing]
    with pytest.raises(OptionError, match=missing):
        build_app(args)


# -- units ------------------------------------------------------------------------------------------


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """``use_gpu=True`` goes to from_checkpoint if it takes that, the replica has a GPU, and nothing else was said."""

    class Torch(Abstract):
        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, use_gpu: bool = False) -> Torch:  # type: ignore[override]  # as frameworks have it
            return cls()

    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])
    assert _with_gpu(make_spec(Torch, None)).checkpoint_kwargs == {"use_gpu": True}
    assert _with_gpu(make_spec(Torch, None, checkpoint_kwargs={"use_gpu": False})).checkpoint_kwargs == {
        "use_gpu": False
    }
    assert _with_gpu(make_spec(adder_class(), None)).checkpoint_kwargs == {}
    monkeypatch.setattr("ray.get_gpu_ids", list)
    assert _with_gpu(make_spec(Torch, None)).checkpoint_kwargs == {}


def test_a_user_config_keeps_what_it_does_not_name() -> None:
    """Each key of a user_config is optional; only another model or another meaning of its input needs a rebuild."""
    spec = make_spec(adder_class(), TWO, batching_params={"max_batch_size": 3}, predict_kwargs={"plus": 1})
    changed, rebuild = _changed_spec(spec, {"batch_wait_timeout_s": 0.5})
    assert (changed.settings.max_batch_size, changed.settings.batch_wait_timeout_s, rebuild) == (
        3,
        0.5,
        False,
    )
    changed, rebuild = _changed_spec(spec, {"checkpoint": {"increment": 5}})
    assert (changed.checkpoint.to_dict(), changed.predictor_cls, rebuild) == (
        {"increment": 5},
        spec.predictor_cls,
        True,
    )
    assert changed.predict_kwargs == {"plus": 1}
    changed, rebuild = _changed_spec(spec, {"batching_params": {"max_batch_size": 7}})
    assert (changed.settings.max_batch_size, rebuild) == (7, False)
    changed, rebuild = _changed_spec(spec, {"batching_params": False})
    assert (changed.settings.enabled, rebuild) == (False, True)
    changed, _ = _changed_spec(changed, {"batching_params": None})
    assert changed.settings.enabled
    with pytest.raises(OptionError, match="max_batchsize"):
        _changed_spec(spec, {"max_batchsize": 7})


# -- on Ray -----------------------------------------------------------------------------------------


@pytest.fixture
def run(ray_cluster: str) -> Any:
    """``serve.run`` under a name of its own, deleted at the end."""
    from ray import serve

    names: list[str] = []

    def start(app: Any, name: str) -> str:
        names.append(name)
        serve.run(app, name=name, route_prefix=f"/{name}")
        return f"{ray_cluster}/{name}"

    yield start
    for name in names:
        serve.delete(name)


@pytest.mark.ray
def test_the_users_arguments_arrive(run: Any) -> None:
    """predict_kwargs go to predict, further arguments of bind to from_checkpoint, and 0.1 CPU is really taken."""
    import ray

    app = PredictorDeployment.options(name="Adder").bind(
        adder_class(), {"increment": 2}, predict_kwargs={"plus": 100}, times=10
    )
    url = run(app, "arguments")
    assert requests.post(url, json={"array": [40]}, timeout=30).json() == [160.0]
    assert ray.get_runtime_context() is not None


@pytest.mark.ray
def test_what_is_loaded_is_out_of_the_collectors_sight(run: Any) -> None:
    """A full garbage collection of a replica has little to look at."""

    class Frozen(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            import gc

            return np.full(len(data), gc.get_freeze_count())

    url = run(PredictorDeployment.options(name="Frozen").bind(Frozen, {}), "frozen")
    assert requests.post(url, json={"array": [1]}, timeout=30).json() > 100_000


@pytest.mark.ray
def test_reconfigure_while_it_serves(run: Any, eventually: Any) -> None:
    """A user_config changes checkpoint and batching of a live replica; a bad one is logged, and serving goes on."""
    from ray import serve

    app = PredictorDeployment.options(name="Adder", user_config={"checkpoint": {"increment": 5}}).bind(
        adder_class(), TWO
    )
    url = run(app, "changing")
    body = {"array": [40]}
    assert requests.post(url, json=body, timeout=30).json() == [45.0]
    handle = serve.get_app_handle("changing")

    def change(user_config: Any) -> None:
        handle.broadcast("reconfigure", user_config).results(timeout_s=30)

    before = requests.post(url, json=body, timeout=30).headers["x-airserve-version"]
    change({"checkpoint": {"increment": 7}})
    answer = requests.post(url, json=body, timeout=30)
    assert answer.json() == [47.0]
    assert answer.headers["x-airserve-version"] != before
    for bad in (
        {"checkpoint": {"no": 1}},
        {"max_batch_size": 0},
        {"what": 1},
        {"predictor_cls": "no.such:Thing"},
        5,
    ):
        change(bad)
        assert requests.post(url, json=body, timeout=30).json() == [47.0]
    logs = Service.connect("changing").logs()
    assert logs.count("refused") >= 4
    assert "KeyError" in logs
    change({"max_batch_size": 1})
    assert requests.post(url, json=body, timeout=30).json() == [47.0]


@pytest.mark.ray
def test_composition(run: Any) -> None:
    """Another deployment calls ``.predict.remote`` of one, and both predictions share the way through the batcher."""
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Twice:
        def __init__(self, adder: Any) -> None:
            self.adder = adder

        async def __call__(self, request: Any) -> Any:
            once = await self.adder.predict.remote(np.array((await request.json())["array"], dtype=float))
            return (await self.adder.predict.remote(once)).tolist()

    app = Twice.bind(PredictorDeployment.options(name="Adder").bind(adder_class(), TWO))  # type: ignore[attr-defined]  # serve's decorator
    url = run(app, "twice")
    answer = requests.post(url, json={"array": [40]}, timeout=30)
    assert answer.json() == [44.0]


@pytest.mark.ray
def test_a_served_checkpoint_can_be_a_uri(run: Any, tmp_path: Path) -> None:
    """From a dict of strings alone: an import path, a file URI, an adapter's path and the deployment's options."""
    (tmp_path / "model").mkdir()
    import sklearn.datasets
    import xgboost

    from airserve_nb import XGBoostCheckpoint

    frame, target = sklearn.datasets.load_breast_cancer(return_X_y=True, as_frame=True)
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(frame, label=target), num_boost_round=2)
    XGBoostCheckpoint.from_model(booster).to_directory(tmp_path / "model")
    app = build_app(
        {
            "predictor_cls": "airserve_nb.predictors.xgboost:XGBoostPredictor",
            "checkpoint": f"file://{tmp_path}/model",
            "http_adapter": "airserve_nb.http_adapters:pandas_read_json",
            "deployment_options": {"name": "Cancer"},
        }
    )
    url = run(app, "strings")
    rows = json.loads(frame.head(3).to_json(orient="records"))
    answer = requests.post(url, json=rows, timeout=30)
    expected = booster.predict(xgboost.DMatrix(frame.head(3)))
    assert [row["predictions"] for row in answer.json()] == pytest.approx(expected.tolist(), abs=1e-6)
