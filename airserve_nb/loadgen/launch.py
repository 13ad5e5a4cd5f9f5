"""How the client is started: in a process of its own, so that the notebook does not measure itself.

A client in the kernel's process shares the interpreter with the cell, with the panel, and with the
model when the local engine serves it; its clock would stand still whenever they run. So a plan goes to a
new Python process (it takes some 0.4 s to start, before the clock does). Where no process can be
started, the client runs in a thread of this one, with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.client import execute
from airserve_nb.loadgen.plan import Plan, Run

__all__ = ["run_in_process", "run_in_thread", "run_plan"]


def run_plan(plan: Plan) -> Run:
    """Run ``plan`` in a process of its own, or in a thread where there is no interpreter to start.

    A first interrupt stops the run and returns what there is; a second one gives up on that too.

    Raises
    ------
    ProbeError
        When the client's process fails as a whole.
    """
    if not sys.executable:  # Python embedded in another program
        return run_in_thread(plan)
    return run_in_process(plan)


def run_in_thread(plan: Plan) -> Run:
    """Run ``plan`` in a new thread of this process; works while this thread's own event loop runs."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def work() -> Run:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(execute(plan, stop))

    def ask_to_stop() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run has just ended
            loop.call_soon_threadsafe(stop.set)

    return _wait(work, ask_to_stop, ask_to_stop)


def run_in_process(plan: Plan) -> Run:
    """Run ``plan`` in a new Python process.

    Raises
    ------
    ProbeError
        When the process ends without a result.
    """
    with tempfile.TemporaryFile() as log, _start(log.fileno()) as process:

        def work() -> Run:
            output = _converse(process, plan)
            if process.wait() != 0 or not output:
                log.seek(0)
                raise ProbeError(_crash_sentence(process.returncode, log.read().decode(errors="replace")))
            return Run.from_lines(output)

        return _wait(work, lambda: _close_input(process), process.kill)


def _start(log: int) -> subprocess.Popen[bytes]:
    # -P and the explicit path: a file json.py beside the notebook must not replace the library's module.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "airserve_nb.loadgen.client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # an interrupt of the cell is ours to pass on, in our way
    )


def _converse(process: subprocess.Popen[bytes], plan: Plan) -> bytes:
    if process.stdin is None or process.stdout is None:
        raise ProbeError("The probe's client was started without pipes; this is an error in airserve_nb.")
    # A process that dies while it reads its plan is reported by its exit status.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(plan.to_json().encode() + b"\n")
        process.stdin.flush()
    return process.stdout.read()


def _close_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _wait(work: Callable[[], Run], ask_to_stop: Callable[[], None], force: Callable[[], None]) -> Run:
    """Do ``work`` in a thread; turn a first interrupt into a request to stop."""
    with ThreadPoolExecutor(1, thread_name_prefix="airserve-probe") as pool:
        future = pool.submit(work)
        try:
            return _result(future)
        except KeyboardInterrupt:
            ask_to_stop()
        try:
            return _result(future)
        except KeyboardInterrupt:
            force()
            raise


def _result(future: Future[Run]) -> Run:
    while not future.done():
        wait([future], timeout=0.5)  # in slices: on Windows a wait without end can't be interrupted
    return future.result()


def _crash_sentence(status: int, log: str) -> str:
    lines = log.strip().splitlines()
    reason = lines[-1] if lines else "it left no message"
    return (
        f"The probe's client ended with exit status {status} and no result ({reason}); "
        "try fewer requests or a lower concurrency."
    )
