"""One HTTP/1.1 connection of the client: writes a message, reads its answer, notes when.

The grammar is llhttp's, by way of httptools. What is ours is small on purpose: no pool, no task and no future stands
between the socket and the clock, so that a request costs the client some 20 microseconds and not 100.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from base64 import b64encode
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import unquote, urlsplit

import httptools

from airserve_nb.loadgen.plan import Message

__all__ = ["Connection", "Owner", "encoded"]

CLOSED = "The server closed the connection before it had answered."
_KEPT_HEADERS = frozenset(
    {b"server-timing", b"x-airserve-request-id", b"x-request-id", b"x-airserve-version", b"location", b"content-encoding"}
)  # fmt: skip
_NO_BODY = frozenset({204, 304})


class Owner(Protocol):
    """Who is told what a connection has come to."""

    def answered(self, connection: Connection, now: float) -> None:
        """Take an answer that is complete; the connection holds it."""

    def broken(self, connection: Connection, sentence: str) -> None:
        """Take that a connection ended; its request, if it has one, will get no answer."""


class Connection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None
        self.request = -1
        """The request under way; -1 for none."""
        self.reusable = True
        self.first_byte = 0.0
        """When the answer began, on ``time.perf_counter``."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._sized = False
        self._headless = False
        self._in_body = False
        self._complete = False
        self._last_error: Exception | None = None

    def send(self, request: int, message: bytes, *, headless: bool) -> None:
        """Write a request; ``headless`` says that its answer has no body, whatever its headers say."""
        self.request, self._headless = request, headless
        self.first_byte, self.status = 0.0, 0
        self.headers, self._body = {}, []
        self._sized = self._in_body = self._complete = False
        if self.transport is not None:
            self.transport.write(message)

    def body(self) -> bytes:
        """Return the answer's body, unpacked where the server packed it unasked."""
        body = b"".join(self._body)
        if self.headers.get(b"content-encoding", b"").lower() in {b"gzip", b"deflate"}:
            with contextlib.suppress(zlib.error):
                return zlib.decompress(body, wbits=47)  # 47: by its own header
        return body

    def abort(self) -> None:
        """End it at once and tell nobody."""
        self.request = -1
        self.reusable = False
        if self.transport is not None:
            self.transport.abort()

    # -- what asyncio calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment] # of a stream

    def data_received(self, data: bytes) -> None:
        """Read a part of an answer."""
        now = time.perf_counter()
        if self.request < 0:  # words that nobody asked for
            self._end("The server spoke unasked.")
            return
        if not self.first_byte:
            self.first_byte = now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end("The server wants to speak another protocol than HTTP.")
        except httptools.HttpParserError:
            self._end("The server's answer is not HTTP.")
        else:
            if self._complete:
                self._owner.answered(self, now)

    def connection_lost(self, error: Exception | None) -> None:
        """End; an answer whose length nobody told ends with its connection."""
        self.reusable = False
        if self.request >= 0 and self._in_body and not self._sized and error is None:
            self._owner.answered(self, time.perf_counter())
        else:
            self._end(CLOSED)

    def _end(self, sentence: str) -> None:
        self.reusable = False
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
            self._owner.broken(self, sentence)
        self.request = -1

    # -- what the parser calls ------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the few that are wanted."""
        key = name.lower()
        if key in _KEPT_HEADERS:
            before = self.headers.get(key) if key == b"server-timing" else None  # a proxy may add its own
            self.headers[key] = value if before is None else before + b", " + value
        elif key in {b"content-length", b"transfer-encoding"}:
            self._sized = True

    def on_headers_complete(self) -> None:
        """Learn the status."""
        self.status = self._parser.get_status_code()
        self._in_body = self.status >= 200 and self.status not in _NO_BODY  # noqa: PLR2004 - 1xx announce an answer
        if self._headless and self._in_body:
            self._complete, self.reusable = True, False  # the parser would wait for the body

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Know that the answer is whole."""
        if self.status < 200:  # noqa: PLR2004 - as above
            self.headers = {}
            return
        self._complete = True
        self.reusable = self.reusable and self._parser.should_keep_alive()


def encoded(message: Message) -> bytes:
    """Return a message as it goes over the wire."""
    parts = urlsplit(message.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    given = {name.lower() for name, _ in message.headers}
    own: Sequence[tuple[str, str]] = [
        ("Host", parts.netloc.rpartition("@")[2]),
        ("User-Agent", "airserve_nb"),
        ("Accept", "*/*"),
    ]
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        own = [*own, ("Authorization", f"Basic {b64encode(user.encode()).decode('ascii')}")]
    if message.body or message.method not in {"GET", "HEAD", "DELETE", "OPTIONS"}:
        own = [*own, ("Content-Length", str(len(message.body)))]
    headers = [*((name, value) for name, value in own if name.lower() not in given), *message.headers]
    lines = [f"{message.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + message.body
