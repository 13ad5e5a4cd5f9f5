"""PredictorDeployment: the endpoint as a Ray Serve deployment.

``PredictorDeployment.options(...).bind(...)`` gives an application for ``ray.serve.run``, as in Ray AIR.
Everything that can be checked is checked in ``bind``, in the caller's process, before anything runs.
"""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve

from airserve_nb._sentences import as_sentence, describe
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.checkpoint import Checkpoint
from airserve_nb.endpoint import Endpoint
from airserve_nb.errors import OptionError
from airserve_nb.http_adapters import json_to_ndarray
from airserve_nb.logbook import LogBook, users_traceback
from airserve_nb.predictor import Predictor
from airserve_nb.telemetry import Cursor
from airserve_nb.version import VersionSpec, make_spec, resolve_predictor

__all__ = ["PredictorDeployment", "Replica", "build_app", "unpack"]

logger = logging.getLogger("airserve_nb.deployment")

# A notebook's replicas share few cores: with a whole CPU each, the new replicas of a rolling update
# would wait for ever beside the old ones.
DEFAULT_ACTOR_OPTIONS = {"num_cpus": 0.1}
# What waits must wait in our queue, where it is seen: Serve's own limit stays out of the way.
ONGOING_BEYOND_QUEUE = 1_000
# Ray 2.60 ends the *driver's process* when it lets go of a broadcast's results that were too large for Ray's
# direct return (100 KiB): "ObjectUnknownOwner", reproduced with 3,000 records. So answers stay below.
LARGEST_BROADCAST = 64 * 1024
PAGE_RECORDS = 1_000


