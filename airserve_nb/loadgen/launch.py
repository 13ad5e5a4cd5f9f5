"""How the client is started: in a process of its own, so that the notebook does not measure itself.

A client in the kernel's process shares the interpreter with the cell, with the panel, and with the
model when the local engine serves it; its clock would stand still whenever they run. So a plan goes to a
new Python process (it takes some 0.3 s to start, before the clock does). Where no process can be
started, the client runs in a thread of this one, with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.client import execute
from airserve_nb.loadgen.outcomes import Run
from airserve_nb.loadgen.plan import Plan

__all__ = ["Flight", "start_in_process", "start_in_thread", "start_plan"]

Report = Callable[[dict[str, Any]], object]
Made = TypeVar("Made")


class Flight(Generic[Made]):
    """A plan under way, in a thread of its own that ends with it.

    Parameters
    ----------
    work
        Runs the plan and returns what is made of it.
    ask_to_stop
        Makes ``work`` end soon, with what there is.
    force
        Makes it end at once.
    """

    def __init__(
        self, work: Callable[[], Made], ask_to_stop: Callable[[], object], force: Callable[[], object]
    ) -> None:
        self.future: Future[Made] = Future()
        self.stop = ask_to_stop
        self.kill = force
        self._work = work
        # A daemon: a notebook that is closed does not wait for a long probe, whose client then ends by itself.
        self._thread = threading.Thread(target=self._run, name="airserve-probe", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self.future.set_exception(error)


def start_plan(plan: Plan, report: Report, finish: Callable[[Run], Made]) -> Flight[Made]:
    """Start ``plan`` in a process of its own, or in a thread where there is no interpreter to start.

    Parameters
    ----------
    plan
        What to send.
    report
        Called from another thread, some times a second, with how far it is.
    finish
        Called there with the run; what it returns is the flight's result.
    """
    if not sys.executable:  # Python embedded in another program
        return start_in_thread(plan, report, finish)
    return start_in_process(plan, report, finish)


def start_in_thread(plan: Plan, report: Report, finish: Callable[[Run], Made]) -> Flight[Made]:
    """Start ``plan`` in a new thread of this process; works while this thread's own event loop runs."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def work() -> Made:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            run = runner.run(execute(plan, stop, report))
        return finish(run)

    def ask_to_stop() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run has just ended
            loop.call_soon_threadsafe(stop.set)

    return Flight(work, ask_to_stop, ask_to_stop)


def start_in_process(plan: Plan, report: Report, finish: Callable[[Run], Made]) -> Flight[Made]:
    """Start ``plan`` in a new Python process.

    The result is a ProbeError when the process ends without one.
    """
    client = _Client()
    return Flight(lambda: finish(client.run(plan, report)), client.stop, client.kill)


class _Client:
    """The client's process."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the run has ended, in its thread
        self._process = _start(self._log.fileno())
        self._lock = threading.Lock()
        self._has_plan = False
        self._stopping = False

    def run(self, plan: Plan, report: Report) -> Run:
        with self._log, self._process as process:
            line, data = self._converse(plan, report)
            # A client that dies leaves half a result, so its exit status is asked before that is read.
            if process.wait() != 0 or not line:
                self._log.seek(0)
                log = self._log.read().decode(errors="replace")
                raise ProbeError(_crash_sentence(process.returncode, log))
            return Run.from_bytes(line, data)

    def stop(self) -> None:
        """Let it stop by closing its input; not before it has read its plan."""
        with self._lock:
            self._stopping = True
            if self._has_plan:
                _close(self._process.stdin)

    def kill(self) -> None:
        self._process.kill()

    def _converse(self, plan: Plan, report: Report) -> tuple[bytes, bytes]:
        if self._process.stdin is None or self._process.stdout is None:
            raise ProbeError("The probe's client was started without pipes; this is an error in airserve_nb.")
        # A process that dies while it reads its plan is reported by its exit status.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(plan.to_json().encode() + b"\n")
            self._process.stdin.flush()
        with self._lock:
            self._has_plan = True
        if self._stopping:
            self.stop()
        for line in self._process.stdout:
            if line.startswith(b'{"run"'):
                return line, self._process.stdout.read()
            report(json.loads(line)["progress"])
        return b"", b""


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


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _crash_sentence(status: int, log: str) -> str:
    lines = log.strip().splitlines()
    reason = lines[-1] if lines else "it left no message"
    return (
        f"The probe's client ended with exit status {status} and no result ({reason}); "
        "try fewer requests or a lower concurrency."
    )
