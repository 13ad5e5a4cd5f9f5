"""Frames of outcomes and records."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.loadgen.outcomes import Outcomes, Run
from airserve_nb.loadgen.tables import (
    BATCH_COLUMNS,
    REQUEST_COLUMNS,
    _server_timing,
    batch_table,
    request_table,
)


@dataclass(frozen=True)
class Row:
    """One request and what became of it."""

    timing: str = ""
    status: int | None = 200
    body: bytes = b"1"
    planned: float = 0.0
    sent: float = 0.0
    done: float = 0.1
    request_id: str = ""
    version: str = ""
    location: str = ""


def run(*rows: Row) -> Run:
    made = Outcomes()
    for row in rows:
        request = made.add(row.planned)
        made.sent[request] = row.sent
        made.timing[request], made.request_id[request] = row.timing, row.request_id
        made.version[request], made.location[request] = row.version, row.location
        if row.status is None:
            made.failed(request, "timeout", "No answer within 1 s.", row.done)
        else:
            made.answered(request, row.status, row.done, row.done, row.body)
    return Run(made, started_at=1000.0, elapsed_s=0.1, interrupted=False)


def record(batch_id: str, released_at: float, **more: object) -> dict[str, object]:
    return {
        "batch_id": batch_id,
        "released_at": released_at,
        "batch_size": 2,
        "rows": 6,
        "predict_ms": 20.0,
        "release_reason": "full",
        "queue_depth": 3,
        "version": "v1",
        "replica": "r1",
        **more,
    }


TIMING = 'queue;dur=10, predict;dur=20, batch;desc="b1/2"'


class TestRequests:
    def test_the_server_s_part(self) -> None:
        """Queue and predict come from the answer's headers, overhead is the rest of the client's total."""
        frame = request_table(run(Row(timing=TIMING, request_id="id", version="v7", planned=-0.02)))
        assert tuple(frame.columns) == REQUEST_COLUMNS
        row = frame.loc[0]
        assert (row.queue_ms, row.predict_ms, row.service_ms) == (10, 20, pytest.approx(100))
        assert row.total_ms == pytest.approx(120)
        assert row.overhead_ms == pytest.approx(70)
        assert (row.batch_id, row.batch_size, row.request_id, row.version) == ("b1", 2, "id", "v7")

    def test_a_foreign_server(self) -> None:
        """Without our headers the server's columns are empty and nothing else is missing."""
        frame = request_table(run(Row(timing='cache;desc="hit, or so";dur=1, db;dur=x, total')))
        row = frame.loc[0]
        assert row[["queue_ms", "predict_ms", "overhead_ms"]].isna().all()
        assert frame.step.tolist() == [0]
        assert (row.batch_id, row.batch_size, row.version, row.request_id) == (None, 0, None, None)
        assert row.total_ms == pytest.approx(100)

    def test_a_status_compares_right_without_an_answer(self) -> None:
        """An unanswered request's status equals no number, so that checks over all requests fail as they should."""
        frame = request_table(run(Row(), Row(status=None)))
        assert (frame.status == 200).tolist() == [True, False]
        assert not (frame.status == 200).all()
        assert request_table(run(Row())).status.dtype == "int64"

    @pytest.mark.parametrize(
        ("body", "answer"),
        [
            (b"[1.5]", [1.5]),
            (b"null", None),
            (b"hello", "hello"),
            (b"", ""),
            (b"\xff", "\ufffd"),
            (b"NaN", math.nan),
        ],
    )
    def test_answers(self, body: bytes, answer: object) -> None:
        """An answer is decoded JSON, or else its text."""
        value = request_table(run(Row(body=body))).answer[0]
        assert value == answer or (value != value and answer != answer)  # noqa: PLR0124 - NaN

    @pytest.mark.parametrize(
        ("status", "body", "sentence"),
        [
            (500, b'{"error": "It broke.", "request_id": "x"}', "HTTP 500: It broke."),
            (404, b'{"detail": "Not Found"}', "HTTP 404: Not Found"),
            (422, b'{"detail": [{"loc": 1}]}', 'HTTP 422: [{"loc": 1}]'),
            (502, b"<html>\n bad", "HTTP 502: <html> bad"),
            (503, b"", "HTTP 503."),
            (500, b"x" * 999, "HTTP 500: " + "x" * 299 + "…"),
        ],
    )
    def test_http_errors_give_a_sentence(self, status: int, body: bytes, sentence: str) -> None:
        """A failure's answer is one readable line: the server's own sentence where it sent one."""
        row = request_table(run(Row(status=status, body=body))).loc[0]
        assert row.error == row.answer == sentence

    def test_a_redirect_says_where_to(self) -> None:
        """A redirection is not followed, and its sentence says what to probe instead."""
        row = request_table(run(Row(status=307, body=b"", location="/x/"))).loc[0]
        assert row.error == "HTTP 307: redirected to /x/, which the probe does not follow; probe that URL."

    @given(st.text())
    def test_no_header_breaks_it(self, header: str) -> None:
        """Whatever a server writes into Server-Timing, it is read without an error."""
        request_table(run(Row(timing=header)))

    @given(st.from_regex(r"[A-Za-z0-9/:. -]{1,20}", fullmatch=True), st.integers(1, 9999))
    def test_any_batch_id_is_read(self, batch_id: str, size: int) -> None:
        """A batch id may hold slashes, spaces and colons."""
        frame = request_table(run(Row(timing=f'queue;dur=1, batch;desc="{batch_id}/{size}"')))
        assert (frame.batch_id[0], frame.batch_size[0]) == (batch_id, size)

    def test_quoted_commas_divide_nothing(self) -> None:
        """A comma or semicolon inside quotes belongs to the text."""
        timing = _server_timing('a;desc="x, y; z";dur=1.5,b;dur=2')
        assert timing == {"a": {"desc": "x, y; z", "dur": "1.5"}, "b": {"dur": "2"}}


