"""What the simulator says of the settings of a sweep, beside what was measured."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airserve_nb import figures
from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.summary import counted
from airserve_nb.loadgen.sweep_result import steady_p99
from airserve_nb.simulation import simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from airserve_nb.loadgen.sweep_result import SweepResult, Trial

__all__ = ["Prediction", "predict_trials"]

Floats = npt.NDArray[np.float64]
NAMES = ("p50", "p99", "steady_p99")


@dataclass(frozen=True, repr=False, eq=False)
class Prediction:
    """Predicted against measured latencies; printed, it is a sentence."""

    table: pd.DataFrame
    """One row a setting: ``max_batch_size``, ``batch_wait_timeout_s``, ``samples``, ``p50_ms``, ``p50_predicted_ms``,
    ``p50_error``, and the same of ``p99`` and ``steady_p99`` (see ``SweepResult.table``). An error is predicted over
    measured, less 1."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw predicted against measured, two points a setting."""
        return figures.prediction(self.table, ax)

    def __str__(self) -> str:
        parts = []
        for name in NAMES:
            off = self.table[f"{name}_error"].abs()
            parts.append(
                f"{name.replace('_', ' ')} off by {off.median():.0%} (median), {off.max():.0%} at most"
            )
        return f"Of {counted(len(self.table), 'setting')}: {'; '.join(parts)}."

    def __repr__(self) -> str:
        return f"<Prediction: {self}>"


def predict_trials(sweep: SweepResult, service_time: Any, overhead_ms: float) -> Prediction:
    """Simulate each setting that kept up; see ``SweepResult.predicted``."""
    if sweep.rate is None:
        raise ProbeError(
            "In a closed loop each answer lets the next request go, so there are no arrivals to simulate; sweep with a rate."
        )
    table = sweep.table
    rows = []
    for trial, measured in zip(sweep.trials, table.to_dict("records"), strict=True):
        if not measured["keeps_up"] or measured["errors"] or np.isnan(measured["p99_ms"]):
            continue
        rows.append(_row(measured, _simulated(trial, sweep.replicas, service_time, overhead_ms)))
    if not rows:
        raise ProbeError("No setting kept up with 100 answers or more, so there is nothing to compare.")
    return Prediction(pd.DataFrame(rows))


def _simulated(trial: Trial, replicas: int, service_time: Any, overhead_ms: float) -> list[Floats]:
    return [
        simulate(
            service_time,
            one.requests["planned"].to_numpy(),
            trial.max_batch_size,
            trial.batch_wait_timeout_s,
            replicas=replicas,
            overhead_ms=overhead_ms,
        ).latencies_ms
        for one in trial.probes
    ]


def _row(measured: Mapping[Hashable, Any], latencies: list[Floats]) -> dict[str, Any]:
    p50, p99 = np.percentile(np.concatenate(latencies), (50, 99))
    row = {name: measured[name] for name in ("max_batch_size", "batch_wait_timeout_s", "samples")}
    for name, predicted in zip(NAMES, (p50, p99, steady_p99(latencies)), strict=True):
        row[f"{name}_ms"] = measured[f"{name}_ms"]
        row[f"{name}_predicted_ms"] = float(predicted)
        row[f"{name}_error"] = float(predicted) / measured[f"{name}_ms"] - 1
    return row
