"""A result as text and back, beside another one, and step by step."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.comparison import Comparison
from airserve_nb.loadgen.result import ProbeResult
from airserve_nb.loadgen.run import probe
from airserve_nb.loadgen.steps import step_table

if TYPE_CHECKING:
    from tests.loadgen.conftest import ToyServer
else:
    ToyServer = Any


@pytest.fixture
def result(server: ToyServer) -> ProbeResult:
    """Two steps of a load with failures of three kinds in it."""
    orders = [{"do": order} for order in ("ok", "ok", "fail", "ok", "close")]
    return probe(server.url, orders, rate=[100, 200], duration=0.5, arrivals="constant")


class TestText:
    def test_survives(self, result: ProbeResult) -> None:
        """A result read back is equal: frames with their types, plan, client and all figures."""
        text = result.to_json()
        again = ProbeResult.from_json(text)
        pd.testing.assert_frame_equal(again.requests, result.requests)
        pd.testing.assert_frame_equal(again.batches, result.batches)
        assert str(again.summary()) == str(result.summary())
        assert (again.plan, again.client, again.records) == (result.plan, result.client, result.records)
        assert again.started_at == result.started_at
        assert again.to_json() == text

    def test_of_a_service(self, serve_local: Any, script: Any) -> None:
        """The limits and the server's records travel too, and so does what is concluded from them."""
        service = serve_local(script.predictor, script.checkpoint, max_batch_size=4)
        result = probe(service, script.row(), requests=50, concurrency=8)
        again = ProbeResult.from_json(result.to_json())
        pd.testing.assert_frame_equal(again.batches, result.batches)
        assert (again.settings, again.records, again.replicas) == (result.settings, result.records, 1)
        assert str(again.diagnose()) == str(result.diagnose())
        assert str(again.diagnose()) in result._repr_html_().replace("&#x27;", "'")

    def test_without_batches(self, server: ToyServer) -> None:
        """A result without batches, and with answers that are no numbers, comes back as it was."""
        server.timing = False
        result = probe(server.url, [None, {"json": [math.inf, "x"]}, {"x": 1}], requests=3)
        again = ProbeResult.from_json(result.to_json())
        pd.testing.assert_frame_equal(again.requests, result.requests)
        pd.testing.assert_frame_equal(again.batches, result.batches)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", "nonsense", '{"format": "other"}', '{"format": "airserve_nb probe 1"}']
    )
    def test_other_texts(self, text: str) -> None:
        """What holds no result is refused with a sentence."""
        with pytest.raises(ProbeError, match=r"holds no probe's result; give what to_json\(\) returned"):
            ProbeResult.from_json(text)

    def test_a_url_has_no_diagnosis(self, result: ProbeResult) -> None:
        """Without the limits nothing is concluded, and the sentence says why."""
        with pytest.raises(ProbeError, match="probe the Service itself"):
            result.diagnose()


class TestSteps:
    def test_each_request_knows_its_step(self, result: ProbeResult) -> None:
        """The steps' requests add up, in their order, with the rate each was planned for."""
        assert result.requests.step.value_counts().sort_index().tolist() == [50, 100]
        steps = result.steps
        assert steps["rate"].tolist() == [100, 200]
        assert steps.requests.tolist() == [50, 100]
        assert (steps.ok + steps.failed == steps.requests).all()
        assert steps.ok.tolist() == [30, 60]
        assert steps["requests_per_s"].tolist() == pytest.approx([60, 120], abs=8)
        assert steps.late_ms.notna().all()

    def test_a_step_that_was_stopped(self, result: ProbeResult) -> None:
        """Of a probe that was interrupted a step counts as long as it went on, and not at all where it never began."""
        for elapsed_s, expected in ((0.75, 120), (0.5, math.nan)):
            requests = result.requests.copy()
            requests.loc[requests["planned"] >= elapsed_s, "outcome"] = "cancelled"
            table = step_table(requests, result.plan, elapsed_s, interrupted=True)
            assert table["failed"].tolist() == [20, 20 if elapsed_s == 0.75 else 0]
            stopped = table["requests_per_s"]
            assert stopped.tolist() == pytest.approx([60, expected], abs=9, nan_ok=True)

    def test_without_steps(self, server: ToyServer) -> None:
        """A closed loop is one step without a rate."""
        steps = probe(server.url, 1, requests=20, concurrency=2).steps
        assert steps.requests.tolist() == [20]
        assert steps.rate.isna().all()

    def test_batch_sizes_are_means_over_batches(self, server: ToyServer) -> None:
        """Two batches of four are of four on average."""
        assert probe(server.url, 1, requests=8).steps.mean_batch_size.tolist() == [pytest.approx(4)]


def test_failed_batches_are_no_service_time(serve_local: Any) -> None:
    """A call of predict that raised says nothing of how long one takes."""

    def predict(rows: np.ndarray) -> np.ndarray:
        if (rows < 0).any():
            raise ValueError("negative")
        return rows

    service = serve_local(predict, name="picky", max_batch_size=2)
    found = probe(
        service, [{"array": [1.0]}, {"array": [-1.0]}, {"array": [2.0]}], requests=60, concurrency=3
    )
    good = set(found.requests.loc[found.requests["outcome"] == "ok", "batch_id"])
    assert 0 < len(good) < len(found.batches)
    assert found.fit_service_time().batches == len(good)


class TestComparison:
    def test_table(self, result: ProbeResult, server: ToyServer) -> None:
        """Each figure stands there twice, with what changed."""
        other = probe(server.url, 1, requests=300, concurrency=4)
        comparison = result.compare(other, labels=("old", "new"))
        assert isinstance(comparison, Comparison)
        table = comparison.table
        assert table.columns.tolist() == ["old", "new", "change"]
        assert list(table.loc["requests"]) == [150, 300, 1]
        assert table.loc["failed", "new"] == 0
        assert math.isnan(table.loc["p99.9 ms", "change"])  # type: ignore[arg-type] # a number
        assert repr(comparison).splitlines()[0].split() == ["requests", "150", "->", "300", "+100%"]

    @pytest.mark.parametrize("labels", ["ab", ("x",), ("x", "x"), ("x", "y", "z")])
    def test_labels(self, result: ProbeResult, labels: Any) -> None:
        """Two equal labels would be one column, so labels are two, and differ."""
        with pytest.raises(ProbeError, match="give two different texts"):
            result.compare(result, labels=labels)

    def test_with_a_result_only(self, result: ProbeResult) -> None:
        """Another thing, as a summary, is refused with a sentence."""
        with pytest.raises(ProbeError, match=r"and got .*; give what probe\(\) returned"):
            result.compare(result.summary())  # type: ignore[arg-type] # on purpose

    def test_in_a_notebook(self, result: ProbeResult) -> None:
        """It shows a table with escaped labels, and one picture with both."""
        comparison = result.compare(result, labels=("<b>", "after"))
        assert "<th>&lt;b&gt;</th>" in comparison._repr_html_()
        assert comparison._repr_png_().startswith(b"\x89PNG")
        assert len(comparison.plot().axes) == 2


def test_every_picture_can_be_drawn(result: ProbeResult) -> None:
    """Each picture of a result draws into the axes that it is given, and returns it."""
    from matplotlib.figure import Figure

    for name in ("timeline", "batch_sizes", "latency", "parts", "throughput"):
        ax = Figure().subplots()
        assert getattr(result, f"plot_{name}")(ax) is ax
        assert ax.get_title(loc="left")


def test_the_text_is_json(result: ProbeResult) -> None:
    """Other programs can read it."""
    assert json.loads(result.to_json())["format"] == "airserve_nb probe 1"
