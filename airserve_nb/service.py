"""Service: the handle of a deployment that a user holds.

It is thin: it asks the engine's host, and the collector for records. It stays the same while versions come and go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from airserve_nb._deploy_options import check_address, check_replicas
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.collector import Collector
from airserve_nb.engines.base import Host
from airserve_nb.engines.ports import check_port
from airserve_nb.errors import DeployError
from airserve_nb.history import History
from airserve_nb.telemetry import BatchStatistics, Cursor, Page

if TYPE_CHECKING:
    import pandas as pd
    import requests

    from airserve_nb.panel.panel import Panel
    from airserve_nb.sharing.handle import Sharing
    from airserve_nb.version import VersionSpec

__all__ = ["Service"]

REQUEST_TIMEOUT_S = 60.0
KEPT_LOG_ENTRIES = 100


class Service:
    """A live endpoint.

    Made by :func:`deploy`, ``%%serve`` or :meth:`connect`. Its text form is stable: it names neither times
    nor ports.

    Parameters
    ----------
    host
        Who hosts it.
    note
        One sentence that its user should know.
    when_stopped
        Called once, when it is stopped.
    """

    def __init__(
        self, host: Host, *, note: str | None = None, when_stopped: Callable[[], object] | None = None
    ) -> None:
        self._host = host
        self._collector = Collector(self._pages)
        self._when_stopped = when_stopped
        self._stopped = False
        self._last_logs: list[tuple[str, list[str]]] = []
        self._history = History()
        self._overlap = True
        self._panel: Panel | None = None
        self._again: Callable[[], object] | None = None
        """Deploys it again, with its names looked up anew; None where that can't be."""
        self._sharing: Sharing | None = None
        self._history.retell(host.recall(), live=host.version)
        live = self._history.live
        self.example: Any = None if live is None else live.example
        """A request body that the endpoint takes, or None."""
        self.note = note
        """One sentence that its user should know, or None."""

    @classmethod
    def connect(cls, app: str = "default", address: str | None = None) -> Service:
        """Return a Service for a deployment that was made with ``ray.serve.run``, or by an earlier kernel.

        Parameters
        ----------
        app
            The name of the Serve application, or of the deployment.
        address
            The Ray cluster that it runs on, as for :func:`deploy`; by default the one that this kernel is
            connected to.

        Raises
        ------
        DeployError
            When no such application runs, or it is not a ``PredictorDeployment``, or the cluster can't be attached to.
        """
        from airserve_nb.engines import ray as ray_engine
        from airserve_nb.engines import ray_attach

        check_address(address, "ray")
        if address is not None:
            ray_attach.attach(address)
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
    def version(self) -> str | None:
        """The name of the version that serves, which each answer carries; None when that is not known here."""
        return self._host.version

    @property
    def batching(self) -> str:
        """How it batches, in words."""
        return self._host.settings.in_words()

    @property
    def settings(self) -> BatchSettings:
        """The limits by which it batches."""
        return self._host.settings

    @property
    def code(self) -> str | None:
        """The code of the cell that defined the version that serves, or None."""
        live = self._history.live
        return None if live is None else live.code

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

        Columns: request_id, arrived_at (UTC), status, batch_id, batch_size, queue_ms, predict_ms, overhead_ms,
        total_ms, version, replica, error, and the first 200 characters of payload and answer. The last 100,000 that
        were read are kept, and a replica keeps the last 10,000 until they are.
        """
        self._pull()
        return self._collector.requests()

    def batches(self) -> pd.DataFrame:
        """Return one row a call of predict, in the order of release; reading takes nothing away.

        Columns: batch_id, released_at (UTC), batch_size, rows, predict_ms, release_reason, queue_depth,
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

    # -- changing it ----------------------------------------------------------------------------

    def set_batching(
        self, *, max_batch_size: int | None = None, batch_wait_timeout_s: float | None = None
    ) -> None:
        """Batch by other limits from now on, on every replica; what is not given stays.

        Parameters
        ----------
        max_batch_size
            Requests in one batch, at most.
        batch_wait_timeout_s
            Seconds that a request waits for others while the model is idle.

        Raises
        ------
        OptionError
            For a value that can't be.
        """
        self._check_running()
        asked = {"max_batch_size": max_batch_size, "batch_wait_timeout_s": batch_wait_timeout_s}
        changes = {name: value for name, value in asked.items() if value is not None}
        # Refused here, with a sentence, before any replica hears of it.
        self._host.settings.changed(changes)
        if changes:
            self._host.set_batching(changes)

    def scale(self, num_replicas: int) -> None:
        """Have that many replicas, without a restart of those that run; waits until they do.

        Raises
        ------
        OptionError
            For a number that can't be.
        DeployError
            When there is no room for them.
        """
        self._check_running()
        check_replicas(num_replicas, self.engine)
        with self._scaling_to(num_replicas):
            self._host.scale(num_replicas)

    def rollback(self) -> None:
        """Serve the version again that served before this one was deployed, in the processes that run.

        With or without overlap, as this one was deployed.

        Raises
        ------
        DeployError
            When there is none, or it can't be loaded any more; then the present one goes on.
        """
        self._check_running()
        live = self._history.live
        before = None if live is None else live.before
        if live is None or before is None or before.spec is None:
            now = f" before {self.version}" if self.version else ""
            raise DeployError(
                f"There is no version of {self.name}{now} to go back to; versions() lists those deployed here.",
                deployment=self.name,
            )
        try:
            self._host.swap(before.spec, overlap=self._overlap)
        finally:
            # Also when an interrupt came too late to stop it.
            if self.version == before.name:
                self._history.live, self.example = before, before.example
                self._host.remember(self._history.told())

    def versions(self) -> pd.DataFrame:
        """Return one row a version that was deployed in this kernel.

        Columns: version, deployed_at (UTC), live (whether it serves), code (the cell's, or None).
        """
        return self._history.table()

    # -- opening it to others -------------------------------------------------------------------

    @property
    def sharing(self) -> Sharing | None:
        """The handle of what :meth:`share` opened; None when nothing but this machine's loopback answers."""
        return self._sharing if self._sharing is not None and self._sharing.is_open else None

    def share(
        self,
        host: str | None = None,
        *,
        port: int | None = None,
        max_body_bytes: int | None = None,
        requests_per_s: float | None = None,
    ) -> Sharing:
        """Open the deployment to other machines, for those who have the token that the returned object shows once.

        It stays open while versions come and go, until :meth:`unshare` or the deployment's end. Sharing again closes
        what was open and makes a new token. There is no encryption: share in networks that you trust.

        Parameters
        ----------
        host
            The address of the interface to listen on; by default the one that this machine has for others.
        port
            By default the deployment's own number, or the next free one.
        max_body_bytes
            Bytes of a request's body, at most (10 MiB).
        requests_per_s
            Requests a second and client address (50); twice as many may come at once.

        Raises
        ------
        OptionError
            For an address that this machine does not have, or a limit that can't be.
        DeployError
            When the port is taken.
        """
        from airserve_nb.sharing.handle import Sharing, checked_host
        from airserve_nb.sharing.plan import ShareLimits

        self._check_running()
        check_port(port)
        asked = {"max_body_bytes": max_body_bytes, "requests_per_s": requests_per_s}
        limits = ShareLimits(**{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]  # each is of its field's type
        address = checked_host(True if host is None else host)
        self.unshare()
        self._sharing = Sharing(
            self.name, self.url, host=address, port=port, limits=limits, example=self.example
        )
        return self._sharing

    def unshare(self) -> None:
        """Close the deployment to other machines; harmless when it is closed."""
        sharing, self._sharing = self._sharing, None
        if sharing is not None:
            sharing.close()

    def stop(self) -> None:
        """End the deployment; what was recorded can still be read."""
        if self._stopped:
            return
        self.unshare()
        self._keep_records()
        self._host.stop()
        self._stopped = True
        self._history.forget()
        # It may hold a model.
        self._again = None
        if self._when_stopped is not None:
            self._when_stopped()

    def __enter__(self) -> Self:
        """Return itself: ``with deploy(...) as service:`` stops it at the end."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _now_serves(
        self,
        spec: VersionSpec,
        host: Host,
        *,
        code: str | None,
        example: Any,
        note: str | None,
        overlap: bool,
    ) -> None:
        """Note that ``host`` serves a version of this deployment from now on."""
        before, self._host = self._host, host
        self._history.add(spec, code=code, example=example)
        host.remember(self._history.told())
        self.example, self.note, self._overlap = example, note, overlap
        if self._sharing is not None:
            self._sharing.aim_at(host.url)
        # A local server that took the version over, and a Serve application, are the new one's now.
        if before is not host and not (before.engine == host.engine == "ray"):
            before.stop()

    def _pages(self, cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        # Of the host of this moment: it may change.
        return self._host.pages(cursors)

    def _keep_records(self) -> None:
        """Read everything once more from replicas that are to end; a courtesy, on which nothing must depend."""
        with contextlib.suppress(Exception):
            self._pull()
            self._collector.dismiss_all()
            self._last_logs = self._host.log_entries(KEPT_LOG_ENTRIES)

    @contextlib.contextmanager
    def _scaling_to(self, num_replicas: int | None) -> Iterator[None]:
        """Read the replicas that end within this block, where there are to be fewer, up to their end."""
        with contextlib.ExitStack() as reading:
            if num_replicas is not None and num_replicas < self.replicas:
                # Who can't be read counts as lost when it has ended.
                with contextlib.suppress(Exception):
                    reading.enter_context(self._collector.departures())
            yield

    def _check_running(self) -> None:
        if self._stopped:
            raise DeployError(
                f"This service, {self.name}, was stopped; deploy it again.",
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

    def panel(self) -> Panel:
        """Return the live panel: batch sizes, latency, knobs and the request log, in the notebook.

        It is the one that a ``%%serve`` cell shows; a service has one, however often it is shown.

        Raises
        ------
        DeployError
            When anywidget is not installed.
        """
        try:
            from airserve_nb.panel.panel import Panel
        except ImportError as error:
            raise DeployError(
                f"The panel needs a package that is not installed here ({error.name}); "
                "install anywidget where this kernel and Jupyter run, and start both anew.",
                deployment=self.name,
            ) from error
        if self._panel is None or self._panel.is_closed:
            self._panel = Panel(self)
        return self._panel

    def _shown_panel(self) -> Panel | None:
        """Return the panel where one can be shown; elsewhere no widget is so much as imported."""
        from airserve_nb.display import panel_can_be_had

        return self.panel() if panel_can_be_had() else None

    def _ipython_display_(self) -> None:
        panel = self._shown_panel()
        if panel is None:
            raise NotImplementedError  # IPython's word for: take another form
        panel._ipython_display_()

    def _repr_mimebundle_(self, **_kwargs: Any) -> dict[str, Any]:
        from airserve_nb.display import service_bundle

        return service_bundle(self)

    def _repr_html_(self) -> str:
        return str(self._repr_mimebundle_()["text/html"])
