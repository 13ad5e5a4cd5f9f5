"""The client's HTTP: whatever shape an answer has, it is read as it was meant, and whatever is no answer is told."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airserve_nb.loadgen.plan import Message
from airserve_nb.loadgen.run import probe
from airserve_nb.loadgen.wire import encoded

Say = Callable[..., str]
OK = b"HTTP/1.1 200 OK\r\n"


async def converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parts: tuple[bytes, ...], *, close: bool
) -> None:
    while True:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.002)
        if close:
            return


@pytest.fixture
def say() -> Iterator[Say]:
    """Serve fixed bytes, in parts, to every request; returns the URL. The connection is kept unless told otherwise."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    threads: list[threading.Thread] = []

    def start(*parts: bytes, close: bool = False) -> str:
        ready: list[int] = []
        started = threading.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await converse(reader, writer, parts, close=close)
            writer.close()

        async def main() -> None:
            listener = await asyncio.start_server(serve, "127.0.0.1", 0)
            ready.append(listener.sockets[0].getsockname()[1])
            started.set()
            await stop.wait()
            listener.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(main())

        threads.append(threading.Thread(target=run))
        threads[0].start()
        assert started.wait(10)
        return f"http://127.0.0.1:{ready[0]}/x"

    yield start
    loop.call_soon_threadsafe(stop.set)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("parts", "close", "answer"),
    [
        ((OK + b"Content-Length: 6\r\n\r\n[4", b"2.0]"), False, [42.0]),
        ((OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[4", b"\r\n2\r\n2]\r\n0\r\n\r\n"), False, [42]),
        ((OK + b"\r\n[4", b"2]"), True, [42]),
        ((b"HTTP/1.0 200 OK\r\n\r\n[42]",), True, [42]),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), False, ""),
        ((OK + b"Content-Length: 4\r\nConnection: close\r\n\r\n[42]",), True, [42]),
        ((b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\n[42]",), False, [42]),
        ((OK + b"X-Airserve-Version: v3\r\n", b"Content-Length: 4\r\n\r\n", b"[42]"), False, [42]),
    ],
    ids=["sized", "chunked", "until-closed", "1.0", "empty", "closes", "continue", "in-pieces"],
)
def test_shapes_of_answers(say: Say, parts: tuple[bytes, ...], answer: Any, *, close: bool) -> None:
    """Every way to end a body is understood, one request after the other on as few connections as it allows."""
    result = probe(say(*parts, close=close), {"data": None, "method": "GET"}, requests=6, concurrency=2)
    assert result.requests.error.tolist() == [None] * 6
    assert result.requests.answer.tolist() == [answer] * 6


def test_a_packed_answer(say: Say) -> None:
    """A server that packs its answer unasked is read too."""
    body = gzip.compress(b"[42]", mtime=0)
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert probe(say(head + body), {"data": None}, requests=2).requests.answer.tolist() == [[42]] * 2


def test_timings_of_a_proxy_too(say: Say) -> None:
    """A proxy that adds a Server-Timing of its own does not hide the server's."""
    ours = b'Server-Timing: queue;dur=2, predict;dur=5, batch;desc="b-1/4"\r\n'
    proxy = b"Server-Timing: cache;dur=1\r\n"
    url = say(OK + proxy + ours + proxy + b"Content-Length: 0\r\n\r\n")
    table = probe(url, {"data": None}, requests=2).requests
    assert table[["batch_id", "queue_ms", "predict_ms"]].to_numpy().tolist() == [["b-1", 2, 5]] * 2


def test_the_head_alone(say: Say) -> None:
    """The answer to HEAD has no body, whatever length it names."""
    result = probe(
        say(OK + b"Content-Length: 400\r\n\r\n"), {"data": None, "method": "HEAD"}, requests=3, concurrency=1
    )
    assert result.requests.outcome.tolist() == ["ok"] * 3


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "The server's answer is not HTTP."),
        (
            (OK + b"Content-Length: 9\r\n\r\nhalf",),
            "The server closed the connection before it had answered.",
        ),
        (
            (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf",),
            "The server closed the connection before it had answered.",
        ),
        ((OK + b"Content-Le",), "The server closed the connection before it had answered."),
        ((b"",), "The server closed the connection before it had answered."),
        (
            (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",),
            "The server wants to speak another protocol than HTTP.",
        ),
    ],
    ids=["not-http", "cut", "cut-chunk", "cut-head", "nothing", "upgrade"],
)
def test_no_answers(say: Say, parts: tuple[bytes, ...], sentence: str) -> None:
    """What is no whole answer is a connection error with its sentence, once a request."""
    result = probe(say(*parts, close=True), {"data": None}, requests=4, concurrency=2, timeout_s=10)
    assert result.requests.outcome.tolist() == ["connection_error"] * 4
    assert set(result.requests.error) == {sentence}


def test_a_name_that_is_none() -> None:
    """A host that nobody knows is a connection error that names it."""
    result = probe("http://no-such-host.invalid/x", 1, requests=2)
    assert result.requests.outcome.tolist() == ["connection_error"] * 2
    assert result.requests.error[0].startswith("No connection to no-such-host.invalid:80 could be opened: ")


def test_https_to_a_plain_port() -> None:
    """A server that does not speak TLS is told as such, and holds nothing up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up_twice() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up_twice)
        thread.start()
        result = probe(f"https://127.0.0.1:{listener.getsockname()[1]}/x", 1, requests=1)
        thread.join(10)
    assert result.requests.outcome.tolist() == ["connection_error"]


class TestMessages:
    def test_a_get_has_no_body(self) -> None:
        """A request without a body says nothing of a length."""
        text = encoded(Message("GET", "http://h:1/a?b=1", (), b"")).decode()
        assert text.startswith("GET /a?b=1 HTTP/1.1\r\nHost: h:1\r\n")
        assert "content-length" not in text.lower()

    def test_an_empty_post_says_so(self) -> None:
        """A POST without a body has the length 0."""
        assert b"Content-Length: 0\r\n" in encoded(Message("POST", "http://h/", (), b""))

    def test_given_headers_win(self) -> None:
        """What the user gives stands instead of ours, and is not doubled."""
        text = encoded(Message("POST", "http://h/", (("host", "other"), ("X-A", "ü")), b"x")).decode()
        assert text.lower().count("host:") == 1
        assert "host: other" in text
        assert "X-A: ü" in text

    def test_a_user_in_the_url(self) -> None:
        """Name and password of the URL are sent as such, and not in the host."""
        text = encoded(Message("GET", "http://me:p%40ss@h/", (), b"")).decode()
        assert "Host: h\r\n" in text
        assert "Authorization: Basic bWU6cEBzcw==\r\n" in text
