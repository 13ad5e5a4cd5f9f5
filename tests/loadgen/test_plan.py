"""Plans and runs as text."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.loadgen.plan import Outcome, Plan, PlannedRequest, Run

times = st.none() | st.floats(0, 1e6)
requests = st.builds(
    PlannedRequest,
    index=st.integers(0, 10**6),
    planned_s=times,
    method=st.sampled_from(["GET", "POST"]),
    url=st.text(),
    headers=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
    body=st.binary(),
)
outcomes = st.builds(
    Outcome,
    index=st.integers(0),
    kind=st.sampled_from(["ok", "timeout"]),
    planned=times,
    sent=times,
    first_byte=times,
    done=times,
    status=st.none() | st.integers(100, 599),
    headers=st.dictionaries(st.text(), st.text(), max_size=3),
    body=st.binary(),
    error=st.none() | st.text(),
)


@given(st.lists(requests, max_size=5), st.none() | st.integers(1, 9), st.floats(0.1, 100))
def test_a_plan_survives_its_text(
    planned: list[PlannedRequest], concurrency: int | None, timeout_s: float
) -> None:
    """A plan read back is the same plan, and its text is one line."""
    plan = Plan(tuple(planned), concurrency, timeout_s)
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert "\n" not in text


@given(st.lists(outcomes, max_size=5), st.booleans())
def test_a_run_survives_its_lines(rows: list[Outcome], interrupted: bool) -> None:
    """A run read back is the same run, whatever text its headers and errors hold."""
    run = Run(tuple(rows), 1.5, 0.25, interrupted)
    assert Run.from_lines(run.to_lines()) == run


def test_equal_messages_are_written_once() -> None:
    """A plan that repeats one big body does not repeat it in its text."""
    plan = Plan(
        tuple(PlannedRequest(index, 0.0, "POST", "u", (), b"x" * 999) for index in range(500)), None, 1.0
    )
    assert len(plan.to_json()) < 20_000
    assert len(json.loads(plan.to_json())["messages"]) == 1


def test_lanes() -> None:
    """Never more lanes than requests; without a limit as many."""
    some = tuple(PlannedRequest(index, None, "GET", "u", (), b"") for index in range(3))
    assert [Plan(some, concurrency, 1.0).lanes for concurrency in (None, 2, 99)] == [3, 2, 3]
