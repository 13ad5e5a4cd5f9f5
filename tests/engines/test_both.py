"""What must be the same on both engines: each test here runs on the local one and on Ray Serve."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests

from airserve_nb import BadInputError, DeployError, PredictFailedError, services
from airserve_nb.http_adapters import pandas_read_json


@pytest.fixture(scope="module")
def adder(serve_on_shared: Any, shared_script: Any) -> Any:
    """One service for the tests that only ask; its batches wait long, so that requests sent together share one."""
    return serve_on_shared(
        shared_script.predictor,
        shared_script.checkpoint,
        name="adder",
        max_batch_size=4,
        batch_wait_timeout_s=0.5,
    )


@pytest.fixture(scope="module")
def table(serve_on_shared: Any) -> Any:
    """One service of frames that sorts, repeats or filters as its rows say."""
    from airserve_nb import Predictor

    class Shuffler(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_kwargs: Any) -> Shuffler:
            return cls()

        def predict(self, data: Any, **_kwargs: Any) -> pd.DataFrame:
            frame: pd.DataFrame = data.sort_values("x", ascending=False)
            return frame.loc[frame.index.repeat(frame["times"])]

    return serve_on_shared(
        Shuffler, name="table", http_adapter=pandas_read_json, max_batch_size=2, batch_wait_timeout_s=20.0
    )


@pytest.mark.parametrize("path", ["", "/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_routes(adder: Any, shared_script: Any, path: str, method: str) -> None:
    """Both methods predict, with a trailing slash and without, and without a redirect."""
    answer = requests.request(
        method, adder.url + path, json=shared_script.row(), allow_redirects=False, timeout=30
    )
    assert (answer.status_code, answer.json()) == (200, [2.0, 42.0])


def test_other_methods_and_paths(adder: Any) -> None:
    """A wrong method is a 405, a wrong path a 404, and the documentation is there."""
    assert requests.put(adder.url, timeout=30).status_code == 405
    assert requests.post(adder.url + "/docs", timeout=30).status_code == 405
    assert requests.get(adder.url + "/nothing", timeout=30).status_code == 404
    assert "NdArray" in requests.get(adder.url + "/openapi.json", timeout=30).text
    assert requests.get(adder.url + "/docs", timeout=30).headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("body", [b"", b"{", b'{"array": [[1], [2, 3]]}', b'{"arr": [1]}', b"[]"])
def test_bad_bodies(adder: Any, body: bytes) -> None:
    """A bad body is a 4xx with one sentence and the request's id."""
    answer = requests.post(adder.url, data=body, timeout=30)
    assert 400 <= answer.status_code < 500
    assert set(answer.json()) == {"error", "request_id"}
    assert answer.json()["request_id"] == answer.headers["x-airserve-request-id"]


