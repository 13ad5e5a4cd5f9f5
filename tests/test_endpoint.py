"""The endpoint as a client sees it: on the local engine, and some of it by ASGI alone."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
from fastapi import HTTPException
from pydantic import BaseModel
from starlette.requests import Request

from airserve_nb import BadInputError, Checkpoint, Predictor, RequestError
from airserve_nb.endpoint import Endpoint
from airserve_nb.http_adapters import json_request, pandas_read_json
from airserve_nb.version import make_spec

pytestmark = pytest.mark.usefixtures("no_leftovers")

TIMING = re.compile(r'queue;dur=([\d.]+), predict;dur=([\d.]+), batch;desc="([^"/]+)/(\d+)"')


class Row(BaseModel):
    """A body with one number."""

    a: float


class Echo(Predictor):
    """Answers what it is given."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Echo:
        return cls()

    def predict(self, data: Any, **_kwargs: Any) -> Any:
        return data


def predicting(function: Callable[..., Any]) -> type[Predictor]:
    """Return a predictor class whose predict is ``function(batch)``."""
    return type("Made", (Echo,), {"predict": lambda self, data, **kwargs: function(data)})


def sentence_of(response: requests.Response) -> str:
    """Return the error of an answer, having checked the form that every error has."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error", "request_id"}
    assert isinstance(body["error"], str)
    assert body["error"]
    assert "\n" not in body["error"]
    assert "Traceback" not in response.text
    assert 'File "' not in body["error"]
    return str(body["error"])


def recorded(service: Any, count: int) -> pd.DataFrame:
    """Return the table of requests once it has ``count`` rows: a record is written when the answer has been sent."""
    deadline = time.monotonic() + 30
    while len(table := service.requests()) < count and time.monotonic() < deadline:
        time.sleep(0.002)
    assert len(table) == count
    return table  # type: ignore[no-any-return]  # the fixture is untyped


# -- routes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_both_methods_with_and_without_slash(serve_local: Any, path: str, method: str) -> None:
    """GET and POST predict at the route, with a trailing slash and without, and are never redirected."""

    def adapter(base: int, multiplier: int) -> pd.DataFrame:
        return pd.DataFrame([{"base": base, "multiplier": multiplier}])

    service = serve_local(Echo, name="echo", http_adapter=adapter)
    answer = requests.request(
        method, service.url + path, params={"base": 10, "multiplier": 4}, allow_redirects=False, timeout=30
    )
    assert (answer.status_code, answer.json()) == (200, [{"base": 10, "multiplier": 4}])
    built_in = serve_local(Echo, name="built_in")
    answer = requests.request(
        method, built_in.url + path, json={"array": [40]}, allow_redirects=False, timeout=30
    )
    assert (answer.status_code, answer.json()) == (200, [40.0])


@pytest.mark.parametrize("route", ["/", "/a/deep/route"])
def test_routes_of_any_depth(serve_local: Any, route: str) -> None:
    """A deployment answers at the route it was given, whatever its depth, and says where it is elsewhere."""
    service = serve_local(Echo, name="echo", route_prefix=route)
    assert service.request({"array": [1]}).json() == [1.0]
    root = service.url.removesuffix(route)
    for path in ("/docs", "/openapi.json"):
        assert requests.get(root + route.rstrip("/") + path, timeout=30).status_code == 200
    missed = requests.post(root + "/elsewhere", json={"array": [1]}, timeout=30)
    assert missed.status_code == 404
    assert missed.json()["error"].endswith(".")


def test_a_route_is_not_a_prefix_of_names(serve_local: Any) -> None:
    """What only begins like the route is not the route."""
    service = serve_local(Echo, name="echo")
    assert requests.get(service.url + "es", timeout=30).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["", "/", "/docs", "/openapi.json"])
def test_other_methods_are_refused(serve_local: Any, method: str, path: str) -> None:
    """A method that nobody takes is a 405 with a sentence and the methods that are."""
    service = serve_local(Echo, name="echo")
    answer = requests.request(method, service.url + path, timeout=30)
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]
    assert answer.headers["content-type"] == "application/json"
    assert method in answer.json()["error"]


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_descriptions_are_not_posted_to(serve_local: Any, path: str) -> None:
    """A POST to a page that is only read is refused with a sentence, and is no failure of the server."""
    service = serve_local(Echo, name="echo")
    answer = requests.post(service.url + path, json={"array": [1]}, timeout=30)
    assert answer.status_code == 405
    assert answer.json()["error"].endswith(".")


@pytest.mark.parametrize("path", ["/nothing", "/docs/", "//", "/%20", "/../etc", "/docs/x"])
def test_nothing_is_elsewhere(serve_local: Any, path: str) -> None:
    """A path below the route that means nothing is a 404 in the form of every error."""
    service = serve_local(Echo, name="echo")
    answer = requests.get(service.url + path, timeout=30)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"].endswith(".")


def test_the_schema_and_the_page_describe_the_adapter(serve_local: Any) -> None:
    """/openapi.json has the adapter's schema and the form of errors, and /docs is a page without foreign scripts."""
    service = serve_local(Echo, name="echo", http_adapter=pandas_read_json)
    schema = requests.get(service.url + "/openapi.json", timeout=30).json()
    operation = schema["paths"]["/"]["post"]
    assert "orient" in {parameter["name"] for parameter in operation["parameters"]}
    assert "requestBody" in operation
    assert schema["info"]["title"] == "echo"
    page = requests.get(service.url + "/docs", timeout=30)
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r'(src|href)="(https?:)?//', page.text)


