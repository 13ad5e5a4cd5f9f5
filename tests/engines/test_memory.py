"""How much memory is left: the machine's, or less where a control group says so."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from airserve_nb import DeployError
from airserve_nb.engines import memory
from airserve_nb.engines.memory import available_bytes, look_at_memory

MIB = 2**20


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Make the files of a machine with 1000 MiB left and 24 MiB of swap, without a limit."""
    write(
        tmp_path / "proc/meminfo",
        f"MemTotal: 9999999 kB\nMemAvailable: {1000 * 1024} kB\nSwapFree: {24 * 1024} kB\n",
    )
    write(tmp_path / "proc/self/cgroup", "0::/user/kernel\n")
    write(tmp_path / "sys/fs/cgroup/user/kernel/memory.max", "max\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def limit(group: Path, most: int, used: int, cached: int) -> None:
    write(group / "memory.max", f"{most * MIB}\n")
    write(group / "memory.current", f"{used * MIB}\n")
    write(group / "memory.stat", f"anon 5\ninactive_file {cached * MIB}\n")


def test_without_a_limit_the_machine_counts(machine: Path) -> None:
    """What the machine can give, its swap included."""
    assert available_bytes(machine) == 1024 * MIB


def test_the_tightest_group_counts(machine: Path) -> None:
    """A limit of the own group or of one above it counts, and cached files are given back."""
    groups = machine / "sys/fs/cgroup"
    limit(groups / "user", most=600, used=300, cached=50)
    assert available_bytes(machine) == 350 * MIB
    limit(groups / "user/kernel", most=400, used=390, cached=5)
    assert available_bytes(machine) == 15 * MIB
    # Inside a container the top is the container's group.
    limit(groups, most=100, used=101, cached=0)
    assert available_bytes(machine) == 0


def test_the_first_version_of_groups(machine: Path) -> None:
    """The older files are read, too; their way of saying "no limit" is one."""
    write(machine / "proc/self/cgroup", "5:cpu:/\n4:memory,hugetlb:/box\n")
    box = machine / "sys/fs/cgroup/memory/box"
    write(box / "memory.limit_in_bytes", "9223372036854771712\n")
    assert available_bytes(machine) == 1024 * MIB
    write(box / "memory.limit_in_bytes", f"{300 * MIB}\n")
    write(box / "memory.usage_in_bytes", f"{200 * MIB}\n")
    write(box / "memory.stat", f"total_inactive_file {10 * MIB}\n")
    assert available_bytes(machine) == 110 * MIB


def test_where_nothing_says_it(tmp_path: Path) -> None:
    """Without these files the answer is that it is not known."""
    assert available_bytes(tmp_path) is None


def test_ray_says_that_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short of memory, a start warns with the numbers and the way out; where it can't work, it is refused."""
    needed = memory.NEEDED_BYTES
    for available in (None, needed):
        monkeypatch.setattr(memory, "available_bytes", lambda available=available: available)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            look_at_memory()
    monkeypatch.setattr(memory, "available_bytes", lambda: needed * 3 // 4)
    said = rf"{needed // MIB} MiB .* {needed * 3 // 4 // MIB} MiB .*engine='local'"
    with pytest.warns(UserWarning, match=said):
        look_at_memory()
    monkeypatch.setattr(memory, "available_bytes", lambda: needed // 4)
    with pytest.raises(DeployError, match="engine='local'"):
        look_at_memory()
