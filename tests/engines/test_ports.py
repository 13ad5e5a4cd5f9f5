"""Ports: the one that was asked for or the next free one, never one that somebody listens on."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from airserve_nb import DeployError, OptionError
from airserve_nb.engines import ports


@pytest.mark.parametrize("port", [0, -1, 65_536, 80.0, "8000", True])
def test_what_is_no_port_is_refused(port: Any) -> None:
    """A value that can't be a port is refused with the range."""
    with pytest.raises(OptionError, match="65535"):
        ports.check_port(port)


def test_none_and_true_ports_pass() -> None:
    """None means any; 1 and 65535 are ports."""
    for port in (None, 1, 65_535):
        ports.check_port(port)


def test_the_next_free_port_is_taken() -> None:
    """Two that ask for no port in particular get two different ones, both from 8000 on."""
    with ports.listen_near(None) as first, ports.listen_near(None) as second:
        numbers = [one.getsockname()[1] for one in (first, second)]
    assert len(set(numbers)) == 2
    assert all(ports.FIRST_PORT <= number < ports.FIRST_PORT + ports.TRIES for number in numbers)


def test_a_port_in_use_is_not_free() -> None:
    """A port that somebody listens on is refused by number; once closed it is free again."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(DeployError, match=str(taken)):
            ports.listen_near(taken)
        with pytest.raises(DeployError, match=str(taken)):
            ports.free_port_near(taken)
    assert ports.free_port_near(taken) == taken


def test_all_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """When every port that is tried is taken, the sentence names the range and the way out."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(ports, "FIRST_PORT", other.getsockname()[1])
        monkeypatch.setattr(ports, "TRIES", 1)
        with pytest.raises(DeployError, match="choose one with port="):
            ports.listen_near(None)


def test_free_ports_are_different() -> None:
    """Ports asked for together are all different, and released."""
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    for port in found[:3]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