def test_descriptions_are_no_predictions(serve_local: Any) -> None:
    """Reading the documentation leaves no trace in the table of requests."""
    service = serve_local(Echo, name="echo")
    for path in ("/docs", "/openapi.json", "/nothing"):
        requests.get(service.url + path, timeout=30)
    assert service.requests().empty
    assert service.statistics().requests == 0


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "no body"),
        (b"{", "not JSON"),
        (b"nonsense", "not JSON"),
        (b'{"array": "\xff"}', "UTF-8"),
        (b"[1]", "expected"),
        (b"null", "expected"),
        (b'{"arr": [1]}', "did you mean 'array'"),
        (b'{"array": 5}', "list"),
        (b'{"array": null}', "list"),
        (b'{"array": [[1], [2, 3]]}', "ragged"),
        (b'{"array": [1, [2]]}', "depth"),
        (b'{"array": ["x"]}', "x"),
        (b'{"array": [{}]}', "object"),
        (b'{"array": [null]}', "null"),
        (b'{"array": [1, 2], "shape": [3]}', "shape"),
        (b'{"array": [1, 2], "shape": "2"}', "shape"),
        (b'{"array": [1], "dtype": "foo"}', "dtype"),
        (b'{"array": [300], "dtype": "uint8"}', "dtype"),
        (b'{"array": [1], "type": "int"}', "unknown"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"array": [' + b"9" * 5_000 + b"]}", ""),
    ],
)
def test_bad_bodies_are_refused_with_a_sentence(serve_local: Any, body: bytes, part: str) -> None:
    """What is no array gets a 4xx whose one sentence says what is wrong, and predict is not called."""
    service = serve_local(Echo, name="echo")
    answer = requests.post(service.url, data=body, timeout=30)
    assert 400 <= answer.status_code < 500
    sentence = sentence_of(answer)
    assert part in sentence
    assert sentence.endswith((".", "?"))
    assert len(sentence) < 500
    assert answer.json()["request_id"] == answer.headers["x-airserve-request-id"]
    assert service.batches().empty


@pytest.mark.parametrize(("query", "known"), [("?x=1", "x"), ("?array=1&array=2", "array")])
def test_unknown_query_parameters_are_refused(serve_local: Any, query: str, known: str) -> None:
    """A parameter that nothing reads is refused by name: it is most often a misspelt one."""
    service = serve_local(Echo, name="echo")
    answer = requests.post(service.url + query, json={"array": [1]}, timeout=30)
    assert 400 <= answer.status_code < 500
    assert known in sentence_of(answer)


def test_a_missing_content_type_is_accepted(serve_local: Any, raw_request: Any) -> None:
    """A client that names no content type sends JSON, with built-in adapters and with others."""

    def adapter(row: Row) -> np.ndarray[Any, Any]:
        return np.array([row.a])

    cases = [(serve_local(Echo, name="one"), b'{"array": [40]}')]
    cases.append((serve_local(Echo, name="two", http_adapter=adapter), b'{"a": 40}'))
    for service, body in cases:
        with raw_request(service.url, body, headers=()) as connection:
            reply = read_reply(connection)
        assert reply.startswith(b"HTTP/1.1 200")
        assert reply.endswith(b"[40.0]")


