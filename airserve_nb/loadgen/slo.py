"""Objectives, and whether a probe met them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from airserve_nb.errors import ProbeError, SloMissedError
from airserve_nb.loadgen.summary import PERCENTILES, ProbeSummary, counted

__all__ = ["check_slo"]


def check_slo(
    summary: ProbeSummary,
    target: str,
    limits: Mapping[str, float],
    error_rate: float | None,
    requests_per_s: float | None,
) -> None:
    """Raise unless every objective was met; see ``ProbeResult.assert_slo``.

    Parameters
    ----------
    summary
        Of the probe.
    target
        Its target's name.
    limits
        Milliseconds by percentile, such as ``{"p99": 50}``.
    error_rate, requests_per_s
        The other objectives, or None.
    """
    if not limits and error_rate is None and requests_per_s is None:
        raise ProbeError("There is no objective; give one, such as assert_slo(p99_ms=50, error_rate=0.001).")
    missed = [
        *_errors(summary, error_rate),
        *_latencies(summary, limits, failures_too=error_rate is None),
        *_throughput(summary, requests_per_s),
    ]
    if missed:
        limited = (
            " The client was the limit, so the server may be better than that."
            if summary.client_limited
            else ""
        )
        raise SloMissedError(f"{target} missed {'; '.join(missed)}.{limited}", deployment=target)


def _latencies(summary: ProbeSummary, limits: Mapping[str, float], *, failures_too: bool) -> list[str]:
    found = {one.name: one for one in summary.percentiles}
    asked, failed = _asked(summary)
    missed = []
    for name, limit in limits.items():
        _check_number(f"{name.replace('.', '')}_ms", limit)
        ms = found[name].ms
        beyond = 1 - PERCENTILES[name]
        too_many = failures_too and failed > beyond * asked
        if too_many and (ms is None or ms <= limit):
            missed.append(
                f"{name} of {limit:g} ms: {failed} of {counted(asked, 'request')} failed, and only {beyond:.3g} of "
                "all may take longer (give an error_rate to judge failures apart)"
            )
            continue
        if ms is None:
            needed = 1 if name == "p50" else round(1 / (1 - PERCENTILES[name]))
            raise ProbeError(
                f"There are {counted(summary.samples, 'successful answer')}, too few to tell the {name}; it takes "
                f"{needed:,} or more."
            )
        if ms > limit:
            missed.append(
                f"{name} of {limit:g} ms: it was {ms:.1f} ms of {counted(summary.samples, 'answer')}"
            )
    return missed


def _asked(summary: ProbeSummary) -> tuple[int, int]:
    """Return how many requests there were, and how many failed, without those that a stopped probe gave up."""
    asked = summary.requests - summary.cancelled
    return asked, asked - summary.ok


def _errors(summary: ProbeSummary, limit: float | None) -> list[str]:
    if limit is None:
        return []
    _check_number("error_rate", limit)
    if limit > 1:
        raise ProbeError(f"error_rate is {limit!r}; give a share of the requests, from 0 to 1.")
    asked, failed = _asked(summary)
    if failed > limit * asked:
        most = f", mostly: {summary.most_frequent_error.rstrip('.')}" if summary.most_frequent_error else ""
        return [
            f"error rate of {limit:g}: {failed} of {counted(asked, 'request')} failed ({failed / asked:.3g}){most}"
        ]
    if asked == 0 or 0 < limit < 1 / asked:
        raise ProbeError(
            f"{counted(asked, 'request')} without a failure can't show an error rate of {limit:g} or less; it takes "
            f"{math.ceil(1 / limit) if limit else 1:,} or more."
        )
    return []


def _throughput(summary: ProbeSummary, limit: float | None) -> list[str]:
    if limit is None:
        return []
    _check_number("requests_per_s", limit)
    if not summary.requests_per_s >= limit:
        figure = 0 if math.isnan(summary.requests_per_s) else summary.requests_per_s
        return [f"{limit:g} requests a second: there were {figure:.1f}"]
    return []


def _check_number(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < math.inf:
        raise ProbeError(f"{name} is {value!r}; give a number, 0 or more.")
