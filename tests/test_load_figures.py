"""The pictures of loads: what they are made of, at every size of a probe."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from airserve_nb._occupancy import mean_occupancy
from airserve_nb._throughput_curve import knee
from airserve_nb._time_parts import mean_parts
from airserve_nb._timeline import is_dense
from airserve_nb.figures import compare_figure, latency_curve, throughput_curve, time_parts, timeline


def load(
    count: int, span_s: float, latency_ms: float = 30.0, *, failed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make requests at equal distances, in pairs, each pair a batch of 20 ms."""
    planned = np.linspace(0, span_s, count)
    outcome = np.array(["ok"] * count, dtype=object)
    outcome[:failed] = "timeout"
    pairs = np.arange(count) // 2
    requests = pd.DataFrame(
        {
            "step": 0,
            "planned": planned,
            "sent": planned + 0.001,
            "done": planned + latency_ms / 1000,
            "outcome": outcome,
            "batch_id": [f"b{pair}" for pair in pairs],
            "queue_ms": 5.0,
            "predict_ms": 20.0,
            "service_ms": latency_ms - 1,
            "overhead_ms": latency_ms - 26,
            "total_ms": latency_ms + np.linspace(0, 1, count),
        }
    )
    batches = pd.DataFrame(
        {
            "batch_id": [f"b{pair}" for pair in sorted(set(pairs))],
            "batch_size": 2,
            "released": planned[::2] + 0.006,
            "predict_ms": 20.0,
            "release_reason": ["full", "timeout"] * (len(set(pairs)) // 2) + ["full"] * (len(set(pairs)) % 2),
        }
    )
    return requests, batches


def steps(*points: tuple[float, float, float]) -> pd.DataFrame:
    """Make steps of rate, answers a second and p99."""
    frame = pd.DataFrame(points, columns=["rate", "requests_per_s", "p99_ms"])
    return frame.assign(
        p50_ms=frame.p99_ms / 2, late_ms=0.0, queue_ms=frame.p99_ms - 20, predict_ms=20.0, overhead_ms=1.0
    )


RAMP = steps((50, 50, 25), (100, 100, 26), (200, 200, 30), (300, 290, 120), (400, 295, 3000))


def png(ax: Axes) -> bytes:
    buffer = io.BytesIO()
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


class TestDenseTimeline:
    @pytest.mark.parametrize(
        ("count", "span_s", "dense"),
        [(10, 10.0, False), (200, 1.0, False), (2000, 10.0, True), (5000, 0.0, False), (5001, 0.0, True)],
    )
    def test_bars_as_long_as_they_can_be_seen(self, count: int, span_s: float, *, dense: bool) -> None:
        """Single bars are drawn while they are wide enough and not too many."""
        requests, batches = load(count, span_s)
        assert is_dense(requests) is dense
        label = timeline(requests, batches).get_ylabel()
        assert label == ("requests under way" if dense else "requests, by batch")

    def test_bars_as_long_as_their_coloured_part_can_be_seen(self) -> None:
        """Where requests wait long and are predicted in a moment, single bars would show the waiting alone."""
        requests, batches = load(5000, 0.0, latency_ms=6000.0)
        assert is_dense(requests)
        assert not is_dense(requests.assign(predict_ms=np.nan))
        assert timeline(requests, batches).get_ylabel() == "requests under way"

    def test_says_why_batches_were_released(self) -> None:
        """Where batches can't be labelled one by one, the shares of their reasons are told."""
        texts = [text.get_text() for text in timeline(*load(2000, 10)).texts]
        assert texts == ["batches released: full 50% · timeout 50%"]

    def test_told_apart_in_print(self) -> None:
        """What was not yet sent is as light as what waits, so it is hatched: in the picture and in its legend."""
        requests, batches = load(2000, 10)
        ax = timeline(requests.assign(planned=requests["planned"] - 0.5), batches)
        assert [part.get_hatch() for part in ax.collections].count("//") == 1
        legend = ax.get_legend()
        assert legend is not None
        hatches = {
            text.get_text(): patch.get_hatch()
            for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
        }
        assert hatches["not yet sent"] == "//"
        assert hatches["waiting"] is None

    def test_failures_are_marked(self) -> None:
        """Each failure has a cross there too."""
        ax = timeline(*load(2000, 10, failed=3))
        (crosses,) = [line for line in ax.lines if line.get_marker() == "x"]
        assert len(np.asarray(crosses.get_xdata())) == 3

    @given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=20))
    def test_no_time_is_lost(self, intervals: list[tuple[float, float]]) -> None:
        """The mean number of open intervals, times the span, is their total length."""
        starts, ends = (np.array([pair[side] for pair in intervals], dtype=float) for side in (0, 1))
        edges = np.linspace(0, 10, 37)
        area = mean_occupancy(starts, ends, edges).sum() * (edges[1] - edges[0])
        assert area == pytest.approx(np.clip(ends - starts, 0, None).sum(), abs=1e-6)

    def test_unknown_times_count_for_nothing(self) -> None:
        """A request without its end, or never predicted, does not spoil the picture."""
        occupancy = mean_occupancy(
            np.array([0.0, np.nan, 0.0]), np.array([1.0, 1.0, np.nan]), np.array([0.0, 1.0])
        )
        assert occupancy.tolist() == [1.0]


