"""The truth: which version a deployment serves, written where a replica that starts later reads it.

A broadcast tells every replica that runs of a new version, but one that is being started, or replaces one that was
killed, has not heard it. So the confirmed version is a file in a folder of the deployment: whoever swaps writes it
before it tells the replicas, and every replica reads it when it starts and looks at it again with each
health check.

The folder is on the machine where kernel and replicas run; where replicas may be on other machines, an actor keeps it
(:mod:`airserve_nb.engines.ray_truth`). The truth itself is small, and replaced in one step; it names the file that
holds the pickled version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import DeployError
from airserve_nb.version import VersionSpec

__all__ = ["Truth", "TruthAwayError", "TruthFolder", "TruthHome", "unpickled"]

_FILE = "truth.json"
_NOTES = "notes.json"


@dataclass(frozen=True, slots=True)
class Truth:
    """One confirmed state of a deployment."""

    generation: int
    """Counts the changes; a larger one is newer."""
    payload: str
    """The file that holds the pickled version, named by its content."""
    settings: BatchSettings
    """How it batches, whatever the pickled version says: this can be set while it runs."""


class TruthAwayError(DeployError):
    """The truth can't be read now: whoever serves goes on as it is."""


class TruthHome(Protocol):
    """Where the truth of one deployment is kept. Its methods block, unless they are coroutines."""

    @property
    def where(self) -> str:
        """What a replica needs to find it."""

    def read(self) -> Truth | None:
        """Return the confirmed state; None before the first."""

    async def look(self) -> Truth | None:
        """Do what ``read`` does, from an event loop that must not be blocked."""

    def confirm(self, truth: Truth) -> None:
        """Let every replica, those that start later too, serve this from now on."""

    def stage(self, pickled: bytes) -> str:
        """Keep a pickled version where replicas can load it; returns its name."""

    def has(self, payload: str) -> bool:
        """Whether the pickled version of this name is kept."""

    def content(self, payload: str) -> bytes:
        """Return a pickled version; raises FileNotFoundError when it is not kept."""

    def load(self, truth: Truth) -> VersionSpec:
        """Return the version of a state; raises whatever unpickling it raises."""

    def forget_all_but(self, payloads: set[str]) -> None:
        """Delete the versions that nobody will ask for any more."""

    def notes(self) -> str | None:
        """Return what a kernel noted for those that come after it; None before the first note."""

    def note(self, text: str) -> None:
        """Replace the notes."""

    def forget_editions_before(self) -> None:
        """Delete what was kept for processes that are no more: each start of new ones has a home of its own."""

    def end(self) -> None:
        """Delete all that is kept for the deployment, which has ended; harmless when it has gone already."""


class _Apart(pickle.Unpickler):
    """Makes new classes, although cloudpickle would find those of an earlier version again and change them.

    It knows a notebook's class by an id that stays when the class's globals and attributes change; an old version that
    still serves would change with the new one.
    """

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if name in {"_make_skeleton_class", "_make_skeleton_enum"}:
            # Of both, the last argument but one is that id.
            return lambda *args: found(*args[:-2], None, args[-1])
        return found


def unpickled(file: BinaryIO, truth: Truth) -> VersionSpec:
    """Return the version that ``file`` holds, with the settings of a state."""
    spec: VersionSpec = _Apart(file).load()
    return dataclasses.replace(spec, settings=truth.settings)


class TruthFolder:
    """Where the truth of one deployment is kept.

    Parameters
    ----------
    path
        The folder, which is one of several in a folder of the deployment's own. Whoever can write there can run code in
        the replicas.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.path)

    async def look(self) -> Truth | None:
        """Read: a small file in memory keeps nobody waiting."""
        return self.read()

    def read(self) -> Truth | None:
        """Return the confirmed state; None before the first."""
        try:
            fields = json.loads((self.path / _FILE).read_bytes())
        except FileNotFoundError:
            return None
        return Truth(fields["generation"], fields["payload"], BatchSettings(**fields["settings"]))

    def confirm(self, truth: Truth) -> None:
        """Let every replica, those that start later too, serve this from now on."""
        self._write(_FILE, json.dumps(dataclasses.asdict(truth)).encode())

    def stage(self, pickled: bytes) -> str:
        """Keep a pickled version where replicas can load it; returns its name."""
        name = f"{hashlib.sha256(pickled).hexdigest()[:32]}.version"
        if not self.has(name):
            self._write(name, pickled)
        return name

    def content(self, payload: str) -> bytes:
        """Return a pickled version; raises FileNotFoundError when it is not kept."""
        return (self.path / payload).read_bytes()

    def load(self, truth: Truth) -> VersionSpec:
        """Return the version of a state; raises whatever unpickling it raises."""
        with (self.path / truth.payload).open("rb") as file:
            return unpickled(file, truth)

    def has(self, payload: str) -> bool:
        """Whether the pickled version of this name is kept."""
        return (self.path / payload).exists()

    def forget_all_but(self, payloads: set[str]) -> None:
        """Delete the versions that nobody will ask for any more."""
        for file in self.path.glob("*.version"):
            if file.name not in payloads:
                file.unlink(missing_ok=True)

    def notes(self) -> str | None:
        """Return what a kernel noted for those that come after it; None before the first note."""
        try:
            return (self.path / _NOTES).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def note(self, text: str) -> None:
        """Replace the notes."""
        self._write(_NOTES, text.encode())

    def forget_editions_before(self) -> None:
        """Delete the folders beside it."""
        for other in self.path.parent.iterdir():
            if other != self.path:
                shutil.rmtree(other, ignore_errors=True)

    def end(self) -> None:
        """Delete it and the folders beside it."""
        shutil.rmtree(self.path.parent, ignore_errors=True)

    def _write(self, name: str, content: bytes) -> None:
        """Write a file in one step: a reader finds all of it, or the one before."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self.path / f".{name}.{os.getpid()}"
        unfinished.write_bytes(content)
        unfinished.replace(self.path / name)
