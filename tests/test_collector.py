"""The collector: records of several replicas, read with cursors, kept when a replica is gone."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from airserve_nb.collector import Collector, Tick
from airserve_nb.telemetry import BatchRecord, Cursor, Page, Recorder, RequestRecord


def request(number: int, *, replica: str = "a", status: int = 200, at: float | None = None) -> RequestRecord:
    return RequestRecord(
        request_id=f"{replica}-{number}", arrived_at=number if at is None else at, status=status, batch_id=f"b{number}",
        batch_size=1, queue_ms=1.0, predict_ms=2.0, overhead_ms=0.5, total_ms=3.5, version="v1", replica=replica,
    )  # fmt: skip


def batch(number: int, *, size: int = 1, replica: str = "a") -> BatchRecord:
    return BatchRecord(
        batch_id=f"b{number}", released_at=float(number), batch_size=size, rows=size, predict_ms=2.0,
        release_reason="full", queue_depth=0, other_signatures=0, version="v1", replica=replica,
    )  # fmt: skip


class Replicas:
    """Recorders by name, asked as a host asks them; counts what it hands out."""

    def __init__(self, *names: str, size: int = 100) -> None:
        self.recorders = {name: Recorder(size) for name in names}
        self.handed_out = 0

    def pages(self, cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        pages = [(name, one.since(cursors.get(name, Cursor()))) for name, one in self.recorders.items()]
        self.handed_out += sum(len(page.requests) for _, page in pages)
        return pages


def test_each_record_is_read_once() -> None:
    """Pulling again reads only what is new, and what was read stays."""
    replicas = Replicas("a")
    collector = Collector(replicas.pages)
    for number in range(3):
        replicas.recorders["a"].add_request(request(number))
        collector.pull()
        collector.pull()
    assert replicas.handed_out == 3
    assert collector.requests().request_id.tolist() == ["a-0", "a-1", "a-2"]


def test_replicas_are_merged_in_order_of_time() -> None:
    """Rows of several replicas stand in the order of arrival, batches in that of release."""
    replicas = Replicas("a", "b")
    collector = Collector(replicas.pages)
    for number in range(6):
        name = "ab"[number % 2]
        replicas.recorders[name].add_request(request(number, replica=name))
        replicas.recorders[name].add_batch(batch(5 - number, replica=name))
    collector.pull()
    assert collector.requests().replica.tolist() == ["a", "b"] * 3
    assert collector.batches().batch_id.tolist() == [f"b{number}" for number in range(6)]
    assert collector.statistics().replicas == 2


def test_the_last_requests_are_those_of_all_replicas() -> None:
    """However many of one replica were read after those of the other."""
    replicas = Replicas("a", "b", size=1_000)
    collector = Collector(replicas.pages)
    for number in range(2_000):
        name = "ab"[number % 2]
        replicas.recorders[name].add_request(request(number, replica=name))
    collector.pull()
    assert [record.request_id for record in collector.last_requests(3)] == ["b-1997", "a-1998", "b-1999"]
    assert len(collector.last_requests(9_999)) == 2_000


def test_a_replica_that_is_gone_is_remembered() -> None:
    """Records and totals of a replica that ended stay, beside those of its successor."""
    replicas = Replicas("a")
    collector = Collector(replicas.pages)
    replicas.recorders["a"].add_request(request(1))
    collector.pull()
    replicas.recorders = {"b": Recorder()}
    replicas.recorders["b"].add_request(request(2, replica="b", status=500))
    collector.pull()
    assert collector.requests().replica.tolist() == ["a", "b"]
    statistics = collector.statistics()
    assert (statistics.requests, statistics.errors) == (2, 1)


def test_totals_count_what_the_ring_forgot() -> None:
    """A reader that came late misses records, but no count."""
    replicas = Replicas("a", size=4)
    collector = Collector(replicas.pages)
    for number in range(10):
        replicas.recorders["a"].add_request(request(number))
        replicas.recorders["a"].add_batch(batch(number, size=2))
    collector.pull()
    assert len(collector.requests()) == 4
    statistics = collector.statistics()
    assert (statistics.requests, statistics.batches, statistics.batch_sizes) == (10, 10, {2: 10})


def test_empty_tables_have_their_columns_and_types() -> None:
    """Before the first request the tables are empty and can be computed with all the same."""
    collector = Collector(Replicas("a").pages)
    collector.pull()
    table = collector.requests()
    assert table.empty
    assert list(table.columns)[:3] == ["request_id", "arrived_at", "status"]
    assert isinstance(table.arrived_at.dtype, pd.DatetimeTZDtype)
    assert isinstance(collector.batches().released_at.dtype, pd.DatetimeTZDtype)


def test_times_are_utc() -> None:
    """Times are timestamps with a zone, so that notebooks in two zones agree."""
    replicas = Replicas("a")
    replicas.recorders["a"].add_request(request(1, at=0.0))
    collector = Collector(replicas.pages)
    collector.pull()
    assert collector.requests().arrived_at[0] == pd.Timestamp("1970-01-01", tz="UTC")


def test_pulling_from_many_threads_doubles_nothing() -> None:
    """Two cells that look at once do not read a record twice."""
    replicas = Replicas("a", size=10_000)
    for number in range(2_000):
        replicas.recorders["a"].add_request(request(number))
    collector = Collector(replicas.pages)
    threads: list[Any] = [threading.Thread(target=collector.pull) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector.requests().request_id.is_unique
    assert len(collector.requests()) == 2_000


def test_a_slow_replica_keeps_nobody_from_what_is_known(eventually: Any) -> None:
    """While a replica takes its time to answer, what was read before can be looked at, and watching can begin."""
    replicas = Replicas("a")
    replicas.recorders["a"].add_request(request(1))
    asked, answers = threading.Event(), threading.Event()
    answers.set()

    def pages(cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        asked.set()
        assert answers.wait(30)
        return replicas.pages(cursors)

    collector = Collector(pages)
    collector.pull()
    answers.clear()
    asked.clear()
    slow = threading.Thread(target=collector.pull)
    slow.start()
    assert asked.wait(30)
    seen: list[Any] = []

    def look() -> None:
        seen.extend(
            [collector.counters().requests, len(collector.last_requests(9)), len(collector.requests())]
        )
        collector.watch(listener)()

    listener = Listener()
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        eventually(lambda: len(seen) == 3, "what is known can be read", timeout_s=5)
    finally:
        answers.set()
        slow.join()
        looking.join()
    assert seen == [1, 1, 1]
    eventually(lambda: collector_threads() == 0, "the watch ends")


# -- replicas that go -------------------------------------------------------------------------------


def test_a_replica_that_goes_unasked_is_lost() -> None:
    """It is counted from the reading on in which it is not there, whoever takes its place; once, and not if it is back."""
    replicas = Replicas("a", "b")
    collector = Collector(replicas.pages)
    collector.pull()
    assert collector.lacking() == ""
    killed = replicas.recorders.pop("a")
    replicas.recorders["c"] = Recorder()
    collector.pull()
    collector.pull()
    assert collector.lacking() == "1 replica gone, its last records may be missing"
    del replicas.recorders["b"], replicas.recorders["c"]
    collector.pull()
    assert collector.lacking() == "3 replicas gone, their last records may be missing"
    replicas.recorders |= {"a": killed, "b": Recorder(), "c": Recorder()}
    collector.pull()
    assert collector.lacking() == ""


def test_a_reading_that_fails_says_nothing_of_replicas() -> None:
    """A replica that is too busy to answer is not gone."""
    replicas = Replicas("a")
    collector = Collector(replicas.pages)
    collector.pull()
    right, replicas.recorders = replicas.recorders, None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        collector.pull()
    assert collector.lacking() == ""
    replicas.recorders = right
    collector.pull()
    assert collector.lacking() == ""


def test_watchers_are_told_of_lost_replicas(eventually: Any) -> None:
    """Each tick has how many there are."""
    replicas = Replicas("a", "b")
    listener = Listener()
    end = Collector(replicas.pages).watch(listener)
    eventually(lambda: listener.ticks, "the first tick")
    assert listener.ticks[-1].lost_replicas == 0
    del replicas.recorders["a"]
    eventually(lambda: listener.ticks[-1].lost_replicas == 1, "the loss is told")
    del replicas.recorders["b"]
    eventually(lambda: listener.ticks[-1].lost_replicas == 2, "the next one, too")
    end()
    assert {tick.lost_replicas: tick.error for tick in listener.ticks} == {
        0: None,
        1: None,
        2: "No replica answers.",
    }


def test_who_was_asked_to_go_is_not_lost(eventually: Any) -> None:
    """While there are to be fewer, those that go are read up to their end; one that was lost before stays lost."""
    replicas = Replicas("a", "b", "c")
    collector = Collector(replicas.pages)
    collector.pull()
    del replicas.recorders["a"]
    collector.pull()
    with collector.departures():
        replicas.recorders["b"].add_request(request(1, replica="b"))
        eventually(lambda: collector.counters().requests == 1, "it is read although nobody asks")
        del replicas.recorders["b"]
        collector.pull()
        assert collector.lacking() == "1 replica gone, its last records may be missing"
    collector.pull()
    assert collector.lacking() == "1 replica gone, its last records may be missing"
    assert collector_threads() == 0
    del replicas.recorders["c"]
    collector.pull()
    assert collector.lacking().startswith("2 replicas gone")


def test_a_service_that_ends_loses_nobody() -> None:
    """What was known when all were to end may go; a replica that comes later may not."""
    replicas = Replicas("a", "b")
    collector = Collector(replicas.pages)
    collector.pull()
    collector.dismiss_all()
    replicas.recorders = {"c": Recorder()}
    collector.pull()
    assert collector.lacking() == ""
    replicas.recorders = {}
    collector.pull()
    assert collector.lacking().startswith("1 replica gone")


# -- watching ---------------------------------------------------------------------------------------


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []

    def __call__(self, tick: Tick) -> None:
        self.ticks.append(tick)

    @property
    def ids(self) -> list[str]:
        return [record.request_id for tick in self.ticks for record in tick.requests]


def collector_threads() -> int:
    return sum(thread.name == "airserve-collector" for thread in threading.enumerate())


def test_watchers_are_told_everything_once(eventually: Any) -> None:
    """Also what was read before, and what somebody else's reading pulls; one thread serves all, and ends with the last."""
    replicas = Replicas("a")
    collector = Collector(replicas.pages)
    replicas.recorders["a"].add_request(request(0))
    collector.pull()
    one, two = Listener(), Listener()
    end_one, end_two = collector.watch(one), collector.watch(two)
    for number in range(1, 50):
        replicas.recorders["a"].add_request(request(number))
        replicas.recorders["a"].add_batch(batch(number, size=2))
        if number % 7 == 0:
            collector.requests()
            collector.pull()
    expected = [f"a-{number}" for number in range(50)]
    for listener in (one, two):
        eventually(lambda listener=listener: listener.ids == expected, "every record is told, once")
        eventually(lambda listener=listener: listener.ticks[-1].counters.requests == 50, "with the totals")
    assert collector_threads() == 1
    end_one()
    end_one()
    assert collector_threads() == 1
    end_two()
    assert collector_threads() == 0
    replicas.recorders["a"].add_request(request(50))
    end_again = collector.watch(one)
    eventually(lambda: one.ids[-1] == "a-50", "watching begins anew")
    end_again()
    assert collector_threads() == 0