def read_reply(connection: socket.socket) -> bytes:
    """Read one reply with a Content-Length."""
    reply = b""
    while True:
        head, found, body = reply.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if found and length and len(body) >= int(length[1]):
            return reply
        piece = connection.recv(65_536)
        if not piece:
            return reply
        reply += piece


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "multipart/form-data", "image/png"]
)
def test_other_content_types_are_refused(serve_local: Any, content_type: str) -> None:
    """A body that says it is no JSON is refused with a 4xx."""
    service = serve_local(Echo, name="echo")
    headers = {"Content-Type": content_type}
    answer = requests.post(service.url, data=b'{"array": [1]}', headers=headers, timeout=30)
    assert 400 <= answer.status_code < 500
    sentence_of(answer)


def test_a_body_in_pieces_is_read_whole(serve_local: Any) -> None:
    """A chunked request is one body."""
    service = serve_local(Echo, name="echo")
    answer = requests.post(service.url, data=iter([b'{"arr', b'ay": [1, ', b"2]}"]), timeout=30)
    assert answer.json() == [1.0, 2.0]


def test_inputs_that_can_not_be_batched_are_refused(serve_local: Any) -> None:
    """A model input that batching can't stack is answered with the way out."""
    service = serve_local(Echo, name="echo", http_adapter=json_request)
    answer = service.request([1, 2])
    assert answer.status_code == 422
    assert "batching_params=False" in sentence_of(answer)


# -- ids and timing ---------------------------------------------------------------------------------


def test_every_request_has_an_id_of_its_own(serve_local: Any, post_all: Any) -> None:
    """Answers carry ids that no other answer has, errors too, and the table of requests knows them."""
    service = serve_local(Echo, name="echo")
    answers = post_all(service, [{"array": [i]} if i % 3 else {"array": i} for i in range(12)])
    ids = [answer.headers["x-airserve-request-id"] for answer in answers]
    assert len(set(ids)) == 12
    table = recorded(service, 12)
    assert sorted(table.request_id) == sorted(ids)
    statuses = dict(zip(table.request_id, table.status, strict=True))
    assert [statuses[one] for one in ids] == [answer.status_code for answer in answers]


@pytest.mark.parametrize(
    ("sent", "returned"),
    [
        ("abc-1.2:3_4", "abc-1.2:3_4"),
        ("a" * 200, "a" * 64),
        ("a b<script>", "abscript"),
        ("{}\"'", None),
    ],
)
def test_a_clients_id_is_cut_filtered_and_echoed(serve_local: Any, sent: str, returned: str | None) -> None:
    """A client's X-Request-Id comes back with nothing in it that could do harm, and is never used as ours."""
    service = serve_local(Echo, name="echo")
    answer = service.request({"array": [1]}, headers={"X-Request-Id": sent})
    assert answer.headers.get("x-request-id") == returned
    assert answer.headers["x-airserve-request-id"] != returned


def test_without_a_clients_id_none_is_echoed(serve_local: Any) -> None:
    """Only what a client sent is echoed."""
    assert "x-request-id" not in serve_local(Echo, name="echo").request({"array": [1]}).headers


