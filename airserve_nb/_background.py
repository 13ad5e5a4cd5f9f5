"""Threads that watch must not disturb what they watch."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

__all__ = ["step_back"]

NICENESS = 10


def step_back() -> None:
    """Let the system prefer whatever else wants to run to the calling thread, where it can: on Linux."""
    # Elsewhere it would be the whole process that steps back.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
