"""A timer for planned send times.

An event loop's own timers count whole milliseconds, so a request would leave half a millisecond late on average. On
Linux the kernel has a finer one: a descriptor that becomes readable at a given time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable

__all__ = ["Alarm"]

_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1  # perf_counter reads this clock on Linux


class _Time(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


class Alarm:
    """Calls ``ring`` on the running loop at the time it was last set to.

    Parameters
    ----------
    ring
        What to call.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._descriptor = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                self._libc = ctypes.CDLL(None, use_errno=True)
                self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._read)

    def set(self, moment: float) -> None:
        """Ring at ``moment`` of ``time.perf_counter``; at once when that is past."""
        if self._descriptor < 0:
            if self._later is not None:
                self._later.cancel()
            self._later = self._loop.call_later(max(0.0, moment - time.perf_counter()), self._ring)
            return
        nanoseconds = max(1, int(moment * 1e9))  # 0 would switch it off
        at = _Time(0, 0, *divmod(nanoseconds, 1_000_000_000))
        self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(at), None)

    def close(self) -> None:
        """Never ring again."""
        if self._later is not None:
            self._later.cancel()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):  # set anew in the meantime
            os.read(self._descriptor, 8)
            self._ring()
