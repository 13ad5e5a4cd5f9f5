"""One replica of a deployment on Ray Serve: an endpoint, and the methods that a handle can call."""

from __future__ import annotations

import builtins
import gc
import inspect
import logging
import os
import pickle
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import ray
from ray import serve

from airserve_nb import output
from airserve_nb._sentences import describe
from airserve_nb.asgi import Receive, Scope, Send
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.checkpoint import Checkpoint
from airserve_nb.endpoint import Endpoint
from airserve_nb.engines.ray_truth import home_at
from airserve_nb.engines.record_socket import answer_on_socket
from airserve_nb.errors import DeployError, OptionError
from airserve_nb.follower import Follower
from airserve_nb.logbook import LogBook, users_frames, users_traceback
from airserve_nb.telemetry import Cursor
from airserve_nb.truth import Truth, TruthFolder
from airserve_nb.version import Version, VersionSpec, resolve_predictor

__all__ = ["Failure", "Replica", "unpack"]

logger = logging.getLogger("airserve_nb.deployment")

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Ray 2.60 ends the *driver's process* when it lets go of a broadcast's results that were too large for Ray's
# direct return (100 KiB): "ObjectUnknownOwner", reproduced with 3,000 records. So answers stay below.
LARGEST_BROADCAST = 64 * 1024
PAGE_RECORDS = 1_000


class Failure(NamedTuple):
    """Why a version could not be loaded."""

    what: str
    """The exception's type and message."""
    frames: str
    """The last ones of the user's code."""


@serve.ingress()
class Replica:
    """One replica: an :class:`~airserve_nb.endpoint.Endpoint` and the methods that a handle can call."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, spec: VersionSpec | None, name: str, truth: str | None = None
    ) -> None:
        self._endpoint = Endpoint(
            name,
            show_errors=_answers_only_this_machine(),
            echo_client_id=False,
            let_go=self._let_go_of_model,
        )
        self._spared: Version | None = None
        self._log = _start_logbook()
        self._spec = spec
        self._rebuilt = 0
        self._follower: Follower | None = None
        if truth is not None:
            self._follower = Follower(self._endpoint, home_at(truth), adapt=_with_gpu)
            if not await self._follower.start():
                raise DeployError(f"There is no version of {name} in {truth}; deploy it again.")
            if isinstance(self._follower.home, TruthFolder):
                folder, endpoint = self._follower.home.path, self._endpoint
                # Kept, because it answers no longer than it is referred to.
                self._records = await answer_on_socket(
                    folder, endpoint.replica, lambda cursor: endpoint.page(cursor, PAGE_RECORDS)
                )
            self._follower.begin_youth()
        elif spec is not None:
            self._spec = _with_gpu(spec)
            await self._endpoint.versions.activate(self._spec)
        self._spared = self._endpoint.version
        _spare_what_is_loaded()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        follower, endpoint = self._follower, self._endpoint
        if follower is None:
            return endpoint

        # A function: uvicorn takes a bound method for an application of ASGI 2.
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await follower.before_answer()
            await endpoint(scope, receive, send)

        return answer

    async def predict(self, value: Any) -> Any:
        """Predict on a model input, through the same batches as HTTP requests."""
        if self._follower is not None:
            await self._follower.before_answer()
        return await self._endpoint.predict(value)

    async def check_health(self) -> None:
        """Catch up with the truth. Serve calls this once a second, and replaces a replica in which it raises."""
        if self._follower is not None:
            await self._follower.look_again()
        if self._endpoint.version is not self._spared and self._endpoint.versions.is_idle:
            self._spared = self._endpoint.version
            _spare_what_is_loaded()

    def _let_go_of_model(self) -> None:
        self._spared = None
        gc.unfreeze()
        gc.collect()

    # -- swapping -------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return what a kernel that connects needs to know."""
        spec = self._endpoint.versions.in_force
        return {
            "pid": os.getpid(),
            "truth": None if self._follower is None else self._follower.home.where,
            "generation": 0 if self._follower is None else self._follower.generation,
            "version": None if spec is None else spec.version,
            "settings": None if spec is None else spec.settings,
        }

    async def prepare(self, truth: Truth, overlap: bool = True) -> Failure | None:
        """Load a version beside the one that serves, or instead of it; None when that went well."""
        assert self._follower is not None  # noqa: S101 - whoever has a truth to prepare has a home of it
        try:
            await self._follower.prepare(truth, overlap=overlap)
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises is told to the kernel
            # As text: the exception itself may not be picklable, or of a class that the kernel lacks.
            return Failure(describe(error), users_frames(error))
        return None

    async def drop(self, truth: Truth) -> None:
        """Let go of the version that was prepared, or is being."""
        if self._follower is not None:
            await self._follower.drop(truth)

    async def catch_up(self) -> int:
        """Serve what is confirmed; returns its generation."""
        return 0 if self._follower is None else await self._follower.catch_up()

    def set_batching(self, changes: Mapping[str, Any]) -> BatchSettings:
        """Batch by other limits, until this replica ends; returns what is in force."""
        version = self._endpoint.version
        settings = (version.batcher.settings if version is not None else BatchSettings()).changed(changes)
        self._endpoint.versions.set_batching(settings)
        return settings

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Take a new checkpoint, predictor class or batching settings; keep the rest.

        Serve calls this with a deployment's ``user_config``. It never raises, because Serve would stop the
        replica: with a value that can't be, the replica goes on serving what it served and logs why.
        """
        if not user_config or self._spec is None:
            return
        try:
            spec, rebuild = _changed_spec(self._spec, user_config)
            if rebuild:
                self._rebuilt += 1
                version = f"{spec.version.partition('.')[0]}.{self._rebuilt}"
                await self._endpoint.versions.activate(replace(spec, version=version))
            else:
                self._endpoint.versions.set_batching(spec.settings)
            self._spec = spec
        except Exception as error:  # noqa: BLE001 - see above
            cause = users_traceback(error)
            logger.error("user_config was refused, the old version goes on serving: %s\n%s", error, cause)  # noqa: TRY400 - as above

    def page(self, cursors: Mapping[str, Cursor]) -> tuple[str, bytes]:
        """Return this replica's name and, packed, its next records since its cursor."""
        replica = self._endpoint.replica
        cursor = cursors.get(replica, Cursor())
        return replica, _packed_to_fit(lambda limit: self._endpoint.page(cursor, limit), PAGE_RECORDS)

    def log_entries(self, count: int) -> tuple[str, bytes]:
        """Return this replica's name and, packed, as many of its last log entries as fit."""
        return self._endpoint.replica, _packed_to_fit(self._log.tail, count)


