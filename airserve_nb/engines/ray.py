"""The Ray engine: deployments as applications of Ray Serve.

Ray is started when it is first needed, for this kernel alone: on loopback, with ports and a temporary
folder of its own, and with the fast ingress (HAProxy) where it can be had. A Ray that already runs is used as
it is and never shut down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from airserve_nb.deployment import PredictorDeployment, unpack
from airserve_nb.engines import ray_cluster
from airserve_nb.engines.base import Progress, silent
from airserve_nb.errors import DeployError
from airserve_nb.telemetry import Cursor, Page
from airserve_nb.version import VersionSpec

__all__ = ["RayHost", "applications", "connect", "deploy"]

T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
# Serve's own client looks once a second; a replica is ready in three to four.
POLL_S = 0.05
# The constructor is the user's from_checkpoint: what fails once fails again.
CONSTRUCTOR_TRIES = 1
# Longer than a loaded machine needs to place a replica, shorter than a user's patience.
PLACEMENT_PATIENCE_S = 30.0


def deploy(
    name: str,
    spec: VersionSpec,
    *,
    route_prefix: str,
    num_replicas: int = 1,
    port: int | None = None,
    ingress: ray_cluster.Ingress = "auto",
    progress: Progress = silent,
) -> RayHost:
    """Run a version as the Serve application ``name``, replacing what ran under that name.

    Raises
    ------
    DeployError
        With the reason, when it does not come to run.
    """
    ray_cluster.ensure_serve(port=port, ingress=ingress, progress=progress)
    _refuse_what_never_fits(name, num_replicas)
    _refuse_taken_route(name, route_prefix)
    app = PredictorDeployment.options(
        name=name, num_replicas=num_replicas, max_constructor_retry_count=CONSTRUCTOR_TRIES
    ).bind_spec(spec)
    ran_before = name in applications()
    progress(f"Starting {name} ...")
    with ray_cluster.quiet_logs():
        target = serve.RunTarget(app, name=name, route_prefix=route_prefix)
        _called_outside_loop(serve.run_many, [target], wait_for_applications_running=False)
    try:
        _wait_until_running(name)
    except BaseException:
        # An interrupt, too.
        if not ran_before:
            # It would hold its route for ever, and nobody could stop it.
            with ray_cluster.quiet_logs():
                _called_outside_loop(serve.delete, name)
        raise
    return connect(name)


def connect(app: str) -> RayHost:
    """Return the host of an application that runs already, however it was deployed.

    Raises
    ------
    DeployError
        When there is no such application, or it was not made by ``PredictorDeployment``.
    """
    if not ray.is_initialized():
        raise DeployError(
            f"There is no application {app!r}, because Ray does not run here; deploy it first, "
            "or ray.init(address=...) to the cluster it runs on."
        )
    with ray_cluster.quiet_logs():
        found = applications()
    if app not in found:
        names = ", ".join(sorted(found)) or "none"
        raise DeployError(f"There is no application {app!r}; those that run are: {names}.")
    details = found[app]
    host = RayHost(app, details)
    try:
        host.pages({})
    except Exception as error:
        raise DeployError(
            f"The application {app!r} does not answer as a PredictorDeployment ({type(error).__name__}); "
            "connect works for those."
        ) from error
    return host


def applications() -> dict[str, Any]:
    """Return Serve's details of every application, by name; empty where Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if client is None:
        return {}
    details = _called_outside_loop(client.get_serve_details)
    return dict(details.get("applications", {}))


