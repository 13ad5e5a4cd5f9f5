"""MicroBatcher: the policy with a real model thread."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb.batching.batcher import MicroBatcher
from airserve_nb.batching.execution import GIVE_UP_RETRIES_AFTER, Answer
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import BadInputError, BadOutputError, DeployError, PredictFailedError, QueueFullError
from airserve_nb.telemetry import BatchRecord, Recorder

# Long enough that a test which depends on it fails rather than passes slowly.
FOR_EVER = 60.0


class Gated:
    """A model that waits for permission, so that a test decides when it is busy."""

    def __init__(self, predict: Callable[[Any], Any] = lambda batch: batch) -> None:
        self.batches: list[Any] = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self._predict = predict

    def __call__(self, batch: Any) -> Any:
        self.batches.append(batch)
        self.started.release()
        assert self.gate.acquire(timeout=FOR_EVER)
        return self._predict(batch)

    async def is_busy(self) -> None:
        await asyncio.to_thread(self.started.acquire)


@asynccontextmanager
async def batching(
    predict: Callable[[Any], Any], **settings: Any
) -> AsyncIterator[tuple[MicroBatcher, Recorder]]:
    """Run a batcher, and prove that its thread ends."""
    recorder = Recorder()
    ids = itertools.count(1)
    batcher = MicroBatcher(
        lambda: predict,
        BatchSettings(**settings),
        next_batch_id=lambda: f"b{next(ids)}",
        recorder=recorder,
        version="t",
    )
    await batcher.start()
    try:
        yield batcher, recorder
    finally:
        await batcher.close()
    assert "airserve-model-t" not in {thread.name for thread in threading.enumerate()}


def value(number: float) -> np.ndarray:
    return np.array([number])


async def settle() -> None:
    """Let everything that is ready on the loop run."""
    for _ in range(5):
        await asyncio.sleep(0)


def records(recorder: Recorder) -> tuple[BatchRecord, ...]:
    return recorder.since().batches


def results(answers: list[Answer]) -> list[Any]:
    return [answer.value.tolist() if answer.error is None else type(answer.error) for answer in answers]


def test_requests_that_arrive_together_share_a_batch() -> None:
    """One turn of the loop, one batch."""

    async def main() -> None:
        async with batching(lambda batch: batch + 2, max_batch_size=32) as (batcher, recorder):
            answers = await asyncio.gather(*(batcher.submit(value(i)) for i in range(10)))
            assert results(answers) == [[i + 2.0] for i in range(10)]
            assert [record.batch_size for record in records(recorder)] == [10]
            assert {answer.batch_id for answer in answers} == {"b1"}

    asyncio.run(main())


def test_what_arrives_while_the_model_runs_forms_the_next_batch() -> None:
    """The batch is formed when the model is free, from all that waits then."""

    async def main() -> None:
        model = Gated()
        async with batching(model) as (batcher, recorder):
            first = asyncio.ensure_future(batcher.submit(value(0)))
            await model.is_busy()
            rest = [asyncio.ensure_future(batcher.submit(value(i))) for i in range(1, 6)]
            await settle()
            assert len(batcher) == 5
            model.gate.release(2)
            await asyncio.gather(first, *rest)
            assert [(r.batch_size, r.release_reason) for r in records(recorder)] == [
                (1, "timeout"),
                (5, "model_free"),
            ]

    asyncio.run(main())


def test_a_full_batch_does_not_wait() -> None:
    """The last member to fit releases the batch."""

    async def main() -> None:
        async with batching(lambda batch: batch, max_batch_size=3, batch_wait_timeout_s=FOR_EVER) as (
            batcher,
            recorder,
        ):
            await asyncio.gather(*(batcher.submit(value(i)) for i in range(3)))
            assert [r.release_reason for r in records(recorder)] == ["full"]

    asyncio.run(main())


def test_shapes_that_do_not_stack_ride_in_batches_of_their_own() -> None:
    """A client's odd shape is no other client's error."""

    async def main() -> None:
        async with batching(lambda batch: batch) as (batcher, recorder):
            answers = await asyncio.gather(*(batcher.submit(np.zeros(n)) for n in (1, 2, 1)))
            assert [answer.value.shape for answer in answers] == [(1,), (2,), (1,)]
            assert sorted(r.batch_size for r in records(recorder)) == [1, 2]

    asyncio.run(main())


def test_new_settings_act_on_what_waits() -> None:
    """A knob that is turned releases a batch that has become full."""

    async def main() -> None:
        async with batching(lambda batch: batch, batch_wait_timeout_s=FOR_EVER) as (batcher, _):
            waiting = [asyncio.ensure_future(batcher.submit(value(i))) for i in range(2)]
            await settle()
            assert len(batcher) == 2
            batcher.settings = batcher.settings.changed({"max_batch_size": 2})
            await asyncio.gather(*waiting)

    asyncio.run(main())


class TestFailures:
    def test_one_poisoned_request_fails_alone(self) -> None:
        """31 good requests are answered beside a bad one."""

        def predict(batch: np.ndarray) -> np.ndarray:
            if (batch == 13).any():
                raise ValueError("thirteen")
            return batch

        async def main() -> None:
            async with batching(predict, max_batch_size=32) as (batcher, recorder):
                answers = await asyncio.gather(*(batcher.submit(value(i)) for i in range(32)))
                assert results(answers) == [PredictFailedError if i == 13 else [float(i)] for i in range(32)]
                error = answers[13].error
                assert isinstance(error, PredictFailedError)
                assert error.isolated
                assert str(error) == "predict raised ValueError: thirteen."
                assert len(records(recorder)) <= 1 + 11

        asyncio.run(main())

    def test_retries_get_their_input_afresh(self) -> None:
        """A predictor that spoils its input before it raises spoils nothing."""

        def predict(batch: np.ndarray) -> np.ndarray:
            bad = (batch == 3).any()
            batch += 100
            if bad:
                raise ValueError
            return batch

        async def main() -> None:
            async with batching(predict) as (batcher, _):
                answers = await asyncio.gather(*(batcher.submit(value(i)) for i in range(5)))
                assert results(answers) == [PredictFailedError if i == 3 else [i + 100.0] for i in range(5)]

        asyncio.run(main())

    def test_a_broken_model_is_not_retried_for_ever(self) -> None:
        """After some wholly failed batches each costs one call, until one succeeds."""
        calls: list[int] = []
        broken = True

        def predict(batch: np.ndarray) -> np.ndarray:
            calls.append(len(batch))
            if broken:
                raise ValueError
            return batch

        async def burst(batcher: MicroBatcher) -> int:
            before = len(calls)
            await asyncio.gather(*(batcher.submit(value(i)) for i in range(4)))
            return len(calls) - before

        async def main() -> None:
            nonlocal broken
            async with batching(predict) as (batcher, _):
                costs = [await burst(batcher) for _ in range(GIVE_UP_RETRIES_AFTER + 2)]
                assert all(cost > 1 for cost in costs[:GIVE_UP_RETRIES_AFTER])
                assert costs[GIVE_UP_RETRIES_AFTER:] == [1, 1]
                broken = False
                await burst(batcher)
                broken = True
                assert await burst(batcher) > 1

        asyncio.run(main())

    def test_retries_can_be_turned_off(self) -> None:
        """A predictor with side effects is called once a batch; its members share the error."""
        calls: list[int] = []

        def predict(batch: np.ndarray) -> np.ndarray:
            calls.append(len(batch))
            raise ValueError

        async def main() -> None:
            async with batching(predict, retry_failed_batches=False) as (batcher, _):
                answers = await asyncio.gather(*(batcher.submit(value(i)) for i in range(4)))
                assert calls == [4]
                errors = [answer.error for answer in answers]
                assert all(isinstance(e, PredictFailedError) and not e.isolated for e in errors)
                assert len({id(error) for error in errors}) == 4, "an object for each"

        asyncio.run(main())

    def test_a_wrong_output_is_not_retried(self) -> None:
        """A tuple is the predictor's mistake, whoever asked."""
        calls: list[int] = []

        def predict(batch: np.ndarray) -> tuple[Any, Any]:
            calls.append(len(batch))
            return batch.mean(), batch.std()

        async def main() -> None:
            async with batching(predict) as (batcher, _):
                answers = await asyncio.gather(*(batcher.submit(value(i)) for i in range(4)))
                assert calls == [4]
                for answer in answers:
                    assert isinstance(answer.error, BadOutputError)
                    assert "stack mean and std into one array" in str(answer.error)

        asyncio.run(main())

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError(), GeneratorExit()])
    def test_the_model_thread_survives_anything(self, error: BaseException) -> None:
        """Whatever predict raises, the next request is answered."""
        raised: list[BaseException] = []

        def predict(batch: np.ndarray) -> np.ndarray:
            if not raised:
                raised.append(error)
                raise error
            return batch

        async def main() -> None:
            async with batching(predict) as (batcher, _):
                assert isinstance((await batcher.submit(value(1))).error, PredictFailedError)
                assert (await batcher.submit(value(1))).error is None

        asyncio.run(main())

    def test_an_error_without_words_harms_nobody(self) -> None:
        """An exception whose str() raises is named by its type."""

        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        def predict(batch: Any) -> Any:
            raise MuteError

        async def main() -> None:
            async with batching(predict) as (batcher, _):
                answer = await batcher.submit(value(1))
                assert str(answer.error) == "predict raised MuteError."

        asyncio.run(main())