def test_ids_and_timing(adder: Any, shared_script: Any) -> None:
    """A client's id is echoed, ours is beside it, and Server-Timing names the batch."""
    answer = adder.request(shared_script.row(), headers={"X-Request-Id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-airserve-request-id"] not in {"", "mine-1"}
    timing = re.fullmatch(
        r'queue;dur=[\d.]+, predict;dur=[\d.]+, batch;desc="([^"/]+)/1"', answer.headers["server-timing"]
    )
    assert timing
    assert timing[1] in adder.batches().batch_id.tolist()


@pytest.mark.parametrize(
    ("name", "kind"), [("POISON", "ValueError"), ("NESTED", "RuntimeError"), ("EXIT", "SystemExit")]
)
def test_a_traceback_stays_on_the_server(adder: Any, shared_script: Any, name: str, kind: str) -> None:
    """A failing predict is one sentence; the traceback is in logs() under the request's id; serving goes on."""
    answer = adder.request(shared_script.row(getattr(shared_script, name)))
    assert answer.status_code == 500
    assert f"predict raised {kind}" in answer.json()["error"]
    assert "Traceback" not in answer.text
    logs = adder.logs()
    assert answer.json()["request_id"] in logs
    assert "Traceback" in logs
    assert adder.request(shared_script.row()).json() == [2.0, 42.0]


def test_a_message_is_shown_on_loopback(adder: Any, shared_script: Any) -> None:
    """Where only this machine can ask, an answer has the exception's message."""
    answer = adder.request(shared_script.row(shared_script.POISON))
    assert "a poisoned row" in answer.json()["error"]


def test_a_tuple_is_answered_with_advice(adder: Any, shared_script: Any, post_all: Any) -> None:
    """Every member of a batch whose output is a tuple is told what to return."""
    answers = post_all(adder, [shared_script.row(shared_script.AS_TUPLE, i) for i in range(4)])
    assert [answer.status_code for answer in answers] == [500] * 4
    assert all("stack mean and std" in answer.json()["error"] for answer in answers)


def test_a_poisoned_request_fails_alone(adder: Any, shared_script: Any, post_all: Any) -> None:
    """The others of its batch are answered."""
    codes = [shared_script.FINE, shared_script.POISON, shared_script.FINE, shared_script.FINE]
    answers = post_all(adder, [shared_script.row(code, i) for i, code in enumerate(codes)])
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert [answer.json()[1] for answer in answers if answer.status_code == 200] == [2.0, 4.0, 5.0]


def test_predict_is_past_http(adder: Any, shared_script: Any) -> None:
    """Service.predict takes a model input through the same batcher, and raises what a client would be told."""
    assert adder.predict(np.array([0.0, 1.0])).tolist() == [2.0, 3.0]
    with pytest.raises(PredictFailedError, match="a poisoned row") as failure:
        adder.predict(np.array([shared_script.POISON, 1.0]))
    assert failure.value.status == 500
    with pytest.raises(BadInputError, match="can't be batched"):
        adder.predict([1.0])
    assert adder.requests().iloc[-1].status == 422


def test_the_tables(adder: Any, shared_script: Any, eventually: Any) -> None:
    """The tables have their columns, reading takes nothing away, and statistics count what the tables show."""
    adder.request(shared_script.row())
    rows = eventually(lambda: len(adder.requests()), "a record")
    table = adder.requests()
    assert list(table.columns) == [
        "request_id", "arrived_at", "status", "batch_id", "batch_size", "queue_ms", "predict_ms", "overhead_ms",
        "total_ms", "version", "replica", "error", "payload", "answer",
    ]  # fmt: skip
    assert len(table) >= rows
    assert table.arrived_at.is_monotonic_increasing
    assert set(adder.batches().columns) >= {
        "batch_id", "released_at", "batch_size", "rows", "predict_ms", "release_reason", "queue_depth", "version",
        "replica",
    }  # fmt: skip
    statistics = adder.statistics()
    assert statistics.requests == len(adder.requests())
    assert statistics.batches == sum(statistics.batch_sizes.values()) == len(adder.batches())


def test_what_it_says_of_itself(adder: Any, engine: str) -> None:
    """Name, engine, ingress and the stable text; the kernel knows it by name."""
    assert (adder.name, adder.engine) == ("adder", engine)
    assert adder.ingress in {"local": {"uvicorn"}, "ray": {"haproxy", "python"}}[engine]
    assert services()["adder"] is adder
    assert "adder" in repr(adder)
    assert "127.0.0.1" not in repr(adder)


def test_rows_of_a_batch(table: Any, post_all: Any) -> None:
    """Requests of 1, 3 and 0 rows in one batch get exactly their own rows when predict sorts, drops and repeats."""
    sent = [
        [{"x": 5, "times": 2}],
        [{"x": 2, "times": 1}, {"x": 9, "times": 0}, {"x": 7, "times": 1}],
        [],
    ]
    answers = post_all(table, sent)
    assert [[row["x"] for row in answer.json()] for answer in answers] == [[5, 5], [7, 2], []]
    assert table.batches().rows.tolist()[-1] == 4


def test_replacing_and_stopping(serve_on: Any, script: Any) -> None:
    """Deploying under a name again replaces; a predictor that can't load changes nothing; a stopped one says so."""
    from airserve_nb import Predictor

    class Constant(Predictor):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_kwargs: Any) -> Constant:
            return cls(checkpoint.to_dict()["value"])

        def predict(self, data: Any, **_kwargs: Any) -> Any:
            return data * 0 + self.value

    first = serve_on(Constant, {"value": 1}, name="constant")
    body = {"array": [0]}
    first_answer = first.request(body)
    assert first_answer.json() == [1.0]
    with pytest.raises(DeployError, match="KeyError"):
        serve_on(Constant, {"values": 5}, name="broken")
    service = serve_on(Constant, {"value": 2}, name="constant")
    assert service is first
    answer = service.request(body)
    assert answer.json() == [2.0]
    assert answer.headers["x-airserve-version"] != first_answer.headers["x-airserve-version"]
    assert services()["constant"] is service
    service.stop()
    assert len(service.requests()) == 2
    with pytest.raises(DeployError, match="was stopped"):
        service.predict(np.array([0.0]))
    assert "constant" not in services()


def test_clients_that_leave_do_not_reach_predict(
    serve_on: Any, script: Any, raw_request: Any, eventually: Any
) -> None:
    """Of 200 clients that leave while they wait, at least 95 % never reach predict, and serving goes on."""
    waiting_room = 200
    service = serve_on(
        script.predictor,
        script.checkpoint,
        name="leavers",
        batching_params={"max_queue_size": waiting_room, "max_batch_size": 32},
    )
    held = raw_request(service.url, json.dumps(script.row(script.HOLD)).encode())
    script.wait_until_held()
    body = json.dumps(script.row()).encode()
    # The queue is full when those beyond it are refused: then all 200 are known to wait in it.
    clients = [raw_request(service.url, body) for _ in range(waiting_room + 5)]
    refused = _refused(clients, 5)
    for client in clients:
        client.close()
    left = _count_until(lambda: int((service.requests().status == 499).sum()), waiting_room, eventually)
    script.release()
    assert _status(held) == 200
    held.close()
    assert service.request(script.row()).json() == [2.0, 42.0]
    assert refused == 5
    assert sum(script.sizes()) - 2 <= waiting_room * 0.05, f"{left} were noticed to have left"


def _count_until(count: Any, expected: int, eventually: Any) -> int:
    """Give the disconnects time to be noticed, all of them if possible."""
    with contextlib.suppress(AssertionError):
        eventually(lambda: count() >= expected, "all disconnects are noticed", timeout_s=10)
    return int(count())


def _refused(clients: list[socket.socket], number: int) -> int:
    """Wait until ``number`` clients are answered, remove them, and count those that got a 503."""
    refused = 0
    for _ in range(number):
        readable, _, _ = select.select(clients, [], [], 30)
        assert readable
        refused += _status(readable[0]) == 503
        clients.remove(readable[0])
        readable[0].close()
    return refused


def _status(client: socket.socket) -> int:
    reply = client.recv(65_536)
    return int(reply.split()[1]) if reply else 0
