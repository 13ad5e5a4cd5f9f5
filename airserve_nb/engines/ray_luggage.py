"""What makes a version heavy: it travels to every replica, and a swap takes as long as it does.

A notebook's function takes along the globals that it mentions. A table of a gigabyte that is mentioned in passing costs
seconds at every run of the cell, so what is large is named.
"""

from __future__ import annotations

from airserve_nb.engines.ray_travel import parts_of, size_of
from airserve_nb.version import VersionSpec

__all__ = ["described"]

MEBIBYTE = 2**20
# Below it nobody waits for it.
LARGE = 10 * MEBIBYTE
# A part is worth a word from this share of the whole on.
WORTH_NAMING = 0.1
MOST_NAMED = 3


def described(spec: VersionSpec, size: int) -> str | None:
    """Return a sentence about a version of ``size`` bytes, pickled; None when it is small.

    The sentence names the largest parts with their sizes, and what to do.
    """
    if size <= LARGE:
        return None
    sizes: dict[str, int] = {}
    for where, value in parts_of(spec):
        sizes[where] = max(sizes.get(where, 0), size_of(value))
    largest = sorted(sizes.items(), key=lambda part: -part[1])[:MOST_NAMED]
    named = [f"{where} ({_mebibytes(part)})" for where, part in largest if part >= WORTH_NAMING * size]
    parts = f", mostly {' and '.join(named)}" if named else ""
    return (
        f"{_mebibytes(size)} travel to each replica at every change of the code{parts}: load large data in from_checkpoint "
        "from a directory or URI, or leave out what predict does not need."
    )


def _mebibytes(size: int) -> str:
    return f"{size / MEBIBYTE:.0f} MiB"
