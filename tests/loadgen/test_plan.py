"""Plans as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.loadgen.plan import Message, Plan

messages = st.builds(
    Message,
    method=st.sampled_from(["GET", "POST"]),
    url=st.text(),
    headers=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
    body=st.binary(),
)
plans = st.builds(
    Plan,
    messages=st.lists(messages, max_size=5).map(tuple),
    timeout_s=st.floats(0.1, 100),
    planned=st.none() | st.lists(st.floats(0, 1e6), max_size=9).map(tuple),
    requests=st.none() | st.integers(1, 10**6),
    duration_s=st.none() | st.floats(0.1, 100),
    concurrency=st.none() | st.integers(1, 9),
)


@given(plans)
def test_a_plan_survives_its_text(plan: Plan) -> None:
    """A plan read back is the same plan, and its text is one line."""
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert "\n" not in text


def test_the_count() -> None:
    """How many requests there will be is known of times and of a number, not of a duration."""
    some = (Message("GET", "u", (), b""),)
    assert Plan(some, 1.0, planned=(0.0, 0.5)).count == 2
    assert Plan(some, 1.0, requests=7, concurrency=2).count == 7
    assert Plan(some, 1.0, duration_s=1.0, concurrency=2).count is None
