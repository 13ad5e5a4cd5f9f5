"""Why batches have the size they have: each cause told from a run that was made to show it."""

from __future__ import annotations

import heapq
import itertools
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb import Predictor, probe
from airserve_nb.batching.policy import BatchQueue, Release, Waiting
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.diagnosis import Diagnosis, diagnose, records_from_frames
from airserve_nb.telemetry import BatchRecord, ReplicaState, RequestRecord


@dataclass
class Replica:
    queue: BatchQueue
    name: str
    busy: bool = False
    free_since: float = 0.0
    inside: int = 0


@dataclass
class Run:
    """Replicas under a virtual clock, driven by the policy that serves; requests come as planned, or answer by answer."""

    size: int = 8
    wait: float = 0.0
    fixed_s: float = 0.020
    per_row_s: float = 0.0002
    overhead_s: float = 0.001
    replicas: int = 1
    max_ongoing: float = math.inf
    signatures: int = 1
    rows: int = 1
    max_rows: int | None = None
    queue_limit: float = math.inf
    fails: Callable[[int], bool] = lambda _number: False
    requests: list[RequestRecord] = field(default_factory=list)
    batches: list[BatchRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = BatchSettings(
            max_batch_size=self.size, batch_wait_timeout_s=self.wait, max_batch_rows=self.max_rows
        )
        self._replicas = [Replica(BatchQueue(self.settings), f"r{i}") for i in range(self.replicas)]
        self._before: deque[float] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._turn = itertools.count()
        self._when_answered: Callable[[], None] = lambda: None
        self.now = 0.0

    def at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), action))

    def open_loop(self, rate: float, seconds: float = 5.0, seed: int = 0) -> Run:
        gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
        for moment in np.cumsum(gaps).tolist():
            self.at(moment, self.arrive)
        return self.finish()

    def bursts(self, size: int, every_s: float, seconds: float = 5.0) -> Run:
        for number in range(int(seconds / every_s)):
            for _ in range(size):
                self.at(number * every_s, self.arrive)
        return self.finish()

    def closed_loop(self, clients: int, seconds: float = 5.0, pause_s: float = 0.001) -> Run:
        def answered() -> None:
            if self.now < seconds:
                self.at(self.now + pause_s, self.arrive)

        self._when_answered = answered
        for client in range(clients):
            self.at(client * 1e-4, self.arrive)
        return self.finish()

    def finish(self) -> Run:
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self

    def arrive(self) -> None:
        self._before.append(self.now)
        self._let_in()

    def _let_in(self) -> None:
        while self._before:
            replica = self._replicas[next(self._turn) % self.replicas]
            if replica.inside >= self.max_ongoing:
                replica = min(self._replicas, key=lambda one: one.inside)
                if replica.inside >= self.max_ongoing:
                    return
            self._before.popleft()
            if len(replica.queue) >= self.queue_limit:
                self.requests.append(
                    RequestRecord("q", self.now, 503, None, 0, 0, 0, 1, 1, "v1", replica.name, "It is full.")
                )
                continue
            replica.inside += 1
            number = next(self._numbers)
            replica.queue.add(Waiting(self.now, number % self.signatures, self.rows))
            self.at(self.now, lambda replica=replica: self._take(replica))  # type: ignore[misc]

    def _take(self, replica: Replica) -> None:
        if replica.busy:
            return
        release = replica.queue.take(self.now, replica.free_since)
        if release is not None:
            self._predict(replica, release, "retry" if self.fails(len(self.batches)) else None)
            return
        ready_at = replica.queue.ready_at()
        if ready_at is not None:
            self.at(ready_at, lambda: self._take(replica))

    def _predict(self, replica: Replica, release: Release, failing: str | None) -> None:
        """Predict; a batch that fails is tried again one by one."""
        replica.busy = True
        parts = [(member,) for member in release.members] if failing else []
        started = self.now
        for members in [release.members, *parts]:
            predict_s = self.fixed_s + self.per_row_s * sum(member.rows for member in members)
            batch_id = f"b{len(self.batches)}"
            self.batches.append(
                BatchRecord(
                    batch_id=batch_id,
                    released_at=started,
                    batch_size=len(members),
                    rows=sum(member.rows for member in members),
                    predict_ms=predict_s * 1e3,
                    release_reason=release.reason if members is release.members else "retry",
                    queue_depth=release.queue_depth,
                    other_signatures=release.other_signatures,
                    version="v1",
                    replica=replica.name,
                    error="ValueError: no" if failing and members is release.members else None,
                )
            )
            if not failing or members is not release.members:
                for member in members:
                    self._record(member, batch_id, len(members), started, predict_s, replica.name)
            started += predict_s
        self.at(started, lambda: self._free(replica))
        self.at(started + self.overhead_s, lambda: self._leave(replica, len(release.members)))

    def _record(
        self, member: Waiting, batch_id: str, size: int, started: float, predict_s: float, replica: str
    ) -> None:
        queue_ms = (started - member.arrived_at) * 1e3
        total_ms = queue_ms + (predict_s + self.overhead_s) * 1e3
        self.requests.append(
            RequestRecord(
                request_id=f"q{member.number}",
                arrived_at=member.arrived_at,
                status=200,
                batch_id=batch_id,
                batch_size=size,
                queue_ms=queue_ms,
                predict_ms=predict_s * 1e3,
                overhead_ms=self.overhead_s * 1e3,
                total_ms=total_ms,
                version="v1",
                replica=replica,
            )
        )

    def _free(self, replica: Replica) -> None:
        replica.busy = False
        replica.free_since = self.now
        self._take(replica)

    def _leave(self, replica: Replica, count: int) -> None:
        replica.inside -= count
        for _ in range(count):
            self._when_answered()
        self._let_in()

    def diagnose(self, **known: Any) -> Diagnosis:
        return diagnose(self.requests, self.batches, self.settings, **{"replicas": self.replicas, **known})


