"""Replacing a version while requests come: the same on both engines."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from airserve_nb import DeployError, OptionError, Predictor, Service, deploy

SENDERS = 4


def constant(value: float) -> type[Predictor]:
    """Make a predictor that answers ``value``."""

    class Constant(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return data * 0 + value

    return Constant


def broken(error: BaseException) -> type[Predictor]:
    """Make a predictor that can't be loaded."""

    class Broken(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            raise error

        def predict(self, data: Any, **_: Any) -> Any:
            return data

    return Broken


class Load:
    """Requests that go on and on; each with when it was sent and what it was answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self.answers: list[tuple[float, int, str, float | None]] = []

    def send(self) -> None:
        with requests.Session() as session:
            while not self._ended.is_set():
                sent = time.monotonic()
                answer = session.post(self._url, json={"array": [1]}, timeout=30)
                version = answer.headers.get("x-airserve-version", "")
                value = answer.json()[0] if answer.ok else None
                self.answers.append((sent, answer.status_code, version, value))
                self._ended.wait(0.02)

    def end(self) -> None:
        self._ended.set()


@contextmanager
def under_load(service: Service) -> Iterator[Load]:
    load = Load(service.url)
    with ThreadPoolExecutor(SENDERS) as pool:
        sending = [pool.submit(load.send) for _ in range(SENDERS)]
        try:
            yield load
        finally:
            load.end()
        for each in sending:
            each.result()


def test_no_request_fails_and_none_is_stale(serve_on: Any, eventually: Any) -> None:
    """Ten swaps under load: every request is answered, by one version, and by the new one once the swap returned."""
    service = serve_on(constant(0), name="swapped")
    first = int(service.version.removeprefix("v"))
    returned: list[float] = []
    with under_load(service) as load:
        for value in range(1, 11):
            assert serve_on(constant(value), name="swapped") is service
            returned.append(time.monotonic())
            assert service.request({"array": [1]}).json() == [value]
            seen = len(load.answers)
            eventually(lambda seen=seen: len(load.answers) > seen + 2 * SENDERS, "requests go on")
    for sent, status, version, answered in load.answers:
        assert status == 200
        assert answered is not None
        assert version == f"v{first + int(answered)}"
        assert answered >= sum(moment < sent for moment in returned)
    live = service.versions().set_index("version")["live"]
    assert live.tolist() == [False] * 10 + [True]


def test_what_can_not_load_changes_nothing(serve_on: Any) -> None:
    """The old version answers throughout; the error says why, and has the user's own frames."""
    service = serve_on(constant(1), name="kept")
    version = service.version
    with under_load(service) as load:
        for error in (KeyError("weights"), ModuleNotFoundError("No module named 'nowhere'"), SystemExit(3)):
            with pytest.raises(DeployError) as refusal:
                serve_on(broken(error), name="kept")
            assert type(error).__name__ in str(refusal.value)
            assert len(str(refusal.value).splitlines()) == 1
    assert {(status, value) for _, status, _, value in load.answers} == {(200, 1.0)}
    assert (service.version, service.state) == (version, "running")
    assert len(service.versions()) == 1


def test_an_interrupt_leaves_the_old_version(serve_on: Any, eventually: Any, tmp_path: Path) -> None:
    """Interrupted while it loads, a version never comes to serve, not even when it has loaded."""

    class Slow(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            import pathlib
            import time

            folder = pathlib.Path(checkpoint.to_dict()["folder"])
            (folder / "loading").touch()
            while not (folder / "go_on").exists():
                time.sleep(0.01)
            (folder / "loaded").touch()
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return data * 0 + 2

    service = serve_on(constant(1), name="interrupted")
    version = service.version

    def interrupt() -> None:
        eventually((tmp_path / "loading").exists, "the new version is being loaded", timeout_s=30)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt) as raised:
        serve_on(Slow, {"folder": str(tmp_path)}, name="interrupted")
    interrupting.join()
    assert raised.value.__notes__ == [f"interrupted {version} goes on serving."]
    assert service.request({"array": [1]}).json() == [1.0]
    (tmp_path / "go_on").touch()
    eventually((tmp_path / "loaded").exists, "the new version is loaded", timeout_s=30)
    assert service.request({"array": [1]}).json() == [1.0]
    assert (service.version, len(service.versions())) == (version, 1)
    serve_on(constant(3), name="interrupted")
    assert service.request({"array": [1]}).json() == [3.0]


def test_an_interrupt_that_comes_too_late_says_so(
    serve_on: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted when the new version serves already, the service knows it, and so does its user."""
    service = serve_on(constant(1), name="late")
    host = type(service._host)
    what_comes_after = "_call" if engine == "local" else "_tell"
    original = getattr(host, what_comes_after)

    def interrupted(self: Any, *args: Any) -> None:
        original(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(host, what_comes_after, interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        serve_on(constant(2), name="late", example=5)
    monkeypatch.undo()
    assert raised.value.__notes__ == [f"late {service.version} goes on serving."]
    assert service.request({"array": [1]}).json() == [2.0]
    assert service.versions()["live"].tolist() == [False, True]
    assert service.example == 5
    service.rollback()
    assert service.request({"array": [1]}).json() == [1.0]


def test_a_rollback_that_is_interrupted_too_late_is_one(
    serve_on: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What serves after the interrupt is what the service calls live, and what it goes back from."""
    service = serve_on(constant(1), name="back_late", code="first", example=1)
    serve_on(constant(2), name="back_late", code="second", example=2)
    host = type(service._host)
    what_comes_after = "_call" if engine == "local" else "_tell"
    original = getattr(host, what_comes_after)

    def interrupted(self: Any, *args: Any) -> None:
        original(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(host, what_comes_after, interrupted)
    with pytest.raises(KeyboardInterrupt):
        service.rollback()
    monkeypatch.undo()
    assert service.request({"array": [1]}).json() == [1.0]
    assert (service.code, service.example) == ("first", 1)
    with pytest.raises(DeployError, match="to go back to"):
        service.rollback()


def lonely(value: float, *, fails: bool = False) -> type[Predictor]:
    """Make a predictor that can only be loaded when no other of its kind is in memory."""

    class Lonely(Predictor):
        def __init__(self, file: Path) -> None:
            super().__init__()
            self.file = file
            self.itself = self  # a cycle: only the garbage collector can let it go

        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            import pathlib

            file = pathlib.Path(checkpoint.to_dict()["file"])
            file.touch(exist_ok=False)
            if fails:
                file.unlink()
                raise KeyError("weights")
            return cls(file)

        def __del__(self) -> None:
            self.file.unlink()

        def predict(self, data: Any, **_: Any) -> Any:
            return data * 0 + value

    return Lonely


def test_without_overlap_the_old_model_goes_first(serve_on: Any, eventually: Any, tmp_path: Path) -> None:
    """Never are two models in memory; requests wait meanwhile, none fails, and a bad version brings the old one back."""
    checkpoint = {"file": str(tmp_path / "in memory")}
    service = serve_on(lonely(1), checkpoint, name="lonely")
    with pytest.raises(DeployError, match="FileExistsError"):
        serve_on(lonely(2), checkpoint, name="lonely")
    with under_load(service) as load:
        eventually(lambda: load.answers, "the first version answers")
        serve_on(lonely(2), checkpoint, name="lonely", overlap=False, max_batch_size=3)
        assert service.request({"array": [1]}).json() == [2.0]
        service.set_batching(max_batch_size=7)
        with pytest.raises(DeployError, match=r"KeyError.* goes on serving"):
            serve_on(lonely(3, fails=True), checkpoint, name="lonely", overlap=False)
        assert service.request({"array": [1]}).json() == [2.0]
        service.rollback()
        assert service.request({"array": [1]}).json() == [1.0]
    assert {status for _, status, _, _ in load.answers} == {200}
    assert {value for *_, value in load.answers} == {1.0, 2.0}


def test_rollback(serve_on: Any) -> None:
    """Back to what served before, with its batching; the one before the first does not exist."""
    service = serve_on(constant(1), name="back", max_batch_size=3, code="first")
    serve_on(constant(2), name="back", max_batch_size=5, code="second")
    assert (service.batching.split(",")[0], service.code) == ("up to 5 requests", "second")
    service.rollback()
    answer = service.request({"array": [1]})
    names = service.versions()["version"].tolist()
    assert (answer.json(), answer.headers["x-airserve-version"]) == ([1.0], names[0])
    assert (service.batching.split(",")[0], service.code, service.version) == (
        "up to 3 requests",
        "first",
        names[0],
    )
    with pytest.raises(DeployError, match="to go back to"):
        service.rollback()
    serve_on(constant(3), name="back")
    service.rollback()
    assert service.request({"array": [1]}).json() == [1.0]


def test_set_batching(serve_on: Any, post_all: Any) -> None:
    """New limits hold at once and are shown; a wrong one is refused and changes nothing."""
    service = serve_on(constant(1), name="tuned", max_batch_size=1)
    service.set_batching(max_batch_size=4, batch_wait_timeout_s=5)
    assert service.batching == "up to 4 requests, wait 5000 ms"
    answers = post_all(service, [{"array": [i]} for i in range(4)])
    assert [answer.status_code for answer in answers] == [200] * 4
    assert service.batches()["batch_size"].tolist() == [4]
    service.set_batching(batch_wait_timeout_s=0)
    assert service.batching == "up to 4 requests, wait 0 ms"
    with pytest.raises(OptionError, match="max_batch_size"):
        service.set_batching(max_batch_size=0)
    assert service.batching == "up to 4 requests, wait 0 ms"


def test_a_stopped_service_is_not_changed(serve_on: Any) -> None:
    """Changing what was stopped is refused with a sentence; its versions can still be listed."""
    service = serve_on(constant(1), name="ended")
    service.stop()
    for change in (service.rollback, lambda: service.set_batching(max_batch_size=3)):
        with pytest.raises(DeployError, match="was stopped"):
            change()
    assert len(service.versions()) == 1


# -- on Ray -----------------------------------------------------------------------------------------


def described(service: Service) -> list[dict[str, Any]]:
    """Ask every live replica; none while none lives."""
    try:
        found: list[dict[str, Any]] = service._host._broadcast("describe")  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a replica that has just died, in one of several ways
        return []
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.ray
def test_two_replicas_switch_in_their_processes(ray_cluster: str, eventually: Any) -> None:
    """Both switch, in the processes that run; one that is killed meanwhile comes back with the newest version."""
    service = deploy(constant(1), name="pair", num_replicas=2)
    try:
        pids = {each["pid"] for each in eventually(lambda: described(service), "two replicas run")}
        assert len(pids) == 2
        deploy(constant(2), name="pair", num_replicas=2)
        assert {(each["pid"] in pids, each["version"]) for each in described(service)} == {
            (True, service.version)
        }
        killed = min(pids)
        killing = threading.Thread(target=kill, args=(killed,))
        killing.start()
        deploy(constant(3), name="pair", num_replicas=2)
        killing.join()

        def both() -> list[dict[str, Any]]:
            found = [each for each in described(service) if each["pid"] != killed]
            return found if len(found) == 2 else []

        replicas = eventually(both, "the killed replica is replaced", timeout_s=60)
        assert {each["version"] for each in replicas} == {service.version}
        with ThreadPoolExecutor(8) as pool:
            answers = set(pool.map(lambda _: service.request({"array": [1]}).json()[0], range(80)))
        assert answers == {3.0}
    finally:
        service.stop()


@pytest.mark.ray
def test_live_settings_outlive_a_replica(ray_cluster: str, eventually: Any) -> None:
    """What set_batching set is what a replica that replaces a killed one starts with."""
    service = deploy(constant(1), name="solo")
    try:
        (before,) = described(service)
        service.set_batching(max_batch_size=7)
        kill(before["pid"])

        def newcomer() -> list[dict[str, Any]]:
            return [each for each in described(service) if each["pid"] != before["pid"]]

        (after,) = eventually(newcomer, "the killed replica is replaced", timeout_s=60)
        assert after["settings"].max_batch_size == 7
    finally:
        service.stop()


def from_cell(source: str, **names: Any) -> Any:
    """Define ``predict`` as a notebook's cell does: its globals are the notebook's, and change."""
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, namespace)  # noqa: S102 - our own source
    return namespace


CELL = """
import numpy as np
def helper(batch): return batch + increment
def predict(batch: np.ndarray): return helper(batch)
"""


@pytest.mark.ray
def test_a_version_keeps_the_globals_that_it_was_deployed_with(ray_cluster: str) -> None:
    """Going back serves what was deployed, not its code with what the notebook's names have become."""
    notebook = from_cell(CELL, increment=2)
    service = deploy(notebook["predict"], name="globals")
    try:
        notebook["increment"] = 3
        deploy(notebook["predict"], name="globals")
        assert service.request({"array": [40]}).json() == [43.0]
        notebook["increment"] = 4
        service.rollback()
        assert service.request({"array": [40]}).json() == [42.0]
    finally:
        service.stop()


@pytest.mark.ray
def test_scaling(ray_cluster: str) -> None:
    """Replicas come and go while the others serve on; new ones serve the newest version. Too many are refused."""
    service = deploy(constant(1), name="scaled")
    try:
        (first,) = described(service)
        deploy(constant(2), name="scaled")
        with under_load(service) as load:
            service.scale(2)
            assert service.replicas == 2
            replicas = described(service)
            assert len(replicas) == 2
            assert {each["version"] for each in replicas} == {service.version}
            deploy(constant(2), name="scaled", num_replicas=1)
        assert {(status, value) for _, status, _, value in load.answers} == {(200, 2.0)}
        assert service.replicas == len(described(service)) == 1
        with pytest.raises(DeployError, match=r"3\.[0-9] of Ray"):
            service.scale(1_000)
        with pytest.raises(DeployError, match=r"3\.[0-9] of Ray"):
            deploy(constant(5), name="scaled", num_replicas=1_000)
        assert service.request({"array": [1]}).json() == [2.0]
        assert Service.connect("scaled").replicas == 1
        with pytest.raises(OptionError, match="0"):
            service.scale(0)
        assert first["pid"] in pids_of(replicas)
    finally:
        service.stop()


@pytest.mark.ray
def test_what_does_not_come_is_not_waited_for(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When others were faster to take the room, scaling says so, and neither it nor Serve goes on waiting."""
    monkeypatch.setattr("airserve_nb.engines.ray_host.refuse_what_has_no_room", lambda *_: None)
    service = deploy(constant(1), name="crowded", num_cpus=3)
    try:
        with pytest.raises(DeployError, match=r"each replica needs 3 CPU, .* it keeps 1"):
            service.scale(2)
        assert service.replicas == Service.connect("crowded").replicas == 1
        assert service.request({"array": [1]}).json() == [1.0]
    finally:
        service.stop()


def pids_of(replicas: list[dict[str, Any]]) -> set[int]:
    return {each["pid"] for each in replicas}


@pytest.mark.ray
def test_other_resources_take_a_rolling_update(ray_cluster: str, eventually: Any) -> None:
    """What a running process can't change takes new ones, and no request fails while they take over."""
    service = deploy(constant(1), name="rolled")
    try:
        (before,) = described(service)
        with under_load(service) as load:
            eventually(lambda: load.answers, "the old process answers")
            deploy(constant(2), name="rolled", num_cpus=0.2)
            (after,) = described(service)
            assert after["pid"] != before["pid"]
            eventually(lambda: load.answers[-1][3] == 2.0, "the new one answers")
        assert {status for _, status, _, _ in load.answers} == {200}
        assert service.request({"array": [1]}).json() == [2.0]
        kept = Path(after["truth"])
        assert list(kept.parent.iterdir()) == [kept], "the old processes' models are still on the disk"
    finally:
        service.stop()
    assert not kept.parent.exists()


@pytest.mark.ray
def test_connected_services_can_be_tuned(ray_cluster: str) -> None:
    """A deployment made with serve.run can be tuned while it runs, but not swapped: the sentence says so."""
    from ray import serve

    from airserve_nb import PredictorDeployment

    serve.run(
        PredictorDeployment.options(name="G").bind(constant(1), {}), name="guide", route_prefix="/guide"
    )
    try:
        service = Service.connect("guide")
        assert service.batching == "up to 10 requests, wait 0 ms"
        service.set_batching(max_batch_size=3)
        assert service.batching == Service.connect("guide").batching == "up to 3 requests, wait 0 ms"
        with pytest.raises(DeployError, match="to go back to"):
            service.rollback()
    finally:
        serve.delete("guide")


@pytest.mark.ray
def test_a_rolling_update_that_ends_early_leaves_the_old_version(
    ray_cluster: str, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while Serve replaces the processes, the old version is what the new processes serve, too."""
    from airserve_nb.engines import ray as ray_engine

    service = deploy(constant(1), name="rolled", num_cpus=0.1)
    try:
        host: Any = service._host
        version, before = service.version, host._describe()["pid"]

        def interrupted(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ray_engine, "_wait_until_running", interrupted)
        with pytest.raises(KeyboardInterrupt) as raised:
            deploy(constant(2), name="rolled", num_cpus=0.2)
        monkeypatch.undo()
        assert raised.value.__notes__ == [f"rolled {version} goes on serving."]
        replaced = eventually(
            lambda: [each for each in host._broadcast("describe") if each["pid"] != before],
            "the processes are replaced",
            timeout_s=60,
        )
        assert [each["version"] for each in replaced] == [version]
        assert service.request({"array": [1]}).json() == [1.0]
    finally:
        service.stop()
