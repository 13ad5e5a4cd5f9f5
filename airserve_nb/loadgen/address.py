"""Where the client connects to, and how a connection that fails is put in words."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from urllib.parse import urlsplit

from airserve_nb.loadgen.wire import CLOSED, Connection, Owner

__all__ = ["Address"]


class Address:
    """The host and port of a URL; its name is looked up once.

    Parameters
    ----------
    url
        ``http`` or ``https``.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._secure else 80)
        self._places: asyncio.Future[list[str]] | None = None

    async def connect(self, owner: Owner) -> Connection:
        """Open a connection to the first of its addresses that takes one.

        Raises
        ------
        OSError
            When none does.
        """
        if self._places is None:
            self._places = asyncio.ensure_future(self._look_up())
        places = await asyncio.shield(self._places)
        for place in places:
            try:
                connection = await self._connect_to(place, owner)
            except OSError:
                if place == places[-1]:
                    raise
            else:
                if len(places) > 1:  # the others need not be tried again
                    self._places = asyncio.ensure_future(_given([place]))
                return connection
        raise OSError("it has no address")

    async def _look_up(self) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def _connect_to(self, place: str, owner: Owner) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(owner),
            place,
            self._port,
            ssl=self._secure,
            server_hostname=self._host if self._secure else None,
        )
        return connection

    def sentence(self, error: Exception) -> str:
        """Say what happened to a connection that could not be opened."""
        where = f"{self._host}:{self._port}"
        if isinstance(error, ConnectionRefusedError):
            return f"The connection was refused: nothing listens at {where}."
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            return CLOSED
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError):
            with contextlib.suppress(TypeError):
                reason = error.strerror or reason
        return f"No connection to {where} could be opened: {reason}."


async def _given(places: list[str]) -> list[str]:
    return places
