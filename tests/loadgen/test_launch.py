"""The client in a thread and in a process of its own, against a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen import launch
from airserve_nb.loadgen.launch import run_in_process, run_in_thread, run_plan
from airserve_nb.loadgen.plan import Plan, PlannedRequest, Run

if TYPE_CHECKING:
    from tests.loadgen.conftest import ToyServer
else:
    ToyServer = Any

Launcher = Callable[[Plan], Run]


@pytest.fixture(params=[run_in_thread, run_in_process], ids=["thread", "process"])
def run(request: pytest.FixtureRequest) -> Launcher:
    launcher: Launcher = request.param
    return launcher


def plan(url: str, orders: list[str], *, concurrency: int | None = None, timeout_s: float = 20.0) -> Plan:
    planned_s = 0.0 if concurrency is None else None
    return Plan(
        tuple(
            PlannedRequest(index, planned_s, "POST", url, (), f'{{"do": "{order}"}}'.encode())
            for index, order in enumerate(orders)
        ),
        concurrency,
        timeout_s,
    )


def kinds(result: Run) -> list[str]:
    return [outcome.kind for outcome in result.outcomes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_failure_is_counted_exactly(server: ToyServer, run: Launcher) -> None:
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
    assert [outcome.status for outcome in result.outcomes[:3]] == [200, 500, None]
    assert len(server.bodies) == len(orders)
    assert not result.interrupted


def test_a_burst_waits_for_all_its_connections(server: ToyServer, run: Launcher) -> None:
    """Every request of a burst has a connection of its own, and all are sent before the first answer is read."""
    result = run(plan(server.url, ["ok"] * 40))
    assert kinds(result) == ["ok"] * 40
    assert server.connections == 40
    assert all(outcome.planned == 0.0 for outcome in result.outcomes)
    sent = [outcome.sent for outcome in result.outcomes if outcome.sent is not None]
    assert max(sent) <= min(outcome.first_byte or 0 for outcome in result.outcomes)


def test_concurrency_bounds_what_is_in_flight(server: ToyServer, run: Launcher) -> None:
    """With a concurrency no more are under way, and the connections are used again."""
    result = run(plan(server.url, ["ok"] * 50, concurrency=4))
    assert kinds(result) == ["ok"] * 50
    assert server.most_in_flight <= 4
    assert server.connections == 4


def test_times_are_in_order(server: ToyServer, run: Launcher) -> None:
    """No request is sent before it was planned or answered before it was sent; the run ends with its last."""
    result = run(plan(server.url, ["ok"] * 12, concurrency=3))
    for outcome in result.outcomes:
        assert outcome.planned is not None
        assert outcome.sent is not None
        assert outcome.first_byte is not None
        assert outcome.done is not None
        assert 0 <= outcome.planned <= outcome.sent <= outcome.first_byte <= outcome.done
    assert result.elapsed_s == max(outcome.done or 0 for outcome in result.outcomes)


def test_nobody_listens(run: Launcher) -> None:
    """Refused connections are outcomes with a sentence that names the place."""
    port = free_port()
    result = run(plan(f"http://127.0.0.1:{port}/x", ["ok"] * 5))
    assert kinds(result) == ["connection_error"] * 5
    assert {outcome.error for outcome in result.outcomes} == {
        f"The connection was refused: nothing listens at 127.0.0.1:{port}."
    }
    assert all(outcome.sent is not None for outcome in result.outcomes)


def test_planned_times_are_kept(server: ToyServer) -> None:
    """A request is not sent before its planned time."""
    requests = tuple(PlannedRequest(index, index * 0.05, "GET", server.url, (), b"") for index in range(3))
    result = run_in_thread(Plan(requests, None, 5.0))
    assert all((outcome.sent or 0) >= index * 0.05 for index, outcome in enumerate(result.outcomes))


def test_inside_a_running_loop(server: ToyServer, run: Launcher) -> None:
    """A run works in a thread whose own event loop is running, as in a notebook."""

    async def cell() -> Run:
        return run(plan(server.url, ["ok"] * 3))

    assert kinds(asyncio.run(cell())) == ["ok"] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="sends itself a POSIX signal")
def test_an_interrupt_returns_what_there_is(server: ToyServer, run: Launcher) -> None:
    """An interrupt stops the sending; answers that came stay, all others are accounted for as cancelled."""

    def interrupt() -> None:
        server.wait_for(6)  # four answered, two held
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = run(plan(server.url, ["ok"] * 4 + ["hang"] * 4, concurrency=2))
    thread.join()
    assert result.interrupted
    assert kinds(result) == ["ok"] * 4 + ["cancelled"] * 4
    assert [outcome.sent is not None for outcome in result.outcomes[4:]] == [True, True, False, False]
    assert {outcome.error for outcome in result.outcomes[4:]} == {
        "No answer yet when the probe was stopped.",
        "Not sent when the probe was stopped.",
    }
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
    result = Run.from_lines(output)
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
        run_in_process(plan("http://127.0.0.1:1/", ["ok"]))


def test_without_an_interpreter_a_thread_does(server: ToyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded in a program that is no Python interpreter, the client runs in a thread."""
    monkeypatch.setattr(sys, "executable", "")
    assert kinds(run_plan(plan(server.url, ["ok"]))) == ["ok"]