class TestBatches:
    @pytest.mark.parametrize("timestamps", [False, True])
    def test_from_the_service_s_records(self, timestamps: bool) -> None:
        """Batches of this probe come with all that the records hold; those of others do not come."""
        told = run(Row(timing=TIMING), Row(timing=TIMING, sent=0.01))
        requests = request_table(told)
        records = pd.DataFrame([record("b1", 1000.05), record("b9", 1000.06)])
        if timestamps:
            records["released_at"] = pd.to_datetime(records["released_at"], unit="s", utc=True)
        frame = batch_table(requests, told, records)
        assert tuple(frame.columns) == BATCH_COLUMNS
        assert frame.batch_id.tolist() == ["b1"]
        row = frame.to_dict("records")[0]
        assert (row["rows"], row["release_reason"], row["queue_depth"], row["replica"]) == (
            6,
            "full",
            3,
            "r1",
        )
        assert frame.released[0] == pytest.approx(0.05)
        assert requests.replica.tolist() == ["r1", "r1"]

    def test_from_headers_alone(self) -> None:
        """Without records the headers give size and time; what they do not tell is empty."""
        told = run(Row(timing=TIMING, version="v1"), Row(timing=TIMING, sent=0.02))
        frame = batch_table(request_table(told), told, None)
        row = frame.loc[0]
        assert (row.batch_id, row.batch_size, row.predict_ms, row.version) == ("b1", 2, 20, "v1")
        assert row.released == pytest.approx(0.03)  # when the last member had waited its time
        assert row.released_at.timestamp() == pytest.approx(1000.03)
        assert row[["rows", "release_reason", "queue_depth", "replica"]].isna().all()

    @given(st.floats(-1e9, 1e9))
    def test_a_wrong_clock_moves_no_batch_out_of_its_requests(self, skew: float) -> None:
        """A batch begins after its members waited and ends before they were answered, whatever the server's clock."""
        told = run(Row(timing=TIMING), Row(timing=TIMING, sent=0.02))
        frame = batch_table(request_table(told), told, pd.DataFrame([record("b1", 1000 + skew)]))
        assert 0.03 <= frame.released[0] <= 0.08

    def test_without_batches(self) -> None:
        """A server that tells nothing gives an empty frame with all its columns."""
        told = run(Row())
        frame = batch_table(request_table(told), told, None)
        assert frame.empty
        assert tuple(frame.columns) == BATCH_COLUMNS

    def test_in_the_order_of_release(self) -> None:
        """Batches are sorted by when they began."""
        late = Row(timing='queue;dur=50, predict;dur=1, batch;desc="late/1"')
        told = run(late, Row(timing='queue;dur=1, predict;dur=1, batch;desc="early/1"'))
        assert batch_table(request_table(told), told, None).batch_id.tolist() == ["early", "late"]


def test_an_answer_that_is_a_list_stays_one() -> None:
    """Lists and dicts in the answer column are the values themselves."""
    body = json.dumps([{"predictions": 0.5}]).encode()
    assert request_table(run(Row(body=body))).answer[0] == [{"predictions": 0.5}]
