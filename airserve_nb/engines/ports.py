"""Find ports of this machine that nobody uses."""

from __future__ import annotations

import errno
import socket

from airserve_nb.errors import DeployError, OptionError

__all__ = ["FIRST_PORT", "check_port", "free_port_near", "free_ports", "listen", "listen_near"]

FIRST_PORT = 8000
TRIES = 100
HIGHEST_PORT = 65_535


def check_port(port: int | None) -> None:
    """Refuse what can't be a port."""
    if port is not None and (
        isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= HIGHEST_PORT
    ):
        raise OptionError(f"port is {port!r}, but must be a number from 1 to {HIGHEST_PORT}, or None.")


def listen_near(port: int | None) -> socket.socket:
    """Return a socket that listens on 127.0.0.1: on ``port``, or on 8000 or the next free port.

    Raises
    ------
    DeployError
        When the port that was asked for is taken.
    """
    check_port(port)
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + TRIES):
        listener = listen("127.0.0.1", candidate)
        if listener is not None:
            return listener
    if port is not None:
        raise DeployError(f"Port {port} is taken; choose another, or leave it out for the next free one.")
    raise DeployError(f"Ports {FIRST_PORT} to {FIRST_PORT + TRIES - 1} are all taken; choose one with port=.")


def listen(host: str, port: int) -> socket.socket | None:
    """Return a socket that listens there; None when the port is taken."""
    # Named protocol: asyncio turns Nagle's delay off for no other socket, which costs 40 ms an answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A port whose last connections still linger is free; a port that somebody listens on is not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            raise
        return None
    return listener


def free_port_near(port: int | None) -> int:
    """Return ``port`` if it is free, or 8000 or the next free port for None."""
    with listen_near(port) as listener:
        return int(listener.getsockname()[1])


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports that are free on all interfaces at this moment."""
    held = []
    try:
        for _ in range(count):
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            held.append(listener)
            listener.bind(("", 0))
        return [int(listener.getsockname()[1]) for listener in held]
    finally:
        for listener in held:
            listener.close()