def size_of(run: Run, **known: Any) -> str:
    found = run.diagnose(**known).size
    check_sentence(found.sentence)
    return found.cause


def latency_of(run: Run, **known: Any) -> str:
    found = run.diagnose(**known).latency
    assert found is not None
    check_sentence(found.sentence)
    return found.cause


def check_sentence(sentence: str) -> None:
    """One sentence: a capital or a digit first, one end, and no figure that is none."""
    assert re.fullmatch(r"[A-Z0-9].*[^.]\.", sentence), sentence
    assert ". " not in sentence
    assert not re.search(r"\b(nan|inf|None)\b|\de[+-]?\d", sentence), sentence


class TestSize:
    def test_off(self) -> None:
        """Without batching there is nothing to explain."""
        run = Run(size=1).open_loop(20)
        found = diagnose(run.requests, run.batches, BatchSettings(enabled=False)).size
        assert (found.cause, found.knob) == ("off", "batching")

    def test_nothing_yet(self) -> None:
        """Without a batch it says what to do, or that a model does not return."""
        assert diagnose([], [], BatchSettings()).size.cause == "no_data"
        stuck = diagnose([], [], BatchSettings(), waiting=3).size
        assert (stuck.cause, stuck.knob) == ("no_data", "predictor")
        assert "3 requests" in stuck.sentence
        refused = Run().open_loop(50, seconds=0.1).requests[0]._replace(batch_id=None, status=422)
        assert "1 request ended without reaching a batch, so look at its error." in str(
            diagnose([refused], [], BatchSettings())
        )

    def test_nothing_since_the_limits_were_changed(self) -> None:
        """A turned knob does not make it look as if there had never been a batch."""
        run = Run(size=8).open_loop(500, seconds=1)
        found = diagnose(run.requests, run.batches, BatchSettings(max_batch_size=2)).size
        assert found.sentence == "No batch since the limits were changed, so send some requests."

    def test_too_few(self) -> None:
        """Nothing is concluded from two batches."""
        assert size_of(Run(size=8).bursts(10, 1.0, seconds=1)) == "few_data"

    def test_full(self) -> None:
        """More load than fits: max_batch_size is the limit, and how many more waited is said."""
        run = Run(size=8).open_loop(500, seconds=2)
        found = run.diagnose().size
        assert (found.cause, found.knob) == ("full", "max_batch_size")
        assert "max_batch_size=8" in found.sentence
        assert found.figures["waiting"] > 8
        # Also without a backlog: bursts that just fill it.
        assert size_of(Run(size=8, wait=0.01).bursts(8, 0.1)) == "full"

    def test_full_by_rows(self) -> None:
        """Frames whose rows fill a batch: max_batch_rows is the limit, known or not."""
        run = Run(size=32, rows=10, max_rows=40).open_loop(300, seconds=2)
        assert size_of(run) == "full_rows"
        assert diagnose(run.requests, run.batches, BatchSettings(max_batch_size=32)).size.cause == "full_rows"

    def test_failing(self) -> None:
        """Failed batches that are tried again in parts make them small."""
        run = Run(size=8).closed_loop(8)
        assert size_of(run) != "failing"
        assert size_of(Run(size=8, fails=lambda number: number % 3 == 0).closed_loop(8)) == "failing"

    def test_signatures(self) -> None:
        """Requests that can't be stacked with each other."""
        found = Run(size=8, signatures=20).open_loop(60).diagnose().size
        assert (found.cause, found.knob) == ("signatures", "inputs")
        assert size_of(Run(size=8, signatures=2).open_loop(2000, seconds=1)) == "full"

    def test_max_ongoing_requests(self) -> None:
        """Requests held back before the replica: known by the setting, or by more clients than are seen inside."""
        run = Run(size=8, max_ongoing=5).closed_loop(64)
        assert size_of(run, max_ongoing_requests=5) == "max_ongoing"
        assert size_of(run, concurrency=64) == "max_ongoing"
        assert "max_ongoing_requests=5" in run.diagnose(max_ongoing_requests=5).size.sentence
        assert size_of(Run(size=8, max_ongoing=500).closed_loop(5), max_ongoing_requests=500) == "few_clients"

    def test_clients_that_send_no_more_than_may_come_in(self) -> None:
        """Raising max_ongoing_requests would change nothing where clients are known to send no more than that."""
        run = Run(size=8, max_ongoing=5).closed_loop(5)
        assert size_of(run, max_ongoing_requests=5, concurrency=5) == "few_clients"
        assert size_of(run, max_ongoing_requests=5) == "max_ongoing"
        one = Run(size=8, max_ongoing=1).closed_loop(9).diagnose(max_ongoing_requests=1).size
        assert one.sentence.startswith("Only 1 request gets into a replica at once, and")

    @pytest.mark.parametrize("clients", [1, 2, 3, 5, 7])
    @pytest.mark.parametrize("wait", [0.0, 0.01])
    def test_too_few_clients(self, clients: int, wait: float) -> None:
        """Fewer clients than a batch holds; whether it was told or has to be seen."""
        run = Run(size=8, wait=wait).closed_loop(clients)
        found = run.diagnose().size
        assert (found.cause, found.knob) == ("few_clients", "concurrency")
        assert found.figures["in_flight"] == clients
        assert size_of(run, concurrency=clients) == "few_clients"

    def test_split(self) -> None:
        """Clients enough for one replica, divided among four; the same of a wait under open load."""
        assert size_of(Run(size=8, replicas=4).closed_loop(12)) == "split"
        run = Run(size=32, wait=0.02, fixed_s=0.002, replicas=4).open_loop(400)
        found = run.diagnose().size
        assert (found.cause, found.knob) == ("split", "replicas")
        assert found.figures["size_on_one"] == pytest.approx(9, rel=0.1)

    def test_no_wait(self) -> None:
        """An idle model takes each request as it comes when there is no wait."""
        found = Run(size=8, fixed_s=0.002).open_loop(50).diagnose().size
        assert (found.cause, found.knob) == ("no_wait", "batch_wait_timeout_s")

    def test_slow_arrivals(self) -> None:
        """Requests that come far too seldom to fill a batch within the wait."""
        found = Run(size=16, wait=0.01, fixed_s=0.002).open_loop(150).diagnose().size
        assert found.cause == "slow_arrivals"
        assert found.figures["gap_ms"] == pytest.approx(1e3 / 150, rel=0.1)
        assert found.figures["filling_ms"] == pytest.approx(15e3 / 150, rel=0.1)

    def test_wait_elapsed(self) -> None:
        """A wait that ends while the batch is getting somewhere."""
        found = Run(size=16, wait=0.02, fixed_s=0.001).open_loop(400).diagnose().size
        assert (found.cause, found.knob) == ("wait_elapsed", "batch_wait_timeout_s")

    def test_model_busy(self) -> None:
        """Batches hold what arrives while the model is busy: healthy, and nothing to change."""
        for run in (Run(size=32).open_loop(400), Run(size=512).open_loop(2000, seconds=3)):
            found = run.diagnose().size
            assert (found.cause, found.knob) == ("model_busy", None)
        assert size_of(Run(size=32, replicas=2).open_loop(800)) == "model_busy"

    def test_a_server_that_does_not_tell(self) -> None:
        """Without release reasons the cause is not guessed."""
        run = Run(size=32).open_loop(400)
        silent: Any = None
        batches = [batch._replace(release_reason=silent) for batch in run.batches]
        assert diagnose(run.requests, batches, run.settings).size.cause == "unknown"


