"""deploy() and Service on the local engine: options, replacing, stopping, and what is left: nothing."""

from __future__ import annotations

import gc
import socket
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb import (
    Checkpoint,
    CheckpointError,
    DeployError,
    OptionError,
    Predictor,
    Service,
    deploy,
    services,
    stop,
)
from airserve_nb._deploy_options import batching, chosen_engine

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Adder(Predictor):
    def __init__(self, increment: float) -> None:
        super().__init__()
        self.increment = increment

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Adder:
        return cls(checkpoint.to_dict().get("increment", 2))

    def predict(self, data: Any, **_kwargs: Any) -> Any:
        return data + self.increment


class Broken(Adder):
    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Any:
        raise KeyError("weights")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"name": "my model"}, ["name", "'my model'"]),
        ({"name": "1st"}, ["name", "1st"]),
        ({"name": 5}, ["name", "5"]),
        ({"engine": "locl"}, ["engine", "did you mean 'local'?"]),
        ({"engine": "spark"}, ["'ray'", "'local'"]),
        ({"ingress": "nginx"}, ["ingress", "haproxy"]),
        ({"num_replicas": 0}, ["num_replicas", "0"]),
        ({"num_replicas": 2}, ["2", "engine='ray'"]),
        ({"num_replicas": True}, ["num_replicas", "True"]),
        ({"route_prefix": "adder"}, ["route_prefix", "adder", "/adder"]),
        ({"route_prefix": "/a b"}, ["route_prefix"]),
        ({"route_prefix": "/{x}"}, ["route_prefix"]),
        ({"port": 0}, ["port", "0"]),
        ({"port": 70_000}, ["port", "70000"]),
        ({"port": "8000"}, ["port", "'8000'"]),
        ({"address": "auto"}, ["local", "leave address out", "engine='ray'"]),
        ({"address": "head", "engine": "ray"}, ["'head'", "'host:port'"]),
        ({"address": 6379, "engine": "ray"}, ["6379", "'host:port'"]),
        ({"address": "http://head:6379", "engine": "ray"}, ["http://head:6379", "ray://host:port"]),
        ({"max_batch_size": 0}, ["max_batch_size", "0"]),
        ({"max_batch_size": 2.5}, ["max_batch_size", "2.5"]),
        ({"batch_wait_timeout_s": -1}, ["batch_wait_timeout_s", "-1"]),
        ({"batch_wait_timeout_s": "fast"}, ["batch_wait_timeout_s", "fast"]),
        ({"max_batch_size": 3, "batching": False}, ["max_batch_size", "turned off"]),
        ({"max_batch_size": 3, "batching_params": {"max_batch_size": 4}}, ["max_batch_size", "twice"]),
        ({"batching_params": {"max_batch": 4}}, ["max_batch", "did you mean"]),
        ({"http_adapter": lambda x: x}, ["annotated"]),
    ],
)
def test_wrong_options_change_nothing(options: dict[str, Any], parts: list[str]) -> None:
    """A wrong option is refused in one sentence with its value, before anything is started."""
    before = threading.active_count()
    with pytest.raises(OptionError) as refusal:
        deploy(Adder, **{"name": "adder", "engine": "local", **options})
    sentence = str(refusal.value)
    for part in parts:
        assert part in sentence
    assert sentence.endswith((".", "?"))
    assert threading.active_count() == before
    assert "adder" not in services()


@pytest.mark.parametrize("thing", [5, "no.such:Thing", int, Adder(2), lambda: 1])
def test_what_is_no_predictor_is_refused(thing: Any) -> None:
    """Something that is neither a predictor class nor a function of a batch is refused with a sentence."""
    with pytest.raises((OptionError, ValueError)) as refusal:
        deploy(thing, engine="local", name="thing")
    assert str(refusal.value).endswith((".", "?"))


def test_what_is_no_checkpoint_is_refused() -> None:
    """A checkpoint that is none is refused before anything is started."""
    with pytest.raises(CheckpointError):
        deploy(Adder, 5, engine="local", name="adder")


def test_batching_can_be_given_in_two_ways() -> None:
    """Shorthands and batching_params add up; nothing given is the default; off is off."""
    assert batching(None, {"max_batch_size": None}, enabled=True) is None
    assert batching({"max_queue_size": 5}, {"max_batch_size": 3}, enabled=True) == {
        "max_queue_size": 5,
        "max_batch_size": 3,
    }
    assert batching(None, {}, enabled=False) is False
    assert batching(False, {}, enabled=True) is False


@pytest.mark.parametrize(("value", "engine"), [("local", "local"), ("", "ray"), (None, "ray")])
def test_the_operator_chooses_the_engine(
    monkeypatch: pytest.MonkeyPatch, value: str | None, engine: str
) -> None:
    """AIRSERVE_ENGINE is the default; what is asked for goes before it."""
    if value is None:
        monkeypatch.delenv("AIRSERVE_ENGINE", raising=False)
    else:
        monkeypatch.setenv("AIRSERVE_ENGINE", value)
    assert chosen_engine(None, ("ray", "local")) == engine
    assert chosen_engine("ray", ("ray", "local")) == "ray"


