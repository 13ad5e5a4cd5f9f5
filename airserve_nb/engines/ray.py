"""The Ray engine: deployments as applications of Ray Serve.

Ray is started when it is first needed, for this kernel alone: on loopback, with ports and a temporary
folder of its own, and with the fast ingress (HAProxy) where it can be had. A Ray that already runs is used as
it is and never shut down.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.deployment import DEFAULT_ACTOR_OPTIONS, PredictorDeployment
from airserve_nb.engines import ray_attach, ray_cluster, ray_luggage, ray_truth
from airserve_nb.engines.base import Progress, silent
from airserve_nb.engines.ray_host import RayHost, called_outside_loop
from airserve_nb.engines.ray_placement import Waiting, refuse_what_has_no_room
from airserve_nb.engines.ray_travel import pickled
from airserve_nb.errors import DeployError
from airserve_nb.truth import Truth, TruthFolder, TruthHome
from airserve_nb.version import VersionSpec

__all__ = ["RayHost", "applications", "connect", "deploy", "running_here"]

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
    num_cpus: float | None = None,
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
    start: dict[str, Any] = {"port": port, "ingress": ingress, "progress": progress}
    ray_cluster.while_opening(lambda _: None, **start)
    running = applications()
    app = ray_attach.application_of(name)
    _refuse_taken_route(app, route_prefix, running)
    cpus = DEFAULT_ACTOR_OPTIONS["num_cpus"] if num_cpus is None else num_cpus
    ran_before = _is_there(app)
    # A rolling update puts one new replica beside the old ones.
    refuse_what_has_no_room(name, 1 if ran_before else num_replicas, cpus)
    content = pickled(spec, name=name)
    if ray_attach.is_attached():
        ray_attach.check_workers()
    before = _what_serves(app, running) if ran_before else None
    home = _new_home(app, name)
    waiting = Waiting({"CPU": cpus})
    progress(f"Starting {name} ...")
    try:
        home.confirm(Truth(1, home.stage(content), spec.settings))
        bound = _deployment(name, num_replicas, cpus).bind_truth(home.where, spec.settings)
        target = serve.RunTarget(bound, name=app, route_prefix=route_prefix, external_scaler_enabled=True)
        ray_cluster.while_opening(lambda opening: _run(name, target, waiting, opening), **start)
        host = connect(app)
        host.luggage = ray_luggage.described(spec, len(content))
    except BaseException:
        # An interrupt, too.
        if not ran_before:
            _take_back(app, home, wait=not waiting.is_certain())
        elif before is not None:
            # Serve may go on replacing the processes; what those that it starts are to serve is the old version.
            old, settings = before
            home.confirm(Truth(2, home.stage(old), settings))
        raise
    home.forget_editions_before()
    return host


def _run(name: str, target: serve.RunTarget, waiting: Waiting, opening: Future[None]) -> None:
    """Run an application, its replica starting while the ingress still opens; returns when both serve."""
    with ray_cluster.quiet_logs():
        called_outside_loop(serve.run_many, [target], wait_for_applications_running=False)
        _wait_until_running(name, target.name, waiting)
        opening.result()
        client = _get_global_client()
        # Before, the ingress may not know the route yet.
        called_outside_loop(client.wait_for_proxies_serving)


def _is_there(app: str) -> bool:
    details = applications().get(app)
    return details is not None and details.get("status") != ApplicationStatus.DELETING


def _take_back(app: str, home: TruthHome, *, wait: bool) -> None:
    """Delete an application that does not come to run: it would hold its route for ever, and nobody could stop it.

    Serve takes 20 s for what has no process yet: nobody waits for that.
    """
    with ray_cluster.quiet_logs():
        called_outside_loop(serve.delete, app, _blocking=wait)
    deadline = time.monotonic() + 1.0
    while not wait and _is_there(app) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    home.end()


def _what_serves(app: str, running: Mapping[str, Any]) -> tuple[bytes, BatchSettings] | None:
    """Return what an application serves, to go on with when its replacement fails; None where it can't be had."""
    with suppress(Exception):  # a courtesy: it may not answer, or be none of ours
        return RayHost(app, running[app]).payload()
    return None


