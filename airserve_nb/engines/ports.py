"""Find ports of this machine that nobody uses."""

from __future__ import annotations

import errno
import socket

from airserve_nb.errors import DeployError, OptionError

__all__ = ["FIRST_PORT", "check_port", "free_ports", "held_port_near", "listen_near"]

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
        # Named protocol: asyncio turns Nagle's delay off for no other socket, which costs 40 ms an answer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        # A port whose last connections still linger is free; a port that somebody listens on is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
            listener.listen(2048)
        except OSError as error:
            listener.close()
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
        else:
            return listener
    if port is not None:
        raise DeployError(f"Port {port} is taken; choose another, or leave it out for the next free one.")
    raise DeployError(f"Ports {FIRST_PORT} to {FIRST_PORT + TRIES - 1} are all taken; choose one with port=.")


def held_port_near(port: int | None) -> socket.socket:
    """Return a socket that keeps ``port``, or 8000 or the next free port, for a server of this user until it is closed.

    A server that shares its port (``SO_REUSEPORT``), as HAProxy and Serve's proxy do, can begin to listen there
    meanwhile; no other program can, and ``listen_near`` passes over it. Without it, two kernels that start at once could
    choose the same port, and their HAProxies would share it: each would be sent some of the other's requests.

    Raises
    ------
    DeployError
        When the port that was asked for is taken.
    """
    while True:
        with listen_near(port) as listener:
            free = listener.getsockname()
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(free)
        except OSError:
            # Taken a moment ago: look again.
            holder.close()
            continue
        if hasattr(socket, "SO_REUSEPORT"):
            # Only now: with it a port can be bound on which another kernel's server listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # From here on nobody can begin to listen; somebody may have, just before.
        if not _answers(free):
            return holder
        holder.close()


def _answers(address: tuple[str, int]) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(address) == 0


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
