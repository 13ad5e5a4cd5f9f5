"""Follower: keeps one replica's endpoint at the truth.

A swap has two phases. First every replica *prepares* the new version beside the one that serves; if any can't, all
drop it. Then the truth is confirmed, and every replica *catches up* with it. A replica that missed either phase
catches up by itself: when it starts, with its health checks, and before its first answers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress

from airserve_nb.endpoint import Endpoint
from airserve_nb.errors import DeployError
from airserve_nb.truth import Truth, TruthAwayError, TruthHome
from airserve_nb.version import Version, VersionSpec

__all__ = ["Follower"]

# A replica that has just started may take requests before whoever swaps knows of it, for as long as Serve needs to
# tell of it. Until then it looks at the truth before each answer; from then on it is told.
YOUTH_S = 10.0
# All replicas have to load a version before it is confirmed, and some are slower than others.
CONFIRMATION_PATIENCE_S = 300.0
# An actor that died is there again in seconds.
START_PATIENCE_S = 30.0
RETRY_S = 0.2


class Follower:
    """Serves what the truth says.

    Parameters
    ----------
    endpoint
        Where versions are prepared and switched.
    home
        Where the truth is kept.
    adapt
        Changes a version's description to fit this replica, such as its GPU.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        home: TruthHome,
        *,
        adapt: Callable[[VersionSpec], VersionSpec] = lambda spec: spec,
    ) -> None:
        self.home = home
        self._versions = endpoint.versions
        self._adapt = adapt
        self._serving: Truth | None = None
        self._prepared: tuple[Truth, Version] | None = None
        self._wanted: Truth | None = None
        self._loading = 0
        # One change at a time, in the order in which they were asked for.
        self._changing = asyncio.Lock()
        self._young_until = math.inf
        self._confirmed_until = math.inf

    async def start(self) -> bool:
        """Serve what is confirmed; whether anything is. Waits for a home that is away, which may be starting again."""
        deadline = time.monotonic() + START_PATIENCE_S
        while True:
            try:
                return await self.catch_up() > 0
            except TruthAwayError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)

    def begin_youth(self) -> None:
        """Count from now, when requests may come, the time in which a swap may not know of this replica."""
        self._young_until = time.monotonic() + YOUTH_S

    @property
    def generation(self) -> int:
        """Which state is served; 0 before the first."""
        return 0 if self._serving is None else self._serving.generation

    async def prepare(self, truth: Truth, *, overlap: bool = True) -> None:
        """Load a version, but do not serve it yet; raises what loading raised.

        A load that never ends holds nothing up: the next one takes its place. Without ``overlap`` the version that
        serves is let go first, and requests wait; it comes back when the new one can't be loaded, is dropped, or
        nobody confirms it.
        """
        self._let_go()
        self._wanted = truth
        try:
            self._prepared = truth, await self._loaded(truth, overlap=overlap)
            self._confirmed_until = time.monotonic() + CONFIRMATION_PATIENCE_S
        except BaseException:
            if self._wanted is truth:
                self._wanted = None
            await self._fill_again()
            raise

    async def _loaded(self, truth: Truth, *, overlap: bool) -> Version:
        self._loading += 1
        try:
            if not overlap:
                await self._versions.vacate()
            version = await self._load(truth)
        finally:
            self._loading -= 1
        if self._wanted is not truth or self.generation >= truth.generation:
            self._versions.discard(version)
            raise DeployError(f"{version.name} was given up while it was loaded.")
        return version

    async def drop(self, truth: Truth) -> None:
        """Let go of what was prepared, or is being; unless that is something else by now."""
        if self._wanted == truth:
            self._let_go()
            await self._fill_again()

    def _let_go(self) -> None:
        self._wanted = None
        if self._prepared is not None:
            _, version = self._prepared
            self._prepared = None
            self._versions.discard(version)

    async def catch_up(self) -> int:
        """Serve what is confirmed, and return its generation; raises what loading raised."""
        async with self._changing:
            # Again after loading, which takes its time: there may be a newer truth by then.
            while (truth := await self._newer_truth()) is not None:
                try:
                    await self._serve(truth)
                except FileNotFoundError:
                    # Deleted while it was about to be loaded, because there are newer ones.
                    if await self.home.look() == truth:
                        raise
            if self._wanted is None and not self._loading:
                # Not beside one that is still being loaded: both may be too big for that.
                await self._versions.restore()
            return self.generation

    async def before_answer(self) -> None:
        """Catch up if there is a newer truth; a version that is only being prepared is not waited for."""
        if time.monotonic() <= self._young_until and await self._newer_truth() is not None:
            await self.catch_up()

    async def look_again(self) -> None:
        """Catch up, unless a change is under way: a health check must not wait for a model to load."""
        if self._changing.locked():
            return
        if self._versions.vacated and self._prepared is not None and time.monotonic() > self._confirmed_until:
            # Requests wait, and whoever wanted to swap has gone.
            self._let_go()
        await self.catch_up()

    async def _fill_again(self) -> None:
        """Serve again what was let go for a version that did not come to serve."""
        if self._versions.vacated:
            # Should it fail, the next health check says so, and Serve replaces this replica.
            with suppress(Exception):
                await self.catch_up()

    async def _newer_truth(self) -> Truth | None:
        try:
            truth = await self.home.look()
        except TruthAwayError:
            if self._serving is None:
                raise
            # What serves goes on, and looks again with the next health check.
            return None
        return truth if truth is not None and truth.generation > self.generation else None

    async def _serve(self, truth: Truth) -> None:
        if self._is_same_version(truth):
            self._versions.set_batching(truth.settings)
        elif self._prepared is not None and self._prepared[0].payload == truth.payload:
            _, version = self._prepared
            self._prepared = None
            version.batcher.settings = truth.settings
            self._versions.switch_to(version)
        else:
            self._versions.switch_to(await self._load(truth))
        self._serving = truth
        # What else was prepared for it, or before it, is of no use any more.
        if self._prepared is not None and self._prepared[0].generation <= truth.generation:
            self._let_go()

    def _is_same_version(self, truth: Truth) -> bool:
        now = self._serving
        # Turning batching on or off changes what predict is given, so requests must not be mixed.
        return (
            self._versions.vacated is None
            and now is not None
            and now.payload == truth.payload
            and now.settings.enabled == truth.settings.enabled
        )

    async def _load(self, truth: Truth) -> Version:
        # In a thread: what is unpickled may import a framework for seconds.
        spec = await asyncio.to_thread(self.home.load, truth)
        return await self._versions.prepare(self._adapt(spec))