class TestLeaving:
    def test_a_cancelled_request_never_reaches_predict(self) -> None:
        """Who has gone is not predicted, and who stays is answered."""

        async def main() -> None:
            model = Gated()
            async with batching(model) as (batcher, _):
                first = asyncio.ensure_future(batcher.submit(value(0)))
                await model.is_busy()
                waiting = [asyncio.ensure_future(batcher.submit(value(i))) for i in (1, 2, 3)]
                await settle()
                waiting[1].cancel()
                await settle()
                model.gate.release(2)
                await asyncio.gather(first, waiting[0], waiting[2])
                assert [batch.ravel().tolist() for batch in model.batches] == [[0.0], [1.0, 3.0]]

        asyncio.run(main())

    def test_leaving_during_predict_harms_nobody(self) -> None:
        """An answer that nobody waits for is dropped; the others of its batch get theirs."""

        async def main() -> None:
            model = Gated()
            async with batching(model) as (batcher, _):
                riding = [asyncio.ensure_future(batcher.submit(value(i))) for i in range(2)]
                await model.is_busy()
                riding[0].cancel()
                await settle()
                model.gate.release(2)
                assert (await riding[1]).value.tolist() == [1.0]
                assert (await batcher.submit(value(5))).value.tolist() == [5.0]

        asyncio.run(main())