def test_a_clients_id_comes_back_with_errors_too(serve_local: Any) -> None:
    """An error is found in a client's log by the client's own id."""
    service = serve_local(Echo, name="echo")
    assert service.request({}, headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"


def test_records_show_how_bodies_begin(serve_local: Any) -> None:
    """The request log has the beginning of what was asked, in the body or in the query, and of what was answered."""
    service = serve_local(Echo, name="echo")
    service.request({"array": [1.5] * 100})
    service.request({"array": "no array"})
    table = recorded(service, 2)
    assert table.payload[0] == '{"array": [' + "1.5, " * 37 + "1.5,…"
    assert table.answer[0] == "[" + "1.5," * 49 + "1.5…"
    assert "no array" in table.payload[1]
    assert table.answer[1].startswith('{"error":')

    def adapter(base: int) -> np.ndarray:
        return np.array([float(base)])

    asked = serve_local(Echo, name="asked", http_adapter=adapter)
    asked.request(method="GET", params={"base": 7})
    assert recorded(asked, 1).payload[0] == "base=7"


def test_server_timing_agrees_with_the_records(serve_local: Any) -> None:
    """Server-Timing has queue, predict and batch in its standard form, equal to what was recorded."""
    service = serve_local(Echo, name="echo")
    answer = service.request({"array": [1]})
    found = TIMING.fullmatch(answer.headers["server-timing"])
    assert found
    record = recorded(service, 1).iloc[0]
    assert float(found[1]) == pytest.approx(record.queue_ms, abs=1e-3)
    assert float(found[2]) == pytest.approx(record.predict_ms, abs=1e-3)
    assert (found[3], int(found[4])) == (record.batch_id, record.batch_size)
    assert record.total_ms == pytest.approx(record.queue_ms + record.predict_ms + record.overhead_ms)
    assert record.overhead_ms >= 0
    assert service.batches().iloc[0].batch_id == found[3]


def test_refused_requests_have_no_timing(serve_local: Any) -> None:
    """What reached no batch names none."""
    assert "server-timing" not in serve_local(Echo, name="echo").request({}).headers


# -- failures ---------------------------------------------------------------------------------------


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _chained() -> Exception:
    error = RuntimeError("outer")
    error.__cause__ = KeyError("inner")
    return error


FAILURES: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: ValueError("no such row"),
    "no message": lambda: ValueError,  # type: ignore[dict-item,return-value]  # a class can be raised too
    "several lines": lambda: ValueError("one\ntwo\n\n  three"),
    "a traceback as message": lambda: ValueError(
        'Traceback (most recent call last):\n  File "/secret/place.py", line 1, in f\n    g()\nKeyError: 1'
    ),
    "huge": lambda: ValueError("x" * 1_000_000),
    "lone surrogate": lambda: ValueError("\ud800"),
    "control characters": lambda: ValueError("\x00\x1b[31mred"),
    "chained": _chained,
    "group": lambda: ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    "no text": UnprintableError,
    "stop iteration": lambda: StopIteration(1),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": asyncio.CancelledError,
    "recursion": lambda: RecursionError("maximum recursion depth exceeded"),
    "memory": MemoryError,
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_predict_is_one_sentence(serve_local: Any, kind: str) -> None:
    """Whatever predict raises is a 500 with its type and the request's id; the traceback is in logs(); serving goes on."""
    make = FAILURES[kind]

    def predict(batch: Any) -> Any:
        if batch[0, 0] == 1:
            raise make()
        return batch

    service = serve_local(predicting(predict), name="failing")
    answer = service.request({"array": [1]}, timeout=10)
    assert answer.status_code == 500
    sentence = sentence_of(answer)
    error = make()
    name = getattr(error, "__name__", type(error).__name__)
    assert f"predict raised {name}" in sentence
    assert len(answer.content) < 10_000
    identity = answer.headers["x-airserve-request-id"]
    assert answer.json()["request_id"] == identity
    assert service.request({"array": [0]}, timeout=10).json() == [0.0]
    logs = service.logs()
    assert identity in logs
    assert "test_endpoint.py" in logs
    assert recorded(service, 2).status.tolist() == [500, 200]
    assert service.statistics().errors == 1


def test_the_log_starts_where_the_users_code_starts(serve_local: Any) -> None:
    """The traceback in logs() leads to the failing line of predict, the cause included, past our own frames."""

    def predict(_batch: Any) -> Any:
        raise _chained()

    service = serve_local(predicting(predict), name="failing")
    service.request({"array": [1]})
    logs = service.logs()
    assert "KeyError: 'inner'" in logs
    assert "RuntimeError: outer" in logs
    assert "raise _chained()" in logs
    assert "execution.py" not in logs


def test_a_message_travels_to_a_client_of_this_machine(serve_local: Any) -> None:
    """On loopback the message is shown: whoever asks is who writes the predictor."""

    def predict(_batch: Any) -> Any:
        raise ValueError("the column age is negative")

    answer = serve_local(predicting(predict), name="failing").request({"array": [1]})
    assert sentence_of(answer).rstrip(".") == "predict raised ValueError: the column age is negative"


async def _cancelled(request: Request) -> object:
    raise asyncio.CancelledError


def _raising(error: Any) -> Callable[..., Any]:
    def adapter(q: int = 0) -> object:
        raise error

    return adapter


ADAPTERS: dict[str, Callable[..., Any]] = {
    "plain": _raising(ValueError("odd")),
    "several lines": _raising(ValueError("one\ntwo")),
    "a traceback as message": _raising(
        ValueError('Traceback (most recent call last):\n  File "/secret.py", line 1')
    ),
    "huge": _raising(ValueError("x" * 1_000_000)),
    "no text": _raising(UnprintableError()),
    "exit": _raising(SystemExit(3)),
    "base": _raising(BaseException("base")),
    "cancelled": _cancelled,
    "odd status": _raising(HTTPException(99, "odd")),
    "a status that is no error": _raising(HTTPException(204, "odd")),
    "unhashable labels": lambda: pd.DataFrame([[1]], columns=pd.Index([[1]], dtype=object)),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_failing_adapter_is_one_sentence(serve_local: Any, kind: str) -> None:
    """Whatever an adapter raises is an error in the usual form, is recorded as one, and serving goes on."""
    service = serve_local(Echo, name="echo", http_adapter=ADAPTERS[kind])
    answer = requests.post(service.url, timeout=5)
    assert answer.status_code >= 400
    sentence_of(answer)
    assert len(answer.content) < 10_000
    assert recorded(service, 1).status.tolist() == [answer.status_code]
    if answer.status_code >= 500:
        assert answer.json()["request_id"] in service.logs()
    assert requests.get(service.url + "/openapi.json", timeout=5).status_code == 200


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (HTTPException(404, "no such customer"), 404),
        (BadInputError("age must be positive."), 422),
        (RequestError("come later.", status=429), 429),
        (RequestError("odd", status=204), 500),
        (RequestError("odd", status=99), 500),
        (RequestError("odd", status=700), 500),
    ],
)
def test_a_predictor_chooses_its_errors_status(serve_local: Any, raised: Exception, status: int) -> None:
    """A predictor that raises an error with a status gets it, if that is an HTTP status of an error."""

    def predict(_batch: Any) -> Any:
        raise raised

    answer = serve_local(predicting(predict), name="failing").request({"array": [1]}, timeout=5)
    assert answer.status_code == status
    assert str(getattr(raised, "detail", raised)).rstrip(".") in sentence_of(answer)


