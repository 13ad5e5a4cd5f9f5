"""The batching policy, under a virtual clock."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.batching.policy import BatchQueue, Release, Waiting
from airserve_nb.batching.settings import BatchSettings


def queue_of(*arrivals: float, size: int = 10, wait: float = 0.0, signature: str = "a") -> BatchQueue:
    queue = BatchQueue(BatchSettings(max_batch_size=size, batch_wait_timeout_s=wait))
    for arrived_at in arrivals:
        queue.add(Waiting(arrived_at, signature))
    return queue


class TestWhenABatchLeaves:
    def test_an_empty_queue_releases_nothing(self) -> None:
        """Without requests there is neither a batch nor a time at which there will be one."""
        queue = queue_of()
        assert queue.take(1.0, 0.0) is None
        assert queue.ready_at() is None

    def test_without_wait_a_lone_request_leaves_at_once(self) -> None:
        """With a wait of 0 an idle model gets what is there."""
        release = queue_of(1.0).take(1.0, 0.0)
        assert release is not None
        assert len(release.members) == 1

    def test_a_request_waits_from_its_arrival(self) -> None:
        """The wait counts from the arrival of the oldest member, to the moment."""
        queue = queue_of(1.0, 1.5, wait=2.0)
        assert queue.ready_at() == 3.0
        assert queue.take(2.999, 0.0) is None
        release = queue.take(3.0, 0.0)
        assert release is not None
        assert len(release.members) == 2

    def test_a_full_batch_never_waits(self) -> None:
        """A full group is ready whatever the wait."""
        queue = queue_of(1.0, 1.0, 1.0, size=3, wait=60.0)
        assert queue.ready_at() == -math.inf
        release = queue.take(1.0, 0.0)
        assert release is not None
        assert release.reason == "full"

    def test_time_spent_waiting_for_the_model_is_not_waited_again(self) -> None:
        """A request whose wait elapsed while the model was busy leaves when the model is free."""
        queue = queue_of(1.0, wait=0.5)
        release = queue.take(4.0, 4.0)
        assert release is not None
        assert release.reason == "model_free"

    def test_more_than_fits_leaves_in_the_order_of_arrival(self) -> None:
        """A batch takes the oldest; the others keep their place."""
        queue = queue_of(*range(5), size=3)
        release = queue.take(9.0, 9.0)
        assert release is not None
        assert [member.number for member in release.members] == [0, 1, 2]
        assert release.queue_depth == len(queue) == 2


class TestReasons:
    def test_timeout_means_that_the_model_was_idle_when_the_wait_ended(self) -> None:
        """The model was free before the wait was over."""
        release = queue_of(1.0, wait=1.0).take(2.0, 1.5)
        assert release is not None
        assert release.reason == "timeout"

    def test_draining_releases_everything_now(self) -> None:
        """A version that is being replaced lets nobody wait for company."""
        queue = queue_of(1.0, wait=60.0)
        queue.draining = True
        assert queue.ready_at() == -math.inf
        release = queue.take(1.0, 0.0)
        assert release is not None
        assert release.reason == "drain"


class TestRows:
    def test_a_batch_of_frames_is_closed_by_its_rows(self) -> None:
        """max_batch_rows is never exceeded by a second member, and a closed batch does not wait."""
        queue = BatchQueue(BatchSettings(batch_wait_timeout_s=60.0, max_batch_rows=5))
        for rows in (3, 3, 1):
            queue.add(Waiting(0.0, "a", rows))
        release = queue.take(0.0, 0.0)
        assert release is not None
        assert release.rows == 3
        assert release.reason == "full"

    def test_a_request_with_too_many_rows_runs_alone(self) -> None:
        """It could never run otherwise."""
        queue = BatchQueue(BatchSettings(max_batch_rows=5))
        queue.add(Waiting(0.0, "a", 50))
        queue.add(Waiting(0.0, "a", 1))
        release = queue.take(0.0, 0.0)
        assert release is not None
        assert [member.rows for member in release.members] == [50]


class TestSignatures:
    def test_a_batch_holds_one_signature(self) -> None:
        """Members are taken wherever they stand; those that can't be stacked keep their place."""
        queue = BatchQueue(BatchSettings())
        for arrived_at, signature in enumerate("abab"):
            queue.add(Waiting(float(arrived_at), signature))
        release = queue.take(9.0, 9.0)
        assert release is not None
        assert [member.number for member in release.members] == [0, 2]
        assert release.other_signatures == 2

    def test_the_oldest_head_goes_first(self) -> None:
        """Among ready groups the one whose oldest request has waited longest runs."""
        queue = BatchQueue(BatchSettings(max_batch_size=2))
        for arrived_at, signature in enumerate(["b", "a", "a", "a"]):
            queue.add(Waiting(float(arrived_at), signature))
        release = queue.take(9.0, 9.0)
        assert release is not None
        assert release.members[0].signature == "b"


