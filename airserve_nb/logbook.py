"""The newest log lines of a replica, kept where the notebook can ask for them."""

from __future__ import annotations

import logging
from collections import deque

__all__ = ["LogBook"]

# A few failing batches with their tracebacks.
SIZE = 1_000


class LogBook(logging.Handler):
    """A logging handler that remembers the last records as text."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self._entries: deque[str] = deque(maxlen=size)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        try:
            self._entries.append(self.format(record))
        except Exception:  # noqa: BLE001 - logging's own rule: a bad record must not stop the program
            self.handleError(record)

    def tail(self, count: int) -> list[str]:
        """Return the last ``count`` entries, oldest first; an entry may hold several lines."""
        return list(self._entries)[-count:] if count > 0 else []
