"""The probe tells the truth: a stall is seen, every failure is counted, and a slow client says that it was slow."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from airserve_nb.loadgen.options import LoadPlan
from airserve_nb.loadgen.outcomes import ClientReport
from airserve_nb.loadgen.run import probe
from airserve_nb.loadgen.sender import Sender
from airserve_nb.loadgen.summary import PERCENTILES, Percentile, _client_limited, percentile

if TYPE_CHECKING:
    from tests.loadgen.conftest import ToyServer
else:
    ToyServer = Any


class TestStall:
    def test_an_open_loop_sees_what_a_closed_loop_hides(self, server: ToyServer) -> None:
        """While the server stalls, planned requests wait and their latency says so; a closed loop sends only one.

        The stall is one request that is held for half a second, on a server that answers one at a time.
        """
        server.serial = True
        orders = [{"do": "ok"}] * 20 + [{"do": "stall"}] + [{"do": "ok"}] * 79
        opened = probe(server.url, orders, requests=100, rate=100, arrivals="constant")
        server.bodies.clear()
        closed = probe(server.url, orders, requests=100, concurrency=1)
        late = (opened.requests.total_ms > 100).sum()
        # Planned in the 0.4 s before the stall's last tenth: 40 of them, and the stalled one.
        assert late >= 35
        assert (closed.requests.total_ms > 100).sum() == 1
        summaries = opened.summary(), closed.summary()
        assert summaries[0].p90_ms is not None
        assert summaries[1].p90_ms is not None
        assert summaries[0].p90_ms > 200 > summaries[1].p90_ms

    def test_service_time_is_kept_beside_it(self, server: ToyServer) -> None:
        """With one connection at most, the waiting is before the sending: in the latency, not in the service time."""
        orders = [{"do": "stall"}] + [{"do": "ok"}] * 29
        result = probe(server.url, orders, requests=30, rate=100, arrivals="constant", concurrency=1)
        rest = result.requests.loc[1:20]
        assert (rest.total_ms > 200).all()
        assert (rest.total_ms - rest.service_ms > 100).all()
        assert result.client.held_back >= 20
        assert "had to wait for one of 1 in flight" in str(result.summary())


class TestCounts:
    @pytest.mark.parametrize("load", [{"concurrency": 16}, {"rate": 2000}])
    def test_injected_failures_are_counted_exactly(self, server: ToyServer, load: dict[str, Any]) -> None:
        """Of a thousand requests with failures of four kinds strewn in, every one is accounted for as what it was."""
        kinds = {
            "fail": "http_error",
            "close": "connection_error",
            "garbage": "connection_error",
            "hang": "timeout",
        }
        orders = ["ok"] * 960 + list(kinds) * 10
        random.Random(7).shuffle(orders)  # noqa: S311 - the same in every run
        result = probe(server.url, [{"do": order} for order in orders], requests=1000, timeout_s=2, **load)
        assert result.requests.outcome.tolist() == [kinds.get(order, "ok") for order in orders]
        assert Counter(server_order(body) for body in server.bodies) == Counter(orders)
        summary = result.summary()
        assert (summary.ok, summary.http_errors, summary.connection_errors, summary.timeouts) == (
            960,
            10,
            20,
            10,
        )
        assert summary.statuses == {200: 960, 500: 10}


def server_order(body: bytes) -> str:
    import json

    return str(json.loads(body)["do"])


class TestTheClientItself:
    def test_a_slow_client_says_so(self, server: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client that needs longer for each request than the plan leaves it is late, and says that it was the limit."""
        from airserve_nb.loadgen import run as run_module
        from airserve_nb.loadgen.launch import start_in_thread

        fast = Sender._launch

        def slow(self: Sender, *args: Any) -> None:
            sorted(range(200_000), key=lambda number: -number)  # some 20 ms of work
            fast(self, *args)

        monkeypatch.setattr(run_module, "start_plan", start_in_thread)
        monkeypatch.setattr(Sender, "_launch", slow)
        summary = probe(server.url, 1, requests=200, rate=1000).summary()
        assert summary.client_limited
        assert summary.client.lag_p99_ms > 50
        assert "The client was the limit: it sent requests " in str(summary)

    @pytest.mark.parametrize(
        ("plan", "client", "limited"),
        [
            ("open", ClientReport(), False),
            ("open", ClientReport(lag_p50_ms=0.9, lag_p99_ms=0.9), False),
            ("open", ClientReport(lag_p50_ms=3), True),
            ("open", ClientReport(lag_p99_ms=15), True),
            ("open", ClientReport(cpu_share=0.95), True),
            ("closed", ClientReport(loop_p50_ms=5), True),
            ("closed", ClientReport(loop_p50_ms=1.5), False),
            ("burst", ClientReport(lag_p50_ms=99, cpu_share=1), False),
        ],
    )
    def test_the_rule(self, plan: Any, client: ClientReport, *, limited: bool) -> None:
        """The client was the limit where its own delay is over a tenth of the latency, or its core is full."""
        latencies = tuple(
            Percentile(name, ms, 1000)
            for name, ms in zip(PERCENTILES, (20.0, 60.0, 100.0, 150.0), strict=True)
        )
        assert _client_limited(client, latencies, LoadPlan(plan)) is limited


@pytest.mark.parametrize(("name", "needed"), [("p50", 1), ("p90", 10), ("p99", 100), ("p99.9", 1000)])
def test_a_percentile_needs_samples_beyond_it(name: str, needed: int) -> None:
    """There is no p99 of 99 answers: nothing would lie beyond it."""
    import pandas as pd

    assert percentile(pd.Series(np.ones(needed - 1)), PERCENTILES[name]) is None
    assert percentile(pd.Series(np.ones(needed)), PERCENTILES[name]) == 1
