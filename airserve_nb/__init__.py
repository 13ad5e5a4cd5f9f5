"""One notebook cell turns a predictor into a live, micro-batched HTTP endpoint on Ray Serve.

In a notebook::

    %load_ext airserve_nb

and then ``%%serve NAME`` at the top of a cell that defines a predictor; or, without magic,
``deploy(predictor, checkpoint, name=...)``.

The public names below are loaded when they are first used, so that importing this package costs next
to nothing: ray alone takes seconds.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from airserve_nb.errors import (
    AirServeError,
    BadInputError,
    BadOutputError,
    CellError,
    CheckpointError,
    DeployError,
    FitError,
    OptionError,
    PredictFailedError,
    PredictorError,
    ProbeError,
    QueueFullError,
    RequestError,
    SloMissedError,
)

if TYPE_CHECKING:
    from airserve_nb import http_adapters
    from airserve_nb.applications import overview
    from airserve_nb.capacity import CapacityPlan, plan_capacity
    from airserve_nb.checkpoint import Checkpoint
    from airserve_nb.deploying import deploy, services, stop
    from airserve_nb.deployment import PredictorDeployment
    from airserve_nb.diagnosis import Diagnosis, diagnose
    from airserve_nb.loadgen.result import ProbeResult
    from airserve_nb.loadgen.run import probe, probe_async, start_probe
    from airserve_nb.loadgen.sweep import sweep
    from airserve_nb.loadgen.sweep_result import SweepResult
    from airserve_nb.predictor import Predictor
    from airserve_nb.predictors.xgboost import XGBoostCheckpoint, XGBoostPredictor
    from airserve_nb.service import Service
    from airserve_nb.service_time import ServiceTime, fit_service_time
    from airserve_nb.simulation import Simulation, simulate
    from airserve_nb.trainers import XGBoostTrainer
    from airserve_nb.warming import warm_up

__all__ = [
    "AirServeError",
    "BadInputError",
    "BadOutputError",
    "CapacityPlan",
    "CellError",
    "Checkpoint",
    "CheckpointError",
    "DeployError",
    "Diagnosis",
    "FitError",
    "OptionError",
    "PredictFailedError",
    "Predictor",
    "PredictorDeployment",
    "PredictorError",
    "ProbeError",
    "ProbeResult",
    "QueueFullError",
    "RequestError",
    "Service",
    "ServiceTime",
    "Simulation",
    "SloMissedError",
    "SweepResult",
    "XGBoostCheckpoint",
    "XGBoostPredictor",
    "XGBoostTrainer",
    "deploy",
    "diagnose",
    "fit_service_time",
    "http_adapters",
    "load_ipython_extension",
    "overview",
    "plan_capacity",
    "probe",
    "probe_async",
    "services",
    "simulate",
    "start_probe",
    "stop",
    "sweep",
    "unload_ipython_extension",
    "warm_up",
]

__version__ = "0.1.0"

# A library prints nothing of its own accord: what is logged shows where its user asks for it.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Public name -> the module that defines it.
_HOMES = {
    "CapacityPlan": "airserve_nb.capacity",
    "Checkpoint": "airserve_nb.checkpoint",
    "Diagnosis": "airserve_nb.diagnosis",
    "Predictor": "airserve_nb.predictor",
    "PredictorDeployment": "airserve_nb.deployment",
    "ProbeResult": "airserve_nb.loadgen.result",
    "Service": "airserve_nb.service",
    "ServiceTime": "airserve_nb.service_time",
    "Simulation": "airserve_nb.simulation",
    "SweepResult": "airserve_nb.loadgen.sweep_result",
    "XGBoostCheckpoint": "airserve_nb.predictors.xgboost",
    "XGBoostPredictor": "airserve_nb.predictors.xgboost",
    "XGBoostTrainer": "airserve_nb.trainers",
    "deploy": "airserve_nb.deploying",
    "diagnose": "airserve_nb.diagnosis",
    "fit_service_time": "airserve_nb.service_time",
    "overview": "airserve_nb.applications",
    "plan_capacity": "airserve_nb.capacity",
    "probe": "airserve_nb.loadgen.run",
    "probe_async": "airserve_nb.loadgen.run",
    "services": "airserve_nb.deploying",
    "start_probe": "airserve_nb.loadgen.run",
    "simulate": "airserve_nb.simulation",
    "stop": "airserve_nb.deploying",
    "sweep": "airserve_nb.loadgen.sweep",
    "warm_up": "airserve_nb.warming",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name == "http_adapters":
        return importlib.import_module("airserve_nb.http_adapters")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})


def load_ipython_extension(ipython: Any) -> None:
    """Register the magics; called by ``%load_ext airserve_nb``."""
    from airserve_nb import magic_loading

    magic_loading.load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Remove the magics again; called by ``%unload_ext airserve_nb``."""
    from airserve_nb import magic_loading

    magic_loading.unload(ipython)
