"""A probe's requests, summed up by step of its rates."""

from __future__ import annotations

import math

import pandas as pd

from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.loadgen.summary import percentile

__all__ = ["step_table"]


def step_table(
    requests: pd.DataFrame, plan: LoadPlan, elapsed_s: float, *, interrupted: bool = False
) -> pd.DataFrame:
    """Return one row a step; see ``ProbeResult.steps``."""
    rates = plan.rates or (math.nan,)
    spans = [(0.0, elapsed_s)]
    if len(rates) > 1 and plan.duration_s is not None:
        # What a step leaves undone is answered in the next, so whatever came within it counts.
        spans = [(number * plan.duration_s, plan.duration_s) for number in range(len(rates))]
        if interrupted:  # a step may have ended early, or never begun
            spans = [(start, min(length, max(0.0, elapsed_s - start))) for start, length in spans]
    rows = [
        _row(requests, number, rate, span)
        for number, (rate, span) in enumerate(zip(rates, spans, strict=True))
    ]
    return pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="step"))


def _row(
    requests: pd.DataFrame, number: int, rate: float, span: tuple[float, float]
) -> dict[str, float | int]:
    mine = requests[requests["step"] == number]
    good = mine[mine["outcome"] == "ok"]
    answers = requests[requests["outcome"] == "ok"]
    start, length = span
    within = int(answers["done"].between(start, start + length).sum())
    p50, p99 = (percentile(good["total_ms"], share) for share in (0.5, 0.99))
    batched = good[good["batch_size"] > 0]
    return {
        "rate": rate,
        "requests": len(mine),
        "ok": len(good),
        "failed": int((~mine["outcome"].isin(("ok", "cancelled"))).sum()),
        "requests_per_s": within / length if length else math.nan,
        "p50_ms": math.nan if p50 is None else p50,
        "p99_ms": math.nan if p99 is None else p99,
        "late_ms": float((good["total_ms"] - good["service_ms"]).mean()),
        "queue_ms": float(good["queue_ms"].mean()),
        "predict_ms": float(good["predict_ms"].mean()),
        "overhead_ms": float(good["overhead_ms"].mean()),
        # Each request knows its batch's size, so a batch of n is seen n times: a harmonic mean counts it once.
        "mean_batch_size": len(batched) / float((1 / batched["batch_size"]).sum())
        if len(batched)
        else math.nan,
    }
