"""The time of a batch by its rows: found again from batches that were made with it, whatever disturbs them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.errors import FitError, OptionError
from airserve_nb.service_time import ServiceTime, fit_service_time, timer
from airserve_nb.simulation import simulate
from airserve_nb.telemetry import BatchRecord


def measured(
    fixed_ms: float,
    per_row_ms: float,
    *,
    count: int = 300,
    noise: float = 0.02,
    largest: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Make batches of 1 to ``largest`` rows whose times scatter."""
    chance = np.random.default_rng(seed)
    rows = chance.integers(1, largest + 1, count)
    times = (fixed_ms + per_row_ms * rows) * (1 + noise * chance.standard_normal(count))
    return pd.DataFrame({"rows": rows, "predict_ms": times})


def record(rows: int, predict_ms: float, error: str | None = None) -> BatchRecord:
    return BatchRecord("b", 0.0, rows, rows, predict_ms, "full", 0, 0, "v1", "r1", error)


class TestFit:
    def test_exact(self) -> None:
        """Of times without noise the curve is found exactly, and the intervals have no width."""
        curve = fit_service_time(
            pd.DataFrame({"rows": [1, 2, 4, 8, 16], "predict_ms": [20.2, 20.4, 20.8, 21.6, 23.2]})
        )
        assert curve.fixed_s == pytest.approx(0.020)
        assert curve.per_row_s == pytest.approx(0.0002)
        assert curve.fixed_interval_s == pytest.approx((0.020, 0.020))
        assert curve(32) == pytest.approx(0.0264)

    def test_outliers_do_not_move_it(self) -> None:
        """One batch in eight that takes ten times as long, and sizes that are always slow, change next to nothing."""
        batches = measured(20, 0.2)
        batches.loc[::8, "predict_ms"] *= 10
        batches.loc[batches["rows"] == 7, "predict_ms"] *= 3
        curve = fit_service_time(batches)
        assert curve.fixed_s == pytest.approx(0.020, rel=0.03)
        assert curve.per_row_s == pytest.approx(0.0002, rel=0.15)

    def test_intervals_hold_the_truth(self) -> None:
        """Of many data sets, nearly all intervals of 95 % hold what the data were made with."""
        curves = [fit_service_time(measured(5, 0.5, count=80, noise=0.05, seed=seed)) for seed in range(60)]
        fixed = np.mean([c.fixed_interval_s[0] <= 0.005 <= c.fixed_interval_s[1] for c in curves])
        per_row = np.mean([c.per_row_interval_s[0] <= 0.0005 <= c.per_row_interval_s[1] for c in curves])
        assert fixed >= 0.85
        assert per_row >= 0.85

    def test_the_same_seed_gives_the_same_intervals(self) -> None:
        """A seed names a result."""
        batches = measured(5, 0.5)
        one, same, other = (fit_service_time(batches, seed=seed) for seed in (1, 1, 2))
        assert one.fixed_interval_s == same.fixed_interval_s != other.fixed_interval_s
        assert one.fixed_s == other.fixed_s

    def test_many_sizes(self) -> None:
        """Frames of any number of rows: neighbouring sizes are taken together."""
        curve = fit_service_time(measured(50, 0.01, count=2000, largest=5000))
        assert len(curve.points) <= 64
        assert sum(count for *_, count in curve.points) == 2000
        assert curve.per_row_s == pytest.approx(1e-5, rel=0.05)

    def test_records_and_frames_alike(self) -> None:
        """Records give the same curve as their frame, and failed or unknown calls count in neither."""
        batches = measured(5, 0.5, count=50)
        records = [record(int(rows), ms) for rows, ms in batches.itertuples(index=False)]
        disturbed = [*records, record(3, 900.0, "ValueError: no"), record(5, float("nan")), record(0, 5.0)]
        expected = str(fit_service_time(batches))
        assert str(fit_service_time(disturbed)) == expected
        assert str(fit_service_time(pd.DataFrame(disturbed))) == expected


class TestNoFit:
    def test_too_few(self) -> None:
        """Four batches are no curve; how many there are is said."""
        with pytest.raises(FitError, match="There are 4 batches"):
            fit_service_time(measured(5, 0.5, count=4))
        with pytest.raises(FitError, match="There are 0 batches"):
            fit_service_time([])

    def test_one_size_only(self) -> None:
        """Batches of one size tell nothing of a row."""
        with pytest.raises(FitError, match="All 9 batches have 8 rows"):
            fit_service_time([record(8, 20.0)] * 9)

    @pytest.mark.parametrize("batches", [None, "batches", 5, [1, 2]])
    def test_no_batches_at_all(self, batches: Any) -> None:
        """What holds no batches, as the result of a probe itself, is refused with what to give instead."""
        with pytest.raises(
            FitError, match=r"is none; give those of service\.batches\(\) or of a probe's result"
        ):
            fit_service_time(batches)

    def test_a_frame_of_something_else(self) -> None:
        """A frame without rows, as of a bare URL, is refused with a sentence."""
        with pytest.raises(FitError, match="no column 'rows'"):
            fit_service_time(pd.DataFrame({"batch_size": [1]}))


