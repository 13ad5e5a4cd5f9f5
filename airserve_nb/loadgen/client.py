"""The probe's client: sends a plan over HTTP and notes what became of every request.

The requests of a plan run in *lanes*, as many as may be in flight at once; each lane takes the next
request when its last one has ended. A lane's first connection is opened before the clock starts: the
request then waits at a gate, ready to be written, until every lane stands there. So the requests
of one burst leave together, and no connecting is measured. A connection that can't be opened ahead is
tried again on the clock, where its failure is an outcome like any other.

Run ``python -m airserve_nb.loadgen.client``, write a plan's line to its standard input, and read the
run's lines from its standard output. It stops early, with what there is, when its input is closed:
also when the process that started it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from airserve_nb.loadgen.plan import Outcome, OutcomeKind, Plan, PlannedRequest, Run

__all__ = ["execute", "main"]

CONNECT_AHEAD_S = 5.0
"""How long the start waits for connections at most: a host that swallows packets must not hold up the rest."""


async def execute(plan: Plan, stop: asyncio.Event) -> Run:
    """Send every request of ``plan``.

    Parameters
    ----------
    plan
        What to send. A request follows no redirect and sends no cookie.
    stop
        Once set, nothing more is sent and what is under way is given up.

    Returns
    -------
    Run
        One outcome a request, in the plan's order. No failure of a request raises.
    """
    gate = _Gate(plan.lanes)
    sender = _Sender(plan, gate)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=False),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the sender's own, from the gate on
        auto_decompress=True,
        trace_configs=[_hold_at_gate()],
    ) as session:
        queue = iter(plan.requests)
        lanes = [asyncio.create_task(sender.run_lane(session, queue)) for _ in range(plan.lanes)]
        stopping = asyncio.create_task(stop.wait())
        everything = asyncio.gather(*lanes)
        either: list[asyncio.Future[Any]] = [everything, stopping]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            interrupted = everything.cancel()  # False when all had ended
        with contextlib.suppress(asyncio.CancelledError):
            await everything
    elapsed_s = gate.now()
    outcomes = sender.all_outcomes()
    ended = [outcome.done for outcome in outcomes if outcome.done is not None]
    return Run(
        outcomes=outcomes,
        started_at=gate.started_at,
        elapsed_s=elapsed_s if interrupted or not ended else max(ended),
        interrupted=interrupted,
    )


class _Gate:
    """Holds the first request of each lane until all have their connections, then starts the clock."""

    def __init__(self, lanes: int) -> None:
        self._missing = lanes
        self._opened = asyncio.Event()
        self._zero = time.perf_counter()
        self.started_at = time.time()

    async def pass_through(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._zero = time.perf_counter()
            self.started_at = time.time()
            self._opened.set()
        await self._opened.wait()

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._zero


@dataclass(slots=True)
class _Attempt:
    """A request under way."""

    planned: float | None
    gate: _Gate | None
    """Set while this is the first request of its lane and has not passed the gate."""
    deadline: asyncio.Timeout | None = None
    sent: float | None = None
    first_byte: float | None = None


def _hold_at_gate() -> aiohttp.TraceConfig:
    """Return the hook that is awaited between opening a connection and writing the request to it."""

    async def on_connected(_session: Any, context: SimpleNamespace, _params: Any) -> None:
        hold = context.trace_request_ctx
        await hold()

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(on_connected)
    return trace


class _Sender:
    """Sends the requests and keeps their outcomes."""

    def __init__(self, plan: Plan, gate: _Gate) -> None:
        self._plan = plan
        self._gate = gate
        self._attempts: dict[int, _Attempt] = {}
        self._outcomes: dict[int, Outcome] = {}

    async def run_lane(self, session: aiohttp.ClientSession, queue: Iterator[PlannedRequest]) -> None:
        """Send one request after the other until none is left."""
        gate: _Gate | None = self._gate
        for request in queue:
            attempt = _Attempt(planned=request.planned_s, gate=gate)
            gate = None
            self._attempts[request.index] = attempt
            outcome = None
            if attempt.gate is not None:
                outcome = await self._send_through_gate(session, request, attempt)
            if outcome is None:
                outcome = await self._send(session, request, attempt)
            self._outcomes[request.index] = outcome

    async def _send_through_gate(
        self, session: aiohttp.ClientSession, request: PlannedRequest, attempt: _Attempt
    ) -> Outcome | None:
        """Connect, wait at the gate, send; None when there was no connection, so nothing was sent."""
        outcome = await self._send(session, request, attempt)
        if attempt.gate is None:
            return outcome
        await attempt.gate.pass_through()
        attempt.gate = None
        return None

    async def _send(
        self, session: aiohttp.ClientSession, request: PlannedRequest, attempt: _Attempt
    ) -> Outcome:
        try:
            async with asyncio.timeout(None) as attempt.deadline:
                if attempt.gate is None:
                    await self._on_the_clock(attempt)
                else:
                    attempt.deadline.reschedule(asyncio.get_running_loop().time() + CONNECT_AHEAD_S)
                return await self._exchange(session, request, attempt)
        except TimeoutError:
            return self._failed(request, attempt, "timeout", f"No answer within {self._plan.timeout_s:g} s.")
        except Exception as error:  # noqa: BLE001 - every request is accounted for, whatever the library raises
            return self._failed(request, attempt, "connection_error", _connection_sentence(error))

    async def _on_the_clock(self, attempt: _Attempt) -> None:
        """Wait for the planned time, note the sending, start the timeout."""
        if attempt.planned is None:
            attempt.planned = self._gate.now()
        elif (early := attempt.planned - self._gate.now()) > 0:
            await asyncio.sleep(early)
        attempt.sent = self._gate.now()
        if attempt.deadline is not None:
            attempt.deadline.reschedule(asyncio.get_running_loop().time() + self._plan.timeout_s)

    async def _exchange(
        self, session: aiohttp.ClientSession, request: PlannedRequest, attempt: _Attempt
    ) -> Outcome:
        async def hold() -> None:
            if attempt.gate is None:
                return
            if attempt.deadline is not None:
                attempt.deadline.reschedule(None)  # waiting for the other lanes is nobody's fault
            await attempt.gate.pass_through()
            attempt.gate = None
            await self._on_the_clock(attempt)

        async with session.request(
            request.method,
            URL(request.url, encoded=True),
            data=request.body or None,
            headers=request.headers,
            allow_redirects=False,
            trace_request_ctx=hold,
        ) as response:
            attempt.first_byte = self._gate.now()
            body = await response.read()
            return Outcome(
                index=request.index,
                kind="ok" if response.ok and response.status < 300 else "http_error",  # noqa: PLR2004 - 2xx
                planned=attempt.planned,
                sent=attempt.sent,
                first_byte=attempt.first_byte,
                done=self._gate.now(),
                status=response.status,
                headers={name.lower(): value for name, value in response.headers.items()},
                body=body,
                error=None,
            )

    def _failed(
        self, request: PlannedRequest, attempt: _Attempt, kind: OutcomeKind, error: str, *, ended: bool = True
    ) -> Outcome:
        return Outcome(
            index=request.index,
            kind=kind,
            planned=attempt.planned,
            sent=attempt.sent,
            first_byte=attempt.first_byte,
            done=self._gate.now() if ended else None,
            status=None,
            headers={},
            body=b"",
            error=error,
        )

    def all_outcomes(self) -> tuple[Outcome, ...]:
        """Return one outcome a request; those that have none were cancelled."""
        return tuple(
            self._outcomes.get(request.index) or self._cancelled(request) for request in self._plan.requests
        )

    def _cancelled(self, request: PlannedRequest) -> Outcome:
        attempt = self._attempts.get(request.index) or _Attempt(planned=request.planned_s, gate=None)
        error = "Not sent" if attempt.sent is None else "No answer yet"
        return self._failed(
            request, attempt, "cancelled", f"{error} when the probe was stopped.", ended=False
        )


def _connection_sentence(error: Exception) -> str:
    """Say what happened to a connection, without the library's names."""
    if isinstance(error, aiohttp.ClientConnectorError):
        where = f"{error.host}:{error.port}"
        if isinstance(error.os_error, ConnectionRefusedError):
            return f"The connection was refused: nothing listens at {where}."
        return f"No connection to {where} could be opened: {error.os_error.strerror or error.os_error}."
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionError):
        return "The server closed the connection before it had answered."
    return f"The exchange failed: {type(error).__name__}: {error}."


def main() -> None:
    """Read a plan from standard input, run it, write the run to standard output."""
    _allow_many_connections()
    plan = Plan.from_json(sys.stdin.buffer.readline())
    # A full collection that goes over the plan would look like a pause of the server.
    gc.collect()
    gc.freeze()
    run = asyncio.run(_execute_until_input_ends(plan))
    sys.stdout.write(run.to_lines())


async def _execute_until_input_ends(plan: Plan) -> Run:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def wait_for_end() -> None:
        os.read(0, 1)  # the bare descriptor: a lock held on sys.stdin would trouble the interpreter's exit
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run was quicker
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_end, daemon=True, name="airserve-probe-stop").start()
    return await execute(plan, stop)


def _allow_many_connections() -> None:
    """Raise this process's limit of open files to what the system allows it, where there is such a thing."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
