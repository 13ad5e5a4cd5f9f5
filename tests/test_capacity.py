"""How many replicas a load needs: the plan keeps its limit, and one replica less would not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from airserve_nb.capacity import CapacityPlan, plan_capacity
from airserve_nb.errors import OptionError
from airserve_nb.simulation import simulate

MODEL = (0.020, 0.0002)


@pytest.fixture(scope="module")
def plan() -> CapacityPlan:
    return plan_capacity(MODEL, 10_000, 80)


def p99_ms(replicas: int, size: int, *, rate: float = 10_000, seed: int = 7) -> float:
    """Simulate it anew, with other arrivals than the plan's."""
    run = simulate(MODEL, rate, size, replicas=replicas, requests=150_000, seed=seed)
    return float(np.percentile(run.latencies_ms[30_000:], 99))


class TestPlan:
    def test_keeps_the_limit(self, plan: CapacityPlan) -> None:
        """What was chosen keeps the limit also under other arrivals."""
        assert p99_ms(plan.replicas, plan.best.max_batch_size) <= 80 * 1.02

    def test_is_the_cheapest(self, plan: CapacityPlan) -> None:
        """One replica less does not keep it, whatever the batch size."""
        for size in (16, 64, 256, 512):
            assert p99_ms(plan.replicas - 1, size) > 80 * 0.98

    def test_settings_are_those_of_deploy(self, plan: CapacityPlan) -> None:
        """What comes out can be given to deploy()."""
        assert plan.settings == {
            "num_replicas": plan.replicas,
            "max_batch_size": plan.best.max_batch_size,
            "batch_wait_timeout_s": 0.0,
        }

    def test_the_curve(self, plan: CapacityPlan) -> None:
        """Among the points are simulations of all replicas on both sides of the choice, p99 falling with their number."""
        whole = {
            point.replicas: point.p99_ms
            for point in plan.points
            if point.whole and point.max_batch_size == plan.best.max_batch_size
        }
        assert min(whole) < plan.replicas < max(whole)
        assert whole[min(whole)] > 80 >= whole[plan.replicas] > whole[max(whole)]
        assert plan.best in plan.points

    def test_limits_that_no_batch_comes_to(self, plan: CapacityPlan) -> None:
        """Where a limit is never reached its figures are taken over from another one, and they are the true ones."""
        alike = [
            point
            for point in plan.points
            if point.whole and point.replicas == plan.replicas and point.largest_batch <= 128
        ]
        assert len({point.max_batch_size for point in alike}) > 1
        for point in alike:
            assert p99_ms(point.replicas, point.max_batch_size, seed=0) == pytest.approx(
                point.p99_ms, rel=0.02
            )

    def test_a_simulated_setting_is_true(self, plan: CapacityPlan) -> None:
        """A point has the figures that the simulation of its setting gives."""
        best = plan.best
        assert p99_ms(best.replicas, best.max_batch_size, seed=0) == pytest.approx(best.p99_ms, rel=0.02)
        assert best.largest_batch <= best.max_batch_size

    def test_small_loads_need_one(self) -> None:
        """A load that one replica can take needs one, with a batch size no larger than it uses."""
        plan = plan_capacity(MODEL, 50, 100)
        assert plan.replicas == 1
        assert plan.best.max_batch_size <= 8

    def test_a_model_without_gain(self) -> None:
        """Where batches gain nothing, replicas have to do it: at least as many as the load keeps busy."""
        plan = plan_capacity((0.0, 0.010), 500, 60, largest_batch=2)
        assert 5 < plan.replicas <= 8

    def test_the_same_seed_gives_the_same_plan(self) -> None:
        """A plan can be repeated."""
        assert repr(plan_capacity(MODEL, 1000, 60)) == repr(plan_capacity(MODEL, 1000, 60))

    def test_as_a_sentence(self, plan: CapacityPlan) -> None:
        """Printed it says what is needed for what."""
        text = str(plan)
        assert text.startswith(
            f"10000 requests/s with p99 at most 80 ms: {plan.replicas} replicas with max_batch_size="
        )
        assert repr(plan) == f"<CapacityPlan: {text}>"


class TestRefusals:
    def test_a_limit_that_can_not_be_kept(self) -> None:
        """A model that takes longer alone: no number of replicas helps, and how long it takes is said."""
        with pytest.raises(OptionError, match=r"20\.2 ms"):
            plan_capacity(MODEL, 100, 15)
        with pytest.raises(OptionError, match="25"):
            plan_capacity(MODEL, 100, 22, overhead_ms=5)

    def test_a_load_that_is_too_much(self) -> None:
        """A load for which there are not replicas enough is no fault of the limit, and is not told as one."""
        with pytest.raises(OptionError) as caught:
            plan_capacity(MODEL, 1e9, 100)
        assert "take more than 100,000 replicas; ask for less" in str(caught.value)
        assert "lone" not in str(caught.value)

    @pytest.mark.parametrize(
        ("kwargs", "named"),
        [
            ({"rate": 0}, "rate is 0"),
            ({"rate": math.inf}, "rate is inf"),
            ({"p99_ms": "fast"}, "p99_ms is 'fast'"),
            ({"largest_batch": 0}, "largest_batch is 0"),
            ({"overhead_ms": "2"}, "overhead_ms is '2'"),
        ],
    )
    def test_what_can_not_be(self, kwargs: dict[str, Any], named: str) -> None:
        """A number that can't be is named."""
        with pytest.raises(OptionError, match=named):
            plan_capacity(MODEL, **kwargs)
