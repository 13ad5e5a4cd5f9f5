"""The policy under a virtual clock: figures worked out by hand, by another program, and by theory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.batching.policy import BatchQueue, Waiting
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import OptionError
from airserve_nb.simulation import Simulation, inoue_bound, simulate

T, A = 0.020, 0.0002
MODEL = (T, A)


def latencies(times: list[float], size: int = 10, wait: float = 0.0, model: Any = (0.02, 0.0)) -> list[float]:
    return list(map(float, simulate(model, times, size, wait).latencies_ms))


class TestByHand:
    def test_work_conserving(self) -> None:
        """Who finds the model idle leaves at once; who finds it busy leaves when it is free, together with the others."""
        assert latencies([0.0, 0.005, 0.010, 0.030]) == pytest.approx([20, 35, 30, 30])

    def test_the_same_moment(self) -> None:
        """Requests of one moment share a batch, also at the moment when the model is free."""
        assert latencies([0.0, 0.0, 0.0]) == pytest.approx([20, 20, 20])
        assert latencies([0.0, 0.02, 0.02]) == pytest.approx([20, 20, 20])

    def test_the_wait(self) -> None:
        """An idle model's batch waits for the oldest member's time; a full one does not."""
        assert latencies([0.0, 0.004], wait=0.010) == pytest.approx([30, 26])
        assert latencies([0.0, 0.004], size=2, wait=0.010) == pytest.approx([24, 20])

    def test_more_than_fits(self) -> None:
        """What does not fit goes with the next batch, in the order of arrival."""
        assert latencies([0.0] * 5, size=2) == pytest.approx([20, 20, 40, 40, 60])

    def test_every_row_counts(self) -> None:
        """The time of a batch is that of its rows, by a pair or by any function."""
        assert latencies([0.0] * 3, model=(0.01, 0.002)) == pytest.approx([16] * 3)
        assert latencies([0.0] * 3, model=lambda rows: 0.001 * rows**2) == pytest.approx([9] * 3)

    def test_what_is_counted(self) -> None:
        """Batches, reasons, utilisation and elapsed time are those of the run."""
        found = simulate((0.02, 0.0), [0.0, 0.0, 0.0, 0.05], 2, 0.01, overhead_ms=3)
        assert found.latencies_ms.tolist() == pytest.approx([23, 23, 43, 33])
        assert found.batch_sizes.tolist() == [2, 1, 1]
        assert found.release_reasons == {"full": 1, "model_free": 1, "timeout": 1}
        assert found.elapsed_s == pytest.approx(0.08)
        assert found.utilisation == pytest.approx(0.06 / 0.08)
        assert found.requests_per_s == pytest.approx(4 / 0.08)
        assert found.mean_batch_size == pytest.approx(4 / 3)


def reference(times: list[float], size: int, wait: float) -> list[float]:
    """Drive the policy as plainly as can be, moment by moment, for one replica."""
    queue = BatchQueue(BatchSettings(max_batch_size=size, batch_wait_timeout_s=wait))
    answered = [math.nan] * len(times)
    now, free_since, following = 0.0, 0.0, 0
    while following < len(times) or len(queue):
        while following < len(times) and times[following] <= now:
            queue.add(Waiting(times[following], None, payload=following))
            following += 1
        release = queue.take(now, free_since)
        if release is not None:
            now += T + A * release.rows
            for member in release.members:
                answered[member.payload] = now - member.arrived_at
            free_since = now
            continue
        candidates = [queue.ready_at(), times[following] if following < len(times) else None]
        now = max(now, min(c for c in candidates if c is not None))
    return [1e3 * latency for latency in answered]


gaps_of = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.1), st.just(0.02)), min_size=1, max_size=60)


@given(gaps_of, st.integers(1, 8), st.sampled_from([0.0, 0.01, 0.02, 0.3]))
def test_equals_the_plain_loop(gaps: list[float], size: int, wait: float) -> None:
    """Every request gets exactly the latency that a plain loop over the policy gives it."""
    times = np.cumsum(gaps).tolist()
    assert latencies(times, size, wait, MODEL) == pytest.approx(reference(times, size, wait))


@given(gaps_of, st.integers(1, 8), st.sampled_from([0.0, 0.01]), st.integers(1, 5))
def test_every_request_is_answered_once(gaps: list[float], size: int, wait: float, replicas: int) -> None:
    """However many replicas: each request rides in one batch, and takes at least the time of a batch of one."""
    found = simulate(MODEL, np.cumsum(gaps), size, wait, replicas=replicas)
    assert found.batch_sizes.sum() == len(gaps) == found.requests
    assert found.batch_sizes.max() <= size
    assert (found.latencies_ms >= 1e3 * (T + A) - 1e-6).all()
    assert sum(found.release_reasons.values()) == len(found.batch_sizes)
    assert 0 < found.utilisation <= 1 + 1e-9


class TestReplicas:
    def test_the_less_busy_one_takes_it(self) -> None:
        """Of two replicas the one with fewer requests gets the next."""
        assert simulate((0.02, 0.0), [0.0, 0.005], replicas=2).latencies_ms.tolist() == pytest.approx(
            [20, 20]
        )
        # The third may choose, the fourth gets the other one.
        found = simulate((0.02, 0.0), [0.0, 0.005, 0.010, 0.015], replicas=2)
        assert found.batch_sizes.tolist() == [1, 1, 1, 1]
        assert sorted(found.latencies_ms.tolist()) in (
            pytest.approx([20, 20, 30, 30]),
            pytest.approx([20, 20, 25, 35]),
        )

    def test_the_least_busy_of_all(self) -> None:
        """Asking all replicas, nobody waits while any is idle; of those as busy each gets its turn."""
        times = [0.001 * number for number in range(8)]
        found = simulate((0.02, 0.0), times, replicas=8, routing="least_busy")
        assert found.latencies_ms.tolist() == pytest.approx([20] * 8)
        two = simulate((0.02, 0.0), times, replicas=8)
        assert two.latencies_ms.max() > 20.1
        every = simulate(MODEL, 1600, 32, replicas=4, routing="least_busy", requests=50_000)
        pair = simulate(MODEL, 1600, 32, replicas=4, requests=50_000)
        assert every.mean_ms < pair.mean_ms

    def test_two_choices_beat_chance(self) -> None:
        """Near saturation, p99 is lower than that of one replica under a Poisson share of the load."""
        alone = simulate(MODEL, 3000, 256, requests=50_000)
        shared = simulate(MODEL, 30_000, 256, replicas=10, requests=200_000)
        assert shared.p99_ms is not None
        assert alone.p99_ms is not None
        assert shared.p99_ms < alone.p99_ms
        assert shared.mean_ms == pytest.approx(alone.mean_ms, rel=0.1)


def exact_mean_ms(rate: float) -> float:
    """Solve the chain of batch sizes: the next batch is what came during the last, or the first that comes after it."""
    largest = int(3 * rate * T / (1 - rate * A)) + 60
    sizes = np.arange(1, largest + 1)
    seconds = T + A * sizes
    coming = np.arange(largest + 1)
    factorials = np.cumsum(np.log(np.maximum(coming, 1)))
    arrive = np.exp(-rate * seconds[:, None] + coming * np.log(rate * seconds)[:, None] - factorials)
    chain = arrive[:, 1:]
    chain[:, 0] += arrive[:, 0]
    chain /= chain.sum(axis=1, keepdims=True)
    share = np.full(largest, 1 / largest)
    for _ in range(500):
        share = share @ chain
    in_predict = (share * sizes * seconds).sum()
    in_queue = (share * rate * seconds**2 / 2).sum()
    return 1e3 * float((in_predict + in_queue) / (share * sizes).sum())


class TestTheory:
    @pytest.mark.parametrize("rate", [100, 200, 400, 1000, 3000])
    def test_equals_the_exact_solution(self, rate: float) -> None:
        """With wait 0 and no limit, the mean latency is that of the chain of batch sizes, within half a percent."""
        found = simulate(MODEL, rate, 10**6, requests=200_000)
        assert found.mean_ms == pytest.approx(exact_mean_ms(rate), rel=0.005)

    @pytest.mark.parametrize("rate", [110, 200, 400, 1000, 3000])
    def test_close_to_inoue_s_bound(self, rate: float) -> None:
        """The closed form bounds the mean latency, and is within 2 % of it."""
        bound_ms = 1e3 * inoue_bound(rate, T, A)
        found = simulate(MODEL, rate, 10**6, requests=200_000)
        assert found.mean_ms == pytest.approx(bound_ms, rel=0.02)
        assert exact_mean_ms(rate) <= bound_ms + 1e-3

    def test_where_the_bound_is_not_tight(self) -> None:
        """At 100 requests/s, where models idle, the bound itself is 2.01 % above the exact mean."""
        assert exact_mean_ms(100) / (1e3 * inoue_bound(100, T, A)) == pytest.approx(1 - 0.0201, abs=1e-4)

    def test_known_values(self) -> None:
        """The closed form gives the published figures."""
        assert [round(1e3 * inoue_bound(rate, T, A), 2) for rate in (400, 1000)] == [32.82, 37.73]
        with pytest.raises(OptionError, match="5000"):
            inoue_bound(5000, T, A)

    def test_a_single_server_queue(self) -> None:
        """With batches of one it is M/D/1: mean wait = load · T / (2 (1 - load))."""
        found = simulate((0.01, 0.0), 60, 1, requests=150_000)
        assert found.mean_ms == pytest.approx(10 + 10 * 0.6 / (2 * 0.4), rel=0.02)


class TestResult:
    def test_the_same_seed_gives_the_same_figures(self) -> None:
        """A seed names a run; another one gives another."""
        runs = [simulate(MODEL, 500, replicas=3, requests=2000, seed=seed) for seed in (1, 1, 2)]
        assert runs[0].latencies_ms.tolist() == runs[1].latencies_ms.tolist()
        assert runs[0].latencies_ms.tolist() != runs[2].latencies_ms.tolist()

    def test_percentiles_need_enough_requests(self) -> None:
        """No p99 of 99 requests; of 100 there is one."""
        assert simulate(MODEL, 100, requests=99).p99_ms is None
        assert simulate(MODEL, 100, requests=100).p99_ms is not None
        assert simulate(MODEL, 100, requests=9).p90_ms is None
        assert simulate(MODEL, 100, requests=10).p90_ms is not None
        assert simulate(MODEL, 100, requests=1).p50_ms is None
        assert simulate(MODEL, 100, requests=1000).percentile(99.9) is not None

    def test_as_a_sentence(self) -> None:
        """Printed it says what there was and what came out, without figures that are not known."""
        found = simulate((0.02, 0.0), [0.0, 0.0, 0.02])
        assert str(found) == (
            "3 requests at 75/s on 1 replica: mean 20.0 ms, p50 20.0 ms, 1.5 requests a batch, models busy 100%."
        )
        assert repr(found) == f"<Simulation: {found}>"
        assert "p50" not in str(simulate(MODEL, [1.0]))

    @pytest.mark.parametrize(
        ("kwargs", "named"),
        [
            ({"rate": 0}, "rate is 0"),
            ({"rate": math.nan}, "rate is nan"),
            ({"rate": True}, "rate is True"),
            ({"rate": "fast"}, "rate is 'fast'"),
            ({"rate": [1.0, 0.5]}, "ascending"),
            ({"rate": []}, "arrival times"),
            ({"rate": 10, "replicas": 0}, "replicas is 0"),
            ({"rate": 10, "requests": 1.5}, "requests is 1.5"),
            ({"rate": 10, "max_batch_size": 0}, "max_batch_size is 0"),
            ({"rate": 10, "overhead_ms": -1}, "overhead_ms is -1"),
            ({"rate": 10, "overhead_ms": "2"}, "overhead_ms is '2'"),
            ({"rate": 10, "seed": -1}, "seed is -1"),
            ({"rate": 10, "seed": "x"}, "seed is 'x'"),
            ({"rate": 10, "routing": "round"}, "routing is 'round'"),
            ({"rate": 10, "service_time": "fast"}, "'fast'"),
            ({"rate": 10, "service_time": (0.02, -0.1)}, "less than 0"),
            ({"rate": 10, "service_time": (0.0, 0.0)}, "more than 0"),
            ({"rate": 10, "service_time": lambda _rows: -1.0}, "takes -1.0"),
            ({"rate": 10, "service_time": lambda _rows: None}, "takes None"),
        ],
    )
    def test_refuses_what_can_not_be(self, kwargs: dict[str, Any], named: str) -> None:
        """A number that can't be is named."""
        with pytest.raises(OptionError, match=named):
            simulate(kwargs.pop("service_time", MODEL), **kwargs)

    def test_is_exported(self) -> None:
        """The public name is the function, and it returns the public class."""
        import airserve_nb

        assert isinstance(airserve_nb.simulate(MODEL, 100, requests=10), Simulation)
        assert airserve_nb.Simulation is Simulation
