"""What limits latency: rules like those of the batches' size."""

from __future__ import annotations

from airserve_nb._diagnosis_case import Case, Finding, Rule, count, digits, in_ms, percent

__all__ = ["LATENCY_RULES"]

FEWEST_REFUSALS = 3
FELT = 0.01
"""Refusing one request in a hundred is felt."""
SATURATED = 0.9
"""A model that is busy for this share of the time has nothing to spare."""
MOST = 0.5
LARGER_THAN_ONE = 1.5
"""Requests a batch from which on batches could be smaller."""


def _refusing(case: Case) -> Finding | None:
    facts = case.facts
    if facts.refused < FEWEST_REFUSALS or facts.refused < FELT * facts.requests:
        return None
    what = f"{percent(facts.refused / facts.requests)} of the requests were refused because the queue was full (503)"
    sentence = f"{what}, so more arrives than {count(facts.replicas, 'replica')} can serve and more replicas are needed."
    figures = {"refused": float(facts.refused), "requests": float(facts.requests)}
    return Finding("overload", sentence, figures, "replicas")


def _growing(case: Case) -> Finding | None:
    facts, trend = case.facts, case.facts.trend
    if trend is None or facts.utilisation < SATURATED:
        return None
    grew = trend.last - trend.first
    if not (trend.first < trend.middle < trend.last and grew >= max(1.0, 0.5 * trend.first)):
        return None
    if grew < 2 * case.limits.members_at_most:
        return None
    what = f"The queue of a replica grew from {digits(trend.first)} to {digits(trend.last)} requests"
    more = f"{digits(trend.per_s)} more a second than it can serve"
    larger = " or larger batches" if case.facts.shares["full"] >= MOST and not facts.full_by_rows else ""
    sentence = f"{what}, {more}, so latency rises without end unless there are more replicas{larger}."
    figures = {"first": trend.first, "last": trend.last, "growth_per_s": trend.per_s}
    return Finding("overload", sentence, figures, "replicas")


def _largest_part(case: Case) -> Finding | None:
    """Name the largest part of a mean latency."""
    facts, parts = case.facts, case.facts.latency
    if parts is None:
        return None
    busy = f"which was busy {percent(facts.utilisation)} of the time"
    larger = facts.shares["full"] >= MOST and case.limits.enabled
    relief = "larger batches or more replicas" if larger else "more replicas"
    smaller = " or smaller batches" if facts.mean_size >= LARGER_THAN_ONE else ""
    choices = {
        "model_queue": (
            parts.model_wait_ms,
            f"waiting for the model, {busy}, so {relief} would help",
            "replicas",
        ),
        "batch_wait": (
            parts.batch_wait_ms,
            "waiting on purpose for others to share the batch, so a shorter batch_wait_timeout_s would help",
            "batch_wait_timeout_s",
        ),
        "predict": (
            parts.predict_ms,
            f"predict itself, so only a faster model{smaller} would help",
            "predictor",
        ),
        "overhead": (
            parts.overhead_ms,
            "neither queue nor predict but HTTP, adapter and encoding",
            "adapter",
        ),
    }
    cause, (part, words, knob) = max(choices.items(), key=lambda item: item[1][0])
    of = f"Of a mean latency of {in_ms(parts.total_ms / 1e3)}, {in_ms(part / 1e3)} are {words}."
    figures = {f"{name}_ms": values[0] for name, values in choices.items()}
    if cause == "model_queue" and larger:
        knob = "max_batch_size"
    return Finding(cause, of, {**figures, "total_ms": parts.total_ms, "utilisation": facts.utilisation}, knob)


LATENCY_RULES: tuple[Rule, ...] = (_refusing, _growing, _largest_part)