class TestBounds:
    def test_a_full_queue_refuses(self) -> None:
        """Beyond max_queue_size a request is refused at once, and says when to come again."""

        async def main() -> None:
            model = Gated()
            async with batching(model, max_queue_size=2) as (batcher, _):
                riding = [asyncio.ensure_future(batcher.submit(value(0)))]
                await model.is_busy()
                riding += [asyncio.ensure_future(batcher.submit(value(i))) for i in (1, 2)]
                await settle()
                with pytest.raises(QueueFullError, match="2 requests wait already") as refused:
                    await batcher.submit(value(3))
                assert refused.value.retry_after_s > 0
                model.gate.release(3)
                await asyncio.gather(*riding)

        asyncio.run(main())

    def test_closing_answers_what_waits(self) -> None:
        """A batcher that is closed lets nobody wait for company, and refuses newcomers."""

        async def main() -> None:
            async with batching(lambda batch: batch, batch_wait_timeout_s=FOR_EVER) as (batcher, recorder):
                waiting = asyncio.ensure_future(batcher.submit(value(1)))
                await settle()
                await batcher.close()
                assert (await waiting).value.tolist() == [1.0]
                assert [r.release_reason for r in records(recorder)] == ["drain"]
                with pytest.raises(QueueFullError):
                    await batcher.submit(value(2))

        asyncio.run(main())

    def test_a_frame_without_rows_is_answered_without_predict(self) -> None:
        """There is nothing to predict."""

        def predict(batch: Any) -> Any:
            raise AssertionError

        async def main() -> None:
            async with batching(predict) as (batcher, recorder):
                assert (await batcher.submit(pd.DataFrame({"a": []}))).value == []
                assert records(recorder) == ()

        asyncio.run(main())

    def test_what_can_not_be_stacked_is_refused(self) -> None:
        """A list is no model input while batching is on."""

        async def main() -> None:
            async with batching(lambda batch: batch) as (batcher, _):
                with pytest.raises(BadInputError, match="list"):
                    await batcher.submit([1, 2])

        asyncio.run(main())


