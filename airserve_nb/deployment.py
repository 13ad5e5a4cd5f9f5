"""PredictorDeployment: the endpoint as a Ray Serve deployment.

``PredictorDeployment.options(...).bind(...)`` gives an application for ``ray.serve.run``, as in Ray AIR.
Everything that can be checked is checked in ``bind``, in the caller's process, before anything runs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from ray import serve

from airserve_nb._sentences import as_sentence, describe
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import OptionError
from airserve_nb.http_adapters import json_to_ndarray
from airserve_nb.predictor import Predictor
from airserve_nb.replica import Replica
from airserve_nb.version import VersionSpec, make_spec

__all__ = ["PredictorDeployment", "build_app"]

# A notebook's replicas share few cores: with a whole CPU each, the new replicas of a rolling update
# would wait for ever beside the old ones.
DEFAULT_ACTOR_OPTIONS = {"num_cpus": 0.1}
# What waits must wait in our queue, where it is seen: Serve's own limit stays out of the way, also of limits that
# are set later.
ONGOING_BEYOND_QUEUE = 10_000


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
        deployment = self._deployment(spec.settings)
        return deployment.bind(spec, deployment.name)

    def bind_truth(self, where: str, settings: BatchSettings) -> serve.Application:
        """Make an application that serves what the truth says that is kept there, now and later."""
        deployment = self._deployment(settings)
        return deployment.bind(None, deployment.name, where)

    def _deployment(self, settings: BatchSettings) -> serve.Deployment:
        options = dict(self.deployment_options)
        options["ray_actor_options"] = {**DEFAULT_ACTOR_OPTIONS, **options.get("ray_actor_options", {})}
        in_our_hands = settings.max_queue_size + 2 * settings.max_batch_size
        options.setdefault("max_ongoing_requests", in_our_hands + ONGOING_BEYOND_QUEUE)
        options.setdefault("health_check_period_s", 1)
        # Our own request log says more. Serve's formats a thousand lines at once, while every request waits.
        options.setdefault("logging_config", {"enable_access_log": False})
        return _serve_deployment(options)


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
