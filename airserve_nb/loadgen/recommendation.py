"""The best setting of a sweep, as an object that prints as a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Recommendation"]

CONSIDERABLY = 1.2


@dataclass(frozen=True, repr=False)
class Recommendation:
    """One setting and what it did; printed, it is a sentence."""

    max_batch_size: int
    batch_wait_timeout_s: float
    p50_ms: float
    p99_ms: float
    """The steady one, see ``SweepResult.table``."""
    disturbed_p99_ms: float
    """Of all answers, with those that came while the machine did something else."""
    requests_per_s: float
    """Answers a second."""
    samples: int
    """Of how many answers the percentiles are."""
    limit_ms: float | None
    """The p99 that was asked for, or None."""

    @property
    def met(self) -> bool:
        """Whether it keeps the limit."""
        return self.limit_ms is None or self.p99_ms <= self.limit_ms

    @property
    def settings(self) -> dict[str, Any]:
        """What to give ``Service.set_batching()`` or ``deploy()``."""
        return {
            "max_batch_size": self.max_batch_size,
            "batch_wait_timeout_s": self.batch_wait_timeout_s,
        }

    def __str__(self) -> str:
        found = (
            f"max_batch_size={self.max_batch_size}, batch_wait_timeout_s={self.batch_wait_timeout_s:g}: p50 {self.p50_ms:.1f} ms, "
            f"p99 {self.p99_ms:.1f} ms{self._disturbed()} at {self.requests_per_s:.0f} answers a second"
        )
        if self.met:
            return f"Take {found}."
        return f"No setting kept p99 within {self.limit_ms:g} ms; the nearest is {found}."

    def _disturbed(self) -> str:
        if self.disturbed_p99_ms < CONSIDERABLY * self.p99_ms:
            return ""
        return f" ({self.disturbed_p99_ms:.1f} ms with the moments in which the machine was busy besides)"

    def __repr__(self) -> str:
        return f"<Recommendation: {self}>"
