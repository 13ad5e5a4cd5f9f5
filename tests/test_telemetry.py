"""Telemetry: running numbers that never lie about what was lost, and totals that never wrap."""

from __future__ import annotations

import math
import pickle
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.panel.summary import columns
from airserve_nb.telemetry import (
    BatchRecord,
    BatchStatistics,
    Counters,
    Cursor,
    Recorder,
    RequestRecord,
    bucket,
    preview,
    shown_preview,
    sum_counters,
)


def request(number: int, status: int = 200) -> RequestRecord:
    return RequestRecord(
        request_id=f"r{number}", arrived_at=float(number), status=status, batch_id=None, batch_size=0, queue_ms=1.0,
        predict_ms=2.0, overhead_ms=3.0, total_ms=6.0, version="v1", replica="a",
    )  # fmt: skip


def batch(number: int, size: int, rows: int) -> BatchRecord:
    return BatchRecord(
        batch_id=f"b{number}", released_at=float(number), batch_size=size, rows=rows, predict_ms=4.0,
        release_reason="timeout", queue_depth=0, other_signatures=0, version="v1", replica="a",
    )  # fmt: skip


@given(size=st.integers(1, 8), steps=st.lists(st.one_of(st.just("read"), st.integers(1, 12)), max_size=30))
def test_a_reader_gets_each_record_once_or_is_told(size: int, steps: list[str | int]) -> None:
    """Whatever the order of writing and reading: what was read and what was lost add up to what was written."""
    recorder = Recorder(size)
    cursor = Cursor()
    written, seen, lost = 0, [], 0
    for step in [*steps, "read"]:
        if step == "read":
            page = recorder.since(cursor)
            cursor = page.cursor
            seen += [record.request_id for record in page.requests]
            lost += page.lost_requests
            continue
        for _ in range(int(step)):
            recorder.add_request(request(written))
            written += 1
    assert len(seen) + lost == written
    numbers = [int(name[1:]) for name in seen]
    assert numbers == sorted(set(numbers))
    assert recorder.since(cursor).requests == ()
    assert recorder.since().counters.requests == written


def test_reading_takes_nothing_away() -> None:
    """Two readers follow the same recorder, each at its own pace."""
    recorder = Recorder()
    recorder.add_request(request(1))
    recorder.add_batch(batch(1, 1, 1))
    first = recorder.since()
    recorder.add_request(request(2))
    assert len(recorder.since().requests) == 2
    assert [record.request_id for record in recorder.since(first.cursor).requests] == ["r2"]
    assert recorder.since(first.cursor).batches == ()


def test_a_page_is_a_snapshot() -> None:
    """What was handed out does not change afterwards."""
    recorder = Recorder()
    recorder.add_batch(batch(1, 2, 2))
    page = recorder.since()
    recorder.add_batch(batch(2, 2, 2))
    assert (page.counters.batches, dict(page.counters.sizes), len(page.batches)) == (
        1,
        {(2, "timeout"): 1},
        1,
    )


def test_records_travel_and_do_not_change() -> None:
    """Records and pages are sent between processes, and nobody can alter them."""
    recorder = Recorder()
    recorder.add_request(request(1))
    recorder.add_batch(batch(1, 3, 5))
    page = recorder.since()
    assert pickle.loads(pickle.dumps(page)) == page
    records: list[Any] = [*page.requests, *page.batches]
    for record in records:
        with pytest.raises(AttributeError):
            record.replica = None


def test_writing_from_many_threads_loses_no_count() -> None:
    """The event loop and the model thread write at once."""
    recorder = Recorder(10)

    def write() -> None:
        for number in range(1_000):
            recorder.add_request(request(number))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.since().counters.requests == 4_000


def test_statistics() -> None:
    """Means are by request and by batch, sizes and reasons are counted, 4xx and 5xx are errors."""
    recorder = Recorder()
    for number, status in enumerate((200, 404, 500, 499)):
        recorder.add_request(request(number, status))
    recorder.add_batch(batch(1, 1, 1))
    recorder.add_batch(batch(2, 3, 7))
    statistics = BatchStatistics.from_counters([recorder.since().counters, Counters()])
    assert (statistics.requests, statistics.errors, statistics.batches, statistics.replicas) == (4, 3, 2, 2)
    assert (statistics.mean_batch_size, statistics.mean_predict_ms) == (2.0, 4.0)
    assert (statistics.mean_queue_ms, statistics.mean_total_ms) == (1.0, 6.0)
    assert statistics.batch_sizes == {1: 1, 3: 1}
    assert statistics.release_reasons == {"timeout": 2}


def test_statistics_of_nothing() -> None:
    """Before the first request means are NaN, not errors and not zeros that look measured."""
    statistics = BatchStatistics.from_counters([])
    assert statistics.requests == statistics.replicas == 0
    assert math.isnan(statistics.mean_batch_size)
    assert math.isnan(statistics.mean_total_ms)


def test_sums_leave_their_parts_alone() -> None:
    """Adding counters changes none of them."""
    part = Counters(requests=1)
    part.sizes[3, "full"] = 1
    total = sum_counters([part, part])
    assert (total.requests, total.sizes[3, "full"]) == (2, 2)
    assert (part.requests, part.sizes[3, "full"]) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "counted"), [(0, 0), (1, 1), (32, 32), (33, 64), (64, 64), (65, 128), (100_000, 131_072)]
)
def test_buckets_of_rows(rows: int, counted: int) -> None:
    """Small numbers are counted exactly, larger ones by powers of two: a counter for each would never end."""
    assert bucket(rows) == counted


@given(st.integers(1, 10_000), st.integers(33, 10_000))
def test_a_bucket_is_in_its_column(rows: int, largest: int) -> None:
    """A histogram shows a counted batch in the column in which it shows the batch itself."""
    bars = columns(max(rows, largest))
    assert [low <= rows <= high for low, high in bars] == [low <= bucket(rows) <= high for low, high in bars]


@pytest.mark.parametrize("content", [b"", b"abc", b"x" * 200, "ö".encode() * 100])
def test_a_short_body_is_shown_whole(content: bytes) -> None:
    """What fits is shown as it is."""
    assert shown_preview(preview(content)) == content.decode()


def test_a_long_body_is_cut() -> None:
    """What is left out is said, and bytes that are no text do no harm."""
    assert shown_preview(preview(b"x" * 1_000_000)) == "x" * 200 + "…"
    assert shown_preview(preview(b"\xff\x00")) == "\ufffd\x00"
