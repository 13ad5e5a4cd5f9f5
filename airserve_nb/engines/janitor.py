"""A small process that cleans up behind this kernel's Ray, however the kernel ends.

Ray's servers go with the kernel, killed or not; but HAProxy does not when it has just been reloaded, and
the temporary folder stays. So a janitor waits at the end of a pipe that only this process holds: when it
closes, because we closed it or because this process is no more, it ends every process that has the folder in
its command line, and removes the folder.

Run as ``python janitor.py FOLDER``; it imports nothing but the standard library, and waits in 10 MB.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["clean_up", "watch"]

# Ray's own servers end by themselves within a second or two after their kernel.
GRACE_S = 2.0
POLL_S = 0.1

_watching: subprocess.Popen[bytes] | None = None


def watch(folder: Path) -> None:
    """Start a janitor for ``folder``."""
    global _watching  # noqa: PLW0603 - one Ray a process
    command = [sys.executable, "-I", "-S", __file__, str(folder)]
    # A session of its own: an interrupt of the notebook, or the end of its process group, must not reach it.
    _watching = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - our own file


def clean_up() -> None:
    """Let the janitor do its work now, and wait for it."""
    global _watching  # noqa: PLW0603 - one Ray a process
    if _watching is None:
        return
    if _watching.stdin is not None:
        _watching.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        _watching.wait(timeout=3 * GRACE_S)
    _watching = None


def _main(folder: str) -> None:
    # Returns when the last holder of the pipe's other end is gone.
    sys.stdin.buffer.read()
    deadline = time.monotonic() + GRACE_S
    while _processes_of(folder) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for pid in _processes_of(folder):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: str) -> list[int]:
    """Return the processes that have ``folder`` in their command line, this one excepted (Linux; else none)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if folder.encode() in command and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    _main(sys.argv[1])
