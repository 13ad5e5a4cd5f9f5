"""RayHost: an application of Ray Serve that serves one PredictorDeployment, seen from the kernel."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaState
from ray.serve._private.exceptions import ExternalScalerDisabledError
from ray.serve.context import _get_global_client

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.engines import ray_attach, ray_cluster, ray_luggage
from airserve_nb.engines.ray_calls import broadcast, called_outside_loop, unwrapped
from airserve_nb.engines.ray_placement import Waiting, refuse_what_has_no_room
from airserve_nb.engines.ray_travel import pickled
from airserve_nb.engines.ray_truth import home_at
from airserve_nb.engines.record_socket import read_sockets
from airserve_nb.errors import DeployError
from airserve_nb.replica import Failure, unpack
from airserve_nb.telemetry import Cursor, Page
from airserve_nb.truth import Truth, TruthAwayError, TruthFolder, TruthHome
from airserve_nb.version import KeptVersion, VersionSpec

__all__ = ["RayHost"]

CALL_TIMEOUT_S = 30.0
# After the truth is confirmed a replica only has to switch. One that does not answer is being replaced, and its
# replacement reads the truth.
CATCH_UP_PATIENCE_S = 10.0
POLL_S = 0.05
# A replica is there in three to four seconds.
SCALE_PATIENCE_S = 60.0
# Versions that can be gone back to.
KEPT_PAYLOADS = 6


class RayHost:
    """An application of Ray Serve that serves one PredictorDeployment.

    Parameters
    ----------
    application
        The Serve application's name.
    details
        Serve's details of it.

    Raises
    ------
    Exception
        Whatever Ray raises when the application does not answer as a PredictorDeployment.
    """

    engine = "ray"

    def __init__(self, application: str, details: Mapping[str, Any]) -> None:
        self.name = ray_attach.name_of(application)
        self.application = application
        # One change at a time: each is based on the truth before it.
        self._changing = threading.Lock()
        self._handle = serve.get_app_handle(application)
        deployment = details.get("deployments", {}).get(self._handle.deployment_name, {})
        config = deployment.get("deployment_config", {})
        # What it was scaled to; in its configuration stands what it was deployed with.
        self.replicas = int(deployment.get("target_num_replicas") or config.get("num_replicas") or 1)
        self.num_cpus = float(config.get("ray_actor_options", {}).get("num_cpus") or 0)
        """CPUs that each replica was given."""
        self.luggage: str | None = None
        """A sentence about what makes the version heavy; None when it is not."""
        self.route_prefix = details.get("route_prefix") or "/"
        head = ray_attach.head_address() if ray_attach.is_attached() else None
        base = ray_cluster.base_url(machine=head or "127.0.0.1")
        self.url = f"{base}{self.route_prefix.rstrip('/') or '/'}"
        self.ingress = called_outside_loop(ray_cluster.ingress_in_place)
        described = self._describe()
        self._home = _home_of(described)
        self.version: str | None = described["version"]
        self.settings: BatchSettings = described["settings"] or BatchSettings()
        # Which payload each version has, to go back to: pickled again, it would take the globals of that later time.
        self._payloads: dict[str, str] = {}
        self._payloads |= self._noted().get("payloads", {})
        if self.version is not None and (truth := self._confirmed()) is not None:
            self._payloads[self.version] = truth.payload

    def predict(self, value: Any) -> Any:
        """Predict on a model input on one replica; blocks."""
        return called_outside_loop(lambda: unwrapped(lambda: self._handle.predict.remote(value).result()))

    def pages(self, cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        """Return every live replica's name and its records since its cursor; blocks."""
        on_sockets = []
        if isinstance(self._home, TruthFolder):
            on_sockets = read_sockets(self._home.path, cursors, timeout_s=CALL_TIMEOUT_S)
        return on_sockets or self._unpacked("page", dict(cursors))

    def log_entries(self, count: int) -> list[tuple[str, list[str]]]:
        """Return every live replica's name and its last log entries; blocks."""
        return self._unpacked("log_entries", count)

    def stop(self) -> None:
        """Delete the application; harmless when it has gone already."""
        if not ray.is_initialized():
            return
        if self.application in serve.status().applications:
            with ray_cluster.quiet_logs():
                called_outside_loop(serve.delete, self.application)
        if self._home is not None:
            self._home.end()

    # -- changing what runs ---------------------------------------------------------------------

    @property
    def can_swap(self) -> bool:
        """Whether a version can be replaced without new processes."""
        return self._home is not None and ray.is_initialized() and self._running_replicas() > 0

    def swap(self, spec: VersionSpec, *, overlap: bool = True) -> None:
        """Serve another version in the processes that run; on an error the old one goes on everywhere.

        Parameters
        ----------
        spec
            What to serve.
        overlap
            False: every replica lets its model go before it loads the new one, and requests wait.

        Raises
        ------
        DeployError
            With the reason, when it can't travel, or any replica can't load it.
        """
        with self._changing:
            self._swap(spec, overlap=overlap)

    def _swap(self, spec: VersionSpec, *, overlap: bool) -> None:
        # Asked for each time: somebody may have deployed this application anew.
        described = self._broadcast("describe")
        if not described:
            raise self._nobody_there()
        home = self._home = _home_of(described[0])
        if home is None:
            raise DeployError(
                f"{self.name} was made with serve.run, so its version can't be swapped; deploy it again.",
                deployment=self.name,
            )
        now = self._confirmed()
        payload = self._payloads.get(spec.version)
        if payload is None or not home.has(payload):
            if isinstance(spec, KeptVersion):
                raise DeployError(
                    f"{spec.version} of {self.name} is not kept any more; deploy it again.",
                    deployment=self.name,
                )
            content = pickled(spec, name=self.name)
            self.luggage = ray_luggage.described(spec, len(content))
            payload = home.stage(content)
        # What serves counts too: where the truth was lost, an older one would be overheard.
        generations = [each["generation"] for each in described] + (
            [now.generation] if now is not None else []
        )
        truth = Truth(max(generations) + 1, payload, spec.settings)
        try:
            self._prepare(truth, overlap=overlap)
            home.confirm(truth)
        except BaseException:
            if self._confirmed() == truth:
                # The interrupt came too late: every replica that looks will serve it.
                self.version, self.settings = spec.version, truth.settings
                raise
            # An interrupt, too. Nobody waits for this: a replica may be loading for minutes.
            with suppress(Exception):
                self._handle.broadcast("drop", truth)._ensure_scheduled()  # noqa: SLF001 - sent, not awaited
            raise
        self.version, self.settings = spec.version, truth.settings
        self._remember(home, spec.version, payload, now)
        self._tell(truth)

    def _remember(self, home: TruthHome, version: str, payload: str, before: Truth | None) -> None:
        self._payloads.pop(version, None)
        self._payloads[version] = payload
        for oldest in list(self._payloads)[:-KEPT_PAYLOADS]:
            del self._payloads[oldest]
        # The new version is confirmed already: what is too much on a disk must not make the swap fail.
        with suppress(TruthAwayError):
            # A replica that is just starting may still be reading the one before.
            home.forget_all_but({*self._payloads.values(), *([] if before is None else [before.payload])})

    def remember(self, told: list[dict[str, Any]]) -> None:
        """Keep what is told of the versions beside the truth; a courtesy to a later kernel, so it never fails."""
        with suppress(TruthAwayError, OSError):
            if self._home is not None:
                self._home.note(json.dumps({"told": told, "payloads": self._payloads}))

    def recall(self) -> list[dict[str, Any]]:
        """Return what was last told, by this kernel or an earlier one; empty when that is not known."""
        told: list[dict[str, Any]] = self._noted().get("told", [])
        return told

    def _noted(self) -> dict[str, Any]:
        with suppress(TruthAwayError):
            text = None if self._home is None else self._home.notes()
            return {} if text is None else dict(json.loads(text))
        return {}

    def payload(self) -> tuple[bytes, BatchSettings] | None:
        """Return what serves, pickled, and how it batches; None where that is not kept."""
        truth = self._confirmed()
        if self._home is None or truth is None:
            return None
        return self._home.content(truth.payload), truth.settings

    def set_batching(self, changes: Mapping[str, Any]) -> None:
        """Batch by other limits from now on, on every replica."""
        with self._changing:
            home = self._home = _home_of(self._describe())
            now = None if home is None else home.read()
            if home is None or now is None:
                self.settings = self._broadcast("set_batching", dict(changes))[0]
                return
            truth = Truth(now.generation + 1, now.payload, now.settings.changed(changes))
            home.confirm(truth)
            self.settings = truth.settings
            self._tell(truth)

    def scale(self, num_replicas: int) -> None:
        """Have that many replicas; blocks until they run.

        Raises
        ------
        DeployError
            When there is no room for them, or the deployment was not made to be scaled.
        """
        refuse_what_has_no_room(self.name, num_replicas - self.replicas, self.num_cpus)
        self._ask_for_replicas(num_replicas)
        try:
            self._wait_for_replicas(num_replicas)
        except BaseException:
            # An interrupt, too. Serve would go on waiting for what does not come.
            with suppress(Exception):
                self._ask_for_replicas(self.replicas)
            raise
        self.replicas = num_replicas

    def _ask_for_replicas(self, count: int) -> None:
        # No public call scales without a restart except over Ray's dashboard, which does not run here.
        controller = _get_global_client()._controller  # noqa: SLF001 - see above
        deployment = DeploymentID(name=self._handle.deployment_name, app_name=self.application)
        try:
            called_outside_loop(
                unwrapped, lambda: ray.get(controller.update_deployment_replicas.remote(deployment, count))
            )
        except ExternalScalerDisabledError:
            raise DeployError(
                f"{self.name} was not deployed by this package, so it is scaled where it was: set num_replicas there.",
                deployment=self.name,
            ) from None

    def _wait_for_replicas(self, count: int) -> None:
        deadline = time.monotonic() + SCALE_PATIENCE_S
        waiting = Waiting({"CPU": self.num_cpus})
        while self._replica_states() != {ReplicaState.RUNNING: count}:
            if time.monotonic() > deadline or waiting.is_certain():
                raise DeployError(
                    f"{self.name} can't have {count} replicas: {waiting.in_words()}; it keeps {self.replicas}.",
                    deployment=self.name,
                )
            time.sleep(POLL_S)

    def _running_replicas(self) -> int:
        return int(self._replica_states().get(ReplicaState.RUNNING, 0))

    def _replica_states(self) -> dict[Any, int]:
        application = serve.status().applications.get(self.application)
        deployment = application and application.deployments.get(self._handle.deployment_name)
        return dict(deployment.replica_states) if deployment else {}

    def _prepare(self, truth: Truth, *, overlap: bool) -> None:
        """Let every replica load a version; raises the first one's reason why it could not."""
        answers = self._broadcast("prepare", truth, overlap, timeout_s=None)
        for answer in answers:
            if isinstance(answer, Failure):
                error = DeployError(
                    f"{self.name} could not start: {answer.what}. {self.version} goes on serving.",
                    deployment=self.name,
                )
                error.frames = answer.frames
                raise error
        if not answers:
            raise self._nobody_there()

    def _tell(self, truth: Truth) -> None:
        """Wait until every live replica serves what is the truth already."""
        # An interrupt comes too late: every replica will serve it, told or not.
        with suppress(KeyboardInterrupt):
            deadline = time.monotonic() + CATCH_UP_PATIENCE_S
            while not self._all_serve(truth):
                if time.monotonic() > deadline:
                    warnings.warn(
                        f"Not every replica of {self.name} serves {self.version} yet; those that don't are being "
                        "replaced, or are still loading it.",
                        stacklevel=2,
                    )
                    return
                time.sleep(POLL_S)

    def _all_serve(self, truth: Truth) -> bool:
        try:
            generations = self._broadcast("catch_up")
        except Exception:  # noqa: BLE001 - of a replica that has just died, in one of several ways
            return False
        # Those that can't be reached are left out of a broadcast.
        enough = len(generations) >= max(1, self._running_replicas())
        return enough and all(generation >= truth.generation for generation in generations)

    # -- talking to replicas --------------------------------------------------------------------

    def _confirmed(self) -> Truth | None:
        """Return the confirmed state; None where there is none, or it was lost."""
        with suppress(TruthAwayError):
            return None if self._home is None else self._home.read()
        return None

    def _describe(self) -> dict[str, Any]:
        for described in self._broadcast("describe"):
            return dict(described)
        raise self._nobody_there()

    def _nobody_there(self) -> DeployError:
        return DeployError(
            f"No replica of {self.name} answers now; try again in some seconds.", deployment=self.name
        )

    def _broadcast(self, method: str, *args: Any, timeout_s: float | None = CALL_TIMEOUT_S) -> list[Any]:
        return broadcast(self._handle, method, *args, timeout_s=timeout_s)

    def _unpacked(self, method: str, argument: Any) -> list[tuple[str, Any]]:
        return [(replica, unpack(package)) for replica, package in self._broadcast(method, argument)]


def _home_of(described: Mapping[str, Any]) -> TruthHome | None:
    where = described["truth"]
    return None if where is None else home_at(where)
