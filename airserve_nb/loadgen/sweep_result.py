"""What a sweep found: a row a setting, two pictures, and the best setting for an objective."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from airserve_nb import figures
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.recommendation import Recommendation
from airserve_nb.loadgen.summary import counted, duration, percentile
from airserve_nb.loadgen.sweep_html import sweep_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from airserve_nb.loadgen.prediction import Prediction
    from airserve_nb.loadgen.result import ProbeResult

__all__ = ["SweepResult", "Trial", "steady_p99"]

Floats = npt.NDArray[np.float64]

AS_LOW = 0.05
"""Latencies that differ by less are as low: another run would order them otherwise."""
PART = 100
"""Answers that a p99 takes."""


@dataclass(frozen=True, repr=False, eq=False)
class Trial:
    """One setting, and its probe in each round that it was in."""

    max_batch_size: int
    batch_wait_timeout_s: float
    probes: tuple[ProbeResult, ...]
    fell_behind: bool
    """Whether it was stopped because the service could not keep up."""

    def row(self, replicas: int) -> dict[str, Any]:
        """Return its row of ``SweepResult.table``, but for the front."""
        latencies = self.latencies()
        together = pd.Series(np.concatenate([[], *latencies]))
        sizes = [size for one in self.probes for size in one.batches["batch_size"]]
        busy_s = sum(float(one.batches["predict_ms"].sum()) for one in self.probes) / 1e3
        elapsed_s = sum(one.elapsed_s for one in self.probes)
        utilisation = busy_s / (elapsed_s * replicas) if elapsed_s and sizes else math.nan
        p50, p99 = (percentile(together, share) for share in (0.5, 0.99))
        outcomes = [outcome for one in self.probes for outcome in one.requests["outcome"]]
        return {
            "max_batch_size": self.max_batch_size,
            "batch_wait_timeout_s": self.batch_wait_timeout_s,
            "p50_ms": math.nan if p50 is None else p50,
            "p99_ms": math.nan if p99 is None else p99,
            "steady_p99_ms": steady_p99(latencies),
            "samples": len(together),
            "requests_per_s": len(together) / elapsed_s if elapsed_s else math.nan,
            "model_requests_per_s": len(together) / busy_s if busy_s else math.nan,
            "mean_batch_size": float(np.mean(sizes)) if sizes else math.nan,
            "utilisation": utilisation,
            "errors": len(outcomes) - len(together) - outcomes.count("cancelled"),
            "rounds": len(self.probes),
            "keeps_up": bool(self.probes) and not self.fell_behind,
        }

    def latencies(self) -> list[Floats]:
        """Return the latencies of the successful answers of each probe, in the order of the plan; milliseconds."""
        return [
            one.requests.loc[one.requests["outcome"] == "ok", "total_ms"].to_numpy(dtype=float)
            for one in self.probes
        ]


def steady_p99(latencies: Sequence[Floats]) -> float:
    """Return the median of the p99s of parts of a hundred answers or a few more; NaN of fewer.

    A moment in which the machine did something else spoils the parts that it fell into, and a p99 of all; it does not
    spoil this, as long as it is less than half of the time.
    """
    parts = [part for one in latencies for part in np.array_split(one, max(1, len(one) // PART))]
    if any(len(part) < PART for part in parts):
        parts = [np.concatenate([[], *latencies])]
    if not parts or len(parts[0]) < PART:
        return math.nan
    return float(np.median([np.quantile(part, 0.99) for part in parts]))


@dataclass(frozen=True, repr=False, eq=False)
class SweepResult:
    """What each setting did with the same load."""

    target: str
    """The service's name."""
    trials: tuple[Trial, ...]
    """One a setting, with all its probes, in the order of the grid."""
    replicas: int
    """How many served."""
    rate: float | None
    """Requests a second that were asked for; None of a closed loop."""
    concurrency: int | None
    """Requests in flight; None of an open loop."""
    elapsed_s: float
    """From start to end, in seconds, with all that is between the probes."""
    interrupted: bool
    """Whether it was stopped before its end."""
    before: BatchSettings
    """The service's settings before, which it has again."""

    @property
    def table(self) -> pd.DataFrame:
        """Return one row a setting, over all its rounds.

        ``max_batch_size``, ``batch_wait_timeout_s``, ``p50_ms``, ``p99_ms`` (of the latency, from the planned send
        time; NaN with too few samples), ``steady_p99_ms`` (the median of the p99s of parts of a hundred answers: what
        the machine does besides for a moment does not move it, so settings are judged by it), ``samples`` (successful
        answers, of which these are), ``requests_per_s`` (successful answers a second), ``model_requests_per_s`` (the
        same, a second in which a model predicted), ``mean_batch_size``, ``utilisation`` (share of the time in which a
        model predicted), ``errors`` (requests that failed), ``rounds`` (in how many it was; the worse half leaves
        after each), ``keeps_up`` (False: stopped, because the service fell behind), ``front`` (it keeps up without an
        error, and no other that does has both a lower steady p99 and more answers a second of model time).
        """
        frame = pd.DataFrame([trial.row(self.replicas) for trial in self.trials])
        frame["front"] = _front(frame)
        return frame

    def recommend(self, p99_ms: float | None = None) -> Recommendation:
        """Return the best setting: of those that keep up without an error, the one with the lowest steady p99.

        Of those that are within 5 % of it, which is as good, it is the one with the lowest p50; never one that breaks
        the limit where another keeps it. In a closed loop, where settings differ in throughput: of those whose steady
        p99 is at most ``p99_ms``, the one with the most answers a second. Settings of the last round come first, for
        of the others less is known. Where none keeps the limit, it is the one with the lowest, and says so.

        Parameters
        ----------
        p99_ms
            The limit, in milliseconds; None: no limit.

        Raises
        ------
        ProbeError
            When no setting kept up, or for none there are the 100 answers that a p99 takes.
        """
        if p99_ms is not None and (
            isinstance(p99_ms, bool)
            or not isinstance(p99_ms, int | float | np.number)
            or not 0 < p99_ms < math.inf
        ):
            raise ProbeError(f"p99_ms is {p99_ms!r}; give milliseconds above 0.")
        table = self.table
        known = table[table["keeps_up"] & table["steady_p99_ms"].notna() & (table["errors"] == 0)]
        if known.empty:
            raise ProbeError(
                f"No setting of {self.target} kept up without errors and with 100 answers or more, so none can be "
                "recommended; sweep with a lower rate or for longer."
            )
        known = known[known["rounds"] == known["rounds"].max()]
        fine = known[known["steady_p99_ms"] <= (math.inf if p99_ms is None else p99_ms)]
        among = fine if len(fine) else known  # one that breaks the limit is not as good as one that keeps it
        if self.rate is None and len(fine):
            best = fine.loc[fine["requests_per_s"].idxmax()]
        else:
            as_low = among["steady_p99_ms"] <= (1 + AS_LOW) * among["steady_p99_ms"].min()
            best = among.loc[among[as_low]["p50_ms"].idxmin()]
        return Recommendation(
            max_batch_size=int(best["max_batch_size"]),
            batch_wait_timeout_s=float(best["batch_wait_timeout_s"]),
            p50_ms=float(best["p50_ms"]),
            p99_ms=float(best["steady_p99_ms"]),
            disturbed_p99_ms=float(best["p99_ms"]),
            requests_per_s=float(best["requests_per_s"]),
            samples=int(best["samples"]),
            limit_ms=None if p99_ms is None else float(p99_ms),
        )

    def predicted(self, service_time: Any, *, overhead_ms: float = 0.0) -> Prediction:
        """Simulate each setting that kept up, with the arrivals that it had, and set the outcome beside the measured one.

        Parameters
        ----------
        service_time, overhead_ms
            As for ``airserve_nb.simulate``. Each request is taken for one row.

        Raises
        ------
        ProbeError
            When the arrivals were not planned, as in a closed loop.
        """
        from airserve_nb.loadgen.prediction import predict_trials

        return predict_trials(self, service_time, overhead_ms)

    # -- pictures -------------------------------------------------------------------------------

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the steady p99 against throughput, answers a second of model time, a point a setting; the front is marked.

        All settings have the same load, so in an open loop those that keep up answer as many; they differ in how much
        of the model's time that takes.
        """
        return figures.sweep_front(self.table, ax, rate=self.rate)

    def plot_grid(self, ax: Axes | None = None) -> Axes:
        """Draw the steady p99 as a grid: sizes across, waits down."""
        return figures.sweep_grid(self.table, ax)

    def figure(self) -> Figure:
        """Draw both, side by side."""
        return figures.sweep_figure(self.table, rate=self.rate)

    # -- showing it -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Hold nothing that differs from run to run: no times."""
        stopped = ", interrupted" if self.interrupted else ""
        return (
            f"<SweepResult {self.target}: {counted(len(self.trials), 'setting')} at {self._load()}{stopped}>"
        )

    def _load(self) -> str:
        return f"{self.rate:g} req/s" if self.concurrency is None else f"{self.concurrency} in flight"

    def _headline(self) -> str:
        kept = sum(trial.fell_behind for trial in self.trials)
        behind = f"; with {counted(kept, 'setting')} the service could not keep up" if kept else ""
        stopped = "Interrupted: " if self.interrupted else ""
        return (
            f"{stopped}{counted(len(self.trials), 'setting')} at {self._load()} in {duration(self.elapsed_s)}{behind}. "
            f"The service has its own again: {self.before.in_words()}.{self._disturbed()}"
        )

    def _disturbed(self) -> str:
        probes = [one.summary() for trial in self.trials for one in trial.probes if not trial.fell_behind]
        late = sum(one.client_limited for one in probes)
        if not late:
            return ""
        return (
            f" In {late} of {counted(len(probes), 'probe')} this machine was too busy to send every request in time, "
            "so trust large differences only."
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:  # noqa: ARG002 - IPython's
        return {"text/plain": repr(self), "text/html": self._repr_html_(), "image/png": self._png()}

    def _repr_html_(self) -> str:
        return sweep_html(self.target, self._headline(), self.table, self._png(transparent=True))

    def _png(self, *, transparent: bool = False) -> str:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", transparent=transparent)
        return b64encode(buffer.getvalue()).decode("ascii")


def _front(table: pd.DataFrame) -> list[bool]:
    """Tell for each setting whether none is better in one respect and as good in the other."""
    more, slow = table["model_requests_per_s"].to_numpy(), table["steady_p99_ms"].to_numpy()
    fine = (table["keeps_up"] & (table["errors"] == 0)).to_numpy()
    usable = fine & np.isfinite(slow) & np.isfinite(more)
    found = []
    for mine in range(len(table)):
        as_good = usable & (slow <= slow[mine]) & (more >= more[mine])
        better = (slow < slow[mine]) | (more > more[mine])
        found.append(bool(usable[mine] and not (as_good & better).any()))
    return found
