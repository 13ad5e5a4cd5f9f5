"""What the server itself recorded of a probe's requests, set against what the client saw."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd

from airserve_nb.errors import AirServeError

__all__ = ["ServerRecords", "keep_reading", "read_records"]

RECORDS_WITHIN_S = 2.0
"""How long to wait for the server's records of requests whose answers have already come."""
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ServerRecords:
    """How the answers and the server's own records of requests agree."""

    answered: int
    """Requests whose answer named an id that the server gave them."""
    recorded: int
    """Those among them that the server's records have. Less: the replica died with its records, or there were more
    than are kept."""

    @property
    def missing(self) -> int:
        """Answered requests without a record."""
        return self.answered - self.recorded


def read_records(service: Any, requests: pd.DataFrame) -> tuple[pd.DataFrame | None, ServerRecords | None]:
    """Return the service's records of the batches of ``requests``, and how its records of requests agree.

    They come a moment after the answers, so they are waited for, but not for ever. None of a bare URL, and None when
    the service can't tell any more.
    """
    batch_ids = set(requests["batch_id"].dropna())
    asked = set(requests["request_id"].dropna()) if hasattr(service, "requests") else set()
    if service is None or not (batch_ids or asked):
        return None, None
    deadline = time.monotonic() + RECORDS_WITHIN_S
    while True:
        try:
            batches: pd.DataFrame = service.batches()
            found = asked & set(service.requests()["request_id"]) if asked else set()
        except AirServeError:
            return None, None  # it is gone: what the answers themselves told remains
        batches = batches[batches["batch_id"].isin(batch_ids)]
        if (len(batches) >= len(batch_ids) and len(found) == len(asked)) or time.monotonic() > deadline:
            return batches, ServerRecords(len(asked), len(found)) if asked else None
        time.sleep(POLL_S)  # a replica's records come a moment after its answers


def keep_reading(service: Any) -> None:
    """Read what the service has recorded by now: a replica keeps only its newest ten thousand requests."""
    # A service that is being replaced, or gone, fails in many ways; the probe goes on, and its end will tell.
    with contextlib.suppress(Exception):
        service.statistics()
