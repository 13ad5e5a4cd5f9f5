"""What the rules of a diagnosis are given, what they return, and the words they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from airserve_nb._diagnosis_facts import Facts
from airserve_nb.batching.settings import BatchSettings

__all__ = ["Case", "Finding", "Rule", "count", "digits", "in_ms", "percent"]

SHARE_OF_ONE_BATCH = 0.4
"""Clients that wait ride in one batch, or in two that alternate: their mean is half of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, said in one sentence."""

    cause: str
    """A short code that does not change, such as ``full``; :func:`~airserve_nb.diagnosis.diagnose` lists them."""
    sentence: str
    """What limits, with the figure that shows it and what would change it."""
    figures: dict[str, float] = field(default_factory=dict)
    """The figures, by name: times in milliseconds (``_ms``), rates a second (``_per_s``), shares from 0 to 1."""
    knob: str | None = None
    """What would change it: ``max_batch_size``, ``max_batch_rows``, ``batch_wait_timeout_s``, ``replicas``,
    ``max_ongoing_requests``, ``concurrency`` (the clients'), ``batching``, ``inputs``, ``predictor``, ``adapter``;
    None when there is nothing to change."""

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, slots=True)
class Case:
    """What is known."""

    facts: Facts
    limits: BatchSettings
    max_ongoing_requests: int | None = None
    concurrency: int | None = None
    waiting: int = 0

    @property
    def in_flight(self) -> int | None:
        """How many requests are under way at once when clients wait for answers; None when they come as they like."""
        return self.concurrency or self.facts.steady_in_flight

    @property
    def rate_a_replica(self) -> float:
        """Requests a second."""
        return self.facts.rate / self.facts.replicas

    def alternate(self, in_flight: float) -> bool:
        """Whether batches are as large as ``in_flight`` requests allow, which ride in one batch or in two."""
        return self.facts.mean_size >= SHARE_OF_ONE_BATCH * in_flight


Rule = Callable[[Case], Finding | None]


def count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def digits(value: float) -> str:
    """Write two or three digits, never an exponent."""
    if value >= 100 or value == round(value):  # noqa: PLR2004 - more digits than anybody reads
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}" if value >= 1e-3 else "0"  # noqa: PLR2004


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def in_ms(seconds: float) -> str:
    return f"{digits(seconds)} s" if seconds >= 1 else f"{digits(seconds * 1e3)} ms"
