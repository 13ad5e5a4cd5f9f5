"""Keep what Ray logs out of the cells of a notebook."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_logs"]

_RAY_LOGGERS = ("ray", "ray.serve")
_quieting = threading.Lock()
# Their levels, while anybody wants them quiet: two threads may at once.
_quiet: list[list[int]] = []


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep Ray's progress messages out of the cell."""
    loggers = [logging.getLogger(name) for name in _RAY_LOGGERS]
    with _quieting:
        _quiet.append([logger.level for logger in loggers])
        for logger in loggers:
            # Beyond errors: Ray tells of agents that are slow to start; what really fails raises.
            logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        with _quieting:
            levels = _quiet[0]
            _quiet.pop()
            if not _quiet:
                for logger, level in zip(loggers, levels, strict=True):
                    logger.setLevel(level)
