"""Replicas under a virtual clock: the events of the simulation, in the order of their time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from airserve_nb.batching.policy import BatchQueue, Waiting
from airserve_nb.batching.settings import BatchSettings

__all__ = ["Log", "Routing", "run"]

Routing = Literal["two_choices", "least_busy"]
"""Who gets a request: of two replicas picked at random the one with fewer requests in it, or of all of them."""


@dataclass
class Log:
    """What is kept of the batches."""

    members: list[int] = field(default_factory=list)
    """The requests' numbers, batch by batch."""
    sizes: list[int] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    busy_s: float = 0.0


class _Replica:
    """One queue and one model."""

    __slots__ = ("busy", "free_since", "inside", "last_size", "log", "next_at", "queue", "time_of")

    def __init__(self, settings: BatchSettings, time_of: Callable[[int], float], log: Log) -> None:
        self.queue = BatchQueue(settings)
        self.time_of = time_of
        self.log = log
        self.busy = False
        self.free_since = 0.0
        self.inside = 0
        """Requests that wait or are being predicted."""
        self.last_size = 0
        self.next_at = math.inf
        """When something happens next, if nothing arrives."""

    def add(self, now: float, number: int) -> bool:
        """Take a request in; True when ``next_at`` is another than before."""
        self.inside += 1
        queue = self.queue
        queue.add(Waiting(now, None, 1, number))
        if self.busy or self.next_at <= now:
            return False
        ready_at = queue.ready_at()
        assert ready_at is not None  # noqa: S101 - there is one in it
        next_at = max(now, ready_at)
        changed = next_at < self.next_at
        self.next_at = next_at
        return changed

    def step(self, now: float) -> None:
        """Let the model be free, if it was busy, and take the next batch, if one is ready."""
        if self.busy:
            self.busy = False
            self.inside -= self.last_size
            self.free_since = now
            if not len(self.queue):
                self.next_at = math.inf
                return
        release = self.queue.take(now, self.free_since)
        if release is None:
            ready_at = self.queue.ready_at()
            self.next_at = math.inf if ready_at is None else ready_at
            return
        members, log = release.members, self.log
        size = self.last_size = len(members)
        takes = self.time_of(size)
        self.busy = True
        self.next_at = now + takes
        log.members.extend([member.payload for member in members])
        log.sizes.append(size)
        log.ended.append(self.next_at)
        log.reasons[release.reason] = log.reasons.get(release.reason, 0) + 1
        log.busy_s += takes


def run(
    arrivals: list[float],
    settings: BatchSettings,
    count: int,
    time_of: Callable[[int], float],
    log: Log,
    routing: Routing,
    seed: int,
) -> None:
    """Let all requests arrive and be answered."""
    replicas = [_Replica(settings, time_of, log) for _ in range(count)]
    choose = _router(replicas, routing, seed)
    events: list[tuple[float, int]] = []
    numbers = {id(replica): number for number, replica in enumerate(replicas)}

    def happen() -> None:
        now, number = heapq.heappop(events)
        replica = replicas[number]
        if replica.next_at == now:  # or a full batch left before its wait was over
            replica.step(now)
            if replica.next_at < math.inf:
                heapq.heappush(events, (replica.next_at, number))

    for number, time in enumerate(arrivals):
        # Requests that arrive at the same moment as a model is free ride along.
        while events and events[0][0] < time:
            happen()
        replica = choose()
        if replica.add(time, number):
            heapq.heappush(events, (replica.next_at, numbers[id(replica)]))
    while events:
        happen()


def _router(replicas: list[_Replica], routing: Routing, seed: int) -> Callable[[], _Replica]:
    """Return the function that chooses a replica for the next request."""
    count = len(replicas)
    if count == 1:
        return lambda: replicas[0]
    return _two_choices(replicas, seed) if routing == "two_choices" else _least_busy(replicas)


def _two_choices(replicas: list[_Replica], seed: int) -> Callable[[], _Replica]:
    count = len(replicas)
    pick = random.Random(seed).random  # noqa: S311 - a simulation's

    def choose() -> _Replica:
        first, other = int(pick() * count), int(pick() * (count - 1))
        one, two = replicas[first], replicas[other + (other >= first)]
        return one if one.inside <= two.inside else two

    return choose


def _least_busy(replicas: list[_Replica]) -> Callable[[], _Replica]:
    count, circle = len(replicas), replicas * 2
    turns = itertools.cycle(range(count))
    inside = attrgetter("inside")

    def choose() -> _Replica:
        turn = next(turns)  # of those that are as busy each gets its turn
        return min(circle[turn : turn + count], key=inside)

    return choose
