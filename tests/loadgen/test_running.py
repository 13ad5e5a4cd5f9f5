"""A probe under way: its handle, its progress, interrupts, and what the server's records say at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from airserve_nb import progress as progress_module
from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.options import read_options
from airserve_nb.loadgen.result import ProbeResult
from airserve_nb.loadgen.run import probe, probe_async, start_probe
from airserve_nb.loadgen.running import Latest

if TYPE_CHECKING:
    from tests.loadgen.conftest import ToyServer
else:
    ToyServer = Any

HELD = [{"do": "ok"}] * 4 + [{"do": "hang"}] * 4


def counts(result: ProbeResult) -> dict[str, int]:
    return dict(result.requests.outcome.value_counts())


class TestHandle:
    def test_goes_on_beside(self, server: ToyServer) -> None:
        """A started probe tells how far it is, can be waited for with a limit, and cancelled."""
        running = start_probe(server.url, HELD, requests=8, concurrency=2)
        server.wait_for(6)
        assert not running.done
        with pytest.raises(ProbeError, match=r"still under way after 0.1 s; wait longer, or cancel\(\) it"):
            running.result(timeout_s=0.1)
        assert repr(running) == "<RunningProbe /toy: under way>"
        running.cancel()
        result = running.result(timeout_s=30)
        assert result.interrupted
        assert counts(result) == {"ok": 4, "cancelled": 4}
        assert (running.done, repr(running)) == (True, "<RunningProbe /toy: done>")

    def test_cancelled_at_once(self, server: ToyServer) -> None:
        """A probe that is cancelled before its client has read its plan still gives a result."""
        running = start_probe(server.url, HELD, requests=8, concurrency=2)
        running.cancel()
        result = running.result(timeout_s=30)
        assert len(result.requests) == 8
        assert result.interrupted

    def test_awaited(self, server: ToyServer) -> None:
        """probe_async leaves the event loop free while it runs."""
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)

        async def cell() -> ProbeResult:
            counting = asyncio.ensure_future(count())
            result = await probe_async(server.url, 1, requests=5)
            counting.cancel()
            return result

        assert counts(asyncio.run(cell())) == {"ok": 5}
        assert turns > 5

    def test_a_cancelled_task_stops_the_sending(self, server: ToyServer, eventually: Any) -> None:
        """When the task that awaits it is cancelled, the client stops."""

        async def cell() -> None:
            task = asyncio.ensure_future(probe_async(server.url, HELD, requests=8, concurrency=2))
            await asyncio.to_thread(server.wait_for, 6)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        before = threading.active_count()
        asyncio.run(cell())
        eventually(
            lambda: not [one for one in threading.enumerate() if one.name == "airserve-probe"],
            "its thread ends",
        )
        assert threading.active_count() <= before

    def test_a_task_cancelled_while_it_starts(
        self, server: ToyServer, monkeypatch: pytest.MonkeyPatch, eventually: Any
    ) -> None:
        """A probe that begins when its task is cancelled already is stopped as well: nobody would ever see it."""
        begun, go_on, there = threading.Event(), threading.Event(), threading.Event()
        started = []

        def slow(*args: Any, **options: Any) -> Any:
            begun.set()
            assert go_on.wait(30)
            started.append(start_probe(*args, **options))
            there.set()
            return started[0]

        monkeypatch.setattr("airserve_nb.loadgen.run.start_probe", slow)

        async def cell() -> None:
            task = asyncio.ensure_future(probe_async(server.url, [{"do": "hang"}], requests=1))
            await asyncio.to_thread(begun.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()
            await asyncio.to_thread(there.wait, 30)
            await asyncio.to_thread(started[0].result, 30)

        asyncio.run(cell())
        assert started[0].result().interrupted

    def test_refusals_come_at_once(self, server: ToyServer) -> None:
        """What can't be planned is refused where it is asked for, by each of the three."""
        with pytest.raises(ProbeError, match="say how to send"):
            start_probe(server.url, 1, duration="1s")
        with pytest.raises(ProbeError, match="say how to send"):
            asyncio.run(probe_async(server.url, 1, duration="1s"))


