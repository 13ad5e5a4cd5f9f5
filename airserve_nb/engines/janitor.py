"""A small process that cleans up behind this kernel's Ray, however the kernel ends.

Ray's servers go with the kernel, killed or not; but its agents take a minute, HAProxy stays when it has just been
reloaded, and so does the temporary folder. So a janitor waits at the end of a pipe that only this process holds: when
it closes, because we closed it or because this process is no more, it ends every process that was started with
the folder, and removes the folder. A janitor that was killed itself is made good for by the next start.

Run as ``python janitor.py FOLDER``; it imports nothing but the standard library, and waits in 10 MB.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PREFIX", "clean_up", "sweep", "watch"]

PREFIX = "airserve-"
"""What the names of our folders begin with."""

# Ray's own servers end by themselves within a second or two after their kernel.
GRACE_S = 2.0
POLL_S = 0.1
PARENT_POLL_S = 0.5
_OWNER = "owner"

_watching: subprocess.Popen[bytes] | None = None


def watch(folder: Path) -> None:
    """Start a janitor for ``folder``, which is this process's from now on."""
    global _watching  # noqa: PLW0603 - one Ray a process
    (folder / _OWNER).write_text(_identity(os.getpid()) or "")
    _watching = _start(folder, subprocess.PIPE)


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


def sweep(parent: str | Path | None = None) -> None:
    """Let a janitor clean up every folder in ``parent`` (None: the default one) whose process and janitor are gone.

    Only folders of this user that say whose they are, on this machine since it started, are touched (Linux; elsewhere
    none). Does not wait.
    """
    for folder in Path(tempfile.gettempdir() if parent is None else parent).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_stale(folder):
                _start(folder, subprocess.DEVNULL)


def _start(folder: Path, stdin: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", __file__, str(folder)]
    # A session of its own: an interrupt of the notebook, or the end of its process group, must not reach it.
    return subprocess.Popen(command, stdin=stdin, start_new_session=True)  # noqa: S603 - our own file


def _is_stale(folder: Path) -> bool:
    """Whether a folder is this user's, and neither the process that it names nor its janitor lives."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return False
    owner = (folder / _OWNER).read_text()
    pid, _, machine = owner.partition(" ")
    if not pid.isdigit() or machine.rpartition(" ")[2] != _machine():
        return False
    return _identity(int(pid)) != owner and not any(_is_janitor_of(folder, pid) for pid in _processes())


def _identity(pid: int) -> str | None:
    """Name a process so that no later one has the same name; None when it has gone, or there is no ``/proc``."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        # Behind the name, which may hold anything; of what follows, the 20th is the time of its start.
        state, started = stat.rpartition(")")[2].split()[0], stat.rpartition(")")[2].split()[19]
        # A zombie is no more, although it is still listed.
        return None if state == "Z" else f"{pid} {started} {_machine()}"
    return None


def _machine() -> str:
    """Name this machine since its start, and the process numbers that are seen here (containers have their own)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _main(folder: str) -> None:
    parent = os.getppid()
    # A child that the kernel forked may hold the pipe's other end beyond the kernel's end.
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin.buffer], [], [], PARENT_POLL_S)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    deadline = time.monotonic() + GRACE_S
    while _processes_of(folder) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    # Again, for what was being started meanwhile.
    while found := _processes_of(folder):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline + GRACE_S:
            break
        time.sleep(POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _processes_of(folder: str) -> list[int]:
    """Return the processes that were started with ``folder``, janitors excepted (Linux; else none)."""
    return [
        pid
        for pid in _processes()
        if _was_started_with(folder, pid) and not _is_janitor_of(Path(folder), pid)
    ]


def _was_started_with(folder: str, pid: int) -> bool:
    """Whether a process has the folder in its command line, for its temporary files, or is Ray's and logs there.

    Ray's processes give themselves other names, which may go over their variables, too.
    """
    with contextlib.suppress(OSError):
        command = _read(pid, "cmdline")
        if folder.encode() in command or f"TMPDIR={folder}".encode() in _read(pid, "environ").split(b"\0"):
            return True
        return command.startswith(b"ray::") and any(_files_within(folder, pid))
    return False


def _files_within(folder: str, pid: int) -> Iterator[Path]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if (file := descriptor.readlink()).is_relative_to(folder):
                yield file


def _is_janitor_of(folder: Path, pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _read(pid, "cmdline").split(b"\0")[-3:-1] == [__file__.encode(), str(folder).encode()]
    return False


def _read(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


if __name__ == "__main__":
    _main(sys.argv[1])
