"""Objectives: met, missed, or not to be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb.errors import ProbeError, SloMissedError
from airserve_nb.loadgen.result import ProbeResult


def result(count: int = 1000, failed: int = 0) -> ProbeResult:
    """Latencies from 0 to 100 ms, evenly; the failed ones beside."""
    total = np.linspace(0, 100, count)
    requests = pd.DataFrame(
        {
            "outcome": ["ok"] * count + ["timeout"] * failed,
            "status": [200.0] * count + [np.nan] * failed,
            "error": [None] * count + ["No answer within 1 s."] * failed,
            **{name: [*total, *[np.nan] * failed] for name in ("total_ms", "service_ms")},
            **dict.fromkeys(("queue_ms", "predict_ms", "overhead_ms"), np.nan),
        }
    )
    return ProbeResult(
        "adder", "http://h/adder", requests, pd.DataFrame({"batch_size": []}), 10.0, interrupted=False
    )


@pytest.mark.parametrize(
    "objectives",
    [
        {"p50_ms": 51},
        {"p99_ms": 99.1, "p90_ms": 91},
        {"p999_ms": 100},
        {"error_rate": 0.001},
        {"requests_per_s": 100},
    ],
)
def test_met(objectives: dict[str, Any]) -> None:
    """What was met raises nothing."""
    result().assert_slo(**objectives)


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        ({"p99_ms": 50}, "adder missed p99 of 50 ms: it was 99.0 ms of 1000 answers."),
        ({"requests_per_s": 101}, "101 requests a second: there were 100.0"),
        (
            {"error_rate": 0.001},
            "error rate of 0.001: 20 of 1020 requests failed (0.0196), mostly: No answer within 1 s.",
        ),
        ({"p50_ms": 1, "p99_ms": 1}, "p50 of 1 ms: it was 50.0 ms of 1000 answers; p99 of 1 ms"),
    ],
)
def test_missed(objectives: dict[str, Any], words: str) -> None:
    """Each objective that was missed is named with its figure, as a failed assertion."""
    with pytest.raises(AssertionError) as caught:
        result(failed=20).assert_slo(**objectives)
    assert isinstance(caught.value, SloMissedError)
    assert words in str(caught.value)
    assert caught.value.deployment == "adder"


@pytest.mark.parametrize(
    ("count", "objectives", "words"),
    [
        (99, {"p99_ms": 50}, "99 successful answers, too few to tell the p99; it takes 100 or more."),
        (0, {"p50_ms": 50}, "0 successful answers"),
        (
            500,
            {"error_rate": 0.001},
            "500 requests without a failure can't show an error rate of 0.001 or less",
        ),
        (0, {"error_rate": 0.1}, "0 requests without a failure"),
        (9, {}, "There is no objective"),
        (9, {"p50_ms": "fast"}, "p50_ms is 'fast'"),
        (9, {"error_rate": -1}, "error_rate is -1"),
        (9, {"error_rate": 5}, "error_rate is 5; give a share of the requests, from 0 to 1"),
    ],
)
def test_too_few_to_say(count: int, objectives: dict[str, Any], words: str) -> None:
    """Where there are too few requests, that is said, instead of a verdict."""
    with pytest.raises(ProbeError) as caught:
        result(count).assert_slo(**objectives)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_miss_is_a_miss_with_few_samples_too() -> None:
    """That one of ten failed is enough to say that an error rate of a thousandth was missed."""
    with pytest.raises(SloMissedError, match="1 of 10 requests failed"):
        result(9, failed=1).assert_slo(error_rate=0.001)


def test_failures_are_not_quick() -> None:
    """That the answers which came were quick does not hide that more failed than may be slow."""
    found = result(failed=20)
    with pytest.raises(
        SloMissedError, match=r"p99 of 100 ms: 20 of 1020 requests failed, and only 0\.01 of all"
    ):
        found.assert_slo(p99_ms=100)
    found.assert_slo(p90_ms=100)
    found.assert_slo(p99_ms=100, error_rate=0.05)
    with pytest.raises(SloMissedError, match="p50 of 100 ms: 10 of 10 requests failed"):
        result(0, failed=10).assert_slo(p50_ms=100)


def test_numbers_of_numpy() -> None:
    """An objective that was reckoned is a number too."""
    result().assert_slo(p50_ms=np.int64(51))  # type: ignore[arg-type] # like an int
