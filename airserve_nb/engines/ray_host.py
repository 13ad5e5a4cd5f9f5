"""RayHost: an application of Ray Serve that serves one PredictorDeployment, seen from the kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaState
from ray.serve._private.exceptions import ExternalScalerDisabledError
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.engines import ray_cluster
from airserve_nb.engines.ray_travel import pickled
from airserve_nb.errors import DeployError
from airserve_nb.replica import Failure, unpack
from airserve_nb.telemetry import Cursor, Page
from airserve_nb.truth import Truth, TruthFolder
from airserve_nb.version import VersionSpec

__all__ = ["RayHost", "called_outside_loop", "refuse_what_has_no_room"]

T = TypeVar("T")

CALL_TIMEOUT_S = 30.0
# After the truth is confirmed a replica only has to switch. One that does not answer is being replaced, and its
# replacement reads the truth.
CATCH_UP_PATIENCE_S = 10.0
POLL_S = 0.05
# A replica is there in three to four seconds.
SCALE_PATIENCE_S = 60.0
# Ray counts CPUs in ten-thousandths.
ROUNDING = 1e-4


class RayHost:
    """An application of Ray Serve that serves one PredictorDeployment.

    Parameters
    ----------
    name
        The application.
    details
        Serve's details of it.

    Raises
    ------
    Exception
        Whatever Ray raises when the application does not answer as a PredictorDeployment.
    """

    engine = "ray"

    def __init__(self, name: str, details: Mapping[str, Any]) -> None:
        self.name = name
        # One change at a time: each is based on the truth before it.
        self._changing = threading.Lock()
        self._handle = serve.get_app_handle(name)
        deployment = details.get("deployments", {}).get(self._handle.deployment_name, {})
        config = deployment.get("deployment_config", {})
        self._replicas = int(config.get("num_replicas") or 1)
        self.num_cpus = float(config.get("ray_actor_options", {}).get("num_cpus") or 0)
        """CPUs that each replica was given."""
        self.route_prefix = details.get("route_prefix") or "/"
        self.url = f"{ray_cluster.base_url()}{self.route_prefix.rstrip('/') or '/'}"
        self.ingress = called_outside_loop(ray_cluster.ingress_in_place)
        described = self._broadcast("describe")[0]
        folder = described["truth_folder"]
        self._folder = None if folder is None else TruthFolder(folder)
        self.version: str | None = described["version"]
        self.settings: BatchSettings = described["settings"] or BatchSettings()

    @property
    def replicas(self) -> int:
        """How many replicas were asked for."""
        return self._replicas

    def predict(self, value: Any) -> Any:
        """Predict on a model input on one replica; blocks."""
        return called_outside_loop(lambda: _unwrapped(lambda: self._handle.predict.remote(value).result()))

    def pages(self, cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        """Return every live replica's name and its records since its cursor; blocks."""
        return self._unpacked("page", dict(cursors))

    def log_entries(self, count: int) -> list[tuple[str, list[str]]]:
        """Return every live replica's name and its last log entries; blocks."""
        return self._unpacked("log_entries", count)

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
                called_outside_loop(serve.delete, self.name)

    # -- changing what runs ---------------------------------------------------------------------

    @property
    def can_swap(self) -> bool:
        """Whether a version can be replaced without new processes."""
        return self._folder is not None and self.is_running()

    def swap(self, spec: VersionSpec) -> None:
        """Serve another version in the processes that run; on an error the old one goes on everywhere.

        Raises
        ------
        DeployError
            With the reason, when it can't travel, or any replica can't load it.
        """
        if self._folder is None:
            raise DeployError(
                f"{self.name} was not deployed by this package on a Ray of its own, so its version can't be swapped; "
                "deploy it again.",
                deployment=self.name,
            )
        with self._changing:
            self._swap(spec)

    def _swap(self, spec: VersionSpec) -> None:
        assert self._folder is not None  # noqa: S101 - the caller looked
        before = self._folder.read()
        truth = self._next_truth(
            payload=self._folder.stage(pickled(spec, name=self.name)), settings=spec.settings
        )
        try:
            self._prepare(truth)
        except BaseException:
            # An interrupt, too. Nobody waits for this: a replica may be loading for minutes.
            with suppress(Exception):
                self._handle.broadcast("drop", truth)._ensure_scheduled()  # noqa: SLF001 - sent, not awaited
            raise
        self.version = spec.version
        self._confirm(truth)
        # A replica that is just starting may still be reading the one before.
        self._folder.forget_all_but({truth.payload, before.payload if before is not None else truth.payload})

    def set_batching(self, changes: Mapping[str, Any]) -> None:
        """Batch by other limits from now on, on every replica."""
        if self._folder is None:
            self.settings = self._broadcast("set_batching", dict(changes))[0]
            return
        with self._changing:
            now = self._folder.read()
            assert now is not None  # noqa: S101 - a deployment starts with one
            settings = now.settings.changed(changes)
            self._confirm(self._next_truth(payload=now.payload, settings=settings))

    def scale(self, num_replicas: int) -> None:
        """Have that many replicas; blocks until they run.

        Raises
        ------
        DeployError
            When there is no room for them, or the deployment was not made to be scaled.
        """
        refuse_what_has_no_room(self.name, num_replicas - self._replicas, self.num_cpus)
        # No public call scales without a restart except over Ray's dashboard, which does not run here.
        controller = _get_global_client()._controller  # noqa: SLF001 - see above
        deployment = DeploymentID(name=self._handle.deployment_name, app_name=self.name)
        try:
            called_outside_loop(
                _unwrapped,
                lambda: ray.get(controller.update_deployment_replicas.remote(deployment, num_replicas)),
            )
        except ExternalScalerDisabledError:
            raise DeployError(
                f"{self.name} was not deployed by this package, so it is scaled where it was: set num_replicas there.",
                deployment=self.name,
            ) from None
        self._replicas = num_replicas
        deadline = time.monotonic() + SCALE_PATIENCE_S
        while not self._has_replicas(num_replicas):
            if time.monotonic() > deadline:
                raise DeployError(
                    f"{self.name} does not have {num_replicas} replicas after {SCALE_PATIENCE_S:g} s; Ray's free "
                    f"resources are {ray.available_resources()}.",
                    deployment=self.name,
                )
            time.sleep(POLL_S)

    def _has_replicas(self, count: int) -> bool:
        application = serve.status().applications.get(self.name)
        deployment = application and application.deployments.get(self._handle.deployment_name)
        return bool(deployment) and dict(deployment.replica_states) == {ReplicaState.RUNNING: count}

    def _next_truth(self, *, payload: str, settings: BatchSettings) -> Truth:
        assert self._folder is not None  # noqa: S101 - as in swap
        now = self._folder.read()
        return Truth(1 if now is None else now.generation + 1, payload, settings)

    def _prepare(self, truth: Truth) -> None:
        """Let every replica load a version; raises the first one's reason why it could not."""

        def call() -> list[Any]:
            response = self._handle.broadcast("prepare", truth)
            return list(response.results(return_exceptions=True))

        # A replica that died meanwhile counts for nothing: its replacement will read the truth.
        answers = [answer for answer in called_outside_loop(call) if not _is_of_a_dead_replica(answer)]
        for answer in answers:
            if isinstance(answer, Failure):
                error = DeployError(
                    f"{self.name} could not start: {answer.what}. {self.version} goes on serving.",
                    deployment=self.name,
                )
                error.users_traceback = answer.traceback
                raise error
            if isinstance(answer, BaseException):
                raise answer
        if not answers:
            raise DeployError(
                f"No replica of {self.name} is there to take the new version; try again in some seconds.",
                deployment=self.name,
            )

    def _confirm(self, truth: Truth) -> None:
        """Make it the truth, and wait until every live replica serves it."""
        assert self._folder is not None  # noqa: S101 - as in swap
        self._folder.confirm(truth)
        self.settings = truth.settings
        # An interrupt comes too late: every replica will serve it, told or not.
        with suppress(KeyboardInterrupt):
            self._wait_until_served(truth)

    def _wait_until_served(self, truth: Truth) -> None:
        deadline = time.monotonic() + CATCH_UP_PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(Exception):
                # Any error is of a replica that has just died.
                if all(generation >= truth.generation for generation in self._broadcast("catch_up")):
                    return
            time.sleep(POLL_S)

    # -- talking to replicas --------------------------------------------------------------------

    def _broadcast(self, method: str, *args: Any) -> list[Any]:
        def call() -> list[Any]:
            return list(self._handle.broadcast(method, *args).results(timeout_s=CALL_TIMEOUT_S))

        return called_outside_loop(lambda: _unwrapped(call))

    def _unpacked(self, method: str, argument: Any) -> list[tuple[str, Any]]:
        return [(replica, unpack(package)) for replica, package in self._broadcast(method, argument)]


