"""A bare HTTP server for the probe's benchmarks: ``python plain_server.py``; prints its port, ends with its input.

The path says how it behaves. ``/fast``: answers at once. ``/work``: after 150 microseconds of work. ``/stall``: at once,
but not within the last second of every ten. ``/orders``: as the body says: ``ok``, ``fail``, ``reset``, ``hang``, ``cut``.
``/counts``: how many of each order have come.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter

WORK_S = 150e-6
CYCLE_S, STALL_S = 10.0, 1.0
counts: Counter[str] = Counter()


def answer(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


FINE = answer(b"200 OK", b"[42.0]")


class Server(asyncio.Protocol):
    """Reads requests, answers each."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment] # of a stream

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            found = head.find(b"content-length:")
            length = int(head[found + 15 :].split(b"\r\n", 1)[0]) if found >= 0 else 0
            if len(self.data) < end + 4 + length:
                return
            body, self.data = self.data[end + 4 : end + 4 + length], self.data[end + 4 + length :]
            self.respond(head.split(b" ", 2)[1], body)

    def respond(self, path: bytes, body: bytes) -> None:
        if path == b"/work":
            until = time.perf_counter() + WORK_S
            while time.perf_counter() < until:
                pass
        elif path == b"/stall":
            phase = time.monotonic() % CYCLE_S
            if phase >= CYCLE_S - STALL_S:
                asyncio.get_running_loop().call_later(CYCLE_S - phase, self.transport.write, FINE)
                return
        elif path == b"/orders":
            self.obey(json.loads(body)["do"])
            return
        elif path == b"/counts":
            self.transport.write(answer(b"200 OK", json.dumps(counts).encode()))
            return
        self.transport.write(FINE)

    def obey(self, order: str) -> None:
        counts[order] += 1
        if order == "ok":
            self.transport.write(FINE)
        elif order == "fail":
            self.transport.write(answer(b"500 Internal Server Error", b'{"error": "On order."}'))
        elif order == "reset":
            self.transport.abort()
        elif order == "cut":
            self.transport.write(FINE[:-3])
            self.transport.close()


async def main() -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(Server, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{listener.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, os.read, 0, 1)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
