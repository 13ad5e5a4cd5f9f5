"""The probe's client: sends a plan over HTTP and notes what became of every request.

Run ``python -m airserve_nb.loadgen.client``, write a plan's line to its standard input, and read from its standard
output: some lines that say how far it is, then the run. It stops early, with what there is, when its input is closed:
also when the process that started it dies. It runs on uvloop where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import statistics
import sys
import threading
from collections.abc import Callable
from typing import Any

from airserve_nb.loadgen.limits import allow_many_connections
from airserve_nb.loadgen.outcomes import Run
from airserve_nb.loadgen.plan import Plan
from airserve_nb.loadgen.sender import Sender

__all__ = ["execute", "main"]

REPORT_EVERY_S = 0.25
RARELY = 50_000
"""Objects between two collections: answers make no cycles, and going over them would look like a pause of the server."""


async def execute(
    plan: Plan, stop: asyncio.Event, report: Callable[[dict[str, Any]], object] | None = None
) -> Run:
    """Send every request of ``plan``.

    Parameters
    ----------
    plan
        What to send. A request follows no redirect, sends no cookie, and is never sent twice.
    stop
        Once set, nothing more is sent and what is under way is given up.
    report
        Called some times a second with what a :class:`ProbeProgress` is made of.

    Returns
    -------
    Run
        One outcome a request, in the plan's order. No failure of a request raises.
    """
    sender = Sender(plan)
    reporting = None
    if report is not None:
        reporting = asyncio.ensure_future(_keep_reporting(sender, report))
    try:
        return await sender.run(stop)
    finally:
        if reporting is not None:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)


async def _keep_reporting(sender: Sender, report: Callable[[dict[str, Any]], object]) -> None:
    last_s = 0.0
    while True:
        await asyncio.sleep(REPORT_EVERY_S)
        recent, sender.recent_ms = sender.recent_ms, []
        elapsed_s = sender.now()
        report(
            {
                "elapsed_s": elapsed_s,
                "in_flight": sender.in_flight,
                "ok": sender.tally["ok"],
                "failed": sender.tally.total() - sender.tally["ok"],
                "requests_per_s": len(recent) / (elapsed_s - last_s),
                "p50_ms": statistics.median(recent) if recent else None,
            }
        )
        last_s = elapsed_s


def main() -> None:
    """Read a plan from standard input, run it, write the run to standard output."""
    allow_many_connections()
    plan = Plan.from_json(sys.stdin.buffer.readline())
    gc.collect()
    gc.freeze()
    gc.set_threshold(RARELY, 20, 100)
    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        run = runner.run(_execute_until_input_ends(plan))
    _write(run.to_bytes())


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop


async def _execute_until_input_ends(plan: Plan) -> Run:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def wait_for_end() -> None:
        os.read(0, 1)  # the bare descriptor: a lock held on sys.stdin would trouble the interpreter's exit
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run was quicker
            loop.call_soon_threadsafe(stop.set)

    def report(progress: dict[str, Any]) -> None:
        _write(json.dumps({"progress": progress}).encode() + b"\n")

    threading.Thread(target=wait_for_end, daemon=True, name="airserve-probe-stop").start()
    return await execute(plan, stop, report)


def _write(data: bytes) -> None:
    """Write all of it: with PYTHONUNBUFFERED a single write to a pipe may take only a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
