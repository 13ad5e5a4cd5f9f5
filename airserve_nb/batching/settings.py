"""How a deployment batches: the settings, checked where they are given."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airserve_nb.errors import OptionError

__all__ = ["BatchSettings"]


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The limits of a batch and of the queue before it.

    The names are those of ``batching_params``; the defaults are the ones that Ray AIR had.
    """

    max_batch_size: int = 10
    """Requests in one batch, at most."""
    batch_wait_timeout_s: float = 0.0
    """How long a request may wait, from its arrival, for others to share its batch while the model is idle."""
    max_batch_rows: int | None = None
    """Rows in one batch of frames, at most; a single request with more still runs alone."""
    max_queue_size: int = 1_000
    """Requests that may wait; further ones are refused with 503."""
    retry_failed_batches: bool = True
    """Whether a batch that fails is tried again in parts to find the guilty request; turn it off for a
    predictor with side effects."""
    enabled: bool = True
    """False: each request is one call of predict, with the adapter's output unchanged."""

    def __post_init__(self) -> None:
        _check_count("max_batch_size", self.max_batch_size)
        _check_count("max_queue_size", self.max_queue_size)
        if self.max_batch_rows is not None:
            _check_count("max_batch_rows", self.max_batch_rows)
        wait = self.batch_wait_timeout_s
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
            raise OptionError(
                f"batch_wait_timeout_s is {wait!r}, but must be a number of seconds, 0 or more."
            )
        if not isinstance(self.retry_failed_batches, bool):
            raise OptionError(
                f"retry_failed_batches is {self.retry_failed_batches!r}, but must be True or False."
            )

    @classmethod
    def from_params(cls, batching_params: Mapping[str, Any] | bool | None) -> BatchSettings:
        """Read ``batching_params``.

        Parameters
        ----------
        batching_params
            None for the defaults, False for no batching, or a dict with any of ``max_batch_size``,
            ``batch_wait_timeout_s`` (seconds), ``max_batch_rows``, ``max_queue_size`` and
            ``retry_failed_batches``.

        Raises
        ------
        OptionError
            For an unknown key or a value that can't be.
        """
        if batching_params is None:
            return cls()
        if batching_params is False:
            return cls(enabled=False)
        if not isinstance(batching_params, Mapping):
            raise OptionError(
                f"batching_params is {batching_params!r}, but must be None (defaults), False (no batching) "
                'or a dict such as {"max_batch_size": 10, "batch_wait_timeout_s": 0.01}.'
            )
        return cls().changed(batching_params)

    @classmethod
    def names(cls) -> list[str]:
        """Return what a dict of batching settings may hold."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "enabled"]

    def changed(self, changes: Mapping[str, Any]) -> BatchSettings:
        """Return these settings with ``changes`` applied; unknown keys and wrong values are refused."""
        allowed = self.names()
        for key in changes:
            if key not in allowed:
                close = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(allowed)}."
                raise OptionError(f"batching_params has the unknown key {key!r}; {hint}")
        return dataclasses.replace(self, **changes)

    @property
    def members_at_most(self) -> int:
        """How many requests one call of predict may answer: one without batching."""
        return self.max_batch_size if self.enabled else 1

    def in_words(self) -> str:
        """Say the limits in a few words."""
        if not self.enabled:
            return "off"
        rows = "" if self.max_batch_rows is None else f", at most {self.max_batch_rows} rows"
        requests = "request" if self.max_batch_size == 1 else "requests"
        return f"up to {self.max_batch_size} {requests}, wait {self.batch_wait_timeout_s * 1e3:g} ms{rows}"


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise OptionError(f"{name} is {value!r}, but must be a whole number, 1 or more.")