def test_a_wrong_engine_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the variable."""
    monkeypatch.setenv("AIRSERVE_ENGINE", "locl")
    with pytest.raises(OptionError, match=r"AIRSERVE_ENGINE is 'locl'; did you mean 'local'\?"):
        deploy(Adder, name="adder")


# -- its life ---------------------------------------------------------------------------------------


def test_it_serves_where_it_says(serve_local: Any) -> None:
    """By default at /NAME on 127.0.0.1, from port 8000 on; the name is the class's unless given."""
    service = serve_local(Adder)
    assert service.name == "Adder"
    assert service.url.startswith("http://127.0.0.1:")
    assert service.url.endswith("/Adder")
    assert (service.engine, service.ingress, service.replicas, service.state) == (
        "local",
        "uvicorn",
        1,
        "running",
    )
    assert service.request({"array": [40]}).json() == [42.0]


def test_a_port_that_was_asked_for_is_the_port(serve_local: Any) -> None:
    """``port`` is kept; if somebody has it, the sentence says so, and nothing is left."""
    port = free_port()
    first = serve_local(Adder, name="first", port=port)
    assert f":{port}/" in first.url
    with pytest.raises(DeployError, match=str(port)):
        deploy(Adder, engine="local", name="second", port=port)
    assert set(services()) == {"first"}


def test_only_this_machine_is_answered(serve_local: Any) -> None:
    """The local engine listens on loopback alone."""
    service = serve_local(Adder, name="adder")
    assert service._host._socket.getsockname()[0] == "127.0.0.1"


def test_two_deployments_side_by_side(serve_local: Any) -> None:
    """Deployments of one kernel have ports of their own, and stopping one leaves the other."""
    one = serve_local(Adder, {"increment": 1}, name="one")
    two = serve_local(Adder, {"increment": 2}, name="two")
    assert one.url != two.url
    one.stop()
    assert two.request({"array": [0]}).json() == [2.0]


def test_a_predictor_that_can_not_load_leaves_nothing() -> None:
    """When from_checkpoint raises, deploy says so, and no thread, port or name stays behind."""
    with pytest.raises(DeployError, match=r"KeyError.*weights"):
        deploy(Broken, engine="local", name="broken")
    assert "broken" not in services()


def test_a_failed_replacement_keeps_the_old_one(serve_local: Any) -> None:
    """A new version that can't load changes nothing: the old one serves, under its version."""
    service = serve_local(Adder, name="adder")
    before = service.request({"array": [0]}).headers["x-airserve-version"]
    with pytest.raises(DeployError):
        deploy(Broken, engine="local", name="adder")
    answer = service.request({"array": [0]})
    assert (answer.json(), answer.headers["x-airserve-version"]) == ([2.0], before)
    assert service.state == "running"


def test_replacing_keeps_url_and_records(serve_local: Any) -> None:
    """A new version takes over service, URL and records; the service goes along when it moves."""
    service = serve_local(Adder, {"increment": 1}, name="adder")
    url = service.url
    service.request({"array": [0]})
    assert serve_local(Adder, {"increment": 2}, name="adder") is service
    assert service.url == url
    assert service.request({"array": [0]}).json() == [2.0]
    serve_local(Adder, {"increment": 3}, name="adder", route_prefix="/elsewhere")
    assert service.request({"array": [0]}).json() == [3.0]
    assert service.url != url
    assert service.requests()["version"].tolist() == service.versions()["version"].tolist()
    assert len(service.versions()) == 3
    assert service.version == service.versions()["version"].iloc[-1]


def test_moving_on_the_same_port(serve_local: Any) -> None:
    """A deployment may keep its port and change its route: the port is its own."""
    port = free_port()
    serve_local(Adder, name="adder", port=port)
    moved = serve_local(Adder, name="adder", port=port, route_prefix="/new")
    assert moved.url == f"http://127.0.0.1:{port}/new"
    assert moved.request({"array": [0]}).json() == [2.0]


def test_stopping_twice_and_reading_afterwards(serve_local: Any) -> None:
    """A stopped service keeps its records, says that it is stopped, and can be stopped again."""
    service = serve_local(Adder, name="adder")
    service.request({"array": [0]})
    service.stop()
    service.stop()
    assert service.state == "stopped"
    assert "stopped" in repr(service)
    assert len(service.requests()) == len(service.batches()) == service.statistics().requests == 1
    assert isinstance(service.logs(), str)
    for ask in (service.request, lambda: service.predict(np.array([1.0]))):
        with pytest.raises(DeployError, match="deploy it again"):
            ask()


def test_stop_by_name_and_all() -> None:
    """``stop`` ends one by name or all, and names those that there are."""
    deploy(Adder, engine="local", name="one")
    deploy(Adder, engine="local", name="two")
    stop("one")
    with pytest.raises(DeployError, match="two"):
        stop("one")
    stop()
    assert services() == {}
    stop()
    with pytest.raises(DeployError, match="none"):
        stop("one")


def test_services_is_a_copy(serve_local: Any) -> None:
    """Changing what services() returned changes nothing."""
    serve_local(Adder, name="adder")
    services().clear()
    assert set(services()) == {"adder"}


