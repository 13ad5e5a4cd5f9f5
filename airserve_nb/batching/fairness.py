"""Let the event loop catch up with a model that keeps the interpreter lock.

A model that computes in Python holds the lock (GIL) and gives it up only every switch interval, 5 ms by
default. The event loop needs it anew after each system call, so beside such a model it crawls: a dozen
requests take as many intervals. Between two batches is the moment to let it finish what has piled up; that work
has to be done under the same lock anyway.

A model that releases the lock needs no such pause, and gets none: the pause is for a model whose thread was
computing all the while and during whose work the loop did not come to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["LoopFairness"]

# Turns of the loop in which answers are resolved, encoded and sent, and what came meanwhile is read.
TURNS = 4
# A loop that takes longer is busy with something else; the model must not wait for that.
LONGEST_PAUSE_S = 0.05


class LoopFairness:
    """Watches calls of predict, and pauses after those that starved the loop. Used in the model thread.

    Parameters
    ----------
    loop
        The event loop that reads requests and writes answers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._takes_long = False
        self._computes = False
        self.starved = False
        """Whether the last call kept the loop from running."""

    def call(self, predict: Callable[[Any], Any], batch: Any) -> Any:
        """Return ``predict(batch)``."""
        started = time.perf_counter()
        try:
            if self._takes_long:
                return self._watched(predict, batch)
            # A quick call starves nobody: it is spared the price of being watched.
            self.starved = self._computes = False
            return predict(batch)
        finally:
            self._takes_long = time.perf_counter() - started > sys.getswitchinterval()

    def _watched(self, predict: Callable[[Any], Any], batch: Any) -> Any:
        heard_at: list[float] = []
        started, cpu_before = time.perf_counter(), time.thread_time()
        if self._computes:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(lambda: heard_at.append(time.perf_counter()))
        try:
            return predict(batch)
        finally:
            interval = sys.getswitchinterval()
            late = not heard_at or heard_at[0] - started > interval / 2
            self.starved = self._computes and late
            self._computes = time.thread_time() - cpu_before > interval

    def pause(self) -> None:
        """Wait until the loop has done what there is to do, or for a while."""
        done = threading.Event()

        def turn(left: int) -> None:
            if left:
                self._loop.call_soon(turn, left - 1)
            else:
                done.set()

        # A closed loop has nothing to catch up with.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(turn, TURNS)
            done.wait(LONGEST_PAUSE_S)
