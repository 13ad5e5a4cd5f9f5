"""deploy(), services() and stop(): what this kernel serves.

Names of deployments are unique in a kernel; deploying under a name again replaces the version that serves there.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from airserve_nb import _deploy_options as options
from airserve_nb.engines.base import Host, Progress, silent
from airserve_nb.engines.ports import check_port
from airserve_nb.errors import DeployError
from airserve_nb.hosting import Engine, Ingress, Place, host, left_running
from airserve_nb.service import Service

if TYPE_CHECKING:
    from airserve_nb.predictor import Predictor
    from airserve_nb.version import VersionSpec

__all__ = ["deploy", "services", "stop"]

_services: dict[str, Service] = {}
_version_numbers: dict[str, int] = {}
# Two threads that deploy at once would both start Ray.
_deploying = threading.RLock()


def deploy(  # noqa: PLR0913 - each is an option of the %%serve line
    predictor: type[Predictor] | Callable[..., Any],
    checkpoint: Any = None,
    *,
    name: str | None = None,
    example: Any = None,
    engine: Engine | None = None,
    http_adapter: Any = None,
    max_batch_size: int | None = None,
    batch_wait_timeout_s: float | None = None,
    max_batch_rows: int | None = None,
    batching: bool = True,
    batching_params: Mapping[str, Any] | bool | None = None,
    predict_kwargs: Mapping[str, Any] | None = None,
    checkpoint_kwargs: Mapping[str, Any] | None = None,
    num_replicas: int | None = None,
    num_cpus: float | None = None,
    route_prefix: str | None = None,
    port: int | None = None,
    ingress: Ingress = "auto",
    overlap: bool = True,
    address: str | None = None,
    share: bool | str | None = None,
    code: str | None = None,
    progress: Progress = silent,
) -> Service:
    """Serve a predictor behind HTTP, and return the Service.

    Parameters
    ----------
    predictor
        A subclass of ``Predictor``, or a function that takes a batch and returns one; the annotation of
        its parameter picks the adapter.
    checkpoint
        A ``Checkpoint``, a dict, a ``ray.train.Checkpoint`` or a URI; None means an empty one.
    name
        The deployment's name, by default the predictor's. What runs under it already is replaced.
    example
        A request body that the endpoint takes; ``probe`` sends it.
    engine
        ``ray`` (Ray Serve, started when it does not run), or ``local`` (a server in this process). By default
        what the environment variable ``AIRSERVE_ENGINE`` says, else ``ray``.
    http_adapter
        Makes a model input of an HTTP request; by default ``json_to_ndarray``.
    max_batch_size
        Requests in one batch, at most (10).
    batch_wait_timeout_s
        Seconds that a request waits for others while the model is idle (0).
    max_batch_rows
        Rows in one batch of frames, at most (no limit).
    batching
        False: one call of predict a request, with the adapter's output unchanged.
    batching_params
        The same settings and the rarer ones as a dict, or False, as for ``PredictorDeployment.bind``.
    predict_kwargs
        Passed to every call of ``predict``.
    checkpoint_kwargs
        Passed to ``from_checkpoint``.
    num_replicas
        Processes that serve: at first 1, later as many as there are. The local engine has one.
    num_cpus
        CPUs that Ray reserves for each of them (0.1); a count, not a limit.
    route_prefix
        The path it is served at, by default ``/NAME``.
    port
        By default 8000, or the next free one. All deployments of a Ray share one port.
    ingress
        ``haproxy`` (fast, Linux), ``python`` (Ray's own), or ``auto``: the first where it can be had.
    overlap
        False: when a version takes another's place, the old model is let go before the new one is loaded, for models
        that are too big to be in memory twice. Requests wait meanwhile; should loading fail, the old one is loaded
        again.
    address
        A Ray cluster that runs already, to serve there: ``auto`` (``RAY_ADDRESS``, or what runs on this machine),
        ``host:port`` or ``ray://host:port``. By default a Ray of this kernel's own, or the one that it is
        connected to. What is served there goes on when this kernel ends.
    share
        True or an interface's address opens it to other machines, as ``Service.share`` does; False closes it. By
        default it stays as it is, closed at first. What is open at that address already stays so, with its token.
    code
        The code to remember as the deployment's definition.
    progress
        Called with a line about what goes on.

    Raises
    ------
    OptionError, CheckpointError, PredictorError
        Before anything is changed, for what could not be served.
    DeployError
        When it does not come to run.
    """
    again = functools.partial(deploy, **(locals() | {"progress": silent, "share": None}))
    from airserve_nb.function_predictor import as_predictor
    from airserve_nb.http_adapters import json_to_ndarray
    from airserve_nb.sharing.handle import checked_host
    from airserve_nb.version import make_spec

    predictor_cls, adapter = as_predictor(predictor, http_adapter=http_adapter)
    name = options.checked_name(predictor_cls.__name__ if name is None else name)
    engine = options.chosen_engine(engine, get_args(Engine))
    options.check_choice("ingress", ingress, get_args(Ingress))
    if num_replicas is not None:
        options.check_replicas(num_replicas, engine)
    options.check_cpus(num_cpus, engine)
    options.check_flag("overlap", overlap)
    options.check_address(address, engine)
    check_port(port)
    prefix = options.checked_route(route_prefix if route_prefix is not None else f"/{name}")
    shorthand = {
        "max_batch_size": max_batch_size,
        "batch_wait_timeout_s": batch_wait_timeout_s,
        "max_batch_rows": max_batch_rows,
    }
    spec = make_spec(
        predictor_cls,
        checkpoint,
        http_adapter=adapter if adapter is not None else json_to_ndarray,
        batching_params=options.batching(batching_params, shorthand, enabled=batching),
        predict_kwargs=predict_kwargs,
        checkpoint_kwargs=checkpoint_kwargs,
    )
    place = Place(
        name=name,
        route_prefix=prefix,
        engine=engine,
        num_replicas=num_replicas,
        num_cpus=num_cpus,
        port=port,
        ingress=ingress,
        overlap=overlap,
        address=address,
    )
    if share is not None and share is not False:
        # Refused before anything is changed.
        checked_host(share)
    with _deploying:
        service = _deploy(spec, place, code=code, example=example, progress=progress)
        service._again = again  # noqa: SLF001 - deploying and its Service are one
        _share(service, share)
    return service


def _share(service: Service, share: bool | str | None) -> None:
    """Open or close a service; what is open there already stays so."""
    if share is None:
        return
    if share is False:
        service.unshare()
    elif service.sharing is None or (share is not True and share != service.sharing.host):
        service.share(None if share is True else share)


def _deploy(
    spec: VersionSpec, place: Place, *, code: str | None, example: Any, progress: Progress
) -> Service:
    name = place.name
    service = _services.get(name) or _taken_over(place, progress)
    number = _version_numbers.get(name, 0) + 1
    spec = dataclasses.replace(spec, version=f"v{number}")
    # Even if it fails: two versions of one name could not be told apart.
    _version_numbers[name] = number
    try:
        if service is None:
            hosted = host(spec, place, progress=progress)
            service = _new_service(name, hosted)
        else:
            with service._scaling_to(place.num_replicas):  # noqa: SLF001 - deploying and its Service are one
                hosted = host(
                    spec,
                    place,
                    running=service._host,  # noqa: SLF001 - as above
                    before_it_ends=service._keep_records,  # noqa: SLF001 - as above
                    progress=progress,
                )
    except KeyboardInterrupt as interrupt:
        if service is None:
            interrupt.add_note(f"{name} was not deployed.")
            raise
        interrupt.add_note(f"{name} {service.version} goes on serving.")
        if service.version != spec.version:
            raise
        # It came too late to stop the new version: that one is what serves.
        _now_serves(service, spec, service._host, place, code=code, example=example)  # noqa: SLF001 - as above
        raise
    _now_serves(service, spec, hosted, place, code=code, example=example)
    return service


def _now_serves(
    service: Service, spec: VersionSpec, hosted: Host, place: Place, *, code: str | None, example: Any
) -> None:
    service._now_serves(  # noqa: SLF001 - as above
        spec,
        hosted,
        code=code,
        example=example,
        note=_note(hosted, place.ingress),
        overlap=place.overlap,
    )


def _taken_over(place: Place, progress: Progress) -> Service | None:
    """Take over what an earlier kernel of the same user left running on a cluster."""
    left = left_running(place, progress=progress)
    if left is None:
        return None
    names = [str(left.version), *(str(row["version"]) for row in left.recall())]
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(r"v([0-9]+)", name))]
    _version_numbers[place.name] = max([_version_numbers.get(place.name, 0), *numbers])
    return _new_service(place.name, left)


def _new_service(name: str, hosted: Host) -> Service:
    """Make a Service that this kernel knows by name until it is stopped."""
    service = _services[name] = Service(hosted, when_stopped=lambda: _services.pop(name, None))
    return service


def _note(host: Host, asked: Ingress) -> str | None:
    if host.engine == "local":
        return "The local engine has one replica and shares this kernel's interpreter lock."
    from airserve_nb.engines import ray_attach

    if ray_attach.may_not_reach(host.url):
        return (
            "Serve listens on the loopback of the cluster's machines only, and this is another one: requests from here "
            "may not reach it, predict() does."
        )
    slower = "The fast ingress (HAProxy) can't be had here, so Ray's own serves: slower, otherwise the same."
    notes = [slower if asked == "auto" and host.ingress == "python" else None, getattr(host, "luggage", None)]
    return " ".join(note for note in notes if note) or None


def services() -> dict[str, Service]:
    """Return what this kernel serves, by name."""
    return dict(_services)


def stop(name: str | None = None) -> None:
    """End the deployment ``name``, or all that this kernel made.

    Raises
    ------
    DeployError
        When there is none of that name.
    """
    if name is None:
        _stop_all()
        return
    if name not in _services:
        known = ", ".join(sorted(_services)) or "none"
        raise DeployError(
            f"There is no deployment {name!r}; those of this kernel are: {known}.", deployment=name
        )
    _services[name].stop()


def _stop_all() -> None:
    """End every deployment, also when one of them can't be ended; raises the first one's reason at last."""
    errors = []
    for service in list(_services.values()):
        try:
            service.stop()
        except Exception as error:  # noqa: BLE001 - raised when the others are ended
            errors.append(error)
    if errors:
        raise errors[0]