def refuse_what_has_no_room(name: str, more_replicas: int, num_cpus: float) -> None:
    """Refuse at once what Ray would wait for without a word: more CPUs than are free.

    Raises
    ------
    DeployError
        With the numbers.
    """
    needed = more_replicas * num_cpus
    total = float(ray.cluster_resources().get("CPU", 0))
    free = float(ray.available_resources().get("CPU", 0))
    if needed <= free + ROUNDING:
        return
    raise DeployError(
        f"{name} needs {needed:g} more CPUs ({more_replicas} replicas of {num_cpus:g}), but {free:g} of Ray's {total:g} are "
        "free; ask for fewer, or stop something.",
        deployment=name,
    )


def called_outside_loop(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call in a thread: a notebook's cells run inside an event loop, where Serve refuses blocking calls.

    An interrupt ends the wait, not the call.
    """
    done: Future[T] = Future()

    def call() -> None:
        try:
            done.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            done.set_exception(error)

    threading.Thread(target=call, name="airserve-call", daemon=True).start()
    return done.result()


def _is_of_a_dead_replica(answer: Any) -> bool:
    # A task's error is the replica's own; Ray's other errors are about the replica.
    return isinstance(answer, ray.exceptions.RayError) and not isinstance(answer, ray.exceptions.RayTaskError)


def _unwrapped(call: Callable[[], T]) -> T:
    """Raise the replica's own error rather than Ray's wrapping of it."""
    try:
        return call()
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from None
        raise