class TestLatency:
    def test_waiting_for_the_model(self) -> None:
        """A saturated model: most of the time is spent in its queue."""
        found = Run(size=8).closed_loop(64).diagnose().latency
        assert found is not None
        assert (found.cause, found.knob) == ("model_queue", "max_batch_size")
        assert found.figures["utilisation"] > 0.95

    def test_waiting_on_purpose(self) -> None:
        """A wait that is longer than predict, with an idle model."""
        assert latency_of(Run(size=32, wait=0.05, fixed_s=0.002).open_loop(100)) == "batch_wait"
        # The same wait counts for nothing where the model is busy all the time.
        assert latency_of(Run(size=32, wait=0.01, fixed_s=0.05).closed_loop(96)) == "model_queue"

    def test_predict(self) -> None:
        """An idle model that takes its time."""
        lone = Run(size=8, fixed_s=0.05).open_loop(2).diagnose().latency
        assert lone is not None
        assert lone.cause == "predict"
        assert "so only a faster model would help" in lone.sentence
        shared = Run(size=8, fixed_s=0.05).bursts(4, 0.5).diagnose().latency
        assert shared is not None
        assert "a faster model or smaller batches would help" in shared.sentence

    def test_overhead(self) -> None:
        """A model that costs nothing."""
        assert latency_of(Run(size=8, fixed_s=0.0001, overhead_s=0.004).open_loop(50)) == "overhead"

    def test_overload(self) -> None:
        """A queue that grows without end, and one that is full."""
        found = Run(size=8).open_loop(500, seconds=3).diagnose().latency
        assert found is not None
        assert (found.cause, found.knob) == ("overload", "replicas")
        served = 8 / 0.0216
        assert found.figures["growth_per_s"] == pytest.approx(500 - served, rel=0.5)
        assert latency_of(Run(size=8, queue_limit=50).open_loop(500)) == "overload"
        assert latency_of(Run(size=8).open_loop(300)) != "overload"

    def test_the_parts_add_up(self) -> None:
        """Queue, wait, predict and overhead are the mean latency, and the wait on purpose is at most the setting."""
        run = Run(size=32, wait=0.005).open_loop(200)
        found = run.diagnose().latency
        assert found is not None
        figures = found.figures
        mean = float(np.mean([request.total_ms for request in run.requests]))
        assert figures["total_ms"] == pytest.approx(mean)
        parts = ("model_queue_ms", "batch_wait_ms", "predict_ms", "overhead_ms")
        assert sum(figures[part] for part in parts) == pytest.approx(mean)
        assert 0 < figures["batch_wait_ms"] < 5

    def test_none_without_an_answer(self) -> None:
        """Where nothing succeeded there is no latency to explain."""
        assert diagnose([], [], BatchSettings()).latency is None


