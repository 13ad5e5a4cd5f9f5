"""What a Service asks of whoever hosts its endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.telemetry import Cursor, Page
from airserve_nb.version import VersionSpec

__all__ = ["Host", "Progress", "silent"]

Progress = Callable[[str], None]
"""Called with one line about what is going on, while something takes long."""


def silent(line: str) -> None:
    """Report no progress."""


class Host(Protocol):
    """A deployment that runs."""

    @property
    def name(self) -> str:
        """The deployment's name."""

    @property
    def url(self) -> str:
        """Where it answers."""

    @property
    def engine(self) -> str:
        """``ray`` or ``local``."""

    @property
    def ingress(self) -> str:
        """``haproxy``, ``python`` (Ray's own) or ``uvicorn`` (the local engine's)."""

    @property
    def replicas(self) -> int:
        """How many replicas were asked for."""

    @property
    def version(self) -> str | None:
        """The name of the version that serves."""

    @property
    def settings(self) -> BatchSettings:
        """How it batches."""

    def swap(self, spec: VersionSpec, *, overlap: bool = True) -> None:
        """Serve another version from now on; on an error the one that serves goes on. Blocks.

        Without ``overlap`` the old model is let go before the new one is loaded, and requests wait meanwhile.
        """

    def set_batching(self, changes: Mapping[str, Any]) -> None:
        """Batch by other limits from now on; blocks until every replica does."""

    def scale(self, num_replicas: int) -> None:
        """Have that many replicas; blocks until they run."""

    def predict(self, value: Any) -> Any:
        """Predict on a model input on one replica; blocks."""

    def pages(self, cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        """Return every live replica's name and its records since its cursor; blocks."""

    def log_entries(self, count: int) -> list[tuple[str, list[str]]]:
        """Return every live replica's name and its last log entries; blocks."""

    def remember(self, told: list[dict[str, Any]]) -> None:
        """Keep what is told of the versions where a later kernel finds it, if one can."""

    def recall(self) -> list[dict[str, Any]]:
        """Return what was last told, by this kernel or an earlier one; empty when that is not known."""

    def stop(self) -> None:
        """End it; harmless when it has ended already."""
