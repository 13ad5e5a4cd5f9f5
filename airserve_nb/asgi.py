"""What the endpoint needs of ASGI: the names of its types, and reading and sending in one piece."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = [
    "ClientLeftError",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "acknowledge_lifespan",
    "read_body",
    "send_whole",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientLeftError(Exception):
    """The connection ended before the request did."""


async def read_body(receive: Receive) -> bytes:
    """Return a request's whole body; raises ClientLeftError when it does not come."""
    message = await receive()
    if not message.get("more_body", False):
        _raise_if_gone(message)
        return bytes(message.get("body", b""))
    parts = [message.get("body", b"")]
    while message.get("more_body", False):
        message = await receive()
        _raise_if_gone(message)
        parts.append(message.get("body", b""))
    return b"".join(parts)


def _raise_if_gone(message: Message) -> None:
    if message["type"] == "http.disconnect":
        raise ClientLeftError


async def send_whole(send: Send, status: int, content: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a whole response."""
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": content})


async def acknowledge_lifespan(receive: Receive, send: Send) -> None:
    """Say to the host's start and end that there is nothing to do."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
