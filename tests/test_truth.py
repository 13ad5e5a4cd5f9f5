"""The truth on disk, and the Follower that keeps an endpoint at it: what a swap rests on, without Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from airserve_nb import DeployError, Predictor, QueueFullError
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.endpoint import Endpoint
from airserve_nb.follower import Follower
from airserve_nb.truth import Truth, TruthAwayError, TruthFolder
from airserve_nb.version import VersionSpec, make_spec


def constant(value: float, *, error: Exception | None = None) -> type[Predictor]:
    """Make a predictor that answers ``value``, or can't be loaded."""

    class Constant(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            if error is not None:
                raise error
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return np.full(len(data), value)

    return Constant


def spec_of(predictor: Any, version: str) -> VersionSpec:
    return dataclasses.replace(make_spec(predictor, None), version=version)


class Kernel:
    """Whoever swaps: stages versions and confirms them."""

    def __init__(self, path: Path) -> None:
        self.folder = TruthFolder(path)
        self.generation = 0

    def stage(self, spec: VersionSpec, settings: BatchSettings | None = None) -> Truth:
        self.generation += 1
        payload = self.folder.stage(cloudpickle.dumps(spec))
        return Truth(self.generation, payload, settings or spec.settings)

    def confirm(self, spec: VersionSpec, settings: BatchSettings | None = None) -> Truth:
        truth = self.stage(spec, settings)
        self.folder.confirm(truth)
        return truth


def stage_held(kernel: Kernel) -> tuple[Truth, threading.Event, threading.Event]:
    """Stage a version that says when it is being loaded, and goes on loading until it is told."""
    loading, go_on = threading.Event(), threading.Event()

    class Held(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            loading.set()
            assert go_on.wait(30)
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return np.zeros(len(data))

    held = kernel.stage(spec_of(constant(2), "v2"))
    load = kernel.folder.load
    # Handed over as it is: pickled by value, it could not talk to this process.
    kernel.folder.load = lambda truth: spec_of(Held, "v2") if truth is held else load(truth)  # type: ignore[method-assign]
    return held, loading, go_on


def run_with(kernel: Kernel, talk: Callable[[Endpoint, Follower], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        endpoint = Endpoint("adder")
        try:
            return await talk(endpoint, Follower(endpoint, kernel.folder))
        finally:
            await endpoint.close()

    before = threading.active_count()
    result = asyncio.run(main())
    assert threading.active_count() == before, "a dropped version left its thread"
    return result


async def answer(endpoint: Endpoint) -> float:
    return float(await endpoint.predict(np.array([1.0])))


# -- on disk ----------------------------------------------------------------------------------------


def test_what_is_confirmed_is_read(tmp_path: Path) -> None:
    """Nothing before the first; then all fields, and the version with the settings that are in force."""
    kernel = Kernel(tmp_path / "new" / "folder")
    assert kernel.folder.read() is None
    settings = BatchSettings(max_batch_size=3, max_batch_rows=7, batch_wait_timeout_s=0.25, enabled=False)
    truth = kernel.confirm(spec_of(constant(1), "v1"), settings)
    assert kernel.folder.read() == truth == Truth(1, truth.payload, settings)
    loaded = kernel.folder.load(truth)
    assert (loaded.version, loaded.settings) == ("v1", settings)


def test_a_payload_is_named_by_its_content(tmp_path: Path) -> None:
    """The same bytes are kept once; what nobody asks for any more can be deleted."""
    folder = TruthFolder(tmp_path)
    one, two = folder.stage(b"one"), folder.stage(b"two")
    assert folder.stage(b"one") == one != two
    folder.forget_all_but({two})
    assert [file.name for file in tmp_path.iterdir()] == [two]


def test_two_versions_of_one_class_stay_apart(tmp_path: Path) -> None:
    """Loading a class of the notebook again does not change the one that serves already."""
    kernel = Kernel(tmp_path)
    cls: Any = constant(1)
    cls.value = 1
    first = kernel.folder.load(kernel.stage(spec_of(cls, "v1")))
    cls.value = 2
    second = kernel.folder.load(kernel.stage(spec_of(cls, "v2")))
    old, new = first.predictor_cls, second.predictor_cls
    assert (old.value, new.value) == (1, 2)  # type: ignore[union-attr]  # set above
    assert old is not new


# -- following --------------------------------------------------------------------------------------


def test_a_replica_starts_with_the_truth(tmp_path: Path) -> None:
    """The constructor's catching up serves what is confirmed, and is told its generation."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        assert await follower.catch_up() == follower.generation == 1
        assert await answer(endpoint) == 1

    run_with(kernel, talk)


def test_prepare_then_catch_up(tmp_path: Path) -> None:
    """What is prepared serves only when it is confirmed, and is not loaded a second time."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        truth = kernel.stage(spec_of(constant(2), "v2"))
        await follower.prepare(truth)
        assert await follower.catch_up() == 1
        assert await answer(endpoint) == 1
        kernel.folder.confirm(truth)
        (kernel.folder.path / truth.payload).unlink()
        assert await follower.catch_up() == 2
        assert await answer(endpoint) == 2

    run_with(kernel, talk)


def test_dropping_what_was_prepared(tmp_path: Path) -> None:
    """A dropped version, and one that another takes the place of, end; the old one serves on."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        second, third = kernel.stage(spec_of(constant(2), "v2")), kernel.stage(spec_of(constant(3), "v3"))
        await follower.prepare(second)
        await follower.prepare(third)
        await follower.drop(second)
        await follower.drop(third)
        await follower.drop(third)
        assert await follower.catch_up() == 1
        assert await answer(endpoint) == 1

    run_with(kernel, talk)


def test_a_young_replica_looks_before_each_answer(tmp_path: Path) -> None:
    """Whoever swapped may not have known of it: before its first answers it looks by itself."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        kernel.confirm(spec_of(constant(2), "v2"))
        await follower.before_answer()
        assert await answer(endpoint) == 2
        follower._young_until = 0
        kernel.confirm(spec_of(constant(3), "v3"))
        await follower.before_answer()
        assert await answer(endpoint) == 2

    run_with(kernel, talk)


def test_what_can_not_load_changes_nothing(tmp_path: Path) -> None:
    """Prepare raises what from_checkpoint raised, and the old version serves on."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        with pytest.raises(KeyError, match="weights"):
            await follower.prepare(kernel.stage(spec_of(constant(2, error=KeyError("weights")), "v2")))
        assert await answer(endpoint) == 1
        assert await follower.catch_up() == 1

    run_with(kernel, talk)


def test_one_that_missed_the_preparation_loads_by_itself(tmp_path: Path) -> None:
    """A replica that heard nothing serves the newest truth after its next look."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        kernel.confirm(spec_of(constant(2), "v2"))
        kernel.confirm(spec_of(constant(3), "v3"))
        await follower.look_again()
        assert await answer(endpoint) == 3

    run_with(kernel, talk)


def test_a_truth_that_comes_while_loading(tmp_path: Path) -> None:
    """A swap during the constructor is not missed: the truth is read again after loading."""
    kernel = Kernel(tmp_path)

    class Slow(Predictor):
        @classmethod
        def from_checkpoint(cls, checkpoint: Any, **_: Any) -> Any:
            kernel.folder.confirm(second)
            return cls()

        def predict(self, data: Any, **_: Any) -> Any:
            return np.zeros(len(data))

    # Handed over as it is: only what is pickled by value could not confirm anything here.
    first = kernel.confirm(spec_of(constant(1), "v1"))
    second = kernel.stage(spec_of(constant(2), "v2"))
    load = kernel.folder.load
    kernel.folder.load = lambda truth: spec_of(Slow, "v1") if truth == first else load(truth)  # type: ignore[method-assign]

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        assert await follower.catch_up() == 2
        assert await answer(endpoint) == 2

    run_with(kernel, talk)


def test_new_limits_keep_the_version(tmp_path: Path) -> None:
    """Other batch settings are set on the version that runs; on or off takes a new one."""
    kernel = Kernel(tmp_path)
    first = kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        version = endpoint.version
        assert version is not None
        kernel.folder.confirm(Truth(2, first.payload, BatchSettings(max_batch_size=3)))
        await follower.catch_up()
        assert endpoint.version is version
        assert version.batcher.settings.max_batch_size == 3
        kernel.folder.confirm(Truth(3, first.payload, BatchSettings(enabled=False)))
        await follower.catch_up()
        assert endpoint.version is not version

    run_with(kernel, talk)


def test_a_model_that_loads_holds_nothing_up(tmp_path: Path) -> None:
    """While a version loads, health checks, answers and the next version go on; given up, it never serves."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))
    held, loading, go_on = stage_held(kernel)

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        preparing = asyncio.create_task(follower.prepare(held))
        await asyncio.to_thread(loading.wait, 30)
        await asyncio.wait_for(follower.look_again(), 5)
        await asyncio.wait_for(follower.before_answer(), 5)
        assert await answer(endpoint) == 1
        await follower.drop(held)
        third = kernel.stage(spec_of(constant(3), "v3"))
        await asyncio.wait_for(follower.prepare(third), 5)
        kernel.folder.confirm(third)
        assert await asyncio.wait_for(follower.catch_up(), 5) == 3
        go_on.set()
        with pytest.raises(DeployError, match="v2 was given up"):
            await preparing
        assert await answer(endpoint) == 3

    run_with(kernel, talk)


# -- without overlap --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["dropped", "never confirmed", "confirmed"])
def test_requests_wait_for_what_comes_next(tmp_path: Path, end: str) -> None:
    """Between two versions nothing is answered; then by the new one, or by the old one when that does not come to serve."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        truth = kernel.stage(spec_of(constant(2), "v2"))
        await follower.prepare(truth, overlap=False)
        waiting = asyncio.create_task(answer(endpoint))
        await follower.look_again()
        assert not waiting.done()
        if end == "dropped":
            await follower.drop(truth)
        elif end == "never confirmed":
            follower._confirmed_until = 0
            await follower.look_again()
        else:
            kernel.folder.confirm(truth)
            await follower.catch_up()
        assert await asyncio.wait_for(waiting, 5) == (2 if end == "confirmed" else 1)
        (record,) = endpoint.recorder.since().requests
        assert record.version == ("v2" if end == "confirmed" else "v1")

    run_with(kernel, talk)


def test_the_old_model_does_not_come_back_beside_one_that_loads(tmp_path: Path) -> None:
    """Given up while it loads, a version that can't be stopped ends before the old one is loaded again."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))
    held, loading, go_on = stage_held(kernel)

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        preparing = asyncio.create_task(follower.prepare(held, overlap=False))
        await asyncio.to_thread(loading.wait, 30)
        waiting = asyncio.create_task(answer(endpoint))
        await follower.drop(held)
        await follower.look_again()
        assert endpoint.version is None
        go_on.set()
        with pytest.raises(DeployError, match="v2 was given up"):
            await preparing
        assert await asyncio.wait_for(waiting, 5) == 1

    run_with(kernel, talk)


def test_as_many_wait_as_the_queue_holds(tmp_path: Path) -> None:
    """Between two versions the queue's limit holds, too."""
    kernel = Kernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"), BatchSettings(max_queue_size=1))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        await follower.catch_up()
        truth = kernel.stage(spec_of(constant(2), "v2"))
        await follower.prepare(truth, overlap=False)
        waiting = asyncio.create_task(answer(endpoint))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="1 requests wait for the next version"):
            await answer(endpoint)
        await follower.drop(truth)
        assert await waiting == 1

    run_with(kernel, talk)


# -- a home that may be away ------------------------------------------------------------------------


class Distant(TruthFolder):
    """A home that can't be reached at times, as an actor that is being started again."""

    away = False

    async def look(self) -> Truth | None:
        if self.away:
            raise TruthAwayError("away")
        return self.read()


class DistantKernel(Kernel):
    folder: Distant

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = Distant(path)


def test_while_the_truth_is_away_what_serves_goes_on(tmp_path: Path) -> None:
    """Health checks and answers go on; when the truth is there again, it is served."""
    kernel = DistantKernel(tmp_path)
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        assert await follower.start()
        kernel.confirm(spec_of(constant(2), "v2"))
        kernel.folder.away = True
        await follower.look_again()
        await follower.before_answer()
        assert (await follower.catch_up(), await answer(endpoint)) == (1, 1)
        kernel.folder.away = False
        await follower.look_again()
        assert await answer(endpoint) == 2

    run_with(kernel, talk)


def test_a_replica_that_starts_waits_for_the_truth(tmp_path: Path) -> None:
    """It serves nothing before it knows what to serve, and starts as soon as it does."""
    kernel = DistantKernel(tmp_path)
    kernel.folder.away = True
    kernel.confirm(spec_of(constant(1), "v1"))

    async def talk(endpoint: Endpoint, follower: Follower) -> None:
        starting = asyncio.create_task(follower.start())
        await asyncio.sleep(0)
        assert endpoint.version is None
        kernel.folder.away = False
        assert await asyncio.wait_for(starting, 5)
        assert await answer(endpoint) == 1

    run_with(kernel, talk)


def test_a_replica_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the truth does not come back, the reason is the truth's own sentence; nothing confirmed is no version."""
    monkeypatch.setattr("airserve_nb.follower.START_PATIENCE_S", 0)
    kernel = DistantKernel(tmp_path)

    async def talk(_: Endpoint, follower: Follower) -> None:
        assert not await follower.start()
        kernel.folder.away = True
        with pytest.raises(TruthAwayError, match="away"):
            await follower.start()

    run_with(kernel, talk)
