"""The Ray engine's own, on the shared Ray: routes, failures to start, applications that are not ours."""

from __future__ import annotations

from typing import Any

import pytest

from airserve_nb import Checkpoint, DeployError, Predictor, Service, deploy, services

pytestmark = pytest.mark.ray


def echo_class() -> Any:
    class Echo(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Echo:
            if checkpoint.to_dict().get("broken"):
                raise ValueError("the weights are torn")
            return cls()

        def predict(self, data: Any, **_kwargs: Any) -> Any:
            return data

    return Echo


@pytest.fixture(scope="module")
def echo(ray_cluster: str) -> Any:
    service = deploy(echo_class(), name="echo")
    yield service
    service.stop()


def test_a_taken_route_is_refused(echo: Any) -> None:
    """A route of another application is refused by its name, and that application goes on."""
    with pytest.raises(DeployError, match="echo"):
        deploy(echo_class(), name="other", route_prefix="/echo")
    assert "other" not in services()
    assert echo.request({"array": [1]}).json() == [1.0]


def test_more_than_fits_is_refused_at_once(echo: Any) -> None:
    """More than Ray has CPUs for is refused, with the numbers, before anything waits."""
    with pytest.raises(DeployError, match=r"100000 replicas of 0.1.* of Ray.s 4 are free"):
        deploy(echo_class(), name="many", num_replicas=100_000)


def test_what_can_not_be_placed_says_so_soon(echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that Ray lets wait for resources is told of with the numbers, and taken back."""
    from ray import serve

    from airserve_nb.engines import ray as ray_engine

    # As when somebody else takes the CPUs between the look and the start.
    monkeypatch.setattr(ray_engine, "refuse_what_has_no_room", lambda *_: None)
    with pytest.raises(DeployError, match=r"each replica needs 99 CPU, and Ray has .* of 4 CPU free"):
        deploy(echo_class(), name="huge", num_cpus=99)
    # Serve takes its time to take it back; the name can be used at once.
    assert serve.status().applications["huge"].status == "DELETING"
    service = deploy(echo_class(), name="huge")
    try:
        assert service.request({"array": [1]}).json() == [1.0]
    finally:
        service.stop()


def test_what_is_slow_to_start_is_not_waiting_for_resources(echo: Any) -> None:
    """A predictor that takes longer to load than the look for resources is no false alarm."""
    from airserve_nb.engines.ray_placement import CERTAIN_AFTER_S

    class Slow(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Any:
            import time

            time.sleep(checkpoint.to_dict()["seconds"])
            return cls()

        def predict(self, data: Any, **_kwargs: Any) -> Any:
            return data

    service = deploy(Slow, {"seconds": CERTAIN_AFTER_S + 2}, name="slow", num_cpus=1)
    try:
        assert service.request({"array": [1]}).json() == [1.0]
    finally:
        service.stop()


def test_another_port_or_ingress_is_refused(echo: Any) -> None:
    """All deployments of a Ray share port and ingress: asking for others says so."""
    port = int(echo.url.split(":")[2].split("/")[0])
    with pytest.raises(DeployError, match=str(port)):
        deploy(echo_class(), name="other", port=port + 1)
    other: Any = "python" if echo.ingress == "haproxy" else "haproxy"
    with pytest.raises(DeployError, match="restart the kernel"):
        deploy(echo_class(), name="other", ingress=other)


def test_a_kernel_with_its_own_ray_does_not_attach(echo: Any) -> None:
    """A cluster's address is refused in a kernel that runs a Ray of its own, which goes on."""
    with pytest.raises(
        DeployError, match=r"a Ray of its own already, so it can't attach to '127.0.0.1:1'; restart"
    ):
        deploy(echo_class(), name="other", address="127.0.0.1:1")
    with pytest.raises(DeployError, match="a Ray of its own"):
        Service.connect("echo", address="ray://127.0.0.1:1")
    assert echo.request({"array": [1]}).json() == [1.0]


def test_what_fails_to_start_is_gone(echo: Any) -> None:
    """A predictor that can't load is a DeployError with its one line, and no application stays behind."""
    from ray import serve

    with pytest.raises(DeployError, match="ValueError: the weights are torn") as failure:
        deploy(echo_class(), {"broken": True}, name="broken")
    assert "Traceback" not in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "broken" not in services()
    assert "broken" not in serve.status().applications


def test_connect_finds_what_runs(echo: Any) -> None:
    """An application made elsewhere is reached by name; names that do not exist are answered with those that do."""
    found = Service.connect("echo")
    assert (found.url, found.engine, found.ingress) == (echo.url, "ray", echo.ingress)
    before = len(found.requests())
    found.request({"array": [1]})
    assert len(found.requests()) == before + 1
    with pytest.raises(DeployError, match="echo"):
        Service.connect("nothing")


def test_connect_refuses_what_is_not_ours(ray_cluster: str) -> None:
    """Another kind of application is told from a PredictorDeployment."""
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Foreign:
        def __call__(self) -> str:
            return "hello"

    serve.run(Foreign.bind(), name="foreign", route_prefix="/foreign")  # type: ignore[attr-defined]  # serve's decorator
    try:
        with pytest.raises(DeployError, match=r"foreign.*PredictorDeployment"):
            Service.connect("foreign")
    finally:
        serve.delete("foreign")


def test_two_replicas(ray_cluster: str, post_all: Any) -> None:
    """Records come from every replica, and no id appears twice."""
    service = deploy(echo_class(), name="pair", num_replicas=2)
    try:
        assert service.replicas == 2
        answers = post_all(service, [{"array": [i]} for i in range(40)])
        assert [answer.json() for answer in answers] == [[float(i)] for i in range(40)]
        table = service.requests()
        assert len(table) == 40
        assert table.request_id.is_unique
        assert service.batches().batch_id.is_unique
        assert service.statistics().replicas == 2
    finally:
        service.stop()


def test_inside_a_running_event_loop(echo: Any) -> None:
    """A notebook's cells run inside an event loop, where Serve refuses blocking calls: ours work there."""
    import asyncio

    import numpy as np

    async def cell() -> Any:
        echo.requests()
        return echo.predict(np.array([1.0])).tolist(), echo.logs(), Service.connect("echo").statistics()

    assert asyncio.run(cell())[0] == [1.0]
