"""Folders that were left behind: cleaned up at the next start, and never somebody else's. No Ray is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from airserve_nb.engines import janitor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that do nothing, with words in their command line and variables, or a title and an open file."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        *words: str, title: str | None = None, file: str | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        code = "import sys, time; print(flush=True); time.sleep(100)"
        with nullcontext() if file is None else Path(file).open() as stdin:
            process = subprocess.Popen(  # noqa: S603 - our own code
                [title or sys.executable, "-c", code, *words],
                executable=sys.executable,
                env={**os.environ, **environment},
                stdin=stdin,
                stdout=subprocess.PIPE,
            )
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def folder_of(parent: Path, name: str, owner: str | None) -> Path:
    folder = parent / f"{janitor.PREFIX}{name}"
    folder.mkdir()
    if owner is not None:
        (folder / "owner").write_text(owner)
    return folder


def dead_owner() -> str:
    """Return the identity of a process that has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as process:
        identity = janitor._identity(process.pid)
    assert identity is not None
    return identity


def test_what_a_dead_kernel_left_is_cleaned_up(tmp_path: Path, sleeper: Any, eventually: Any) -> None:
    """Its folder goes, and every process that was started with it; no process that only mentions another one."""
    folder = folder_of(tmp_path, "dead", dead_owner())
    named, hidden = sleeper(str(folder / "r")), sleeper(TMPDIR=str(folder))
    (folder / "log").touch()
    renamed = sleeper(file=str(folder / "log"), title="ray::Agent")
    reader = sleeper(file=str(folder / "log"))
    bystander = sleeper(str(tmp_path), TMPDIR=str(tmp_path), RAY_AUTH_TOKEN_PATH=str(folder / "token"))
    janitor.sweep(tmp_path)
    eventually(lambda: not folder.exists(), "the folder goes")
    assert (named.wait(30), hidden.wait(30), renamed.wait(30)) == (-9, -9, -9)
    assert bystander.poll() is reader.poll() is None


def test_what_may_be_in_use_is_left_alone(tmp_path: Path, sleeper: Any, eventually: Any) -> None:
    """A living owner, a watching janitor, another machine or container, no owner, a link: none is touched."""
    dead = dead_owner()
    machine = janitor._machine()
    pid = dead.split()[0]
    elsewhere = f"{pid} 1 00000000-0000-0000-0000-000000000000/pid:[1]"
    kept = [
        folder_of(tmp_path, "alive", janitor._identity(os.getpid())),
        folder_of(tmp_path, "elsewhere", elsewhere),
        folder_of(tmp_path, "nobodys", None),
        folder_of(tmp_path, "broken", f"what {machine}"),
    ]
    target = tmp_path / "target"
    target.mkdir()
    (target / "owner").write_text(dead)
    link = tmp_path / f"{janitor.PREFIX}link"
    link.symlink_to(target)
    assert not [folder for folder in [*kept, link] if _stale(folder)]
    watched = folder_of(tmp_path, "watched", dead)
    assert _stale(watched)
    janitor_process = janitor._start(watched, subprocess.PIPE)
    try:
        # A process that has just been started has no command line yet.
        eventually(lambda: not _stale(watched), "the janitor is seen")
    finally:
        janitor_process.communicate()
    assert not watched.exists()


def _stale(folder: Path) -> bool:
    try:
        return janitor._is_stale(folder)
    except OSError:
        return False


def test_a_number_that_is_used_again_is_no_owner(tmp_path: Path) -> None:
    """A process that has got a dead owner's number is another one: its start differs."""
    identity = janitor._identity(os.getpid())
    assert identity is not None
    pid, started, machine = identity.split(" ")
    folder = folder_of(tmp_path, "reused", f"{pid} {int(started) - 1} {machine}")
    assert janitor._is_stale(folder)