class TestDiscard:
    def test_a_request_that_left_is_in_no_batch(self) -> None:
        """A client that has gone costs no prediction."""
        queue = BatchQueue(BatchSettings(max_batch_size=2, batch_wait_timeout_s=60.0))
        gone, stays = Waiting(0.0, "a"), Waiting(0.0, "a")
        queue.add(gone)
        queue.add(stays)
        assert queue.discard(gone)
        assert not queue.discard(gone)
        # No longer full, so what stays goes on waiting.
        assert queue.take(1.0, 0.0) is None
        assert len(queue) == 1

    def test_a_request_in_a_batch_can_not_be_discarded(self) -> None:
        """Once released, a request is the driver's."""
        queue = BatchQueue(BatchSettings())
        request = Waiting(0.0, "a")
        queue.add(request)
        queue.take(0.0, 0.0)
        assert not queue.discard(request)


def test_settings_hold_from_the_next_call_on() -> None:
    """New limits act on what waits already."""
    queue = queue_of(0.0, 0.0, size=10, wait=60.0)
    assert queue.take(0.0, 0.0) is None
    queue.settings = BatchSettings(max_batch_size=2, batch_wait_timeout_s=60.0)
    release = queue.take(0.0, 0.0)
    assert release is not None
    assert release.reason == "full"


# -- invariants, whatever arrives, leaves and takes long ---------------------------------------------


@dataclass
class Simulation:
    """One model under a virtual clock, driven as the batcher drives its model thread."""

    queue: BatchQueue
    predict_s: float
    now: float = 0.0
    free_since: float = 0.0
    released: list[tuple[float, Release]] = field(default_factory=list)

    def run_until(self, time: float) -> None:
        while self.now <= time:
            release = self.queue.take(self.now, self.free_since)
            if release is not None:
                self.released.append((self.now, release))
                self.now += self.predict_s
                self.free_since = self.now
                continue
            ready_at = self.queue.ready_at()
            if ready_at is None or ready_at > time:
                break
            self.now = max(self.now, ready_at)
        self.now = max(self.now, time)


events = st.lists(
    st.tuples(
        st.floats(0, 0.05),  # seconds since the last arrival
        st.sampled_from("abc"),  # signature
        st.integers(1, 4),  # rows
        st.booleans(),  # whether its client leaves when the next one arrives
    ),
    min_size=1,
    max_size=60,
)
settings_of = st.builds(
    BatchSettings,
    max_batch_size=st.integers(1, 8),
    batch_wait_timeout_s=st.sampled_from([0.0, 0.01, 0.1]),
    max_batch_rows=st.sampled_from([None, 1, 5]),
)


@given(events=events, settings=settings_of, predict_s=st.sampled_from([0.0001, 0.02, 0.2]))
def test_invariants(
    events: list[tuple[float, str, int, bool]], settings: BatchSettings, predict_s: float
) -> None:
    """Each request leaves once or is discarded once, in order, within the limits, and none starves."""
    simulation = Simulation(BatchQueue(settings), predict_s)
    queue = simulation.queue
    arrived: list[Waiting] = []
    discarded: set[int] = set()
    leaving: Waiting | None = None
    time = 0.0
    for gap, signature, rows, leaves in events:
        time += gap
        simulation.run_until(time)
        if leaving is not None and queue.discard(leaving):
            discarded.add(leaving.number)
        request = Waiting(time, signature, rows)
        queue.add(request)
        arrived.append(request)
        leaving = request if leaves else None
    simulation.run_until(math.inf if len(queue) else time)

    released = [member for _, release in simulation.released for member in release.members]
    numbers = [member.number for member in released]
    assert len(numbers) == len(set(numbers)), "answered once"
    assert set(numbers) | discarded == {request.number for request in arrived}, "answered or gone"
    assert not set(numbers) & discarded, "who has gone is not predicted"
    for signature in "abc":
        mine = [member.number for member in released if member.signature == signature]
        assert mine == sorted(mine), "in the order of arrival"
    for _, release in simulation.released:
        check_batch(release, settings)
    check_waits(simulation, settings)


def check_batch(release: Release, settings: BatchSettings) -> None:
    assert len({member.signature for member in release.members}) == 1
    assert len(release.members) <= settings.max_batch_size
    if settings.max_batch_rows is not None and len(release.members) > 1:
        assert release.rows <= settings.max_batch_rows
    assert 0 <= release.other_signatures <= release.queue_depth


def check_waits(simulation: Simulation, settings: BatchSettings) -> None:
    """Whenever a batch leaves, no ready group with an older head is left behind, so nobody starves."""
    batches = [release for _, release in simulation.released]
    times = [time for time, _ in simulation.released]
    for index, (time, release) in enumerate(simulation.released):
        head = release.members[0]
        for later in batches[index + 1 :]:
            for member in later.members:
                older = member.number < head.number
                waited_out = member.arrived_at + settings.batch_wait_timeout_s <= time
                assert not (older and waited_out), "a ready request was passed over"
        if release.reason == "timeout":
            # The model was idle, so it left at the very end of its wait.
            assert time == pytest.approx(head.arrived_at + settings.batch_wait_timeout_s, abs=1e-9)
        if index:
            assert time >= times[index - 1] + simulation.predict_s - 1e-9


def test_without_batching_a_size_has_no_meaning() -> None:
    """One request is one call, whatever max_batch_size says."""
    queue = BatchQueue(BatchSettings(max_batch_size=8, enabled=False))
    for _ in range(3):
        queue.add(Waiting(0.0, None))
    release = queue.take(0.0, 0.0)
    assert release is not None
    assert len(release.members) == 1
