"""What became of the requests, as columns, and on its way through a pipe."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.loadgen import outcomes as module
from airserve_nb.loadgen.outcomes import ClientReport, Outcomes, Run

times = st.floats(0, 1e6) | st.just(math.nan)
answer = st.tuples(st.just("answer"), st.integers(100, 599), times, times, st.binary(max_size=20))
failure = st.tuples(
    st.just("failure"), st.sampled_from(["timeout", "connection_error"]), st.text(max_size=9), times
)
nothing = st.tuples(st.just("nothing"))


def filled(rows: list[tuple[Any, ...]]) -> Outcomes:
    made = Outcomes()
    for what, *values in rows:
        request = made.add(float(len(made)))
        if what == "answer":
            made.answered(request, *values)
            made.timing[request] = "queue;dur=1"
        elif what == "failure":
            made.failed(request, *values)
    return made


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


@given(st.lists(answer | failure | nothing, max_size=6), st.booleans())
def test_a_run_survives_the_pipe(rows: list[tuple[Any, ...]], interrupted: bool) -> None:
    """A run read back is the same run, whatever its bodies and sentences hold, line breaks included."""
    run = Run(filled(rows), 1.5, 0.25, interrupted, ClientReport(cpu_share=0.5))
    line, _, data = run.to_bytes().partition(b"\n")
    again = Run.from_bytes(line, data)
    assert (again.started_at, again.elapsed_s, again.interrupted, again.client) == (
        1.5,
        0.25,
        interrupted,
        run.client,
    )
    for name in ("kinds", "sentences", "not_kept"):
        assert getattr(again.outcomes, name)() == getattr(run.outcomes, name)()
    for name in ("status", "timing", "bodies"):
        assert list(getattr(again.outcomes, name)) == list(getattr(run.outcomes, name))
    for name in ("planned", "sent", "first_byte", "done"):
        pairs = zip(getattr(again.outcomes, name), getattr(run.outcomes, name), strict=True)
        assert all(same(one, other) for one, other in pairs)


def test_an_untouched_row_was_cancelled() -> None:
    """Whatever nobody sent is accounted for."""
    made = Outcomes()
    made.add(0.0)
    assert made.kinds() == ["cancelled"]


def test_answers_are_kept_up_to_a_limit(monkeypatch: Any) -> None:
    """Beyond the limit answers are counted and not kept, so that a long probe does not fill the memory."""
    monkeypatch.setattr(module, "KEPT_ANSWERS", 10)
    made = filled([("answer", 200, 0.0, 0.0, b"12345678")] * 2 + [("answer", 200, 0.0, 0.0, b"12")])
    assert made.bodies == [b"12345678", b"", b"12"]
    assert made.not_kept() == 1
    assert made.kinds() == ["ok"] * 3


def test_a_hundred_thousand_are_some_megabytes() -> None:
    """Requests with equal small answers take some hundred bytes each on their way."""
    made = Outcomes()
    for number in range(1000):
        made.add(0.0)
        made.answered(number, 200, 0.0, 0.0, b"[42.0]")
    assert len(Run(made, 0.0, 0.0, interrupted=False).to_bytes()) < 100_000