def _deployment(name: str, num_replicas: int, num_cpus: float) -> Any:
    return PredictorDeployment.options(
        name=name,
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": num_cpus},
        max_constructor_retry_count=CONSTRUCTOR_TRIES,
    )


def _new_home(app: str, name: str) -> TruthHome:
    """Make a home of its own for new processes: the replicas that they replace go on serving what theirs says."""
    session = ray_cluster.temporary_folder()
    if session is not None:
        parent = session / "versions" / name
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return TruthFolder(tempfile.mkdtemp(dir=parent))
    # A Ray that we did not start may have its replicas on other machines, where no folder of ours is.
    whose = ray_truth.start_keeper(app)
    if whose != ray_truth.owner():
        raise DeployError(
            f"{app} was deployed on this cluster by {whose}; choose another name, or end that one with "
            f"Service.connect({app!r}).stop().",
            deployment=name,
        )
    return ray_truth.TruthActor(app, uuid.uuid4().hex)


def running_here(name: str) -> RayHost | None:
    """Return what runs under a name on a cluster of others, where an earlier kernel may have left it.

    None for what can't be taken over: it is not there, does not answer, or is of another user or make.
    """
    if not ray_attach.is_attached():
        return None
    app = ray_attach.application_of(name)
    if app not in applications() or ray_truth.owner_of(app) != ray_truth.owner():
        return None
    with suppress(DeployError):
        host = connect(app)
        if host.can_swap:
            return host
    return None


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
            "or give the address= of the cluster it runs on."
        )
    with ray_cluster.quiet_logs():
        found = applications()
    prefixed = ray_attach.application_of(app)
    if app not in found and prefixed not in found:
        names = ", ".join(sorted(found)) or "none"
        raise DeployError(f"There is no application {app!r}; those that run are: {names}.")
    app = app if app in found else prefixed
    try:
        return RayHost(app, found[app])
    except Exception as error:
        raise DeployError(
            f"The application {app!r} does not answer as a PredictorDeployment ({type(error).__name__}); "
            "connect works for those."
        ) from error


def applications() -> dict[str, Any]:
    """Return Serve's details of every application, by name; empty where Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if client is None:
        return {}
    details = called_outside_loop(client.get_serve_details)
    return dict(details.get("applications", {}))


def _refuse_taken_route(app: str, route_prefix: str, running: Mapping[str, Any]) -> None:
    for other, details in running.items():
        if other != app and details.get("route_prefix") == route_prefix:
            raise DeployError(
                f"The route {route_prefix} belongs to the application {other!r}; choose another with "
                "route_prefix=, or stop that one.",
                deployment=app,
            )


def _wait_until_running(name: str, app: str, waiting: Waiting) -> None:
    started = time.monotonic()
    # Another's cluster may be growing just now; nobody adds a machine to ours.
    patience_s = 0.0 if ray_cluster.temporary_folder() is not None else PLACEMENT_PATIENCE_S
    while True:
        status = serve.status().applications.get(app)
        if status is not None and status.status == ApplicationStatus.RUNNING:
            return
        if status is not None and status.status in {
            ApplicationStatus.DEPLOY_FAILED,
            ApplicationStatus.UNHEALTHY,
        }:
            raise DeployError(f"{name} could not start: {_reason(status)}", deployment=name)
        waited_s = time.monotonic() - started
        if waited_s > patience_s and waiting.is_certain():
            raise DeployError(
                f"{name} can't be placed: {waiting.in_words()}; ask for less, or stop something.",
                deployment=name,
            )
        if waited_s > PLACEMENT_PATIENCE_S and _waits_for_resources(status):
            raise DeployError(
                f"{name} was not placed within {PLACEMENT_PATIENCE_S:g} s: {waiting.in_words()}.",
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