def test_a_table_of_requests_can_hold_any_message(serve_local: Any) -> None:
    """An error's text that is no valid Unicode does not make the records unreadable."""

    def predict(_batch: Any) -> Any:
        raise ValueError("\ud800")

    service = serve_local(predicting(predict), name="failing")
    service.request({"array": [1]})
    recorded(service, 1)
    assert len(service.batches()) == 1


# -- not on loopback --------------------------------------------------------------------------------


async def ask(
    endpoint: Endpoint, body: bytes = b'{"array": [1]}', **scope: Any
) -> tuple[int, dict[str, str], bytes]:
    """Send one request by ASGI."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        return None

    return await converse(endpoint, receive, **scope)


async def converse(
    endpoint: Endpoint, receive: Callable[[], Awaitable[Any]], **scope: Any
) -> tuple[int, dict[str, str], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    defaults = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    await endpoint({**defaults, **scope}, receive, send)
    if not sent:
        return 0, {}, b""
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message["body"] for message in sent[1:])


def run_with(predictor: Any, talk: Callable[[Endpoint], Awaitable[Any]], **options: Any) -> Any:
    """Run ``talk`` against an endpoint that hides messages, and close the endpoint."""

    async def main() -> Any:
        endpoint = Endpoint("hidden", show_errors=False)
        await endpoint.versions.activate(make_spec(predictor, None, **options))
        try:
            return await talk(endpoint)
        finally:
            await endpoint.close()

    return asyncio.run(main())


def test_messages_are_hidden_from_other_machines() -> None:
    """Where others can reach the server, an exception's message stays in the log: it may hold the data."""

    def predict(_batch: Any) -> Any:
        raise ValueError("patient Jane Doe")

    status, _, body = run_with(predicting(predict), ask)
    assert status == 500
    assert b"Jane" not in body
    assert b"ValueError" in body


def test_an_adapters_message_is_hidden_too() -> None:
    """What an adapter's code raised is no more public than what predict raised."""
    status, _, body = run_with(Echo, ask, http_adapter=_raising(ValueError("patient Jane Doe")))
    assert status == 500
    assert b"Jane" not in body


def test_what_is_said_on_purpose_is_not_hidden() -> None:
    """A refusal that a predictor wrote for its clients reaches them, wherever they are."""

    def predict(_batch: Any) -> Any:
        raise BadInputError("age must be positive.")

    status, _, body = run_with(predicting(predict), ask)
    assert status == 422
    assert b"age must be positive." in body


def test_a_client_that_leaves_before_its_body_ends_is_no_failure() -> None:
    """A connection that ends within the body is recorded as one that left, and nothing is answered."""

    async def leave(endpoint: Endpoint) -> Any:
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Any:
            return messages.pop()

        answer = await converse(endpoint, receive)
        return answer, endpoint.recorder.since().requests

    answer, records = run_with(Echo, leave)
    assert answer == (0, {}, b"")
    assert [record.status for record in records] == [499]


