"""Where the version that serves stands: two that want its place at once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np

from airserve_nb import Checkpoint, Predictor
from airserve_nb.endpoint import Endpoint
from airserve_nb.version import VersionSpec


def test_the_old_version_does_not_come_back_over_a_newer_one() -> None:
    """A load that was given up lets the old version be loaded again; one that serves by then goes on serving."""
    loading, go_on = threading.Event(), threading.Event()
    started: list[int] = []

    class Old(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            started.append(1)
            if len(started) == 2:
                loading.set()
                assert go_on.wait(30)
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return data * 0 + 1

    class New(Old):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return data * 0 + 2

    async def main() -> float:
        endpoint = Endpoint("adder")
        versions = endpoint.versions
        await versions.activate(VersionSpec(Old, Checkpoint.from_dict({}), version="v1"))
        await versions.vacate()
        restoring = asyncio.ensure_future(versions.restore())
        await asyncio.to_thread(loading.wait, 30)
        versions.switch_to(await versions.prepare(VersionSpec(New, Checkpoint.from_dict({}), version="v2")))
        go_on.set()
        await restoring
        answer = float((await endpoint.predict(np.array([1.0])))[0])
        await endpoint.close()
        return answer

    before = threading.active_count()
    assert asyncio.run(main()) == 2
    assert threading.active_count() == before, "what was loaded in vain left its thread"