class TestLatencyCurve:
    def test_marks_what_there_are_samples_for(self) -> None:
        """Of a hundred answers p50, p90 and p99 are marked, and no p99.9."""
        requests, _ = load(100, 1)
        ax = latency_curve({"": requests})
        marked = [
            1 - 1 / float(np.asarray(line.get_xdata())[0]) for line in ax.lines if line.get_marker() == "o"
        ]
        assert marked == pytest.approx([0.5, 0.9, 0.99])
        assert ax.get_title(loc="left") == "99% of 100 answers came within 31 ms"

    def test_an_open_loop_shows_both_times(self) -> None:
        """The time from the real sending stands beside the latency."""
        legend = latency_curve({"": load(100, 1)[0]}, open_loop=True).get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [
            "from the planned send time",
            "from the real send time",
        ]

    def test_without_answers(self) -> None:
        """Nothing to draw is said in the title."""
        failed, _ = load(4, 1, failed=4)
        assert latency_curve({"": failed}).get_title(loc="left") == "No answers"
        assert latency_curve({"": failed}, open_loop=True).get_legend() is None
        assert latency_curve({"before": failed, "after": failed}).get_legend() is None

    def test_failures_are_told(self) -> None:
        """The curve is that of the answers, so the title says how many requests got none."""
        ax = latency_curve({"": load(200, 1, failed=20)[0]})
        assert ax.get_title(loc="left").endswith("of 180 answers came within 31 ms; 20 requests failed")

    def test_figures_have_room(self) -> None:
        """Above a level curve there is room for the figures, which would else stand in the title."""
        ax = latency_curve({"": load(200, 1)[0].assign(total_ms=np.linspace(29.9, 30, 200))})
        assert ax.get_ylim()[1] > 1.05 * 30