def test_what_was_lost_is_counted(eventually: Any) -> None:
    """A ring buffer that overflowed between two pulls: the totals are exact, and the gap is told."""
    replicas = Replicas("a", size=10)
    collector = Collector(replicas.pages)
    for number in range(25):
        replicas.recorders["a"].add_request(request(number))
    listener = Listener()
    end = collector.watch(listener)
    eventually(lambda: listener.ticks, "the first tick")
    end()
    tick = listener.ticks[0]
    assert (tick.counters.requests, len(tick.requests), tick.lost_requests) == (25, 10, 15)


def test_a_pull_that_fails_is_told_and_tried_again(eventually: Any) -> None:
    """A deployment that does not answer for a while is no end."""
    replicas = Replicas("a")
    down = threading.Event()
    down.set()

    def pages(cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        if down.is_set():
            raise RuntimeError("no replica")
        return replicas.pages(cursors)

    listener = Listener()
    end = Collector(pages).watch(listener)
    eventually(lambda: listener.ticks, "the first tick")
    assert listener.ticks[0].error == "RuntimeError: no replica"
    replicas.recorders["a"].add_request(request(1))
    down.clear()
    eventually(lambda: listener.ids == ["a-1"], "it answers again")
    assert listener.ticks[-1].error is None
    end()


def test_a_watcher_that_raises_is_left_alone(eventually: Any) -> None:
    """A front end that is gone ends nobody else's watching, and no thread stays for it alone."""
    replicas = Replicas("a")
    collector = Collector(replicas.pages)
    calls: list[Tick] = []

    def broken(tick: Tick) -> None:
        calls.append(tick)
        raise RuntimeError("closed")

    collector.watch(broken)
    eventually(lambda: collector_threads() == 0, "the thread ends with its last watcher")
    assert len(calls) == 1


def test_who_ends_takes_nothing_from_the_others(eventually: Any) -> None:
    """A watcher that ends while records are handed out does not make another one miss them, or be told them twice."""
    read: list[RequestRecord] = []

    class Ending(tuple[RequestRecord, ...]):  # noqa: SLOT001 - a few
        """Records; while they are handed to the first watcher, it ends."""

        def __iter__(self) -> Any:
            # The first reading is the collector's own.
            if self and len(read) == 1:
                end_first()
            read.extend(self[:1])
            return super().__iter__()

    replicas = Replicas("a")

    def pages(cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        return [
            (name, replace(page, requests=Ending(page.requests))) for name, page in replicas.pages(cursors)
        ]

    collector = Collector(pages)
    first, second, third = Listener(), Listener(), Listener()
    end_first, *ends = [collector.watch(each) for each in (first, second, third)]
    replicas.recorders["a"].add_request(request(1))
    seen = [
        eventually(lambda each=each: [r.request_id for tick in each.ticks for r in tick.requests], "a record")
        for each in (second, third)
    ]
    for end in ends:
        end()
    assert seen == [["a-1"], ["a-1"]]
