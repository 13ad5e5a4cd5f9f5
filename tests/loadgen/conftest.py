"""A small HTTP server that does what a request's body asks for, so that failures come exactly when wanted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

STALL_S = 0.5
HEADERS = (
    'Server-Timing: queue;dur=2, predict;dur=5.5, batch;desc="r1-{batch}/{size}"\r\n'
    "X-Request-Id: request-{number}\r\nX-Airserve-Version: v1\r\n"
)


@dataclass
class ToyServer:
    """Answers ``{"do": ...}``: ``ok`` (the default), ``fail``, ``hang``, ``stall``, ``close``, ``cut``, ``garbage``, ``redirect``."""

    loop: asyncio.AbstractEventLoop
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    timing: bool = True
    serial: bool = False
    """Whether it answers one request at a time."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
    seen: threading.Condition = field(default_factory=threading.Condition)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def wait_for(self, count: int) -> None:
        """Wait until so many requests have come."""
        with self.seen:
            assert self.seen.wait_for(lambda: len(self.bodies) >= count, timeout=30)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [
            line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length")
        ]
        body = await reader.readexactly(int(lengths[0]) if lengths else 0)
        path = head.split()[1]
        if path.endswith("openapi.json"):
            found = path in self.files
            self._answer(writer, 200 if found else 404, json.dumps(self.files.get(path, {})).encode(), "")
            return True
        with self.seen:
            number = len(self.bodies)
            self.bodies.append(body)
            self.heads.append(head)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.seen.notify_all()
        try:
            if self.serial:
                async with self.turn:
                    return await self._do(writer, _order(body), number, body)
            return await self._do(writer, _order(body), number, body)
        finally:
            self.in_flight -= 1

    async def _do(self, writer: asyncio.StreamWriter, order: str, number: int, body: bytes) -> bool:
        if order == "hang":
            await self.released.wait()
            return False
        if order == "stall":
            await asyncio.sleep(STALL_S)
        if order == "close":
            return False
        if order == "cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            return False
        if order == "garbage":
            writer.write(b"this is not HTTP\r\n\r\n")
            return False
        await asyncio.sleep(0)  # let the other requests of a burst come in
        extra = HEADERS.format(batch=number // 4, size=4, number=number) if self.timing else ""
        if order == "fail":
            sentence = b'{"error": "predict raised <b>ValueError</b>: bad row."}'
            self._answer(writer, 500, sentence, extra)
        elif order == "redirect":
            self._answer(writer, 307, b"", "Location: /elsewhere\r\n")
        else:
            self._answer(writer, 200, body or b'"nothing"', extra)
        return True

    def _answer(self, writer: asyncio.StreamWriter, status: int, body: bytes, extra: str) -> None:
        head = f"HTTP/1.1 {status} Some\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        writer.write(head.encode() + body)


def _order(body: bytes) -> str:
    with contextlib.suppress(ValueError):
        value = json.loads(body)
        if isinstance(value, dict):
            return str(value.get("do", "ok"))
    return "ok"


@pytest.fixture
def server() -> Iterator[ToyServer]:
    loop = asyncio.new_event_loop()
    toy = ToyServer(loop)
    started = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        listener = await asyncio.start_server(toy.serve, "127.0.0.1", 0, backlog=512)
        toy.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/toy"
        started.set()
        await stop.wait()
        toy.released.set()
        listener.close()
        for writer in toy.writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in toy.writers), return_exceptions=True)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    yield toy
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    assert not thread.is_alive()