class RayHost:
    """An application of Ray Serve that serves one PredictorDeployment."""

    engine = "ray"

    def __init__(self, name: str, details: Mapping[str, Any]) -> None:
        self.name = name
        self._handle = serve.get_app_handle(name)
        self._ingress_deployment = details.get("deployments", {}).get(self._handle.deployment_name, {})
        prefix = (details.get("route_prefix") or "/").rstrip("/")
        self.url = f"{ray_cluster.base_url()}{prefix or '/'}"
        self.ingress = _called_outside_loop(ray_cluster.ingress_in_place)

    @property
    def replicas(self) -> int:
        """How many replicas were asked for."""
        config = self._ingress_deployment.get("deployment_config", {})
        return int(config.get("num_replicas") or 1)

    def predict(self, value: Any) -> Any:
        """Predict on a model input on one replica; blocks."""
        return _called_outside_loop(lambda: _unwrapped(lambda: self._handle.predict.remote(value).result()))

    def pages(self, cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        """Return every live replica's name and its records since its cursor; blocks."""
        return self._broadcast("page", dict(cursors))

    def log_entries(self, count: int) -> list[tuple[str, list[str]]]:
        """Return every live replica's name and its last log entries; blocks."""
        return self._broadcast("log_entries", count)

    def is_running(self) -> bool:
        """Whether the application still exists and runs."""
        if not ray.is_initialized():
            return False
        status = serve.status().applications.get(self.name)
        return status is not None and status.status == ApplicationStatus.RUNNING

    def stop(self) -> None:
        """Delete the application; harmless when it has gone already."""
        if ray.is_initialized() and self.name in serve.status().applications:
            with ray_cluster.quiet_logs():
                _called_outside_loop(serve.delete, self.name)

    def _broadcast(self, method: str, argument: Any) -> list[tuple[str, Any]]:
        def call() -> Any:
            return self._handle.broadcast(method, argument).results(timeout_s=CALL_TIMEOUT_S)

        return [(replica, unpack(package)) for replica, package in _called_outside_loop(call)]


def _called_outside_loop(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call in a thread: a notebook's cells run inside an event loop, where Serve refuses blocking calls."""
    with ThreadPoolExecutor(1, thread_name_prefix="airserve-call") as pool:
        return pool.submit(function, *args, **kwargs).result()


def _unwrapped(call: Callable[[], T]) -> T:
    """Raise the replica's own error rather than Ray's wrapping of it."""
    try:
        return call()
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from None
        raise


def _refuse_what_never_fits(name: str, num_replicas: int) -> None:
    total = float(ray.cluster_resources().get("CPU", 0))
    needed = 0.1 * num_replicas
    if needed > total:
        raise DeployError(
            f"{num_replicas} replicas of {name} need {needed:g} CPUs, but Ray has {total:g}; ask for fewer.",
            deployment=name,
        )


def _refuse_taken_route(name: str, route_prefix: str) -> None:
    for other, details in applications().items():
        if other != name and details.get("route_prefix") == route_prefix:
            raise DeployError(
                f"The route {route_prefix} belongs to the application {other!r}; choose another with "
                "route_prefix=, or stop that one.",
                deployment=name,
            )


def _wait_until_running(name: str) -> None:
    started = time.monotonic()
    while True:
        status = serve.status().applications.get(name)
        if status is not None and status.status == ApplicationStatus.RUNNING:
            return
        if status is not None and status.status in {
            ApplicationStatus.DEPLOY_FAILED,
            ApplicationStatus.UNHEALTHY,
        }:
            raise DeployError(f"{name} could not start: {_reason(status)}", deployment=name)
        if time.monotonic() - started > PLACEMENT_PATIENCE_S and _waits_for_resources(status):
            raise DeployError(
                f"{name} was not placed within {PLACEMENT_PATIENCE_S:g} s; Ray's free resources are "
                f"{ray.available_resources()}.",
                deployment=name,
            )
        time.sleep(POLL_S)


def _waits_for_resources(status: Any) -> bool:
    deployments = status.deployments.values() if status is not None else ()
    return any("PENDING" in d.message or "scheduled" in d.message for d in deployments)


def _reason(status: Any) -> str:
    """Return the one line that matters of the traceback that Serve reports."""
    text = "\n".join([*(d.message for d in status.deployments.values()), status.message])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _looks_like_error(line)]
    return (errors or lines or ["Serve gives no reason"])[-1]


def _looks_like_error(line: str) -> bool:
    head = line.partition(":")[0]
    return head.rpartition(".")[2].endswith(("Error", "Exception", "Interrupt")) and " " not in head