@serve.ingress()
class Replica:
    """One replica: an :class:`~airserve_nb.endpoint.Endpoint` and the methods that a handle can call."""

    async def __init__(self, spec: VersionSpec, name: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._endpoint = Endpoint(name, show_errors=_answers_only_this_machine(), echo_client_id=False)
        self._spec = _with_gpu(spec)
        self._log = _start_logbook()
        self._rebuilt = 0
        await self._endpoint.activate(self._spec)
        _spare_what_is_loaded()

    def __serve_build_asgi_app__(self) -> Endpoint:
        return self._endpoint

    async def predict(self, value: Any) -> Any:
        """Predict on a model input, through the same batches as HTTP requests."""
        return await self._endpoint.predict(value)

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Take a new checkpoint, predictor class or batching settings; keep the rest.

        Serve calls this with a deployment's ``user_config``. It never raises, because Serve would stop the
        replica: with a value that can't be, the replica goes on serving what it served and logs why.
        """
        if not user_config:
            return
        try:
            spec, rebuild = _changed_spec(self._spec, user_config)
            if rebuild:
                self._rebuilt += 1
                version = f"{spec.version.partition('.')[0]}.{self._rebuilt}"
                await self._endpoint.activate(replace(spec, version=version))
            else:
                self._endpoint.set_batching(spec.settings)
            self._spec = spec
        except Exception as error:  # noqa: BLE001 - see above
            cause = users_traceback(error)
            logger.error("user_config was refused, the old version goes on serving: %s\n%s", error, cause)  # noqa: TRY400 - as above

    def page(self, cursors: Mapping[str, Cursor]) -> tuple[str, bytes]:
        """Return this replica's name and, packed, its next records since its cursor."""
        replica = self._endpoint.replica
        cursor = cursors.get(replica, Cursor())
        return replica, _packed_to_fit(
            lambda limit: self._endpoint.recorder.since(cursor, limit), PAGE_RECORDS
        )

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
    them stops every request for 0.2 s.
    """
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
    """Keep what our loggers say, and let it into Serve's log file of this replica too."""
    book = LogBook()
    ours = logging.getLogger("airserve_nb")
    ours.setLevel(logging.INFO)
    ours.addHandler(book)
    for handler in logging.getLogger("ray.serve").handlers:
        ours.addHandler(handler)
    ours.propagate = False
    return book


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


@dataclass(frozen=True)
class _PredictorDeployment:
    """A deployment of a predictor, still without its predictor.

    Examples
    --------
    ::

        app = PredictorDeployment.options(name="Adder").bind(AdderPredictor, Checkpoint.from_dict({"increment": 2}))
        ray.serve.run(app)
    """

    deployment_options: Mapping[str, Any] = field(default_factory=dict)

    def options(self, **options: Any) -> _PredictorDeployment:
        """Return a copy with options of a Ray Serve deployment, such as ``name`` and ``num_replicas``.

        Raises
        ------
        OptionError
            For an option that Serve does not have.
        """
        merged = {**self.deployment_options, **options}
        _serve_deployment(merged)
        return _PredictorDeployment(merged)

    def bind(
        self,
        predictor_cls: type[Predictor] | str,
        checkpoint: Any,
        http_adapter: Any = json_to_ndarray,
        batching_params: Mapping[str, Any] | bool | None = None,
        predict_kwargs: Mapping[str, Any] | None = None,
        **from_checkpoint_kwargs: Any,
    ) -> serve.Application:
        """Make an application of a predictor class and its checkpoint.

        Parameters
        ----------
        predictor_cls
            A subclass of :class:`~airserve_nb.predictor.Predictor`, or its import path.
        checkpoint
            A :class:`~airserve_nb.checkpoint.Checkpoint`, a dict, a ``ray.train.Checkpoint``, or a URI.
        http_adapter
            Makes a model input of an HTTP request: a function from :mod:`airserve_nb.http_adapters`, any
            annotated function, a pydantic class, or an import path.
        batching_params
            None (batches of at most 10, no wait), False (no batching), or a dict of ``max_batch_size``
            (requests), ``batch_wait_timeout_s`` (seconds), ``max_batch_rows``, ``max_queue_size`` and
            ``retry_failed_batches``.
        predict_kwargs
            Passed to every call of ``predict``.
        **from_checkpoint_kwargs
            Passed to ``predictor_cls.from_checkpoint``.

        Returns
        -------
        ray.serve.Application

        Raises
        ------
        OptionError, CheckpointError
            When it could not be served.
        """
        spec = make_spec(
            predictor_cls,
            checkpoint,
            http_adapter=http_adapter,
            batching_params=batching_params,
            predict_kwargs=predict_kwargs,
            checkpoint_kwargs=from_checkpoint_kwargs,
        )
        return self.bind_spec(spec)

    def bind_spec(self, spec: VersionSpec) -> serve.Application:
        """Make an application of a version that was checked already."""
        options = dict(self.deployment_options)
        options["ray_actor_options"] = {**DEFAULT_ACTOR_OPTIONS, **options.get("ray_actor_options", {})}
        settings = spec.settings
        in_our_hands = settings.max_queue_size + 2 * settings.max_batch_size
        options.setdefault("max_ongoing_requests", in_our_hands + ONGOING_BEYOND_QUEUE)
        options.setdefault("health_check_period_s", 1)
        # Our own request log says more. Serve's formats a thousand lines at once, while every request waits.
        options.setdefault("logging_config", {"enable_access_log": False})
        deployment = _serve_deployment(options)
        return deployment.bind(spec, deployment.name)


PredictorDeployment = _PredictorDeployment()
"""The deployment to configure: ``PredictorDeployment.options(...).bind(...)``."""


def _serve_deployment(options: Mapping[str, Any]) -> serve.Deployment:
    base = serve.deployment(name="PredictorDeployment")(Replica)
    try:
        # A copy, because Serve writes its defaults into the caller's dicts.
        return base.options(**copy.deepcopy(dict(options)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise OptionError(f"Ray Serve refuses {where}={first['input']!r}: {first['msg']}.") from error
    except Exception as error:
        raise OptionError(f"Ray Serve refuses these options: {as_sentence(describe(error))}") from error


def build_app(args: Mapping[str, Any]) -> serve.Application:
    """Build an application from strings, for a Serve YAML file.

    ::

        applications:
          - import_path: airserve_nb.deployment:build_app
            args:
              predictor_cls: my_models:Churn
              checkpoint: s3://models/churn
              http_adapter: airserve_nb.http_adapters:pandas_read_json
              batching_params: {max_batch_size: 32, batch_wait_timeout_s: 0.01}
              deployment_options: {name: Churn, num_replicas: 2}

    Raises
    ------
    OptionError
        For an argument that is missing or unknown.
    """
    rest = dict(args)
    options = rest.pop("deployment_options", {})
    for name in ("predictor_cls", "checkpoint"):
        if name not in rest:
            raise OptionError(f"The application's args have no {name!r}; add it.")
    return PredictorDeployment.options(**options).bind(**rest)