class TestInputs:
    def test_settings_as_a_replica_tells_them(self) -> None:
        """A ReplicaState does as well as the settings."""
        run = Run(size=8).open_loop(500, seconds=1)
        state = ReplicaState("v1", True, 8, 0.0, 0)
        assert str(diagnose(run.requests, run.batches, state)) == str(run.diagnose())

    def test_only_the_last_ten_seconds_count(self) -> None:
        """With now, what ended long ago is as if it had never been."""
        run = Run(size=8).open_loop(500, seconds=1)
        assert size_of(run, now=run.now) == "full"
        assert size_of(run, now=run.now + 60) == "no_data"

    def test_a_turned_knob_is_seen(self) -> None:
        """Batches of an earlier limit do not count: the sentence is about the limits in force."""
        before = Run(size=8).open_loop(500, seconds=1)
        after = Run(size=64).open_loop(500, seconds=2)
        start = before.now
        batches = before.batches + [b._replace(released_at=b.released_at + start) for b in after.batches]
        requests = before.requests + [r._replace(arrived_at=r.arrived_at + start) for r in after.requests]
        assert diagnose(requests, batches, after.settings).size.cause == "model_busy"
        assert diagnose(before.requests, before.batches, after.settings).size.cause in {"no_data", "few_data"}

    def test_frames(self) -> None:
        """The frames of a probe and of a service give the same answer as the records they were made of."""
        run = Run(size=8, wait=0.01).closed_loop(3)
        requests, batches = pd.DataFrame(run.requests), pd.DataFrame(run.batches)
        of_service = (
            requests.assign(arrived_at=pd.to_datetime(requests["arrived_at"], unit="s", utc=True)),
            batches.assign(released_at=pd.to_datetime(batches["released_at"], unit="s", utc=True)),
        )
        of_probe = (
            requests.rename(columns={"arrived_at": "sent"}).assign(status=requests["status"].astype(float)),
            batches.rename(columns={"released_at": "released"}).drop(columns=["other_signatures", "error"]),
        )
        for frames in (of_service, of_probe):
            assert str(diagnose(*records_from_frames(*frames), run.settings)) == str(run.diagnose())

    def test_frames_with_holes(self) -> None:
        """A probe of which half timed out, and one that nobody answered, can be read."""
        run = Run(size=8).open_loop(500, seconds=1)
        requests = pd.DataFrame(run.requests).rename(columns={"arrived_at": "sent"})
        lost = ["queue_ms", "predict_ms", "overhead_ms", "total_ms", "status"]
        requests[lost] = requests[lost].astype(float)
        requests.loc[::2, lost] = np.nan
        requests.loc[::2, "batch_id"] = None
        batches = pd.DataFrame(run.batches).rename(columns={"released_at": "released"})
        found = diagnose(*records_from_frames(requests, batches), run.settings)
        assert found.size.cause == "full"
        assert found.latency is not None
        nothing = records_from_frames(requests.iloc[:0], batches.iloc[:0])
        assert diagnose(*nothing, run.settings).size.cause == "no_data"