def test_before_the_model_is_loaded_the_answer_is_come_later() -> None:
    """A request that comes too early is told so, with Retry-After."""

    async def main() -> Any:
        return await ask(Endpoint("early"))

    status, headers, body = asyncio.run(main())
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    assert headers["content-type"] == "application/json"
    assert b"model" in body
    assert set(json.loads(body)) == {"error", "request_id"}


def test_a_swap_loses_no_request_that_arrives_slowly() -> None:
    """A request whose body is still on its way when the version is swapped is answered, not refused."""

    async def swap(endpoint: Endpoint) -> Any:
        rest = asyncio.Event()
        asked = asyncio.Event()
        parts = [
            {"type": "http.request", "body": b"[1]}", "more_body": False},
            {"type": "http.request", "body": b'{"array": ', "more_body": True},
        ]

        async def receive() -> Any:
            if len(parts) == 1:
                asked.set()
                await rest.wait()
            if parts:
                return parts.pop()
            await asyncio.Event().wait()
            return None

        slow = asyncio.create_task(converse(endpoint, receive))
        await asked.wait()
        swapping = asyncio.create_task(endpoint.versions.activate(make_spec(Echo, None)))
        new = endpoint.version
        while endpoint.version is new:  # noqa: ASYNC110 - the endpoint tells nobody
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        rest.set()
        answer = await slow
        await swapping
        return answer

    status, _, body = run_with(Echo, swap)
    assert (status, body) == (200, b"[1.0]")


def test_a_version_that_can_not_load_changes_nothing() -> None:
    """When the new predictor fails to load, the old one goes on serving."""

    class Broken(Echo):
        @classmethod
        def from_checkpoint(cls, checkpoint: Checkpoint, **_kwargs: Any) -> Any:
            raise KeyError("weights")

    async def swap(endpoint: Endpoint) -> Any:
        with pytest.raises(KeyError, match="weights"):
            await endpoint.versions.activate(make_spec(Broken, None))
        return await ask(endpoint)

    assert run_with(Echo, swap)[0] == 200


def test_the_endpoint_speaks_only_http() -> None:
    """Anything else than HTTP and lifespan is refused as the ASGI specification says."""

    async def websocket(endpoint: Endpoint) -> None:
        with pytest.raises(RuntimeError, match="speaks HTTP"):
            await ask(endpoint, type="websocket")

    run_with(Echo, websocket)


# -- encodings --------------------------------------------------------------------------------------

ANSWERS: list[tuple[Any, Any]] = [
    (np.array([[1.0, np.nan, np.inf, -np.inf]]), [1.0, None, "Infinity", "-Infinity"]),
    (np.array([[2**64 - 1]], dtype="uint64"), [2**64 - 1]),
    ([b"text"], "text"),
    ([b"\xff\x00"], {"base64": "/wA="}),
    ([pd.Timestamp("2024-02-29 12:00", tz="Europe/Berlin")], "2024-02-29T12:00:00+01:00"),
    ([dt.datetime(2024, 2, 29, tzinfo=dt.UTC)], "2024-02-29T00:00:00+00:00"),
    ([{"a": np.float32(1.5), "b": [np.int8(3), None]}], {"a": 1.5, "b": [3, None]}),
    (["ü\ud800"], "ü\ud800"),
    ({"mean": np.array([1.0]), "std": np.array([2.0])}, {"mean": 1.0, "std": 2.0}),
]


@pytest.mark.parametrize(("output", "expected"), ANSWERS)
def test_answers_have_a_stated_encoding(serve_local: Any, output: Any, expected: Any) -> None:
    """NaN, infinity, zones, uint64, bytes and the rest arrive in their documented form."""
    service = serve_local(predicting(lambda _batch: output), name="answers")
    answer = service.request({"array": [1]})
    assert answer.status_code == 200
    assert json.loads(answer.content) == expected


def test_an_answer_without_json_form_names_its_type(serve_local: Any) -> None:
    """An answer that can't be sent is a 500 that says which type is where."""
    service = serve_local(predicting(lambda _batch: [{"model": object()}]), name="answers")
    answer = service.request({"array": [1]})
    assert answer.status_code == 500
    assert "object" in sentence_of(answer)
    assert "model" in sentence_of(answer)
    assert recorded(service, 1).status.tolist() == [500]


# -- batching, seen over HTTP -----------------------------------------------------------------------


