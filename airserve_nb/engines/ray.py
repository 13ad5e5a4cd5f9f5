"""The Ray engine: deployments as applications of Ray Serve.

Ray is started when it is first needed, for this kernel alone: on loopback, with ports and a temporary
folder of its own, and with the fast ingress (HAProxy) where it can be had. A Ray that already runs is used as
it is and never shut down.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.deployment import DEFAULT_ACTOR_OPTIONS, PredictorDeployment
from airserve_nb.engines import ray_cluster, ray_luggage
from airserve_nb.engines.base import Progress, silent
from airserve_nb.engines.ray_host import RayHost, called_outside_loop
from airserve_nb.engines.ray_placement import Waiting, refuse_what_has_no_room
from airserve_nb.engines.ray_travel import pickled
from airserve_nb.errors import DeployError
from airserve_nb.truth import Truth, TruthFolder
from airserve_nb.version import VersionSpec

__all__ = ["RayHost", "applications", "connect", "deploy"]

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
    ray_cluster.ensure_serve(port=port, ingress=ingress, progress=progress)
    running = applications()
    _refuse_taken_route(name, route_prefix, running)
    cpus = DEFAULT_ACTOR_OPTIONS["num_cpus"] if num_cpus is None else num_cpus
    ran_before = _is_there(name)
    # A rolling update puts one new replica beside the old ones.
    refuse_what_has_no_room(name, 1 if ran_before else num_replicas, cpus)
    before = _payload_of(name, running) if ran_before else None
    app, folder, size = _application(name, spec, num_replicas, cpus)
    waiting = Waiting({"CPU": cpus})
    progress(f"Starting {name} ...")
    target = serve.RunTarget(app, name=name, route_prefix=route_prefix, external_scaler_enabled=True)
    try:
        with ray_cluster.quiet_logs():
            called_outside_loop(serve.run_many, [target], wait_for_applications_running=False)
        _wait_until_running(name, waiting)
        host = connect(name)
        host.luggage = ray_luggage.described(spec, size)
        return host
    except BaseException:
        # An interrupt, too.
        if not ran_before:
            # It would hold its route for ever, and nobody could stop it.
            _take_back(name, wait=not waiting.is_certain())
        elif before is not None and folder is not None:
            # Serve may go on replacing the processes; what those that it starts are to serve is the old version.
            content, settings = before
            folder.confirm(Truth(2, folder.stage(content), settings))
        raise


def _take_back(name: str, *, wait: bool) -> None:
    """Delete an application. Serve takes 20 s for what has no process yet, so nobody waits for that."""
    with ray_cluster.quiet_logs():
        called_outside_loop(serve.delete, name, _blocking=wait)
    deadline = time.monotonic() + 1.0
    while not wait and _is_there(name) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _is_there(name: str) -> bool:
    details = applications().get(name)
    return details is not None and details.get("status") != ApplicationStatus.DELETING


def _payload_of(name: str, running: Mapping[str, Any]) -> tuple[bytes, BatchSettings] | None:
    """Return what serves under a name, to go on with when its replacement fails; None where it can't be had."""
    with suppress(Exception):  # a courtesy: it may not answer, or be none of ours
        return RayHost(name, running[name]).payload()
    return None


def _application(
    name: str, spec: VersionSpec, num_replicas: int, num_cpus: float
) -> tuple[serve.Application, TruthFolder | None, int]:
    """Return the application, where its truth is kept, and how many bytes its version has, pickled."""
    deployment = PredictorDeployment.options(
        name=name,
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": num_cpus},
        max_constructor_retry_count=CONSTRUCTOR_TRIES,
    )
    content = pickled(spec, name=name)
    session = ray_cluster.temporary_folder()
    if session is None:
        # A Ray that we did not start may have its replicas on other machines, where no folder of ours is.
        return deployment.bind_spec(spec), None, len(content)
    # A folder of its own: the replicas that it replaces go on serving what theirs says.
    folder = TruthFolder(_new_folder(session / "versions", name))
    folder.confirm(Truth(1, folder.stage(content), spec.settings))
    return deployment.bind_truth(str(folder.path), spec.settings), folder, len(content)


def _new_folder(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


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


def _refuse_taken_route(name: str, route_prefix: str, running: Mapping[str, Any]) -> None:
    for other, details in running.items():
        if other != name and details.get("route_prefix") == route_prefix:
            raise DeployError(
                f"The route {route_prefix} belongs to the application {other!r}; choose another with "
                "route_prefix=, or stop that one.",
                deployment=name,
            )


def _wait_until_running(name: str, waiting: Waiting) -> None:
    started = time.monotonic()
    # Another's cluster may be growing just now; nobody adds a machine to ours.
    patience_s = 0.0 if ray_cluster.temporary_folder() is not None else PLACEMENT_PATIENCE_S
    while True:
        status = serve.status().applications.get(name)
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
