"""Records over a socket in a folder: what one replica answers, and what happens when it is slow, gone or was never there."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from airserve_nb.engines.record_socket import answer_on_socket, read_sockets
from airserve_nb.telemetry import Cursor, Page, Recorder, RequestRecord


def record(number: int) -> RequestRecord:
    return RequestRecord(
        request_id=f"r{number}", arrived_at=float(number), status=200, batch_id="b", batch_size=1, queue_ms=1.0,
        predict_ms=2.0, overhead_ms=0.5, total_ms=3.5, version="v1", replica="a", payload=b"[1]",
    )  # fmt: skip


@contextmanager
def replica(folder: Path, name: str, page: Callable[[Cursor], Page]) -> Iterator[asyncio.Server | None]:
    """Answer in the event loop of a thread, which ends with the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(answer_on_socket(folder, name, page), loop).result(10)
    try:
        yield server
    finally:
        if server is not None:
            loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(_rest(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        assert not thread.is_alive()


async def _rest() -> None:
    """Let what was begun in this loop come to its end."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        with suppress(asyncio.CancelledError):
            await task


def test_what_is_new_of_every_replica(tmp_path: Path) -> None:
    """Each is asked from its own cursor on, and reading takes nothing away."""
    recorders = {"a": Recorder(), "b": Recorder()}
    for number in range(3000):
        recorders["a"].add_request(record(number))
    recorders["b"].add_request(record(7))
    with replica(tmp_path, "a", recorders["a"].since), replica(tmp_path, "b", recorders["b"].since):
        first = dict(read_sockets(tmp_path, {}, timeout_s=10))
        assert {name: len(page.requests) for name, page in first.items()} == {"a": 3000, "b": 1}
        assert first["a"] == recorders["a"].since()
        recorders["a"].add_request(record(3000))
        cursors = {name: page.cursor for name, page in first.items()}
        again = dict(read_sockets(tmp_path, cursors, timeout_s=10))
        assert [one.request_id for one in again["a"].requests] == ["r3000"]
        assert again["b"].requests == ()


def test_a_replica_that_is_gone(tmp_path: Path) -> None:
    """It is left out, and its socket is removed; those that answer are read."""
    gone = socket.socket(socket.AF_UNIX)
    gone.bind(str(tmp_path / "gone.sock"))
    gone.close()
    with replica(tmp_path, "here", Recorder().since):
        assert [name for name, _ in read_sockets(tmp_path, {}, timeout_s=10)] == ["here"]
        assert [path.name for path in tmp_path.iterdir()] == ["here.sock"]
    assert read_sockets(tmp_path / "never", {}, timeout_s=10) == []


@pytest.mark.parametrize("half", [b"", b"\x80\x05"])
def test_a_replica_that_ends_instead_of_answering(tmp_path: Path, half: bytes) -> None:
    """Half an answer counts for nothing."""
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(tmp_path / "dying.sock"))
        dying.listen()

        def end() -> None:
            connection, _ = dying.accept()
            with connection:
                connection.recv(100)
                connection.sendall(half)

        thread = threading.Thread(target=end)
        thread.start()
        assert read_sockets(tmp_path, {}, timeout_s=10) == []
        thread.join(10)


def test_a_replica_that_is_too_busy(tmp_path: Path) -> None:
    """Nobody waits for it for ever, and it is not taken for gone."""
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(tmp_path / "busy.sock"))
        busy.listen()
        with pytest.raises(TimeoutError, match=r"Replica busy was too busy to answer within 0\.05 s"):
            read_sockets(tmp_path, {}, timeout_s=0.05)
    assert (tmp_path / "busy.sock").exists()


def test_a_folder_that_holds_no_socket(tmp_path: Path) -> None:
    """A path that is too long for the system is no error: there is another way to read."""
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with replica(deep, "a", Recorder().since) as server:
        assert server is None
    assert list(deep.iterdir()) == []


def test_a_page_that_can_not_be_made(tmp_path: Path) -> None:
    """The connection ends, the replica counts as not there this time, and it answers the next one."""
    recorder = Recorder()
    pages = iter([ZeroDivisionError()])

    def page(cursor: Cursor) -> Page:
        for error in pages:
            raise error
        return recorder.since(cursor)

    with replica(tmp_path, "a", page):
        assert read_sockets(tmp_path, {}, timeout_s=10) == []
        assert [name for name, _ in read_sockets(tmp_path, {}, timeout_s=10)] == ["a"]
