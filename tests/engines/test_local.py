"""The local engine's own: its server thread, its logs, and clients that leave."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest
import requests

from airserve_nb import Checkpoint, Predictor, deploy

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Echo(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Echo:
        return cls()

    def predict(self, data: Any, **_kwargs: Any) -> Any:
        return data


def test_the_model_lives_in_one_thread(serve_local: Any) -> None:
    """The model is loaded and used in one and the same thread, which is neither the server's nor the notebook's."""
    seen: list[str] = []

    class Watching(Echo):
        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Any:
            seen.append(threading.current_thread().name)
            return cls()

        def predict(self, data: Any, **_kwargs: Any) -> Any:
            seen.append(threading.current_thread().name)
            return data

    service = serve_local(Watching, name="watching")
    service.request({"array": [1]})
    service.request({"array": [1]})
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0].startswith("airserve-model")


def test_nothing_is_printed(serve_local: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Requests, failures and odd connections print nothing into whatever cell runs."""

    class Failing(Echo):
        def predict(self, data: Any, **_kwargs: Any) -> Any:
            raise ValueError("no")

    service = serve_local(Failing, name="failing")
    assert service.request({"array": [1]}).status_code == 500
    assert requests.get(service.url + "/nothing", timeout=30).status_code == 404
    service.stop()
    assert capfd.readouterr() == ("", "")


def test_nonsense_on_the_wire_prints_nothing(serve_local: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no HTTP are refused, printed nowhere, and serving goes on."""
    import socket

    service = serve_local(Echo, name="echo")
    port = int(service.url.split(":")[2].split("/")[0])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"this is no HTTP\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400")
    assert service.request({"array": [1]}).json() == [1.0]
    assert capfd.readouterr().err == ""


def test_logs_are_per_deployment(serve_local: Any) -> None:
    """What one deployment logs is not shown as another's, and stopping leaves no handler behind."""

    class Failing(Echo):
        def predict(self, data: Any, **_kwargs: Any) -> Any:
            raise ValueError("only in one")

    before = list(logging.getLogger("airserve_nb").handlers)
    one, two = serve_local(Failing, name="one"), serve_local(Echo, name="two")
    identity = one.request({"array": [1]}).json()["request_id"]
    assert identity in one.logs()
    assert identity not in two.logs()
    one.stop()
    two.stop()
    assert logging.getLogger("airserve_nb").handlers == before


def test_a_loaded_model_is_not_asked_before_it_is_there(serve_local: Any) -> None:
    """Deploy returns when the first request can be answered, also when loading takes long."""
    loading, go_on = threading.Event(), threading.Event()

    class Slow(Echo):
        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Any:
            loading.set()
            go_on.wait(30)
            return cls()

    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(deploy(Slow, name="slow", engine="local")))
    thread.start()
    assert loading.wait(30)
    assert not made
    go_on.set()
    thread.join(30)
    assert made[0].request({"array": [1]}).json() == [1.0]
    made[0].stop()


def test_inside_a_running_event_loop() -> None:
    """A notebook's cells run inside an event loop: deploying, asking and stopping work there."""
    import asyncio

    async def cell() -> Any:
        service = deploy(Echo, name="echo", engine="local")
        try:
            return service.request({"array": [1]}).json(), service.predict
        finally:
            service.stop()

    assert asyncio.run(cell())[0] == [1.0]


def test_a_prefix_is_not_a_pattern(serve_local: Any) -> None:
    """Elsewhere on the port the answer says where the deployment is, as JSON."""
    service = serve_local(Echo, name="echo")
    answer = requests.get(service.url.replace("/echo", "/other"), timeout=30)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert "/echo" in answer.json()["error"]


def function_that_echoes(batch: np.ndarray) -> Any:
    return batch


def test_a_foreign_server_on_the_port(serve_local: Any) -> None:
    """What answers is ours: another server's port is left to it, and refused where it was asked for."""
    import http.server
    import threading

    from airserve_nb import DeployError
    from airserve_nb.engines import ports

    class Foreign(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ports.listen_near(None) as free:
        number = free.getsockname()[1]
    with http.server.HTTPServer(("127.0.0.1", number), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            service = serve_local(function_that_echoes, name="ours")
            assert f":{number}/" not in service.url
            answer = service.request({"array": [1]})
            assert (answer.json(), answer.headers["x-airserve-version"]) == ([1.0], service.version)
            with pytest.raises(DeployError, match=str(number)):
                serve_local(function_that_echoes, name="theirs", port=number)
        finally:
            server.shutdown()
            thread.join()