def test_without_batching_predict_gets_the_adapters_output(serve_local: Any, post_all: Any) -> None:
    """With batching off each request is one call, its input and its answer unchanged."""
    seen: list[Any] = []

    def predict(data: Any) -> Any:
        seen.append(data)
        return data

    service = serve_local(predicting(predict), name="single", http_adapter=json_request, batching=False)
    bodies = [[1, 2], {"a": {"b": 1}}, "text", 5, None]
    # requests sends no body at all for json=None
    answers = [service.request(data=json.dumps(body)) for body in bodies]
    assert [answer.json() for answer in answers] == bodies
    assert seen == bodies
    assert service.batches().batch_size.tolist() == [1] * 5
    arrays = serve_local(predicting(lambda data: data.shape), name="shapes", batching=False)
    assert [answer.json() for answer in post_all(arrays, [{"array": [1, 2]}] * 4)] == [[2]] * 4


def test_without_batching_a_tuple_is_a_fine_answer(serve_local: Any) -> None:
    """With nothing to divide, any output that has a JSON form is an answer."""
    service = serve_local(predicting(lambda data: (1, None)), name="single", batching=False)
    assert service.request({"array": [1]}).json() == [1, None]


def test_a_full_queue_refuses_with_retry_after(serve_local: Any, script: Any, raw_request: Any) -> None:
    """Beyond max_queue_size a request is a 503 with Retry-After at once, and those that wait are answered."""
    service = serve_local(
        script.predictor,
        script.checkpoint,
        name="full",
        batching_params={"max_queue_size": 3, "max_batch_size": 1},
    )
    hold = json.dumps(script.row(script.HOLD)).encode()
    held = raw_request(service.url, hold)
    script.wait_until_held()
    body = json.dumps(script.row()).encode()
    waiting = [raw_request(service.url, body) for _ in range(5)]
    refused: list[bytes] = []
    answered: list[bytes] = []

    while len(refused) < 2:
        readable, _, _ = select.select(waiting, [], [], 30)
        for connection in readable:
            refused.append(read_reply(connection))
            waiting.remove(connection)
            connection.close()
    script.release()
    for connection in [held, *waiting]:
        answered.append(read_reply(connection))
        connection.close()
    for reply in refused:
        assert reply.startswith(b"HTTP/1.1 503")
        assert re.search(rb"retry-after: [1-9]", reply.lower())
        assert b"3 requests wait already" in reply
    assert [reply[:12] for reply in answered] == [b"HTTP/1.1 200"] * 4


def test_a_frame_without_rows_is_answered_without_predict(serve_local: Any) -> None:
    """A request of 0 rows gets [] and predict is not called."""
    service = serve_local(Echo, name="frames", http_adapter=pandas_read_json)
    answer = service.request([])
    assert (answer.status_code, answer.json()) == (200, [])
    assert service.batches().empty


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        (lambda batch: (batch, batch), ["a tuple", "return a list, or stack mean and std into one array"]),
        (lambda batch: None, ["None", "return"]),
        (lambda batch: 5.0, ["float"]),
        (lambda batch: "text", ["str"]),
        (lambda batch: np.float64(5), ["predict returned"]),
        (lambda batch: batch[:0], ["0", "3"]),
        (lambda batch: np.concatenate([batch, batch]), ["6", "3"]),
        (lambda batch: {"a": batch, "b": batch[:1]}, ["'b'", "1", "3"]),
        (lambda batch: (row for row in batch), ["generator"]),
        (iter, ["iterator"]),
    ],
)
def test_outputs_that_can_not_be_divided(
    serve_local: Any, post_all: Any, output: Any, parts: list[str]
) -> None:
    """An output of the wrong kind or length is a 500 for every member that names what came, with no retry."""
    service = serve_local(predicting(output), name="odd", max_batch_size=3, batch_wait_timeout_s=20.0)
    answers = post_all(service, [{"array": [i]} for i in range(3)])
    assert [answer.status_code for answer in answers] == [500] * 3
    for answer in answers:
        sentence = sentence_of(answer)
        for part in parts:
            assert part in sentence
        assert sentence.endswith(".")
    assert service.batches().batch_size.tolist() == [3]


def test_one_poisoned_request_fails_alone(serve_local: Any, script: Any, post_all: Any) -> None:
    """One poisoned request among 31 good ones in a batch: 31 answers and 1 error."""
    service = serve_local(
        script.predictor, script.checkpoint, name="poisoned", max_batch_size=32, batch_wait_timeout_s=20.0
    )
    bodies = [script.row(script.POISON if i == 13 else script.FINE, i) for i in range(32)]
    answers = post_all(service, bodies)
    assert script.sizes()[0] == 32
    for i, answer in enumerate(answers):
        if i == 13:
            assert answer.status_code == 500
            assert sentence_of(answer).rstrip(".") == "predict raised ValueError: a poisoned row"
        else:
            assert answer.json() == [2.0, i + 2.0]
    assert len(script.sizes()) <= 1 + 2 * 5 + 1


