"""deploy() and the Service that it returns: the handle that a user holds.

A Service is thin: it asks the engine's host, and the collector for records. Names of deployments are unique
in a kernel; deploying under a name again replaces what ran there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from airserve_nb import _deploy_options as options
from airserve_nb.collector import Collector
from airserve_nb.engines.base import Host, Progress, silent
from airserve_nb.engines.ports import check_port
from airserve_nb.errors import DeployError
from airserve_nb.telemetry import BatchStatistics

if TYPE_CHECKING:
    import pandas as pd
    import requests

    from airserve_nb.predictor import Predictor
    from airserve_nb.version import VersionSpec

__all__ = ["Service", "deploy", "services", "stop"]

Engine = Literal["ray", "local"]
Ingress = Literal["auto", "haproxy", "python"]

REQUEST_TIMEOUT_S = 60.0
KEPT_LOG_ENTRIES = 100
_services: dict[str, Service] = {}
_version_numbers: dict[str, int] = {}
# Two threads that deploy at once would both start Ray.
_deploying = threading.RLock()


class Service:
    """A live endpoint.

    Made by :func:`deploy`, ``%%serve`` or :meth:`connect`. Its text form is stable: it names neither times
    nor ports.

    Parameters
    ----------
    host
        Who hosts it.
    example
        A request body that the endpoint takes.
    code
        The code of the cell that defined it.
    batching
        How it batches, in words.
    version
        The version's name.
    note
        One sentence that its user should know.
    """

    def __init__(
        self,
        host: Host,
        *,
        example: Any = None,
        code: str | None = None,
        batching: str | None = None,
        version: str | None = None,
        note: str | None = None,
    ) -> None:
        self._host = host
        self._collector = Collector(host.pages)
        self._stopped = False
        self._last_logs: list[tuple[str, list[str]]] = []
        self.example = example
        """A request body that the endpoint takes, or None."""
        self.code = code
        """The code of the cell that defined it, or None."""
        self.batching = batching
        """How it batches, in words; None when it was not deployed here."""
        self.version = version
        """The version's name, which each answer carries; None when it was not deployed here."""
        self.note = note
        """One sentence that its user should know, or None."""

    @classmethod
    def connect(cls, app: str = "default") -> Service:
        """Return a Service for a deployment that was made with ``ray.serve.run``, or by an earlier kernel.

        Parameters
        ----------
        app
            The name of the Serve application.

        Raises
        ------
        DeployError
            When no such application runs, or it is not a ``PredictorDeployment``.
        """
        from airserve_nb.engines import ray as ray_engine

        return cls(ray_engine.connect(app))

    # -- what it is -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self._host.name

    @property
    def url(self) -> str:
        """Where it answers, such as ``http://127.0.0.1:8000/adder``."""
        return self._host.url

    @property
    def engine(self) -> str:
        """``ray`` or ``local``."""
        return self._host.engine

    @property
    def ingress(self) -> str:
        """Who takes the requests in: ``haproxy``, ``python`` (Ray's own) or ``uvicorn`` (the local engine's)."""
        return self._host.ingress

    @property
    def replicas(self) -> int:
        """How many replicas it was asked to have."""
        return self._host.replicas

    @property
    def state(self) -> str:
        """``running`` or ``stopped``, as far as this kernel knows; asks nobody."""
        return "stopped" if self._stopped else "running"

    # -- using it -------------------------------------------------------------------------------

    def request(self, json: Any = None, *, method: str = "POST", **kwargs: Any) -> requests.Response:
        """Send one HTTP request and return the response.

        Parameters
        ----------
        json
            The body.
        method
            The HTTP method.
        **kwargs
            Further arguments of ``requests.request``: ``params``, ``headers``, ``files``, ``timeout``
            (seconds), ...
        """
        import requests

        self._check_running()
        kwargs.setdefault("timeout", REQUEST_TIMEOUT_S)
        return requests.request(method, self.url, json=json, **kwargs)  # noqa: S113 - set above

    def predict(self, value: Any) -> Any:
        """Predict on a model input, past HTTP and its adapter, through the same batches.

        Parameters
        ----------
        value
            An ndarray or a dict of arrays (one sample), or a DataFrame (any number of rows).

        Raises
        ------
        RequestError
            What an HTTP client would have been answered.
        """
        self._check_running()
        return self._host.predict(value)

    def statistics(self) -> BatchStatistics:
        """Return totals and means over all replicas."""
        self._pull()
        return self._collector.statistics()

    def requests(self) -> pd.DataFrame:
        """Return one row a request, in the order of arrival; reading takes nothing away.

        Columns: request_id, arrived_at, status, batch_id, batch_size, queue_ms, predict_ms, overhead_ms,
        total_ms, version, replica, error.
        """
        self._pull()
        return self._collector.requests()

    def batches(self) -> pd.DataFrame:
        """Return one row a call of predict, in the order of release; reading takes nothing away.

        Columns: batch_id, released_at, batch_size, rows, predict_ms, release_reason, queue_depth,
        other_signatures, version, replica, error.
        """
        self._pull()
        return self._collector.batches()

    def logs(self, count: int = 100) -> str:
        """Return the last log entries of every replica, tracebacks of failed predictions among them.

        Parameters
        ----------
        count
            Entries a replica, at most.
        """
        parts = self._last_logs if self._stopped else self._host.log_entries(count)
        if len(parts) == 1:
            return "\n".join(parts[0][1])
        return "\n".join(f"[{replica}] {entry}" for replica, entries in parts for entry in entries)

    def stop(self) -> None:
        """End the deployment; what was recorded can still be read."""
        if self._stopped:
            return
        self._keep_records()
        self._host.stop()
        self._stopped = True
        if _services.get(self.name) is self:
            del _services[self.name]

    def _give_way_to(self, host: Host) -> None:
        """End, because ``host`` serves under this name from now on."""
        self._stopped = True
        ours = self._host
        # A local server that took the new version in, and a Serve application, are the new one's now.
        if ours is not host and not (ours.engine == host.engine == "ray"):
            ours.stop()

    def _keep_records(self) -> None:
        """Read everything once more; a courtesy, on which nothing must depend."""
        with contextlib.suppress(Exception):
            self._last_logs = self._host.log_entries(KEPT_LOG_ENTRIES)
            self._pull()

    def _check_running(self) -> None:
        if self._stopped:
            raise DeployError(
                f"This service, {self.name}, was stopped or replaced; deploy it again, or use the newer one.",
                deployment=self.name,
            )

    def _pull(self) -> None:
        if not self._stopped:
            self._collector.pull()

    # -- showing it -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Return a text that is the same in every run."""
        from airserve_nb.display import ServiceView, service_text

        return service_text(ServiceView.of(self))

    def _repr_html_(self) -> str:
        from airserve_nb.display import ServiceView, service_html

        return service_html(ServiceView.of(self))


