"""What a probe can be asked for, and what it says to the rest."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.options import LoadPlan, read_options, seconds


def times(**options: Any) -> np.ndarray[Any, Any]:
    planned = read_options(**options).planned()
    assert planned is not None
    return planned[0]


class TestTimes:
    def test_the_same_seed_gives_the_same_plan(self) -> None:
        """Arrivals are random once: the seed fixes them."""
        assert np.array_equal(times(rate=200, duration=5), times(rate=200, duration=5))
        assert not np.array_equal(times(rate=200, duration=5), times(rate=200, duration=5, seed=1)[: 10**6])

    @given(st.floats(1, 500), st.floats(0.5, 20), st.integers(0, 99))
    def test_poisson(self, rate: float, duration: float, seed: int) -> None:
        """Arrivals are ascending, within the duration, and about as many as the rate says."""
        planned = LoadPlan(
            "open", rates=(rate,), duration_s=duration, arrivals="poisson", seed=seed
        ).planned()
        assert planned is not None
        arrivals = planned[0]
        assert (np.diff(arrivals) >= 0).all()
        assert ((arrivals >= 0) & (arrivals < duration)).all()
        expected = rate * duration
        assert abs(len(arrivals) - expected) <= 6 * math.sqrt(expected) + 6

    def test_constant(self) -> None:
        """Constant arrivals are at equal distances from 0 on."""
        assert times(rate=4, duration=1, arrivals="constant").tolist() == [0, 0.25, 0.5, 0.75]

    @pytest.mark.parametrize(("duration", "count"), [(0.07, 7), (0.55, 55), (0.5, 50), (0.125, 13)])
    def test_constant_ends_with_its_duration(self, duration: float, count: int) -> None:
        """No request is planned for the moment at which the duration ends: it would meet the next step's first."""
        arrivals = times(rate=100, duration=duration, arrivals="constant")
        assert len(arrivals) == count
        assert arrivals[-1] < duration

    def test_a_number_of_requests_at_a_rate(self) -> None:
        """Without a duration the number of requests ends the plan."""
        assert len(times(rate=100, requests=37)) == 37
        assert len(times(rate=100)) == 10

    def test_given_times_are_sorted(self) -> None:
        """Given times are taken as they are, in their order in time."""
        assert times(arrivals=[0.5, 0, 0.25]).tolist() == [0, 0.25, 0.5]
        assert times(arrivals=np.array([1.0, 2.0])).tolist() == [1, 2]

    def test_steps(self) -> None:
        """Each rate has its step, as long as the duration, and each request knows its own."""
        planned = read_options(rate=[10, 100], duration="2s", arrivals="constant").planned()
        assert planned is not None
        arrivals, steps = planned
        assert np.bincount(steps).tolist() == [20, 200]
        assert arrivals[steps == 0].max() < 2 <= arrivals[steps == 1].min()

    def test_a_step_does_not_depend_on_the_one_before(self) -> None:
        """Another first rate leaves the second step's arrivals as they are."""
        one, other = (read_options(rate=[rate, 50], duration=2).planned() for rate in (10, 90))
        assert one is not None
        assert other is not None
        assert np.array_equal(one[0][one[1] == 1], other[0][other[1] == 1])

    def test_a_closed_loop_has_no_times(self) -> None:
        """In a closed loop the answers set the pace."""
        assert read_options(concurrency=3, requests=9).planned() is None
        assert times(requests=4).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("given", "expected"), [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1.5", 1.5), (" 1 h ", 3600), (3, 3.0)]
)
def test_durations(given: Any, expected: float) -> None:
    """A duration is a number of seconds, or a text with its unit."""
    assert seconds("duration", given) == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "all at once"),
        ({"concurrency": 8, "duration": 3}, "closed loop, 8 in flight for 3 s"),
        ({"rate": 200, "duration": "10s"}, "open loop, 200 req/s (Poisson) for 10 s"),
        (
            {"rate": [50, 100], "duration": 1, "arrivals": "constant", "concurrency": 9},
            "open loop, 50 then 100 req/s (constant) for 1 s each, at most 9 in flight",
        ),
        ({"arrivals": [0, 1]}, "open loop, at given times"),
    ],
)
def test_in_words(options: dict[str, Any], text: str) -> None:
    """A load says what it is."""
    assert read_options(**options).in_words() == text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"requests": 5, "duration": 1}, "both requests=5 and duration=1"),
        ({"duration": "10s"}, "say how to send"),
        ({"duration": "10 parsecs", "rate": 1}, "duration is '10 parsecs'"),
        ({"duration": "0s", "rate": 1}, "duration is '0s'"),
        ({"duration": -1, "rate": 1}, "duration is -1; give a number of seconds above 0"),
        ({"rate": 0}, "rate is 0; give a number of requests a second above 0"),
        ({"rate": "fast"}, "rate is 'fast'"),
        ({"rate": []}, "rate is an empty list"),
        ({"rate": [10, 20]}, "say how long each takes"),
        ({"rate": [10, None], "duration": 1}, "rate is None"),
        ({"rate": 1e9, "duration": 60}, "60,000,000,000 requests; a probe can hold 2,000,000"),
        ({"rate": 0.001, "duration": "1s"}, "no request comes within 1 s"),
        ({"rate": 5, "arrivals": "bursty"}, "arrivals is 'bursty'"),
        ({"rate": 5, "arrivals": [0, 1]}, "both a rate and the times of arrivals"),
        ({"arrivals": "constant"}, "there is no rate"),
        ({"arrivals": []}, "arrivals is an empty list"),
        ({"arrivals": 5}, "arrivals is 5; give"),
        ({"arrivals": None}, "arrivals is None; give"),
        ({"arrivals": [0, -1]}, "arrivals has -1"),
        ({"arrivals": [0, "1"]}, "arrivals has '1'"),
        ({"arrivals": [0, 1], "requests": 2}, "leave out requests and duration"),
        ({"rate": 5, "seed": -1}, "seed is -1"),
        ({"rate": 5, "seed": "x"}, "seed is 'x'"),
        ({"requests": 3_000_000}, "3,000,000 requests"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    """Whatever can't be, or contradicts itself, is one sentence, before anything is sent."""
    with pytest.raises(ProbeError) as caught:
        read_options(**options)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_numbers_of_numpy() -> None:
    """What a frame or an array has summed up is a number too, and travels to the client as one."""
    options: dict[str, Any] = {"requests": np.int64(5), "concurrency": np.int32(4), "seed": np.int64(3)}
    load = read_options(rate=np.array(50.0), timeout_s=float(np.float32(2)), **options)
    assert load == read_options(requests=5, concurrency=4, rate=50, seed=3, timeout_s=2)
    assert json.loads(json.dumps(asdict(load)))["requests"] == 5
