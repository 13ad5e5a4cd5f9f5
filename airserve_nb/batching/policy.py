"""When which requests become a batch: the rules, with neither clock nor thread.

Requests that can be stacked share a *signature* and form a group. A group is **ready** when it is full,
or when its oldest member has waited as long as it may, counted from that member's arrival. Whoever
drives the model calls :meth:`BatchQueue.take` at the moment the model is free: the ready group with the
oldest head runs, with its waiting members in the order of their arrival, wherever they stand in the queue.

Forming the batch only then is what makes the queue *work-conserving*: while the model runs, requests
gather, so the next batch is as large as the load allows, and a request that waited for the model has
used up its waiting time and adds none.

The same class runs under the threads of :class:`~airserve_nb.batching.batcher.MicroBatcher` and under a
virtual clock. All times are seconds of one clock, any clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.telemetry import ReleaseReason

__all__ = ["BatchQueue", "Release", "Waiting"]


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue."""

    arrived_at: float
    signature: Hashable
    rows: int = 1
    payload: Any = None
    """Whatever the driver wants back with the batch."""
    number: int = -1
    """Position in the order of arrival, given by the queue."""


@dataclass(frozen=True, slots=True)
class Release:
    """A batch that has just left the queue."""

    members: tuple[Waiting, ...]
    reason: ReleaseReason
    queue_depth: int
    """Requests that still wait."""
    other_signatures: int
    """Those among them that could not be stacked with this batch."""

    @property
    def rows(self) -> int:
        """Rows of all members together."""
        return sum(member.rows for member in self.members)


class _Group:
    """The waiting requests of one signature, in the order of arrival."""

    __slots__ = ("members", "rows", "signature")

    def __init__(self, signature: Hashable) -> None:
        self.signature = signature
        self.members: OrderedDict[int, Waiting] = OrderedDict()
        self.rows = 0

    @property
    def head(self) -> Waiting:
        return next(iter(self.members.values()))

    def is_full(self, limits: BatchSettings) -> bool:
        if len(self.members) >= limits.members_at_most:
            return True
        # More rows than fit means that the batch at the front is closed, too.
        return limits.max_batch_rows is not None and self.rows >= limits.max_batch_rows

    def ready_at(self, limits: BatchSettings) -> float:
        """When the group is ready: -inf when it is full."""
        return -math.inf if self.is_full(limits) else self.head.arrived_at + limits.batch_wait_timeout_s

    def take(self, limits: BatchSettings) -> tuple[Waiting, ...]:
        """Remove the members of one batch from the front."""
        members, at_most = self.members, limits.members_at_most
        if limits.max_batch_rows is None and len(members) <= at_most:
            self.members, self.rows = OrderedDict(), 0
            return tuple(members.values())
        rows_left = math.inf if limits.max_batch_rows is None else limits.max_batch_rows
        taken: list[Waiting] = []
        # The first always fits: a request with too many rows would wait for ever otherwise.
        while members and len(taken) < at_most and not (taken and self.head.rows > rows_left):
            _, member = members.popitem(last=False)
            rows_left -= member.rows
            taken.append(member)
        self.rows -= sum(member.rows for member in taken)
        return tuple(taken)


class BatchQueue:
    """The waiting requests and the rules by which they leave.

    Parameters
    ----------
    settings
        The limits; :attr:`settings` may be replaced at any time and holds from the next call on.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings
        self.draining = False
        """When True no request waits for others any more: what is there leaves as the model allows."""
        self._groups: dict[Hashable, _Group] = {}
        self._length = 0
        self._next_number = 0

    def __len__(self) -> int:
        return self._length

    def add(self, request: Waiting) -> None:
        """Put a request at the end of the queue."""
        request.number = self._next_number
        self._next_number += 1
        group = self._groups.get(request.signature)
        if group is None:
            group = self._groups[request.signature] = _Group(request.signature)
        group.members[request.number] = request
        group.rows += request.rows
        self._length += 1

    def discard(self, request: Waiting) -> bool:
        """Remove a request whose client has gone; False when it is no longer in the queue."""
        group = self._groups.get(request.signature)
        if group is None or group.members.pop(request.number, None) is None:
            return False
        group.rows -= request.rows
        self._length -= 1
        self._drop_if_empty(group)
        return True

    def ready_at(self) -> float | None:
        """When the first group is (or was) ready if nothing else arrives; None for an empty queue."""
        if not self._groups:
            return None
        if self.draining:
            return -math.inf
        return min(group.ready_at(self.settings) for group in self._groups.values())

    def take(self, now: float, model_free_since: float) -> Release | None:
        """Form the batch that runs now, or return None when no group is ready.

        Parameters
        ----------
        now
            The time; the model must be free.
        model_free_since
            Since when it has been free, which tells ``timeout`` from ``model_free``.
        """
        group = self._oldest_ready(now)
        if group is None:
            return None
        reason = self._reason(group, model_free_since)
        members = group.take(self.settings)
        self._length -= len(members)
        others = self._length - len(group.members)
        self._drop_if_empty(group)
        return Release(members, reason, queue_depth=self._length, other_signatures=others)

    def _oldest_ready(self, now: float) -> _Group | None:
        ready = [
            group for group in self._groups.values() if self.draining or group.ready_at(self.settings) <= now
        ]
        if len(ready) > 1:
            return min(ready, key=lambda group: group.head.number)
        return ready[0] if ready else None

    def _reason(self, group: _Group, model_free_since: float) -> ReleaseReason:
        if group.is_full(self.settings):
            return "full"
        if self.draining:
            return "drain"
        waited_out_at = group.head.arrived_at + self.settings.batch_wait_timeout_s
        return "timeout" if waited_out_at >= model_free_since else "model_free"

    def _drop_if_empty(self, group: _Group) -> None:
        if not group.members:
            del self._groups[group.signature]
