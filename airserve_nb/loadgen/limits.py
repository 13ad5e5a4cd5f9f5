"""How many requests a probe can hold, and how many connections this process may have open."""

from __future__ import annotations

import contextlib

__all__ = ["MOST_REQUESTS", "allow_many_connections", "most_connections"]

MOST_REQUESTS = 2_000_000
"""More would not fit: each is some hundred bytes in three places."""
MOST = 20_000
"""A host has some 28,000 ports for connections to one server."""
SPARE_FILES = 32


def allow_many_connections() -> None:
    """Raise this process's limit of open files to what the system allows it, where there is such a thing."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections() -> int:
    """Return how many connections may be open at once."""
    try:
        import resource  # not on Windows
    except ImportError:
        return MOST
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # RLIM_INFINITY is -1 here.
    return MOST if soft < 0 else max(1, min(MOST, soft - SPARE_FILES))