numbers = st.one_of(st.floats(), st.integers(-(10**6), 10**6))
ids = st.sampled_from(["a", "b", "c", None])
requests_of = st.builds(
    RequestRecord,
    request_id=st.just("q"),
    arrived_at=numbers,
    status=st.sampled_from([200, 422, 499, 503]),
    batch_id=ids,
    batch_size=st.integers(0, 9),
    queue_ms=numbers,
    predict_ms=numbers,
    overhead_ms=numbers,
    total_ms=numbers,
    version=st.just("v1"),
    replica=st.sampled_from(["r0", "r1"]),
)
batches_of = st.builds(
    BatchRecord,
    batch_id=ids,
    released_at=numbers,
    batch_size=st.integers(-1, 40),
    rows=numbers,
    predict_ms=numbers,
    release_reason=st.sampled_from(["full", "timeout", "model_free", "retry", "drain"]),
    queue_depth=numbers,
    other_signatures=numbers,
    version=st.just("v1"),
    replica=st.sampled_from(["r0", "r1"]),
    error=st.sampled_from([None, "ValueError"]),
)


def check(diagnosis: Diagnosis) -> None:
    for found in (diagnosis.size, diagnosis.latency):
        if found is not None:
            check_sentence(found.sentence)
            assert all(math.isfinite(figure) for figure in found.figures.values()), found
            assert str(found) in str(diagnosis)


