"""The versions that a service has had in this kernel: what to go back to, and what to show."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from airserve_nb.version import VersionSpec

__all__ = ["DeployedVersion", "History"]

# Each may hold a model: a few are enough to go back to.
KEPT = 5


@dataclass(slots=True, eq=False)
class DeployedVersion:
    """One version, as it was deployed."""

    name: str
    spec: VersionSpec | None
    """What to deploy again; None when it is too old to be kept."""
    deployed_at: datetime
    code: str | None
    example: Any
    before: DeployedVersion | None
    """What served when it was deployed."""


class History:
    """The versions of one service, and which of them serves."""

    def __init__(self) -> None:
        self._all: list[DeployedVersion] = []
        self.live: DeployedVersion | None = None

    def add(self, spec: VersionSpec, *, code: str | None, example: Any) -> DeployedVersion:
        """Note that a version serves from now on."""
        self.live = DeployedVersion(spec.version, spec, datetime.now(UTC), code, example, before=self.live)
        self._all.append(self.live)
        self._let_go_of_old_models()
        return self.live

    def _let_go_of_old_models(self) -> None:
        """Keep what can be gone back to from here: the chain of what served before, as far as KEPT."""
        kept: list[DeployedVersion] = []
        each = self.live
        while each is not None and len(kept) < KEPT:
            kept.append(each)
            each = each.before
        for other in self._all:
            if other not in kept:
                other.spec = other.before = None

    def forget(self) -> None:
        """Let go of the models; what can be shown stays."""
        self.live = None
        for each in self._all:
            each.spec = each.before = None

    def told(self) -> list[dict[str, Any]]:
        """Return all that a later kernel needs to know, as plain data."""
        numbers = {id(each): number for number, each in enumerate(self._all)}
        return [
            {
                "version": each.name,
                "deployed_at": each.deployed_at.isoformat(),
                "code": each.code,
                "example": each.example if _is_plain(each.example) else None,
                "settings": None if each.spec is None else dataclasses.asdict(each.spec.settings),
                "before": None if each.before is None else numbers.get(id(each.before)),
            }
            for each in self._all
        ]

    def retell(self, told: list[dict[str, Any]], *, live: str | None) -> None:
        """Take over what an earlier kernel told; ``live`` is the version that serves."""
        from airserve_nb.batching.settings import BatchSettings
        from airserve_nb.version import KeptVersion

        for row in told:
            name, settings = row["version"], row["settings"]
            spec = None if settings is None else KeptVersion.named(name, BatchSettings(**settings))
            at = datetime.fromisoformat(row["deployed_at"])
            self._all.append(DeployedVersion(name, spec, at, row["code"], row["example"], before=None))
        for each, row in zip(self._all, told, strict=True):
            each.before = None if row["before"] is None else self._all[row["before"]]
        self.live = next((each for each in reversed(self._all) if each.name == live), None)

    def table(self) -> pd.DataFrame:
        """Return one row a version, in the order in which they were deployed."""
        import pandas as pd

        rows = [(each.name, each.deployed_at, each is self.live, each.code) for each in self._all]
        return pd.DataFrame(rows, columns=["version", "deployed_at", "live", "code"])


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