def _packed_to_fit(make: Callable[[int], Any], limit: int) -> bytes:
    """Pack what ``make`` gives for the largest limit, halved as often as needed, whose package is small."""
    while True:
        package = zlib.compress(pickle.dumps(make(limit)), level=1)
        if len(package) <= LARGEST_BROADCAST or limit <= 1:
            return package
        limit //= 2


def unpack(package: bytes) -> Any:
    """Return what a replica's ``page`` or ``log_entries`` packed."""
    return pickle.loads(zlib.decompress(package))  # noqa: S301 - from our own replica


def _spare_what_is_loaded() -> None:
    """Take what the process has loaded out of the garbage collector's sight.

    Ray and the model's libraries are some 300,000 objects that stay for good; a full collection that looks at
    them stops every request for 0.2 s. Before, it gets to see what was spared the last time: an old version.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _with_gpu(spec: VersionSpec) -> VersionSpec:
    """Let a predictor that can use a GPU use the one that the replica was given."""
    predictor_cls = resolve_predictor(spec.predictor_cls)
    takes_gpu = "use_gpu" in inspect.signature(predictor_cls.from_checkpoint).parameters
    if not takes_gpu or "use_gpu" in spec.checkpoint_kwargs or not ray.get_gpu_ids():
        return spec
    return replace(spec, checkpoint_kwargs={**spec.checkpoint_kwargs, "use_gpu": True})


def _changed_spec(spec: VersionSpec, changes: Mapping[str, Any]) -> tuple[VersionSpec, bool]:
    """Apply a user_config; the flag says whether the predictor must be built anew."""
    known = ["predictor_cls", "checkpoint", "batching_params", *BatchSettings.names()]
    for key in changes:
        if key not in known:
            raise OptionError(f"user_config has the unknown key {key!r}; the keys are {', '.join(known)}.")
    rest = dict(changes)
    new: dict[str, Any] = {}
    if "predictor_cls" in rest:
        new["predictor_cls"] = resolve_predictor(rest.pop("predictor_cls"))
    if "checkpoint" in rest:
        new["checkpoint"] = Checkpoint.of(rest.pop("checkpoint"))
    rebuild = bool(new)
    settings = spec.settings
    if "batching_params" in rest:
        params = rest.pop("batching_params")
        if isinstance(params, Mapping):
            settings = replace(settings.changed(params), enabled=True)
        else:
            settings = BatchSettings.from_params(params)
    settings = settings.changed(rest)
    # Turning batching on or off changes what predict is given, so requests must not be mixed.
    rebuild |= settings.enabled != spec.settings.enabled
    return replace(spec, settings=settings, **new), rebuild


def _start_logbook() -> LogBook:
    """Keep what our loggers say and what is printed; let both into Ray's files of this replica too."""
    book = LogBook()
    _let_print_print()
    output.keep_all(book)
    ours = logging.getLogger("airserve_nb")
    ours.setLevel(logging.INFO)
    ours.addHandler(book)
    for handler in logging.getLogger("ray.serve").handlers:
        ours.addHandler(handler)
    ours.propagate = False
    return book


def _let_print_print() -> None:
    """Undo Serve's replacing of ``print``, which writes to a log past ``sys.stdout``; the latter it replaces, too."""
    try:
        from ray.serve._private.logging_utils import buildin_print
    except ImportError:  # another Ray: then it may not replace it
        return
    builtins.print = buildin_print


def _answers_only_this_machine() -> bool:
    """Whether Serve's HTTP server listens on loopback only; False when that can't be found out."""
    try:
        # No public call tells it: the address is in the options that Serve was started with.
        from ray.serve.context import _get_global_client

        client = _get_global_client()
        host = client.http_config.host if client is not None else None
    except Exception:  # noqa: BLE001 - then errors are answered without their message, which is safe
        return False
    return host in {"127.0.0.1", "localhost", "::1"}