known_of = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(1, 4),
        "concurrency": st.integers(1, 100),
        "max_ongoing_requests": st.integers(1, 100),
        "waiting": st.integers(0, 100),
        "now": st.floats(0, 1e9),
    },
)
limits_of = st.builds(
    BatchSettings,
    max_batch_size=st.integers(1, 40),
    batch_wait_timeout_s=st.floats(0, 100),
    enabled=st.booleans(),
    max_batch_rows=st.sampled_from([None, 5]),
)


@given(st.lists(requests_of, max_size=20), st.lists(batches_of, max_size=20), limits_of, known_of)
def test_whatever_the_records_hold(
    requests: list[RequestRecord], batches: list[BatchRecord], limits: BatchSettings, known: dict[str, Any]
) -> None:
    """It never raises, and always says sentences with figures that are numbers."""
    check(diagnose(requests, batches, limits, **known))


@given(
    rate=st.floats(1, 3000),
    size=st.integers(1, 64),
    wait=st.sampled_from([0.0, 0.001, 0.05]),
    fixed_s=st.sampled_from([0.0001, 0.005, 0.03]),
    replicas=st.integers(1, 3),
    signatures=st.integers(1, 3),
)
def test_any_run_is_explained(
    rate: float, size: int, wait: float, fixed_s: float, replicas: int, signatures: int
) -> None:
    """Every run gets its sentences, with the causes that are documented."""
    run = Run(size=size, wait=wait, fixed_s=fixed_s, replicas=replicas, signatures=signatures)
    found = run.open_loop(rate, seconds=0.3).diagnose()
    check(found)
    documented: Iterable[str] = re.findall(r"``(\w+)``", str(diagnose.__doc__))
    assert found.size.cause in set(documented)


def test_a_real_run(serve_local: Any) -> None:
    """A service on the local engine, probed by fewer clients than a batch holds: its records and frames say so."""

    class Slow(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_kwargs: Any) -> Slow:
            return cls()

        def predict(self, data: Any, **_kwargs: Any) -> Any:
            time.sleep(0.03)
            return data

    service = serve_local(Slow, max_batch_size=16)
    result = probe(service, {"array": [1.0]}, requests=60, concurrency=3)
    of_probe = records_from_frames(result.requests, result.batches)
    of_service = records_from_frames(service.requests(), service.batches())
    for records in (of_probe, of_service):
        found = diagnose(*records, BatchSettings(max_batch_size=16), concurrency=3)
        check(found)
        assert found.size.cause == "few_clients"
        assert found.latency is not None
