"""overview() shows all that runs: ours, those of others that can be read, and those that can't."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from airserve_nb import Predictor, PredictorDeployment, Service, applications, deploying, overview
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.magic_line import running


def echo(batch: np.ndarray) -> Any:
    return batch


def test_services_of_this_kernel(serve_local: Any) -> None:
    """Each with its figures, in a text that is the same on every run."""
    service = serve_local(echo, name="adder")
    service.request({"array": [1]})
    (view,) = overview().views
    assert (view.name, view.version, view.url, view.engine) == (
        "adder",
        service.version,
        service.url,
        "local",
    )
    assert view.statistics is not None
    assert (view.statistics.requests, view.replicas) == (1, 1)
    assert repr(overview()) == "adder  running, engine local, batching up to 10 requests, wait 0 ms"


def test_ray_is_not_asked_where_nobody_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection there is nothing to ask, and nothing is started."""

    class Ray:
        @staticmethod
        def is_initialized() -> bool:
            return False

    monkeypatch.setitem(applications.sys.modules, "ray", Ray)  # type: ignore[attr-defined]  # as it imports it
    assert applications.applications() == {}
    assert applications.connected("anything") is None


def test_who_does_not_answer_holds_nobody_up(serve_local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that hangs is listed without its figures, soon, beside one that answers."""
    held = threading.Event()
    good, bad = serve_local(echo, name="good"), serve_local(echo, name="bad")
    monkeypatch.setattr(bad, "statistics", held.wait)
    monkeypatch.setattr(applications, "PATIENCE_S", 0.5)
    started = time.monotonic()
    views = {view.name: view for view in overview().views}
    took = time.monotonic() - started
    held.set()
    assert took < 10 * applications.PATIENCE_S
    assert views["bad"].statistics is None
    assert (views["bad"].state, views["bad"].url) == ("running", bad.url)
    assert views["good"].statistics is not None
    assert good.state == "running"


def test_services_of_an_attached_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """There our applications have names with a prefix: each is listed once, under its own name and state, and found."""
    from airserve_nb.engines import ray_attach

    class Host(SimpleNamespace):
        engine, ingress, replicas, version, settings = "ray", "python", 1, "v1", BatchSettings()

        def recall(self) -> list[Any]:
            return []

        def pages(self, cursors: Any) -> list[Any]:
            return []

    def service(name: str) -> Service:
        return Service(Host(name=name, application=f"airserve-{name}", url=f"http://head:8000/{name}"))

    mine, left = service("mine"), service("left")
    found = {
        "airserve-mine": {"status": "UNHEALTHY", "route_prefix": "/mine"},
        "airserve-left": {"status": "RUNNING", "route_prefix": "/left"},
    }
    monkeypatch.setattr(applications, "services", lambda: {"mine": mine})
    monkeypatch.setattr(applications, "applications", lambda: found)
    monkeypatch.setattr(ray_attach, "is_attached", lambda: True)
    monkeypatch.setattr(Service, "connect", lambda app: {"airserve-left": left, "left": left}[app])
    assert [(view.name, view.state, view.ours) for view in overview().views] == [
        ("mine", "failed", True),
        ("left", "running", True),
    ]
    assert applications.connected("left") is left
    assert applications.connected("lef") is None


@pytest.fixture
def others(ray_cluster: str) -> Iterator[None]:
    """Two applications that this kernel's deploy() knows nothing of."""
    from ray import serve

    class Same(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return data

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Foreign:
        def __call__(self) -> str:
            return "hello"

    guide = PredictorDeployment.options(name="G").bind(Same, {})
    serve.run(guide, name="guide", route_prefix="/guide")
    serve.run(Foreign.bind(), name="foreign", route_prefix="/foreign")  # type: ignore[attr-defined]  # serve's decorator
    yield
    serve.delete("guide")
    serve.delete("foreign")


@pytest.mark.ray
def test_applications_of_others(ray_cluster: str, others: None) -> None:
    """Deployments made by serve.run have their figures too; what is none of ours is said to be so."""
    service = deploying.deploy(echo, name="mine")
    try:
        views = {view.name: view for view in overview().views}
        assert set(views) == {"mine", "guide", "foreign"}
        assert set(deploying.services()) == {"mine"}
        mine, guide, foreign = views["mine"], views["guide"], views["foreign"]
        assert [view.state for view in views.values()] == ["running"] * 3
        assert mine.version == service.version
        assert guide.url == f"{ray_cluster}/guide"
        assert guide.statistics is not None
        assert (guide.replicas, guide.ours) == (1, True)
        assert (foreign.url, foreign.replicas, foreign.ours) == (f"{ray_cluster}/foreign", 1, False)
        assert foreign.statistics is None
        assert "foreign  running, engine ray, not a deployment of airserve_nb" in repr(overview())
        assert "not a deployment of airserve_nb" in overview()._repr_html_()
        assert running("guide", magic="%probe", elsewhere=True).url == guide.url
    finally:
        service.stop()