class TestWhereItStopsPaying:
    def test_nine_tenths_of_the_greatest_throughput(self) -> None:
        """There throughput reaches 90 % of 1/a, and one row less does not."""
        curve = fit_service_time(measured(20, 0.5, noise=0))
        rows = curve.pays_up_to
        assert rows == 360
        limit = 1 / curve.per_row_s
        assert rows / curve(rows) >= 0.9 * limit * (1 - 1e-6)
        assert (rows - 1) / curve(rows - 1) < 0.9 * limit

    def test_a_flat_model(self) -> None:
        """Where rows cost nothing there is no end."""
        curve = fit_service_time(measured(20, 0, noise=0))
        assert curve.per_row_s == pytest.approx(0, abs=1e-12)
        assert curve.pays_up_to is None
        assert "the larger it is, the better" in str(curve)

    def test_a_model_without_a_fixed_part(self) -> None:
        """Where only rows cost, batches gain nothing."""
        curve = fit_service_time(measured(0, 2, noise=0.05))
        assert curve.fixed_s <= 0.0005
        assert curve.per_row_s == pytest.approx(0.002, rel=0.05)
        assert curve.pays_up_to is not None
        assert curve.pays_up_to <= 3

    def test_beyond_what_was_measured(self) -> None:
        """A guess is called one."""
        assert "beyond the largest that was measured (32)" in str(fit_service_time(measured(20, 0.2)))
        assert "beyond" not in str(fit_service_time(measured(1, 1)))


class TestScatter:
    def test_draws_like_the_measured(self) -> None:
        """Drawn times have the median and the slow tail of the measured ones."""
        batches = measured(20, 0.2, count=2000)
        batches.loc[::20, "predict_ms"] *= 3
        curve = fit_service_time(batches)
        chance = random.Random(0)  # noqa: S311 - a simulation's
        drawn = np.array([curve.draw(10, chance) for _ in range(20_000)]) / curve(10)
        ratios = (
            batches["predict_ms"].to_numpy()
            / 1e3
            / (curve.fixed_s + curve.per_row_s * batches["rows"].to_numpy())
        )
        assert np.median(drawn) == pytest.approx(np.median(ratios), rel=0.01)
        assert np.mean(drawn > 2) == pytest.approx(0.05, abs=0.01)
        assert np.mean(drawn) == pytest.approx(np.mean(ratios), rel=0.02)

    def test_the_simulation_draws(self) -> None:
        """A fitted curve scatters in the simulation; the pair of its parameters does not."""
        batches = measured(20, 0.2)
        batches.loc[::20, "predict_ms"] *= 3
        curve = fit_service_time(batches)
        scattered = simulate(curve, 200, 32, requests=5000)
        plain = simulate((curve.fixed_s, curve.per_row_s), 200, 32, requests=5000)
        assert scattered.p99_ms is not None
        assert plain.p99_ms is not None
        assert scattered.p99_ms > 1.3 * plain.p99_ms
        again = simulate(curve, 200, 32, requests=5000)
        assert again.latencies_ms.tolist() == scattered.latencies_ms.tolist()

    def test_timer_of_a_function_is_asked_once_a_size(self) -> None:
        """A slow function of rows is called once for each number of rows."""
        asked: list[int] = []

        def slow(rows: int) -> float:
            asked.append(rows)
            return 0.01

        time_of = timer(slow)
        assert [time_of(1), time_of(2), time_of(1)] == [0.01] * 3
        assert asked == [1, 2]
        with pytest.raises(OptionError, match="None"):
            timer(None)


numbers = st.one_of(st.floats(), st.floats(0.001, 1e6))


@given(st.lists(st.tuples(st.integers(0, 200), numbers), max_size=40))
def test_whatever_was_measured(batches: list[tuple[int, float]]) -> None:
    """Either there is a curve, whose times are positive and finite, or a FitError says why not."""
    records: Any = [record(rows, predict_ms) for rows, predict_ms in batches]
    try:
        curve = fit_service_time(records)
    except FitError:
        return
    assert isinstance(curve, ServiceTime)
    assert curve.fixed_s >= 0
    assert curve.per_row_s >= 0
    assert 0 < curve(1) < float("inf")
    for low, high in (curve.fixed_interval_s, curve.per_row_interval_s):
        assert 0 <= low <= high
    assert "nan" not in str(curve)


def test_where_it_is_exported() -> None:
    """The public names are these."""
    import airserve_nb

    assert airserve_nb.fit_service_time is fit_service_time
    assert airserve_nb.ServiceTime is ServiceTime
