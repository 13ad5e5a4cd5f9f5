"""Which host serves a version: the one that runs already, where it can take the version over, or a new one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from airserve_nb.engines.base import Host, Progress, silent
from airserve_nb.errors import DeployError
from airserve_nb.version import VersionSpec

__all__ = ["Engine", "Ingress", "Place", "host", "left_running"]

Engine = Literal["ray", "local"]
Ingress = Literal["auto", "haproxy", "python"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where, and on how much, a deployment is to run; None means as it runs, or the default."""

    name: str
    route_prefix: str
    engine: Engine = "ray"
    num_replicas: int | None = None
    num_cpus: float | None = None
    port: int | None = None
    ingress: Ingress = "auto"
    overlap: bool = True
    """Whether two versions may be in memory at once, while one takes the other's place."""
    address: str | None = None
    """Of a Ray cluster to attach to."""


def left_running(place: Place, *, progress: Progress = silent) -> Host | None:
    """Return what an earlier kernel left running under this name on a cluster of others; None elsewhere.

    Raises
    ------
    DeployError
        When the place's cluster can't be attached to.
    """
    if place.engine != "ray" or (place.address is None and "ray" not in sys.modules):
        return None
    from airserve_nb.engines import ray as ray_engine
    from airserve_nb.engines import ray_attach

    if place.address is not None:
        ray_attach.attach(place.address, progress=progress)
    return ray_engine.running_here(place.name)


def host(
    spec: VersionSpec,
    place: Place,
    *,
    running: Host | None = None,
    before_it_ends: Callable[[], object] = lambda: None,
    progress: Progress = silent,
) -> Host:
    """Serve a version at a place; returns its host, which is ``running`` where that could take it over.

    Parameters
    ----------
    spec
        What to serve.
    place
        Where.
    running
        The deployment of that name that runs. It goes on as it was when this raises.
    before_it_ends
        Called before ``running`` is replaced by a new host; not when it takes the version over.
    progress
        Called with a line about what goes on.

    Raises
    ------
    DeployError
        With the reason, when the version does not come to run.
    """
    if place.engine == "local":
        return _host_locally(spec, place, running, before_it_ends)
    return _host_on_ray(spec, place, running, before_it_ends, progress)


def _host_locally(
    spec: VersionSpec, place: Place, running: Host | None, before_it_ends: Callable[[], object]
) -> Host:
    from airserve_nb.engines.local import LocalHost

    if isinstance(running, LocalHost) and running.is_running() and running.is_on(place.port):
        running.swap(spec, place.route_prefix, overlap=place.overlap)
        return running
    _refuse_without_overlap(running, place)
    before_it_ends()
    return LocalHost(place.name, spec, route_prefix=place.route_prefix, port=place.port)


def _host_on_ray(
    spec: VersionSpec,
    place: Place,
    running: Host | None,
    before_it_ends: Callable[[], object],
    progress: Progress,
) -> Host:
    from airserve_nb.warming import finish_warming

    finish_warming(progress)
    from airserve_nb.engines import ray as ray_engine
    from airserve_nb.engines import ray_attach, ray_cluster
    from airserve_nb.engines.ray_host import RayHost

    if place.address is not None:
        ray_attach.attach(place.address, progress=progress)
    if (
        isinstance(running, RayHost)
        and running.route_prefix == place.route_prefix
        and place.num_cpus in {None, running.num_cpus}
        and running.can_swap
    ):
        # Refuses another port or ingress than the running one, as for a new deployment.
        ray_cluster.ensure_serve(port=place.port, ingress=place.ingress, progress=progress)
        if place.num_replicas not in {None, running.replicas}:
            # Before: when there is no room, nothing has changed. The new replicas take part in the swap.
            progress(f"Scaling {place.name} to {place.num_replicas} replicas ...")
            running.scale(place.num_replicas or 1)
        where = "beside" if place.overlap else "instead of"
        progress(f"Loading {place.name} {spec.version} {where} the version that serves ...")
        running.swap(spec, overlap=place.overlap)
        return running
    _refuse_without_overlap(running, place)
    before_it_ends()
    kept = running.replicas if isinstance(running, RayHost) else 1
    return ray_engine.deploy(
        place.name,
        spec,
        route_prefix=place.route_prefix,
        num_replicas=place.num_replicas or kept,
        num_cpus=place.num_cpus,
        port=place.port,
        ingress=place.ingress,
        progress=progress,
    )


def _refuse_without_overlap(running: Host | None, place: Place) -> None:
    if running is not None and not place.overlap:
        raise DeployError(
            f"{place.name} can't be replaced without overlap here, because a new host starts beside the old one; stop it "
            "first, then deploy it.",
            deployment=place.name,
        )
