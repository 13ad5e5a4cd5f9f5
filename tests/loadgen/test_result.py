"""What a probe's result says and shows."""

from __future__ import annotations

import dataclasses
from base64 import b64decode
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.loadgen.result import ProbeResult


def result(
    outcomes: list[str],
    sizes: tuple[int, ...] = (),
    *,
    error: str = "It <b>broke</b>.",
    target: str = "adder",
    interrupted: bool = False,
) -> ProbeResult:
    count = len(outcomes)
    ids = [f"b{number}" for number, size in enumerate(sizes) for _ in range(size)]
    requests = pd.DataFrame(
        {
            "sent": np.zeros(count),
            "done": np.linspace(0.1, 0.2, count),
            "outcome": outcomes,
            "batch_id": pd.Series((ids + [None] * count)[:count], dtype=object),
            "queue_ms": 10.0,
            "predict_ms": 20.0,
            "overhead_ms": 70.0,
            "service_ms": np.linspace(100, 200, count),
            "total_ms": np.linspace(100, 200, count),
            "status": np.nan,
            "error": [None if outcome == "ok" else error for outcome in outcomes],
        }
    )
    batches = pd.DataFrame(
        {
            "batch_id": [f"b{number}" for number in range(len(sizes))],
            "batch_size": list(sizes),
            "released": [0.01 + 0.03 * number for number in range(len(sizes))],
            "predict_ms": 20.0,
            "release_reason": "full",
        }
    )
    return ProbeResult(target, "http://h/adder", requests, batches, 0.2, interrupted)


class TestSummary:
    def test_counts_and_latencies(self) -> None:
        """The summary counts every request once and takes latencies from the successful ones."""
        summary = result(["ok"] * 6 + ["timeout", "http_error", "http_error", "cancelled"], (4, 2)).summary()
        counts = (
            summary.ok,
            summary.http_errors,
            summary.timeouts,
            summary.connection_errors,
            summary.cancelled,
        )
        assert counts == (6, 2, 1, 0, 1)
        assert sum(counts) == summary.requests == 10
        assert summary.failed == 4
        assert (summary.batches, summary.mean_batch_size) == (2, 3.0)
        assert summary.requests_per_s == pytest.approx(30)
        assert summary.p50_ms == pytest.approx(np.median(np.linspace(100, 200, 10)[:6]))
        assert summary.most_frequent_error == "It <b>broke</b>."

    def test_no_p99_below_100(self) -> None:
        """The 99th percentile needs a hundred answers; with fewer there is none."""
        assert result(["ok"] * 99).summary().p99_ms is None
        assert result(["ok"] * 100).summary().p99_ms == pytest.approx(199)
        assert "p99" not in str(result(["ok"] * 99).summary())

    def test_as_a_sentence(self) -> None:
        """Printed, the summary is a few plain sentences."""
        assert str(result(["ok"] * 10, (10,)).summary()) == (
            "10 of 10 requests ok in 200 ms, in 1 batch of 10.0 on average. Latency: p50 150.0 ms, p90 190.0 ms. "
            "A mean request waited 10.0 ms, was predicted in 20.0 ms, and took 70.0 ms besides."
        )

    def test_nothing_reached_the_server(self) -> None:
        """A server that is not there is said plainly."""
        refused = "The connection was refused: nothing listens at h:1."
        summary = result(["connection_error"] * 10, error=refused).summary()
        assert str(summary).endswith(f"No request reached the server. {refused}")
        assert summary.p50_ms is None

    def test_interrupted(self) -> None:
        """An interrupted probe says so first."""
        assert str(result(["ok", "cancelled"], interrupted=True).summary()).startswith(
            "Interrupted: 1 of 2 requests"
        )
        assert result(["ok", "cancelled"], interrupted=True).summary().most_frequent_error is None

    def test_what_was_stopped_is_no_failure(self) -> None:
        """The page of an interrupted probe counts what was given up apart from what failed."""
        html = result(["ok", "timeout", "cancelled", "cancelled"], interrupted=True)._repr_html_()
        assert '>1</div><div style="opacity:.7">failed</div>' in html
        assert '>2</div><div style="opacity:.7">cancelled</div>' in html

    def test_says_that_it_ended_early(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A closed loop that came to as many requests as a probe can hold says why it is shorter than asked for."""
        plan = LoadPlan("closed", concurrency=2, duration_s=60)
        full = dataclasses.replace(result(["ok"] * 20), plan=plan)
        assert full.summary().remarks() == []
        monkeypatch.setattr("airserve_nb.loadgen.summary.MOST_REQUESTS", 20)
        assert full.summary().remarks() == ["It ended early, with the 20 requests that a probe can hold."]


class TestRepr:
    @pytest.mark.parametrize(
        ("made", "text"),
        [
            (result(["ok"] * 10, (9, 1)), "<ProbeResult adder: 10 requests, 10 ok, 2 batches of 9 + 1>"),
            (result(["ok"], (1,)), "<ProbeResult adder: 1 request, 1 ok, 1 batch of 1>"),
            (result(["ok", "timeout"]), "<ProbeResult adder: 2 requests, 1 ok, 1 timeout>"),
            (
                result(["ok"] * 20, (2,) * 8 + (1,) * 4),
                "<ProbeResult adder: 20 requests, 20 ok, 12 batches of size 2 (x8), 1 (x4)>",
            ),
            (
                result(["cancelled"] * 2, interrupted=True),
                "<ProbeResult adder: 2 requests, 0 ok, 2 cancelled, interrupted>",
            ),
        ],
    )
    def test_is_stable(self, made: ProbeResult, text: str) -> None:
        """The text holds counts and batch sizes, no times, ids or ports."""
        assert repr(made) == text


class TestNotebook:
    def test_three_forms(self) -> None:
        """A notebook gets text, HTML with the picture inside, and the picture."""
        made = result(["ok"] * 4, (4,))
        bundle: dict[str, Any] = made._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "text/html", "image/png"}
        assert b64decode(bundle["image/png"]).startswith(b"\x89PNG")
        assert made._png(transparent=True) in bundle["text/html"]
        assert bundle["text/html"] == made._repr_html_()

    def test_everything_is_escaped(self) -> None:
        """Names, URLs and error sentences can't put markup into the page."""
        html = result(["http_error"] * 2, target='<script>"x"</script>')._repr_html_()
        assert "<script>" not in html
        assert "It <b>broke" not in html
        assert "It &lt;b&gt;broke&lt;/b&gt;." in html

    def test_the_same_result_gives_the_same_picture(self) -> None:
        """Drawing twice gives the same bytes."""
        made = result(["ok"] * 10 + ["timeout"], (6, 4))
        assert made._png() == made._png()

    def test_frozen(self) -> None:
        """A result can't be changed by accident."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            result(["ok"]).target = "other"  # type: ignore[misc] # the point
