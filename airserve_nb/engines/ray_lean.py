"""Start Ray without the servers that nobody in a notebook asks.

Ray starts beside its core a dashboard (even with ``include_dashboard=False``: then it reports usage alone), a monitor
that would ask a cloud for more machines, and one that copies logs to the driver. Together they take a third
of the processor time of a start, and 340 MB. ``ray.init`` has no options for them, ``ray start`` has, but
is slower in all. So:

- the dashboard is given a port that is taken, upon which Ray goes on without it;
- the monitors are left out of the parameters that ``ray.init`` makes, and Ray's two agents are given their ports, so that
  Ray need not wait until they tell them. Where Ray's parameters have other names, they stay as they are.
"""

from __future__ import annotations

import functools
import inspect
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import ray._private.parameter as ray_parameter

__all__ = ["lean_start"]

# Above the replicas' ports, and below those that Linux gives to outgoing connections.
AGENT_PORTS = range(30_100, 32_700)
AGENT_PORT_NAMES = ("metrics_agent_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


@contextmanager
def lean_start() -> Iterator[dict[str, Any]]:
    """Let ``ray.init`` start what is needed only; gives further arguments for it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        with mock.patch.object(ray_parameter, "RayParams", _lean(ray_parameter.RayParams)):
            yield {"dashboard_port": taken.getsockname()[1]}


def _lean(params: Any) -> Any:
    agent_ports = dict(zip(AGENT_PORT_NAMES, _free_ports(), strict=False))
    wanted = {"no_monitor": True, "include_log_monitor": False, **agent_ports}
    known = inspect.signature(params).parameters
    return functools.partial(params, **{name: value for name, value in wanted.items() if name in known})


def _free_ports() -> list[int]:
    """Return ports that are free on all interfaces, and that nobody gets who asks for any port."""
    found: list[int] = []
    for port in random.sample(AGENT_PORTS, len(AGENT_PORTS)):
        with socket.socket() as tried:
            try:
                tried.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == len(AGENT_PORT_NAMES):
            break
    return found
