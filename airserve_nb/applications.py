"""overview(): all that runs, also what this kernel did not make.

``services()`` has what this kernel deployed. Where the kernel is connected to Ray, other applications of Ray Serve run
beside it: deployed with ``serve.run``, or by another kernel. Those that are PredictorDeployments are read like our own;
of the others only what Serve knows of them is told. Ray is never started for this, and whoever does not answer soon is
listed without figures.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from airserve_nb.deploying import services
from airserve_nb.display import ServiceList, ServiceView
from airserve_nb.service import Service

__all__ = ["applications", "connected", "overview"]

K = TypeVar("K")
T = TypeVar("T")

# What is answered takes milliseconds; a reader of a table waits no longer than this.
PATIENCE_S = 3.0

NOT_OURS = "not a deployment of airserve_nb"
# Serve's words for an application's state, and ours.
_STATES = {
    "RUNNING": "running",
    "DEPLOYING": "starting",
    "NOT_STARTED": "starting",
    "DEPLOY_FAILED": "failed",
    "UNHEALTHY": "failed",
    "DELETING": "stopped",
}


def overview() -> ServiceList:
    """Return all that runs, as a table for a notebook: the services of this kernel, and other Serve applications.

    Returns
    -------
    ServiceList
        Its ``views`` hold name, version, state, URL, engine, replicas and statistics of each.
    """
    found = applications()
    made_here = list(services().values())
    known = {_application(service) for service in made_here}
    names = [name for name in found if name not in known]
    connections = _each_within(PATIENCE_S, {name: functools.partial(Service.connect, name) for name in names})
    readable = {name: service for name, service in connections.items() if service is not None}
    others = dict(zip(readable, _views(readable.values(), found), strict=True))
    foreign = (others.get(name) or _foreign(name, found[name]) for name in names)
    return ServiceList((*_views(made_here, found), *foreign))


def connected(name: str) -> Service | None:
    """Return a Service for an application that this kernel has not made; None when there is none to be read."""
    found = applications()
    if not found:
        return None
    from airserve_nb.engines import ray_attach

    if name not in found and ray_attach.application_of(name) not in found:
        return None
    return _each_within(PATIENCE_S, {name: lambda: Service.connect(name)})[name]


def applications() -> Mapping[str, Mapping[str, Any]]:
    """Return Serve's details of each application, by name; empty while this kernel is not connected to Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    from airserve_nb.engines import ray as engine

    return _each_within(PATIENCE_S, {"": engine.applications})[""] or {}


def _views(found: Iterable[Service], details: Mapping[str, Mapping[str, Any]]) -> list[ServiceView]:
    calls = {service: functools.partial(ServiceView.of, service, ask=True) for service in found}
    views = []
    for service, asked in _each_within(PATIENCE_S, calls).items():
        view = asked or ServiceView.of(service)
        application = _application(service)
        if application is not None and application in details:
            view = view.with_state(_state(details[application]))
        views.append(view)
    return views


def _application(service: Service) -> str | None:
    """Return the Serve application of a service, which has another name on a cluster of others; None of a local one."""
    return getattr(service._host, "application", None)  # noqa: SLF001 - only this list asks for it


def _foreign(name: str, details: Mapping[str, Any]) -> ServiceView:
    """Show what Serve knows of an application that can't be read."""
    deployments = details.get("deployments", {}).values()
    return ServiceView(
        name=name,
        url=_url(details),
        state=_state(details),
        replicas=sum(int(each.get("target_num_replicas") or 0) for each in deployments) or None,
        note=NOT_OURS,
        ours=False,
    )


def _state(details: Mapping[str, Any]) -> str:
    status = str(getattr(details.get("status"), "value", details.get("status")))
    return _STATES.get(status, "running")


def _url(details: Mapping[str, Any]) -> str | None:
    prefix = details.get("route_prefix")
    if prefix is None:
        return None  # it takes no HTTP requests
    from airserve_nb.engines import ray_cluster

    with contextlib.suppress(Exception):  # Serve may have been shut down meanwhile
        return f"{ray_cluster.base_url()}{prefix.rstrip('/') or '/'}"
    return None


def _each_within(seconds: float, calls: Mapping[K, Callable[[], T]]) -> dict[K, T | None]:
    """Call all at the same time; None for what has raised, or has not returned after some seconds."""
    deadline = time.monotonic() + seconds
    futures = {key: _begun(call) for key, call in calls.items()}
    results: dict[K, T | None] = dict.fromkeys(calls)
    for key, future in futures.items():
        with contextlib.suppress(Exception):
            results[key] = future.result(max(0.0, deadline - time.monotonic()))
    return results


def _begun(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            future.set_exception(error)

    threading.Thread(target=run, name="airserve-overview", daemon=True).start()
    return future
