"""VersionSlot: where the version that serves stands, and how another takes its place.

Usually the new one is loaded *beside* the old one, takes its place in one step, and the old one finishes the requests
that it has. A model that is too big to be in memory twice is loaded *instead*: the old one is let go first, and the
requests that come meanwhile wait for whichever version comes next.

Everything here runs on the endpoint's event loop.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import QueueFullError
from airserve_nb.version import Version, VersionSpec

__all__ = ["VersionSlot"]


class VersionSlot:
    """Holds the version that serves.

    Parameters
    ----------
    make
        Builds a version, still without its model.
    name
        The deployment, for sentences.
    let_go
        Called when the model has been let go to make room for the next one: whoever else holds a part of it lets go,
        too.
    """

    def __init__(
        self,
        make: Callable[[VersionSpec], Version],
        *,
        name: str,
        let_go: Callable[[], object] = gc.collect,
    ) -> None:
        self._make = make
        self._name = name
        self._let_go = let_go
        self._version: Version | None = None
        self._retiring: set[asyncio.Future[None]] = set()
        self._vacated: VersionSpec | None = None
        self._filled = asyncio.Event()
        self._waiting = 0

    @property
    def version(self) -> Version | None:
        """The version that serves; None before the first is loaded, and between two that do not overlap."""
        return self._version

    @property
    def vacated(self) -> VersionSpec | None:
        """What served until it was let go to make room for the next version; None when one serves."""
        return self._vacated

    @property
    def in_force(self) -> VersionSpec | None:
        """What serves, or did until it was let go: its description, with the limits that were set since."""
        return self._vacated if self._version is None else self._version.spec_in_force()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way and no old version is being ended."""
        return not self._retiring and (self._version is None or not self._version.in_use)

    async def take(self) -> Version:
        """Return the version that serves; between two that do not overlap, wait for the next one.

        Raises
        ------
        QueueFullError
            When there is none, and none comes; or as many requests wait for it as its queue holds.
        """
        while self._version is None:
            if self._vacated is None:
                raise self.not_loaded()
            if self._waiting >= self._vacated.settings.max_queue_size:
                raise QueueFullError(
                    f"{self._waiting} requests wait for the next version of {self._name} already; try again later."
                )
            self._waiting += 1
            try:
                await self._filled.wait()
            finally:
                self._waiting -= 1
        return self._version

    def not_loaded(self) -> QueueFullError:
        """Return the refusal of who asks while there is no model."""
        return QueueFullError(f"{self._name} has no model loaded now; try again in a moment.")

    async def prepare(self, spec: VersionSpec) -> Version:
        """Load a version; :meth:`switch_to` lets it serve, :meth:`discard` lets it go.

        Raises what loading raised.
        """
        version = self._make(spec)
        try:
            await version.batcher.start()
        except BaseException:
            # Cancelled: a model that has been loaded by then must not stay.
            version.batcher.give_up()
            raise
        return version

    def switch_to(self, version: Version) -> None:
        """Let a prepared version answer all requests from now on; the old one finishes those that it has."""
        replaced, self._version = self._version, version
        self._vacated = None
        self._filled.set()
        if replaced is not None:
            self.discard(replaced)

    async def activate(self, spec: VersionSpec) -> None:
        """Load a version beside the one that serves, then let it serve.

        Raises what loading raised, and the old version goes on serving.
        """
        self.switch_to(await self.prepare(spec))

    def discard(self, version: Version) -> None:
        """End a version after the requests that it has."""
        retiring = asyncio.ensure_future(version.retire())
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    async def vacate(self) -> None:
        """Make room for the next version: end the one that serves, once it has answered the requests that it has.

        Whoever calls this sees to it that a version comes to serve again, :attr:`vacated` if need be.
        """
        version = self._version
        if version is not None:
            self._vacated = self.in_force
            self._filled.clear()
            self._version = None
            self.discard(version)
            del version
        await self._room()

    async def restore(self) -> None:
        """Serve again what was let go, unless a version serves, or comes to serve meanwhile: that one is newer."""
        spec = self._vacated
        if spec is None:
            return
        await self._room()
        version = await self.prepare(spec)
        if self._vacated is spec:
            self.switch_to(version)
        else:
            self.discard(version)

    async def _room(self) -> None:
        """Wait until no model is left in memory."""
        await asyncio.gather(*self._retiring)
        self._let_go()

    def set_batching(self, settings: BatchSettings) -> None:
        """Let the version that serves batch by other limits, at once."""
        if self._version is not None:
            self._version.batcher.settings = settings

    async def close(self) -> None:
        """Let the requests that are here be answered, then end the model threads."""
        self._vacated = None
        self._filled.set()
        if self._version is not None:
            self.discard(self._version)
            self._version = None
        await asyncio.gather(*self._retiring)
