"""Records as columns, so that some thousand of them are counted in milliseconds.

Records are what a replica wrote, or a client measured: anything in them may be missing or NaN. What can't be used is
left out here, so that whoever counts sees finite times only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.telemetry import BatchRecord, RequestRecord

__all__ = ["ABSURD", "Batches", "Floats", "Requests", "under_present_limits"]

Floats = npt.NDArray[np.float64]
Objects = npt.NDArray[np.object_]

ABSURD = 1e12
"""No time in seconds or milliseconds is beyond it; a sum of such is still finite."""


@dataclass(frozen=True, slots=True)
class _Table:
    """Columns of equal length."""

    batch_id: Objects

    def __len__(self) -> int:
        return len(self.batch_id)

    def where(self, chosen: npt.NDArray[Any]) -> Self:
        """Return the rows that a mask, or an array of places, chooses."""
        if chosen.dtype == bool and chosen.all():
            return self  # the usual case, and copies of five thousand objects take time
        columns = {field.name: getattr(self, field.name)[chosen] for field in dataclasses.fields(self)}
        return type(self)(**columns)


@dataclass(frozen=True, slots=True)
class Requests(_Table):
    """Requests that have ended; times in seconds, durations in milliseconds, NaN where unknown."""

    arrived: Floats
    """Finite, as is ``total``."""
    status: Floats
    queue: Floats
    predict: Floats
    overhead: Floats
    total: Floats

    @classmethod
    def of(cls, records: Iterable[RequestRecord], since: float) -> Requests:
        """Take those that ended after ``since``."""
        columns = _Columns(records, RequestRecord)
        table = cls(
            batch_id=columns.objects("batch_id"),
            arrived=columns.numbers("arrived_at"),
            status=columns.numbers("status"),
            queue=columns.numbers("queue_ms"),
            predict=columns.numbers("predict_ms"),
            overhead=columns.numbers("overhead_ms"),
            total=columns.numbers("total_ms"),
        )
        return table.where(np.isfinite(table.ended) & (table.ended >= since))

    @property
    def ended(self) -> Floats:
        """When each was answered."""
        return self.arrived + self.total.clip(0) / 1e3


@dataclass(frozen=True, slots=True)
class Batches(_Table):
    """Calls of predict in the order of their release; units as above."""

    reason: Objects
    replica: Objects
    error: Objects
    released: Floats
    """Finite, as is ``predict``."""
    predict: Floats
    size: Floats
    rows: Floats
    depth: Floats
    others: Floats

    @classmethod
    def of(cls, records: Iterable[BatchRecord], since: float) -> Batches:
        """Take those that ended after ``since``."""
        columns = _Columns(records, BatchRecord)
        table = cls(
            batch_id=columns.objects("batch_id"),
            reason=columns.objects("release_reason"),
            replica=columns.objects("replica"),
            error=columns.objects("error"),
            released=columns.numbers("released_at"),
            predict=columns.numbers("predict_ms").clip(0),
            size=columns.numbers("batch_size"),
            rows=np.nan_to_num(columns.numbers("rows")),
            depth=np.nan_to_num(columns.numbers("queue_depth")),
            others=np.nan_to_num(columns.numbers("other_signatures")),
        )
        table = table.where(np.isfinite(table.ended) & (table.ended >= since) & (table.size >= 1))
        return table.where(np.argsort(table.released, kind="stable"))

    @property
    def ended(self) -> Floats:
        """When predict returned."""
        return self.released + self.predict / 1e3


class _Columns:
    """Records of one kind, by field."""

    def __init__(self, records: Iterable[Any], kind: type[Any]) -> None:
        self._rows = list(records)
        self._place = kind._fields.index

    def objects(self, name: str) -> Objects:
        column = np.empty(len(self._rows), dtype=object)
        column[:] = list(map(itemgetter(self._place(name)), self._rows))
        return column

    def numbers(self, name: str) -> Floats:
        """Return a number for each record; NaN stays what it is: unknown."""
        values = np.array(list(map(itemgetter(self._place(name)), self._rows)), dtype=float)
        return values.clip(-ABSURD, ABSURD)


def under_present_limits(
    requests: Requests, batches: Batches, limits: BatchSettings
) -> tuple[Requests, Batches, bool]:
    """Leave out what ran before the limits were changed, as far as it shows, and say whether nothing was.

    A batch that is larger than one may be, or that was full with fewer requests, ran under other limits.
    """
    smaller = (batches.reason == "full") & (batches.size < limits.members_at_most)
    # Of frames the rows may be the limit, although nobody said so.
    smaller &= (batches.rows <= batches.size) & (limits.max_batch_rows is None)
    others = smaller | (batches.size > limits.members_at_most)
    if not others.any():
        return requests, batches, True
    changed_at = batches.released[others].max()
    return (
        requests.where(requests.arrived > changed_at),
        batches.where(batches.released > changed_at),
        False,
    )