def deploy(  # noqa: PLR0913 - each is an option of the %%serve line
    predictor: type[Predictor] | Callable[..., Any],
    checkpoint: Any = None,
    *,
    name: str | None = None,
    example: Any = None,
    engine: Engine = "ray",
    http_adapter: Any = None,
    max_batch_size: int | None = None,
    batch_wait_timeout_s: float | None = None,
    max_batch_rows: int | None = None,
    batching: bool = True,
    batching_params: Mapping[str, Any] | bool | None = None,
    predict_kwargs: Mapping[str, Any] | None = None,
    checkpoint_kwargs: Mapping[str, Any] | None = None,
    num_replicas: int = 1,
    route_prefix: str | None = None,
    port: int | None = None,
    ingress: Ingress = "auto",
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
        ``ray`` (Ray Serve, started when it does not run), or ``local`` (a server in this process).
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
        Processes that serve; the local engine has one.
    route_prefix
        The path it is served at, by default ``/NAME``.
    port
        By default 8000, or the next free one. All deployments of a Ray share one port.
    ingress
        ``haproxy`` (fast, Linux), ``python`` (Ray's own), or ``auto``: the first where it can be had.
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
    from airserve_nb.function_predictor import as_predictor
    from airserve_nb.http_adapters import json_to_ndarray
    from airserve_nb.version import make_spec

    predictor_cls, adapter = as_predictor(predictor, http_adapter=http_adapter)
    name = options.checked_name(predictor_cls.__name__ if name is None else name)
    options.check_choice("engine", engine, get_args(Engine))
    options.check_choice("ingress", ingress, get_args(Ingress))
    options.check_replicas(num_replicas, engine)
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
    with _deploying:
        number = _version_numbers.get(name, 0) + 1
        spec = dataclasses.replace(spec, version=f"v{number}")
        running = _services.get(name)
        if running is not None:
            running._keep_records()  # noqa: SLF001 - one module
        if engine == "local":
            host = _host_locally(running, name, spec, prefix, port)
        else:
            host = _host_on_ray(name, spec, prefix, num_replicas, port, ingress, progress)
        _version_numbers[name] = number
        if running is not None:
            running._give_way_to(host)  # noqa: SLF001 - one module
        service = Service(
            host,
            example=example,
            code=code,
            batching=spec.settings.in_words(),
            version=spec.version,
            note=_note(host, ingress),
        )
        _services[name] = service
    return service


def _note(host: Host, asked: Ingress) -> str | None:
    if host.engine == "local":
        return "The local engine has one replica and shares this kernel's interpreter lock."
    if asked == "auto" and host.ingress == "python":
        return (
            "The fast ingress (HAProxy) can't be had here, so Ray's own serves: slower, otherwise the same."
        )
    return None


def _host_locally(
    running: Service | None, name: str, spec: VersionSpec, route_prefix: str, port: int | None
) -> Host:
    from airserve_nb.engines.local import LocalHost

    host = None if running is None else running._host  # noqa: SLF001 - one module
    if isinstance(host, LocalHost) and host.is_running() and host.is_on(port):
        host.activate(spec, route_prefix)
        return host
    return LocalHost(name, spec, route_prefix=route_prefix, port=port)


def _host_on_ray(
    name: str,
    spec: VersionSpec,
    route_prefix: str,
    num_replicas: int,
    port: int | None,
    ingress: Ingress,
    progress: Progress,
) -> Host:
    from airserve_nb.engines import ray as ray_engine

    return ray_engine.deploy(
        name,
        spec,
        route_prefix=route_prefix,
        num_replicas=num_replicas,
        port=port,
        ingress=ingress,
        progress=progress,
    )


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
        for service in list(_services.values()):
            service.stop()
        return
    if name not in _services:
        known = ", ".join(sorted(_services)) or "none"
        raise DeployError(
            f"There is no deployment {name!r}; those of this kernel are: {known}.", deployment=name
        )
    _services[name].stop()