def test_requests_in_flight_are_answered_before_it_stops(
    serve_local: Any, script: Any, raw_request: Any
) -> None:
    """Stopping waits for the request that is being predicted."""
    import json

    service = serve_local(script.predictor, script.checkpoint, name="slow")
    with raw_request(service.url, json.dumps(script.row(script.HOLD)).encode()) as client:
        script.wait_until_held()
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        script.release()
        assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        stopping.join(30)
        assert not stopping.is_alive()


def test_many_deployments_in_threads() -> None:
    """Cells of several threads can deploy at once: each gets its own service."""
    threads = [
        threading.Thread(
            target=deploy, args=(Adder, {"increment": i}), kwargs={"name": f"t{i}", "engine": "local"}
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = services()
    try:
        assert {name: found[name].request({"array": [0]}).json() for name in found} == {
            f"t{i}": [float(i)] for i in range(4)
        }
    finally:
        stop()


def test_memory_of_a_stopped_model_is_given_back() -> None:
    """A stopped deployment does not keep its model: notebooks run the same cell for hours."""
    import weakref

    models = []

    class Large(Adder):
        def __init__(self, increment: float) -> None:
            super().__init__(increment)
            models.append(weakref.ref(self))

    for _ in range(3):
        deploy(Large, engine="local", name="large").request({"array": [1]})
    stop()
    gc.collect()
    assert sum(model() is not None for model in models) == 0


# -- using it ---------------------------------------------------------------------------------------


def test_a_function_is_served_by_its_annotation(serve_local: Any) -> None:
    """A function of a frame takes a table, and a function of an array takes an array."""

    def double(frame: pd.DataFrame) -> pd.DataFrame:
        return frame * 2

    def negate(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return -batch

    assert serve_local(double).request([{"a": 1.5}]).json() == [{"a": 3.0}]
    assert serve_local(negate).request({"array": [1]}).json() == [-1.0]


def test_arguments_reach_predictor_and_predict(serve_local: Any) -> None:
    """checkpoint_kwargs go to from_checkpoint, predict_kwargs to every predict."""

    class Scaled(Adder):
        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Any:
            return cls(kwargs["times"])

        def predict(self, data: Any, **kwargs: Any) -> Any:
            return data * self.increment + kwargs["plus"]

    service = serve_local(Scaled, name="scaled", checkpoint_kwargs={"times": 3}, predict_kwargs={"plus": 1})
    assert service.request({"array": [2]}).json() == [7.0]


def test_request_takes_what_requests_takes(serve_local: Any) -> None:
    """``request`` passes on method, params, headers and data."""

    def adapter(q: float) -> np.ndarray[Any, Any]:
        return np.array([q])

    service = serve_local(Adder, name="adder", http_adapter=adapter)
    assert service.request(method="GET", params={"q": 1.5}).json() == [3.5]


def test_it_remembers_example_and_code(serve_local: Any) -> None:
    """What a probe sends and what the cell was are kept with the service."""
    service = serve_local(Adder, name="adder", example={"array": [1]}, code="class Adder: ...")
    assert (service.example, service.code) == ({"array": [1]}, "class Adder: ...")
    assert service.batching == "up to 10 requests, wait 0 ms"


def test_displays_name_no_ports(serve_local: Any) -> None:
    """The text form is the same in every run, and the HTML form escapes what it shows."""
    one = repr(serve_local(Adder, name="adder"))
    two = repr(serve_local(Adder, name="adder", port=free_port()))
    assert one == two
    assert "adder" in serve_local(Adder, name="adder", code="<script>")._repr_html_()
    assert "<script>" not in services()["adder"]._repr_html_()


def test_connect_without_ray_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Service.connect`` in a kernel without Ray is a sentence, not a new Ray."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(DeployError, match="deploy it first"):
        Service.connect("nothing")


# -- fewer replicas ---------------------------------------------------------------------------------


def test_scaling_down_is_no_loss(serve_local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that end because fewer are wanted are read before, and not told as lost; one that ends later is."""
    service = serve_local(Adder, name="adder")
    (page,) = service._host.pages({})
    there = [("a", page[1]), ("b", page[1])]
    monkeypatch.setattr(service._host, "pages", lambda _cursors: list(there))
    monkeypatch.setattr(service._host, "replicas", 2, raising=False)
    monkeypatch.setattr(service._host, "scale", lambda _count: there.pop(), raising=False)
    service.scale(1)
    service.statistics()
    assert service.statistics().replicas == 2
    assert service._collector.lacking() == ""
    there[:] = [("c", page[1])]
    service.statistics()
    assert service._collector.lacking() == "1 replica gone, its last records may be missing"


def test_a_new_host_is_no_loss(serve_local: Any) -> None:
    """Where a new host takes over, the old one's replica has not been lost."""
    service = serve_local(Adder, name="adder", port=free_port())
    service.request({"array": [1]})
    serve_local(Adder, name="adder", port=free_port())
    service.request({"array": [1]})
    statistics = service.statistics()
    assert (statistics.requests, statistics.replicas) == (2, 2)
    assert service._collector.lacking() == ""
