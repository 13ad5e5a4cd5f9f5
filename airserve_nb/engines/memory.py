"""How much memory this process can still have, and whether that is enough for Ray.

It is what the machine has left, or a control group that limits it (Linux). A container on a large machine is told of
the machine's memory; what counts is its group's limit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from airserve_nb.errors import DeployError

__all__ = ["available_bytes", "look_at_memory"]

# What Ray and one replica of a small model take: an estimate, for each process's share of what several have in common
# depends on the machine.
NEEDED_BYTES = 900 * 2**20
CERTAINLY_TOO_LITTLE = 0.5
# What a group without a limit says in the first version of control groups: nearly 2**63.
_NO_LIMIT = 2**60


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory and swap that can still be had; None where that can't be found out.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    """
    with suppress(OSError, ValueError, LookupError):
        machine = _table(root / "proc/meminfo")
        free = (machine["MemAvailable"] + machine.get("SwapFree", 0)) * 1024
        return max(0, min([free, *_left_in_groups(root)]))
    return None


def look_at_memory() -> None:
    """Warn when Ray will hardly find the memory that it needs.

    Raises
    ------
    DeployError
        When it certainly won't.
    """
    available = available_bytes()
    if available is None or available >= NEEDED_BYTES:
        return
    sentence = (
        f"Ray needs about {NEEDED_BYTES / 2**20:.0f} MiB of memory for one replica, and {available / 2**20:.0f} MiB are "
        "available here; free some, or use engine='local'."
    )
    if available < NEEDED_BYTES * CERTAINLY_TOO_LITTLE:
        raise DeployError(sentence)
    warnings.warn(sentence, stacklevel=2)


def _left_in_groups(root: Path) -> Iterator[int]:
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left_in(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _left_in(
                root / "sys/fs/cgroup/memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )


def _left_in(top: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """Yield what is left in a group and in those above it; inside a container the top is its own."""
    group = top / path.lstrip("/")
    while group == top or top in group.parents:
        with suppress(OSError, ValueError):
            most = int((group / limit).read_text())
            if most < _NO_LIMIT:
                # Cached files are given back when they are in the way.
                given_back = _table(group / "memory.stat").get(cached, 0)
                yield most - int((group / usage).read_text()) + given_back
        group = group.parent


def _table(file: Path) -> dict[str, int]:
    words = (line.replace(":", " ").split() for line in file.read_text().splitlines())
    return {word[0]: int(word[1]) for word in words if len(word) > 1}