def test_without_batching_the_input_comes_unchanged() -> None:
    """Off means: the adapter's output in, the predictor's output out, one by one."""

    async def main() -> None:
        ids = itertools.count()
        batcher = MicroBatcher(
            lambda: lambda x: {"got": x},
            BatchSettings.from_params(False),
            next_batch_id=lambda: str(next(ids)),
        )
        await batcher.start()
        answers = await asyncio.gather(*(batcher.submit(x) for x in ([1, 2], "text", None)))
        assert [answer.value for answer in answers] == [{"got": [1, 2]}, {"got": "text"}, {"got": None}]
        await batcher.close()

    asyncio.run(main())


def test_a_coroutine_predict_is_awaited_on_the_loop() -> None:
    """An async predictor runs where its futures live."""

    async def main() -> None:
        loops: list[asyncio.AbstractEventLoop] = []

        async def predict(batch: np.ndarray) -> np.ndarray:
            await asyncio.sleep(0)
            loops.append(asyncio.get_running_loop())
            return batch * 2

        async with batching(predict) as (batcher, _):
            assert (await batcher.submit(value(4))).value.tolist() == [8.0]
            assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


def test_a_submit_from_another_loop_is_answered_there() -> None:
    """Threads with loops of their own share the batches."""

    async def main() -> None:
        async with batching(lambda batch: batch) as (batcher, _):
            elsewhere = await asyncio.to_thread(asyncio.run, _submit(batcher, 7))
            assert elsewhere == [7.0]

    asyncio.run(main())


async def _submit(batcher: MicroBatcher, number: float) -> Any:
    return (await batcher.submit(value(number))).value.tolist()


def test_the_model_is_loaded_in_its_own_thread() -> None:
    """Frameworks that are bound to a thread are loaded and called in the same one."""

    async def main() -> None:
        names: list[str] = []

        def load() -> Callable[[Any], Any]:
            names.append(threading.current_thread().name)

            def predict(batch: Any) -> Any:
                names.append(threading.current_thread().name)
                return batch

            return predict

        batcher = MicroBatcher(load, next_batch_id=lambda: "b", version="x")
        await batcher.start()
        await batcher.submit(value(1))
        await batcher.close()
        assert names == ["airserve-model-x"] * 2

    asyncio.run(main())


def test_a_load_that_fails_says_so() -> None:
    """start() raises what the load raised, and no thread is left."""

    def load() -> Callable[[Any], Any]:
        raise KeyError("weights")

    async def main() -> None:
        batcher = MicroBatcher(load, next_batch_id=lambda: "b", version="broken")
        with pytest.raises(KeyError, match="weights"):
            await batcher.start()
        await batcher.close()
        assert "airserve-model-broken" not in {thread.name for thread in threading.enumerate()}

    asyncio.run(main())


def test_requests_that_fail_alone_do_not_end_the_search_for_the_guilty() -> None:
    """Lone bad requests say nothing of the model: the next poisoned batch is still divided."""

    def predict(batch: np.ndarray) -> np.ndarray:
        if (batch < 0).any():
            raise ValueError
        return batch

    async def main() -> None:
        async with batching(predict) as (batcher, _):
            for _ in range(GIVE_UP_RETRIES_AFTER + 1):
                assert (await batcher.submit(value(-1))).error is not None
            answers = await asyncio.gather(*(batcher.submit(value(i)) for i in (1, -1, 2)))
            assert results(answers) == [[1.0], PredictFailedError, [2.0]]

    asyncio.run(main())


def test_a_model_that_keeps_the_lock_still_answers_everybody() -> None:
    """Between the batches of a model that computes in Python, the loop is let run."""

    def predict(batch: np.ndarray) -> np.ndarray:
        for _ in range(1_000_000):
            pass
        return batch

    async def main() -> None:
        async with batching(predict, max_batch_size=2) as (batcher, recorder):
            answers = await asyncio.gather(*(batcher.submit(value(i)) for i in range(8)))
            assert results(answers) == [[float(i)] for i in range(8)]
            assert len(records(recorder)) >= 4

    asyncio.run(main())


def test_a_load_that_exits_is_an_error() -> None:
    """sys.exit() while loading must not end the server's loop."""

    def load() -> Callable[[Any], Any]:
        raise SystemExit(1)

    async def main() -> None:
        batcher = MicroBatcher(load, next_batch_id=lambda: "b", version="exits")
        with pytest.raises(DeployError, match="SystemExit"):
            await batcher.start()
        await batcher.close()

    asyncio.run(main())
