"""The pure part of sharing: who may ask how often, and what the proxy is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb import OptionError
from airserve_nb.sharing import rate
from airserve_nb.sharing.plan import ShareLimits, SharePlan, hashed
from airserve_nb.sharing.rate import RateLimit


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    per_s=st.floats(0.1, 100),
    burst=st.floats(1, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_nobody_gets_more_than_the_rate_and_one_burst(
    per_s: float, burst: float, pauses: list[float]
) -> None:
    """In no stretch of time is a client let through more often than the burst and the rate allow."""
    clock = Clock()
    limit = RateLimit(per_s, burst, clock=clock)
    passed: list[float] = []
    for pause in pauses:
        clock.now += pause
        if not limit.wait_s("one"):
            passed.append(clock.now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + per_s * (passed[last] - passed[first]) + 1e-6


@given(per_s=st.floats(0.1, 100), burst=st.floats(1, 20))
def test_who_waits_as_told_is_let_through(per_s: float, burst: float) -> None:
    """The seconds that a refusal names are enough."""
    clock = Clock()
    limit = RateLimit(per_s, burst, clock=clock)
    while not (wait_s := limit.wait_s("one")):
        pass
    clock.now += wait_s + 1e-6
    assert limit.wait_s("one") == 0


def test_clients_do_not_share_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """One client's flood takes nothing from another, and the buckets stay bounded."""
    monkeypatch.setattr(rate, "MOST_CLIENTS", 100)
    limit = RateLimit(1, 1, clock=Clock())
    assert limit.wait_s("flood") == 0
    assert limit.wait_s("flood") > 0
    assert limit.wait_s("calm") == 0
    for number in range(1_000):
        assert limit.wait_s(f"client {number}") == 0
    assert len(limit._buckets) == 100


def test_the_plan_travels_and_has_no_token() -> None:
    """The proxy reads what the kernel wrote; the token itself is not in it."""
    plan = SharePlan(
        name="adder", host="127.0.0.2", ports=(8000, 0), target="http://127.0.0.1:8000/adder",
        token_hash=hashed("open sesame"), limits=ShareLimits(max_body_bytes=7, requests_per_s=0.5),
    )  # fmt: skip
    assert SharePlan.from_json(plan.to_json()) == plan
    assert "sesame" not in plan.to_json()


@pytest.mark.parametrize(
    "values",
    [
        {"max_body_bytes": 0}, {"max_body_bytes": True}, {"max_body_bytes": 1.5}, {"requests_per_s": 0},
        {"requests_per_s": float("nan")}, {"requests_per_s": float("inf")}, {"requests_per_s": "many"},
    ],
)  # fmt: skip
def test_limits_that_can_not_be(values: dict[str, Any]) -> None:
    """A limit that would let nobody, or everything, through is refused by its name."""
    with pytest.raises(OptionError, match=next(iter(values))):
        ShareLimits(**values)


def test_a_slow_rate_still_lets_one_through() -> None:
    """Less than one request in two seconds is a rate, too."""
    assert ShareLimits(requests_per_s=0.01).burst == 1