@pytest.mark.parametrize("moment", ["__init__", "close"])
def test_an_interrupt_at_the_line_s_ends(
    server: ToyServer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """An interrupt that comes while the line of progress is made, or taken away, loses no result either."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"airserve_nb.loadgen.running.LiveLine.{moment}", interrupted)
    orders = HELD if moment == "__init__" else [{"do": "ok"}]
    result = probe(server.url, orders, requests=len(orders), concurrency=2)
    assert len(result.requests) == len(orders)
    assert result.interrupted is (moment == "__init__")


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself a POSIX signal")
def test_an_interrupt_returns_what_there_is(server: ToyServer) -> None:
    """An interrupt of the cell stops the sending; what there is comes back, marked as interrupted."""

    def interrupt() -> None:
        server.wait_for(6)  # four answered, two held
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = probe(server.url, HELD, requests=8, concurrency=2)
    thread.join()
    assert result.interrupted
    assert counts(result) == {"ok": 4, "cancelled": 4}
    assert str(result.summary()).startswith("Interrupted: 4 of 8 requests ok")
    assert len(server.bodies) == 6


class TestProgress:
    def test_shown_and_cleared(self, server: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a notebook one display has the bar and the numbers while it lasts, and is empty at the end."""
        import IPython

        shown: list[dict[str, str]] = []
        seen = threading.Event()

        class Shell:
            kernel = object()

            class display_pub:  # noqa: N801 - the kernel's name
                @staticmethod
                def publish(data: dict[str, str], **_: Any) -> None:
                    shown.append(data)
                    if "4 of 5 requests" in data.get("text/plain", ""):
                        seen.set()

        monkeypatch.setattr(IPython, "get_ipython", lambda: Shell)
        monkeypatch.setattr(progress_module, "QUIET_S", 0.0)
        monkeypatch.setattr(
            progress_module.LiveLine.__init__, "__kwdefaults__", {"quiet_s": 0.0, "clock": lambda: 1.0}
        )
        running = start_probe(server.url, [{"do": "ok"}] * 4 + [{"do": "hang"}], requests=5)

        def stop() -> None:
            seen.wait(30)
            running.cancel()

        stopper = threading.Thread(target=stop)
        stopper.start()
        assert running._watch().interrupted
        stopper.join()
        assert seen.is_set()
        assert shown[0] == shown[-1] == {}

    def test_quiet_when_quick(self, server: ToyServer, capsys: pytest.CaptureFixture[str]) -> None:
        """A quick probe, and any in a script, shows nothing."""
        probe(server.url, 1, requests=3)
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("options", "count", "until", "share", "text"),
        [
            ({"requests": 200, "concurrency": 4}, 200, None, 0.25, "50 of 200 requests"),
            ({"duration": 10, "concurrency": 4}, None, 10.0, 0.5, "50 requests"),
            ({"duration": 20, "rate": 10}, 200, 20.0, 0.25, "50 of 200 requests"),
        ],
    )
    def test_the_share(
        self, options: dict[str, Any], count: int | None, until: float | None, share: float, text: str
    ) -> None:
        """The bar follows what ends the probe: the requests, or the time."""
        latest = Latest(read_options(**options), count, until, lambda: None)
        report = {
            "elapsed_s": 5.0,
            "in_flight": 4,
            "ok": 48,
            "failed": 2,
            "requests_per_s": 10.0,
            "p50_ms": 12.34,
        }
        latest.take(report)
        assert latest.progress.share == share
        assert text in str(latest.progress)
        assert str(latest.progress).endswith("10 a second, p50 12.3 ms, 4 in flight, 2 failed")


class TestRecords:
    def test_a_gap_is_stated(self, server: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the server's records lack answered requests, the summary says how many."""
        from airserve_nb.loadgen import records

        class Forgetful:
            url, name, state = server.url, "adder", "running"

            def batches(self) -> pd.DataFrame:
                return pd.DataFrame({"batch_id": []})

            def requests(self) -> pd.DataFrame:
                return pd.DataFrame({"request_id": ["request-0", "request-1", "another's"]})

        monkeypatch.setattr(records, "RECORDS_WITHIN_S", 0.1)
        result = probe(Forgetful(), 1, requests=5)
        assert result.records is not None
        assert (result.records.answered, result.records.recorded, result.records.missing) == (5, 2, 3)
        assert "The server's records lack 3 of 5 answered requests: a replica died" in str(result.summary())

    def test_of_a_real_service(self, serve_local: Any, script: Any) -> None:
        """Of a service the answers and its own records agree to the last one, and its limits are kept."""
        service = serve_local(script.predictor, script.checkpoint, max_batch_size=4)
        result = probe(service, script.row(), requests=60, concurrency=8)
        assert result.records is not None
        assert (result.records.answered, result.records.missing) == (60, 0)
        assert result.settings == service.settings
        assert result.replicas == 1
        assert result.batches.batch_size.sum() == 60
        assert result.batches.other_signatures.tolist() == [0] * len(result.batches)
        assert set(result.requests.replica) == set(result.batches.replica)
        assert not result.requests.replica.isna().any()