def test_a_coroutine_predict_is_awaited(serve_local: Any, post_all: Any) -> None:
    """An async predict works, batched, and its exceptions are those of predict."""

    class Slow(Echo):
        async def predict(self, data: Any, **_kwargs: Any) -> Any:
            await asyncio.sleep(0)
            if (data < 0).any():
                raise ValueError("negative")
            return data * 2

    service = serve_local(Slow, name="slow", max_batch_size=4, batch_wait_timeout_s=20.0)
    answers = post_all(service, [{"array": [i]} for i in (1, 2, -1, 3)])
    assert [answer.json() for answer in answers if answer.status_code == 200] == [[2.0], [4.0], [6.0]]
    assert sentence_of(answers[2]).rstrip(".") == "predict raised ValueError: negative"


ROWS = [
    ("untouched", lambda frame: frame, [1]),
    ("sorts", lambda frame: frame.sort_values("x", ascending=False), [1]),
    ("repeats", lambda frame: frame.loc[frame.index.repeat(2)], [2]),
    ("filters", lambda frame: frame[frame.x % 2 == 0], [0, 1]),
]


@pytest.mark.parametrize(("kind", "predict", "times"), ROWS)
def test_rows_go_back_to_whom_they_belong(
    serve_local: Any, post_all: Any, kind: str, predict: Any, times: list[int]
) -> None:
    """Requests of 1, 3 and 0 rows in one batch get exactly their own rows, in whatever order predict returns them."""
    service = serve_local(
        predicting(predict),
        name="rows",
        http_adapter=pandas_read_json,
        max_batch_size=2,
        batch_wait_timeout_s=20.0,
    )
    sent = [[{"x": 5}], [{"x": 2}, {"x": 9}, {"x": 4}], []]
    answers = [answer.json() for answer in post_all(service, sent)]
    assert service.batches().rows.tolist() == [4]
    for rows, answer in zip(sent, answers, strict=True):
        returned = [row["x"] for row in answer]
        for row in rows:
            expected = 1 - row["x"] % 2 if kind == "filters" else times[0]
            assert returned.count(row["x"]) == expected
        assert len(returned) == sum(returned.count(row["x"]) for row in rows)


def test_cancer_rows_share_batches(serve_local: Any, post_all: Any) -> None:
    """64 concurrent rows, whose JSON mixes integers and floats, need at most 4 batches of 32."""
    from sklearn.datasets import load_breast_cancer

    frame = load_breast_cancer(as_frame=True).data.head(64)
    bodies = [
        [{name: int(value) if value == int(value) else value for name, value in row.items()}]
        for row in frame.to_dict(orient="records")
    ]
    gate = threading.Event()
    taken: list[int] = []

    def predict(batch: Any) -> Any:
        taken.append(len(batch))
        gate.wait(30)
        return batch.iloc[:, 0]

    service = serve_local(
        predicting(predict), name="cancer", http_adapter=pandas_read_json, max_batch_size=32
    )
    batcher = service._host._endpoint.version.batcher

    def open_when_all_are_here() -> None:
        deadline = time.monotonic() + 30
        while sum(taken) + len(batcher) < 64 and time.monotonic() < deadline:
            time.sleep(0.002)
        gate.set()

    opener = threading.Thread(target=open_when_all_are_here)
    opener.start()
    answers = post_all(service, bodies)
    opener.join()
    assert [answer.json() for answer in answers] == [[value] for value in frame.iloc[:, 0]]
    assert len(service.batches()) <= 4


def test_a_cancelled_request_harms_nobody(
    serve_local: Any, script: Any, raw_request: Any, eventually: Any
) -> None:
    """A client that leaves while its batch runs changes nothing for the others in it."""
    service = serve_local(
        script.predictor, script.checkpoint, name="leaving", max_batch_size=3, batch_wait_timeout_s=20.0
    )
    row = json.dumps(script.row()).encode()
    leaving = raw_request(service.url, json.dumps(script.row(script.HOLD)).encode())
    staying = [raw_request(service.url, row) for _ in range(2)]
    script.wait_until_held()
    leaving.close()
    eventually(lambda: service.requests().status.tolist() == [499], "the leaving client is noticed")
    script.release()
    for connection in staying:
        assert read_reply(connection).endswith(b"[2.0,42.0]")
        connection.close()
    assert script.sizes() == [3]