class TestParts:
    def test_they_add_up_to_the_latency(self) -> None:
        """Not yet sent, waiting, predicting and overhead are the whole latency."""
        requests, _ = load(50, 1)
        exact = requests.assign(total_ms=30.0)
        assert sum(mean_parts(exact).values()) == pytest.approx(30)

    @pytest.mark.parametrize("count", [5, 500])
    def test_one_step(self, count: int) -> None:
        """A short probe is one bar, a longer one a course over time; the title says what takes most."""
        requests, _ = load(count, 5)
        ax = time_parts(requests, steps((100, 100, 30)))
        assert ax.get_title(loc="left").startswith("66% of 30.")
        assert ax.get_title(loc="left").endswith("goes into being predicted")

    def test_a_bar_a_step(self) -> None:
        """Each step has its bar, named by its rate."""
        requests, _ = load(50, 1)
        ax = time_parts(requests.assign(step=np.arange(50) // 10), RAMP)
        assert [label.get_text() for label in ax.get_xticklabels()] == ["50", "100", "200", "300", "400"]

    def test_steps_of_a_server_that_tells_nothing(self) -> None:
        """Its bars are as high as the latency too; a step without an answer says so."""
        requests, _ = load(50, 1)
        nan = dict.fromkeys(("queue_ms", "predict_ms", "overhead_ms"), np.nan)
        silent = requests.assign(step=np.arange(50) // 25, total_ms=30.0, **nan)
        ax = time_parts(silent, RAMP[:3].assign(**nan))
        assert [text.get_text() for text in ax.texts] == ["30.0", "30.0", "no answers"]

    def test_a_silence_stays_empty(self) -> None:
        """Where nothing was answered, the course over time has nothing: not what was before it."""
        requests, _ = load(1000, 10)
        quiet = requests.assign(outcome=np.where(requests["planned"] > 5, "timeout", "ok"))
        ax = time_parts(quiet, steps((100, 100, 30)))
        assert ax.get_xlim()[1] == 10
        heights = [path.vertices for part in ax.collections for path in part.get_paths()]
        right = np.concatenate(heights)
        assert right[(right[:, 0] > 5.5), 1].max(initial=0) == 0

    def test_of_a_server_that_tells_nothing(self) -> None:
        """Without the server's figures all the time is spent outside of what is known."""
        requests, _ = load(20, 1)
        silent = requests.assign(queue_ms=np.nan, predict_ms=np.nan, overhead_ms=np.nan)
        parts = mean_parts(silent)
        assert parts["overhead_ms"] == pytest.approx(29)


class TestThroughput:
    def test_the_knee(self) -> None:
        """It is where throughput over latency is largest."""
        assert knee(RAMP) == 2
        ax = throughput_curve(RAMP)
        assert ax.get_title(loc="left") == "The knee: 200 requests a second, with a p99 of 30 ms"
        assert "knee" in [text.get_text() for text in ax.texts]

    def test_the_knee_s_step_is_named(self) -> None:
        """A step without an answer moves no other, and does not hide the p99 of those that have one."""
        lost = RAMP.copy()
        lost.loc[0, ["p50_ms", "p99_ms"]] = np.nan
        assert knee(lost) == 2
        title = throughput_curve(lost).get_title(loc="left")
        assert title == "The knee: 200 requests a second, with a p99 of 30 ms"
        few = RAMP.copy()
        few.loc[0, "p99_ms"] = np.nan  # too few answers for it: all steps are judged by the median
        assert (
            throughput_curve(few).get_title(loc="left")
            == "The knee: 200 requests a second, with a p50 of 15 ms"
        )

    def test_no_knee_yet(self) -> None:
        """A ramp that ends before the knee says so, and marks none."""
        ax = throughput_curve(RAMP[:3])
        assert ax.get_title(loc="left") == "No knee up to 200 requests a second: it takes more"
        assert "knee" not in [text.get_text() for text in ax.texts]

    def test_too_few_steps(self) -> None:
        """Two points make no knee; none at all can be drawn too."""
        assert knee(RAMP[:2]) is None
        assert png(throughput_curve(RAMP[:1])).startswith(b"\x89PNG")
        assert png(throughput_curve(RAMP.assign(p99_ms=np.nan, p50_ms=np.nan))).startswith(b"\x89PNG")


def test_the_same_data_gives_the_same_pictures() -> None:
    """Drawn twice, each picture is equal to the byte."""
    requests, batches = load(2000, 10)
    drawings: list[Any] = [
        lambda: timeline(requests, batches),
        lambda: latency_curve({"": requests}, open_loop=True),
        lambda: time_parts(requests, RAMP),
        lambda: throughput_curve(RAMP),
        lambda: compare_figure({"before": requests, "after": requests}).axes[0],
    ]
    for draw in drawings:
        assert png(draw()) == png(draw())
