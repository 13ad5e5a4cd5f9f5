"""The client in a thread and in a process of its own, against a real server."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen import launch
from airserve_nb.loadgen.client import execute
from airserve_nb.loadgen.launch import Flight, start_in_process, start_in_thread, start_plan
from airserve_nb.loadgen.outcomes import Run
from airserve_nb.loadgen.plan import Message, Plan
from airserve_nb.loadgen.sender import Sender

if TYPE_CHECKING:
    from tests.loadgen.conftest import ToyServer
else:
    ToyServer = Any

Launcher = Callable[[Plan], Flight[Run]]
Runner = Callable[[Plan], Run]


def in_thread(plan: Plan) -> Flight[Run]:
    return start_in_thread(plan, lambda _: None, lambda run: run)


def in_process(plan: Plan) -> Flight[Run]:
    return start_in_process(plan, lambda _: None, lambda run: run)


@pytest.fixture(params=[in_thread, in_process], ids=["thread", "process"])
def start(request: pytest.FixtureRequest) -> Launcher:
    launcher: Launcher = request.param
    return launcher


@pytest.fixture
def run(start: Launcher) -> Runner:
    return lambda plan: start(plan).future.result(60)


def plan(url: str, orders: list[str], *, concurrency: int | None = None, timeout_s: float = 20.0) -> Plan:
    return Plan(
        tuple(Message("POST", url, (), f'{{"do": "{order}"}}'.encode()) for order in orders),
        timeout_s,
        planned=(0.0,) * len(orders) if concurrency is None else None,
        requests=None if concurrency is None else len(orders),
        concurrency=concurrency,
    )


def kinds(result: Run) -> list[str]:
    return list(result.outcomes.kinds())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_failure_is_counted_exactly(server: ToyServer, run: Runner) -> None:
    """Injected failures of five kinds come out under their own names, request by request."""
    orders = ["ok", "fail", "hang", "close", "cut", "ok", "garbage", "redirect"] * 5
    result = run(plan(server.url, orders, timeout_s=1.5))
    expected = {
        "ok": "ok",
        "fail": "http_error",
        "redirect": "http_error",
        "hang": "timeout",
        "close": "connection_error",
        "cut": "connection_error",
        "garbage": "connection_error",
    }
    assert kinds(result) == [expected[order] for order in orders]
    assert list(result.outcomes.status[:3]) == [200, 500, 0]
    assert len(server.bodies) == len(orders)
    assert not result.interrupted


def test_a_burst_waits_for_all_its_connections(server: ToyServer, run: Runner) -> None:
    """Every request of a burst has a connection of its own, and all are sent before the first answer is read."""
    result = run(plan(server.url, ["ok"] * 40))
    assert kinds(result) == ["ok"] * 40
    assert server.connections == 40
    assert set(result.outcomes.planned) == {0.0}
    assert max(result.outcomes.sent) <= min(result.outcomes.first_byte)


def test_concurrency_bounds_what_is_in_flight(server: ToyServer, run: Runner) -> None:
    """With a concurrency no more are under way, and the connections are used again."""
    result = run(plan(server.url, ["ok"] * 50, concurrency=4))
    assert kinds(result) == ["ok"] * 50
    assert server.most_in_flight <= 4
    assert server.connections == 4


def test_times_are_in_order(server: ToyServer, run: Runner) -> None:
    """No request is sent before it was planned or answered before it was sent; the run ends with its last."""
    result = run(plan(server.url, ["ok"] * 12, concurrency=3))
    columns = [getattr(result.outcomes, name) for name in ("planned", "sent", "first_byte", "done")]
    for times in zip(*columns, strict=True):
        assert [0.0, *times] == sorted([0.0, *times])
    assert result.elapsed_s == max(result.outcomes.done)


def test_nobody_listens(run: Runner) -> None:
    """Refused connections are outcomes with a sentence that names the place."""
    port = free_port()
    result = run(plan(f"http://127.0.0.1:{port}/x", ["ok"] * 5))
    assert kinds(result) == ["connection_error"] * 5
    assert set(result.outcomes.sentences()) == {
        f"The connection was refused: nothing listens at 127.0.0.1:{port}."
    }
    assert not any(map(math.isnan, result.outcomes.sent))


def test_planned_times_are_kept(server: ToyServer, run: Runner) -> None:
    """A request is not sent before its planned time."""
    times = tuple(index * 0.02 for index in range(9))
    result = run(Plan((Message("GET", server.url, (), b""),), 5.0, planned=times))
    assert all(sent >= planned for sent, planned in zip(result.outcomes.sent, times, strict=True))
    assert result.client.lag_max_ms > 0


def test_inside_a_running_loop(server: ToyServer, run: Runner) -> None:
    """A run works in a thread whose own event loop is running, as in a notebook."""

    async def cell() -> Run:
        return run(plan(server.url, ["ok"] * 3))

    assert kinds(asyncio.run(cell())) == ["ok"] * 3


def test_a_stop_returns_what_there_is(server: ToyServer, start: Launcher) -> None:
    """A stop ends the sending; answers that came stay, all others are accounted for as cancelled."""
    flight = start(plan(server.url, ["ok"] * 4 + ["hang"] * 4, concurrency=2))
    server.wait_for(6)  # four answered, two held
    flight.stop()
    result = flight.future.result(60)
    assert result.interrupted
    assert kinds(result) == ["ok"] * 4 + ["cancelled"] * 4
    assert [not math.isnan(sent) for sent in result.outcomes.sent[4:]] == [True, True, False, False]
    assert result.outcomes.sentences()[4:] == [
        *["No answer yet when the probe was stopped."] * 2,
        *["Not sent when the probe was stopped."] * 2,
    ]
    assert len(server.bodies) == 6


def test_the_client_ends_when_its_input_does(server: ToyServer) -> None:
    """The client's process stops, with what it has, when whoever started it goes away."""
    client = subprocess.Popen(
        [sys.executable, "-m", "airserve_nb.loadgen.client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdin is not None
    client.stdin.write(plan(server.url, ["hang"] * 3).to_json().encode() + b"\n")
    client.stdin.flush()
    server.wait_for(3)
    output, _ = client.communicate(timeout=30)
    line, _, data = output.partition(b"\n")
    while line.startswith(b'{"progress"'):
        line, _, data = data.partition(b"\n")
    result = Run.from_bytes(line, data)
    assert client.returncode == 0
    assert result.interrupted
    assert Counter(kinds(result)) == {"cancelled": 3}


def test_a_client_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client without a result raises a sentence with its last words."""

    def broken(log: int) -> subprocess.Popen[bytes]:
        code = "import sys; sys.stdin.readline(); sys.exit('out of luck')"
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )

    monkeypatch.setattr(launch, "_start", broken)
    with pytest.raises(ProbeError, match=r"exit status 1 and no result \(out of luck\); try fewer requests"):
        in_process(plan("http://127.0.0.1:1/", ["ok"])).future.result(60)


def test_without_an_interpreter_a_thread_does(server: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded in a program that is no Python interpreter, the client runs in a thread."""
    monkeypatch.setattr(sys, "executable", "")
    flight = start_plan(plan(server.url, ["ok"]), lambda _: None, kinds)
    assert flight.future.result(60) == ["ok"]


def test_half_a_result_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that dies while it writes its result is reported as such."""

    def broken(log: int) -> subprocess.Popen[bytes]:
        code = "import sys; sys.stdin.readline(); sys.stdout.write('{\\\"run\\\": {'); sys.exit('cut short')"
        return subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )

    monkeypatch.setattr(launch, "_start", broken)
    with pytest.raises(ProbeError, match="cut short"):
        in_process(plan("http://127.0.0.1:1/", ["ok"])).future.result(60)


def test_a_duration_ends_a_closed_loop(server: ToyServer, run: Runner) -> None:
    """Requests go on for the duration; each of those sent is answered."""
    result = run(Plan((Message("GET", server.url, (), b""),), 5.0, duration_s=0.3, concurrency=2))
    assert set(kinds(result)) == {"ok"}
    assert len(result.outcomes) == len(server.bodies) > 2
    assert max(result.outcomes.planned) < 0.3


def test_a_closed_loop_does_not_outgrow_memory(server: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the duration decides, it ends early with as many requests as a probe can hold."""
    monkeypatch.setattr("airserve_nb.loadgen.sender.MOST_REQUESTS", 50)
    endless = Plan((Message("GET", server.url, (), b""),), 5.0, duration_s=60.0, concurrency=2)
    result = in_thread(endless).future.result(30)
    assert kinds(result) == ["ok"] * 50
    assert not result.interrupted


@pytest.mark.parametrize("concurrency", [None, 2])
def test_nothing_is_sent_when_stopped_before(server: ToyServer, concurrency: int | None) -> None:
    """A probe that is stopped while it connects sends nothing, not even a burst."""

    async def main() -> Run:
        stop = asyncio.Event()
        stop.set()
        return await execute(plan(server.url, ["ok"] * 5, concurrency=concurrency), stop)

    found = asyncio.run(main())
    assert kinds(found) == ["cancelled"] * 5
    assert found.interrupted
    assert all(math.isnan(sent) for sent in found.outcomes.sent)
    assert server.bodies == []


def test_nothing_is_sent_after_the_end(server: ToyServer) -> None:
    """A call that the stopped loop still held sends nothing: the requests are accounted for as never sent."""

    async def main() -> tuple[Run, float]:
        sender = Sender(replace(plan(server.url, ["ok"] * 2), planned=(0.0, 0.3)))
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, stop.set)
        found = await sender.run(stop)
        await asyncio.sleep(0.3)
        sender._pump()
        await asyncio.sleep(0.05)
        return found, sender.outcomes.sent[1]

    found, sent = asyncio.run(main())
    assert kinds(found) == ["ok", "cancelled"]
    assert math.isnan(sent)


def test_a_limit_in_an_open_loop_is_told(server: ToyServer, run: Runner) -> None:
    """Where fewer may be in flight than are due, the others wait, and the client says how many and how long."""
    held = plan(server.url, ["hang", "ok", "ok"], timeout_s=0.3)
    result = run(replace(held, concurrency=1))
    assert kinds(result) == ["timeout", "ok", "ok"]
    assert result.client.most_in_flight == 1
    assert result.client.held_back == 2
    assert result.client.held_back_ms >= 300
    assert list(result.outcomes.planned) == [0.0] * 3


def test_progress_is_told(server: ToyServer) -> None:
    """While it runs, the client says how far it is."""
    reports: list[dict[str, Any]] = []
    told = threading.Event()

    def take(report: dict[str, Any]) -> None:
        reports.append(report)
        told.set()

    flight = start_in_process(plan(server.url, ["ok"] * 3 + ["fail", "hang"]), take, lambda run: run)
    assert told.wait(30)
    flight.stop()
    flight.future.result(60)
    assert (reports[0]["ok"], reports[0]["failed"], reports[0]["in_flight"]) == (3, 1, 1)
