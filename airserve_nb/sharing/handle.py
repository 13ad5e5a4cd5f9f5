"""Sharing: the handle of a deployment that is open to other machines, and how it is opened."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airserve_nb.engines.ports import FIRST_PORT, HIGHEST_PORT, TRIES
from airserve_nb.errors import DeployError, OptionError
from airserve_nb.sharing.plan import ShareLimits, SharePlan, hashed

__all__ = ["Sharing", "checked_host"]

# 128 bits: beyond guessing, short enough to be typed once.
TOKEN_BYTES = 16
CLOSING_PATIENCE_S = 3.0


class Sharing:
    """A deployment that is open to other machines, made by ``Service.share()``.

    Shown at the end of a cell it has the address to type, the token and a line for curl; the token the first time
    only. It closes with the deployment. Its text form never has the token.

    There is no encryption: whoever can read the network's traffic can read the token and all data.

    Parameters
    ----------
    name
        The deployment's name.
    target
        Its URL.
    host
        The address to listen on.
    port
        The port; None for the deployment's own number or the next free one.
    limits
        How much one client may ask.
    example
        A request body that the deployment takes, or None.

    Raises
    ------
    DeployError
        When it can't be opened.
    """

    def __init__(
        self,
        name: str,
        target: str,
        *,
        host: str,
        port: int | None = None,
        limits: ShareLimits | None = None,
        example: Any = None,
    ) -> None:
        self.name = name
        self.example = example
        """A request body that the deployment takes, for the line for curl."""
        self.host = host
        """The address that it listens on."""
        self.limits = limits or ShareLimits()
        """How much one client may ask."""
        self._target = target
        token = secrets.token_urlsafe(TOKEN_BYTES)
        plan = SharePlan(
            name=name,
            host=host,
            ports=_ports_to_try(port, target),
            target=target,
            token_hash=hashed(token),
            limits=self.limits,
        )
        self._process = _start()
        try:
            told = self._tell(plan.to_json())
        except BaseException:
            # An interrupt, too.
            self.close()
            raise
        if "port" not in told:
            self.close()
            where = host if port is None else f"{host}:{port}"
            raise DeployError(
                f"{name} could not be shared at {where}: {told.get('error', 'its proxy did not start')}; "
                "choose another address or port.",
                deployment=name,
            )
        self.port: int = told["port"]
        """The port that it listens on."""
        # Kept until it has been shown.
        self._token: str | None = token

    @property
    def address(self) -> str:
        """What others type, such as ``http://192.168.1.20:8000/adder``."""
        return f"http://{self.host}:{self.port}{urlsplit(self._target).path}"

    @property
    def is_open(self) -> bool:
        """Whether it answers."""
        return self._process.poll() is None

    def reveal(self) -> str:
        """Return the token, once; where there is no display, as in a terminal.

        Raises
        ------
        DeployError
            When it was shown already.
        """
        token, self._token = self._token, None
        if token is None:
            raise DeployError(
                f"The token of {self.name} was shown already, and is not kept; share() makes a new one.",
                deployment=self.name,
            )
        return token

    def aim_at(self, target: str) -> None:
        """Pass requests on to another URL from now on: the deployment has moved."""
        if target != self._target:
            self._tell(json.dumps({"target": target}))
            self._target = target

    def close(self) -> None:
        """End it: nothing answers there any more, and the token is worth nothing."""
        process, self._token = self._process, None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                # What could not be written any more is of no use either.
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(CLOSING_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _tell(self, line: str) -> dict[str, Any]:
        """Send the proxy one line and return its answer; empty when it has gone."""
        if self._process.stdin is None or self._process.stdout is None:
            return {}
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline() or b"{}")
        except (OSError, ValueError):
            return {}
        return answer

    def __repr__(self) -> str:
        """Return a text that is the same in every run, and has no token."""
        state = "open" if self.is_open else "closed"
        # For where there is no display but this: a terminal.
        hint = "; reveal() returns its token, once" if self.is_open and self._token else ""
        return f"<Sharing {self.name}: {state}{hint}>"

    def _repr_html_(self) -> str:
        from airserve_nb.display import sharing_html

        token, self._token = self._token, None
        return sharing_html(self, token)


def checked_host(share: Any) -> str:
    """Return the address to listen on: the one that was given, or for True this machine's outward one.

    Raises
    ------
    OptionError
        For what is no address of one interface of this machine.
    """
    host = _outward_address() if share is True else share
    try:
        address = ipaddress.IPv4Address(host) if isinstance(host, str) else None
    except ValueError:
        address = None
    if address is None:
        raise OptionError(
            f"share is {share!r}, but must be True, False or the IPv4 address of one of this machine's interfaces."
        )
    if address.is_unspecified:
        raise OptionError(
            f"{host} means every interface; share at the address of the one that the others reach."
        )
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise OptionError(
                f"{host} is no address of this machine; see `ip address` for those it has."
            ) from error
    return str(host)


def _outward_address() -> str:
    """Return the address that this machine has for others, by the route to far away. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # An address for documentation, so nobody's.
            probe.connect(("198.51.100.1", 9))
            host = str(probe.getsockname()[0])
        except OSError:
            host = "127.0.0.1"
    if ipaddress.IPv4Address(host).is_loopback:
        raise OptionError(
            "This machine has no route to others, so no address can be chosen; name one, as in share='192.168.1.20'."
        )
    return host


def _ports_to_try(port: int | None, target: str) -> tuple[int, ...]:
    """Return the given port; or the deployment's own number, which is free at another address, and those after it."""
    if port is not None:
        return (port,)
    first = urlsplit(target).port or FIRST_PORT
    return (*range(first, min(first + TRIES, HIGHEST_PORT + 1)), 0)


def _start() -> subprocess.Popen[bytes]:
    # -P and the explicit path: a file json.py beside the notebook must not replace the library's module.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "airserve_nb.sharing.proxy"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # an interrupt of the notebook must not close it
    )
