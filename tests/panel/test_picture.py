"""The picture: what ticks become, second by second."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.collector import Tick
from airserve_nb.panel.picture import KEPT_ROWS, Picture, encode
from airserve_nb.panel.why import NOTHING, why
from airserve_nb.telemetry import BatchRecord, Counters, ReplicaState, RequestRecord

NOW = 1_000_000.5


def request(
    number: int, *, ended: float = NOW, total_ms: float = 10, status: int = 200, **more: Any
) -> RequestRecord:
    return RequestRecord(
        request_id=f"r{number}", arrived_at=ended - total_ms / 1e3, status=status, batch_id=f"b{number}", batch_size=1,
        queue_ms=total_ms / 2, predict_ms=total_ms / 4, overhead_ms=total_ms / 4, total_ms=total_ms, version="v1",
        replica="a", **more,
    )  # fmt: skip


def batch(number: int, *, size: int = 1, ended: float = NOW, reason: Any = "full") -> BatchRecord:
    return BatchRecord(f"b{number}", ended - 0.002, size, size, 2.0, reason, 0, 0, "v1", "a")


def tick(requests: Sequence[RequestRecord] = (), batches: Sequence[BatchRecord] = (), **more: Any) -> Tick:
    counters = Counters(
        requests=len(requests),
        batches=len(batches),
        sizes=Counter((b.batch_size, b.release_reason) for b in batches),
    )
    fields: dict[str, Any] = {"lost_requests": 0, "lost_batches": 0, "lost_replicas": 0, "states": {}} | more
    return Tick(list(requests), list(batches), counters, **fields)


def test_a_second_has_its_counts_and_quantiles() -> None:
    """Requests, errors, median, 99th percentile and the mean parts of what ended in one second."""
    picture = Picture()
    requests = [request(n, total_ms=n, status=500 if n == 100 else 200) for n in range(1, 101)]
    picture.absorb(tick(requests, [batch(1, size=3), batch(2, size=3, reason="timeout")]), NOW)
    (second,) = picture.changes()["seconds"]
    assert second[:5] == [int(NOW), 100, 1, 51, 100]
    assert second[5:8] == [25.25, 12.62, 12.62]
    assert second[9] == [[3, "full", 1], [3, "timeout", 1]]


def test_the_split_is_of_requests_that_rode_in_a_batch() -> None:
    """A client that left after half a minute in the queue does not make it look as if HTTP took that long."""
    picture = Picture()
    left = request(2, total_ms=30_000, status=499)._replace(
        batch_id=None, queue_ms=0.0, predict_ms=0.0, overhead_ms=30_000.0
    )
    picture.absorb(tick([request(1, total_ms=8), left]), NOW)
    (second,) = picture.changes()["seconds"]
    assert second[1:3] == [2, 1]
    assert second[5:8] == [4, 2, 2]


def test_only_what_changed_is_told() -> None:
    """A second message has nothing that the first one had; without news there is none."""
    picture = Picture()
    picture.absorb(tick([request(1)]), NOW)
    assert {"totals", "seconds", "rows"} <= set(picture.changes(head={"name": "adder"}))
    assert picture.changes(head={"name": "adder"}) == {}
    picture.absorb(tick(), NOW + 1)
    assert set(picture.changes(head={"name": "adder"})) == {"totals"}


def test_a_newcomer_is_told_everything() -> None:
    """What one page was told already is told again to the next."""
    picture = Picture()
    picture.absorb(tick([request(1)], [batch(1)]), NOW)
    picture.changes()
    everything = picture.everything()
    assert everything["reset"]
    assert [row[0] for row in everything["rows"]] == ["r1"]
    assert everything["seconds"]
    assert everything["sizes"] == [[1, "full", 1]]


def test_messages_that_were_left_out_are_merged() -> None:
    """Ticks that no message told of are in the next one, as one."""
    picture = Picture()
    for number in range(5):
        picture.absorb(tick([request(number)]), NOW)
    changes = picture.changes()
    assert [row[0] for row in changes["rows"]] == [f"r{number}" for number in range(5)]
    assert [second[1] for second in changes["seconds"]] == [5]


def test_the_log_is_capped_but_the_second_is_not() -> None:
    """More requests than the log lists are all counted, and the newest are listed."""
    picture = Picture()
    picture.absorb(tick([request(number) for number in range(3 * KEPT_ROWS)]), NOW)
    changes = picture.changes()
    assert len(changes["rows"]) == KEPT_ROWS
    assert changes["rows"][-1][0] == f"r{3 * KEPT_ROWS - 1}"
    assert changes["seconds"][0][1] == 3 * KEPT_ROWS


def test_replicas_are_told_in_order_of_time() -> None:
    """One after the other they are read: the log lists the newest of all, and what is recent is not that of one alone."""
    picture = Picture()
    times = [NOW - 50 + 0.05 * number for number in range(KEPT_ROWS)]
    requests = [
        request(number, ended=ended)._replace(replica=replica)
        for replica in "ab"
        for number, ended in enumerate(times)
    ]
    picture.absorb(tick(requests, [batch(2), batch(1, ended=NOW - 1)]), NOW)
    changes = picture.changes()
    assert Counter(row[4] for row in changes["rows"]) == {"a": KEPT_ROWS // 2, "b": KEPT_ROWS // 2}
    arrivals = [row[1] for row in changes["rows"]]
    assert arrivals == sorted(arrivals)
    assert len(picture.recent[0]) == 2 * sum(ended >= NOW - 10 for ended in times) == 400
    assert changes["last"][0] == "b2"


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """A minute is all that there is, however long a panel is open."""
    picture = Picture()
    for second in range(300):
        picture.absorb(
            tick([request(second, ended=NOW + second)], [batch(second, ended=NOW + second)]), NOW + second
        )
    assert len(picture.everything()["seconds"]) <= 61
    assert len(picture.recent[0]) <= 11


def test_what_took_long_is_recent_by_its_end() -> None:
    """Of an overloaded service, requests that waited longer than the window looks back count, and so do their batches."""
    picture = Picture()
    slow = BatchRecord("b0", NOW - 15, 1, 1, 14_900.0, "full", 0, 0, "v1", "a")
    picture.absorb(tick([request(n, total_ms=30_000) for n in range(5)], [slow]), NOW)
    assert picture.latency() == [30_000, 30_000, 5]
    assert [len(records) for records in picture.recent] == [5, 1]
    picture.absorb(tick(), NOW + 11)
    assert picture.latency() is None
    assert picture.recent == ([], [])


def test_a_row_says_why_its_batch_was_released() -> None:
    """The reason is found by the batch, which may have come with an earlier tick."""
    picture = Picture()
    picture.absorb(tick([], [batch(1, reason="drain")]), NOW)
    picture.absorb(tick([request(1)]), NOW)
    assert picture.changes()["rows"][0][7] == "drain"


def test_replicas_and_their_queues_are_told() -> None:
    """Limits in force and waiting requests, by replica; the second remembers the longest queue, if it was read."""
    picture = Picture()
    states = {name: ReplicaState("v1", True, 8, 0.01, 3) for name in "ba"}
    picture.absorb(tick(states=states, lost_requests=7), NOW)
    picture.absorb(tick(states=states, lost_requests=7, error="gone"), NOW + 1)
    changes = picture.changes()
    assert [state[0] for state in changes["states"]] == ["a", "b"]
    assert (picture.replicas, picture.waiting) == (2, 6)
    assert [(second[0], second[8]) for second in changes["seconds"]] == [(int(NOW), 6)]
    assert (changes["totals"]["lacking"], changes["error"]) == ("7 records missing", "gone")


@given(st.text(max_size=50), st.binary(max_size=300))
def test_any_text_travels(text: str, payload: bytes) -> None:
    """Null bytes, lone surrogates and broken UTF-8 reach the page as JSON, cut."""
    picture = Picture()
    picture.absorb(tick([request(1, error=text, payload=payload)]), NOW)
    row = json.loads(encode(picture.changes()))["rows"][0]
    assert row[13] == text
    assert len(row[11]) <= 201


def test_long_texts_are_cut_before_they_are_sent() -> None:
    """A megabyte in a body or an answer costs a page 200 characters."""
    picture = Picture()
    picture.absorb(tick([request(1, payload=b"x" * 1_000_000, answer=b"y" * 1_000_000)]), NOW)
    assert len(encode(picture.changes())) < 2_000


# -- why --------------------------------------------------------------------------------------------


SERVICE: Any = SimpleNamespace(_host=SimpleNamespace(settings=BatchSettings()))


def now_in(monkeypatch: pytest.MonkeyPatch, picture: Picture) -> list[str] | None:
    monkeypatch.setattr("time.time", lambda: NOW)
    return why(picture, SERVICE)


def test_a_quiet_service_has_nothing_to_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first request nothing is said; after a pause, that there is nothing to explain."""
    picture = Picture()
    assert now_in(monkeypatch, picture) is None
    picture.absorb(tick([request(1, ended=NOW - 11)], [batch(1, ended=NOW - 11)]), NOW)
    assert now_in(monkeypatch, picture) == [NOTHING]
    # Answered a moment after its batch, which is just too old.
    picture = Picture()
    picture.absorb(tick([request(1, ended=NOW - 9.9)], [batch(1, ended=NOW - 10.1)]), NOW)
    assert now_in(monkeypatch, picture) == [NOTHING]


def test_a_model_that_does_not_return_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that wait although no batch ends are what is to be explained."""
    picture = Picture()
    picture.absorb(tick([request(1, ended=NOW - 60)], [batch(1, ended=NOW - 60)]), NOW)
    picture.absorb(tick(states={"a": ReplicaState("v1", True, 8, 0.01, 1)}), NOW)
    said = now_in(monkeypatch, picture)
    assert said is not None
    assert said[0].startswith("1 request waits although no batch has ended lately: predict has not returned")


def test_requests_that_reach_no_batch_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that refuses whatever comes does not say that there is nothing to explain."""
    picture = Picture()
    picture.absorb(tick([request(n, status=422)._replace(batch_id=None) for n in range(3)]), NOW)
    assert now_in(monkeypatch, picture) == [
        "3 requests ended without reaching a batch, so look at their errors."
    ]
