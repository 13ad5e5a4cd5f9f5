"""MicroBatcher: drives the batching policy with one model thread.

Who owns what:

- The *event loop* (or several) calls :meth:`MicroBatcher.submit`: it puts the request into the policy's
  queue under a lock and awaits a future. It neither collates nor predicts, so it goes on reading
  requests while the model runs.
- The *model thread* loads the model, then repeats: take the batch that the policy releases, run it, hand
  the answers to the loops. It takes a batch at the very moment the model is free; no message to the
  loop and back stands between two batches.

The next batch is taken before the last one's answers are handed over, so their encoding does not delay it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future as ThreadFuture
from typing import Any

from airserve_nb._sentences import as_sentence, describe
from airserve_nb.batching.collate import rows, signature
from airserve_nb.batching.execution import Answer, Execution, Predict
from airserve_nb.batching.fairness import LoopFairness
from airserve_nb.batching.policy import BatchQueue, Release, Waiting
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import DeployError, QueueFullError
from airserve_nb.telemetry import Recorder

__all__ = ["MicroBatcher"]

logger = logging.getLogger("airserve_nb.batcher")


# A lock refuses to wait for centuries; waking up in vain once an hour costs nothing.
LONGEST_SLEEP_S = 3600.0


class _Ticket(Waiting):
    """A waiting request that knows who awaits its answer."""

    __slots__ = ("future", "loop")

    def __init__(self, value: Any, *, batched: bool, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            arrived_at=time.perf_counter(),
            signature=signature(value) if batched else None,
            rows=rows(value) if batched else 1,
            payload=value,
        )
        self.loop = loop
        self.future: asyncio.Future[Answer] = loop.create_future()


class _Bell:
    """Wakes the one thread that sleeps on it: a Condition's job, at a third of its price.

    It is rung with the batcher's lock held. A ring that nobody hears makes the next wait return at once.
    """

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        if self._silence.locked():
            self._silence.release()

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until the next ring, or for some seconds."""
        self._silence.acquire(timeout=-1 if timeout_s is None else min(max(0.0, timeout_s), LONGEST_SLEEP_S))


class MicroBatcher:
    """Gathers concurrent requests into batches for one model.

    Parameters
    ----------
    load
        Builds the model and returns its predict function. Called once, in the model thread: some
        frameworks are bound to the thread that loaded them.
    settings
        The limits.
    next_batch_id
        Gives batch ids that are unique in the deployment.
    recorder
        Gets a record of every batch.
    version, replica
        Named in the records.

    Examples
    --------
    >>> import asyncio, itertools, numpy as np
    >>> async def main():
    ...     ids = map(str, itertools.count())
    ...     batcher = MicroBatcher(lambda: lambda batch: batch + 2, next_batch_id=lambda: next(ids))
    ...     await batcher.start()
    ...     answers = await asyncio.gather(*[batcher.submit(np.array([float(i)])) for i in range(3)])
    ...     await batcher.close()
    ...     return [answer.value.tolist() for answer in answers]
    >>> asyncio.run(main())
    [[2.0], [3.0], [4.0]]
    """

    def __init__(
        self,
        load: Callable[[], Predict],
        settings: BatchSettings | None = None,
        *,
        next_batch_id: Callable[[], str],
        recorder: Recorder | None = None,
        version: str = "",
        replica: str = "",
    ) -> None:
        self._load = load
        self._queue = BatchQueue(settings or BatchSettings())
        self._next_batch_id = next_batch_id
        self._recorder = recorder or Recorder()
        self._version = version
        self._replica = replica
        # Guards the queue and the three flags below.
        self._lock = threading.Lock()
        self._bell = _Bell()
        self._asleep = False
        self._wake_scheduled = False
        self._closing = False
        self._loaded: ThreadFuture[None] = ThreadFuture()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"airserve-model-{version}", daemon=True)

    # -- the event loop's side ------------------------------------------------------------------

    async def start(self) -> None:
        """Load the model in the model thread; raises what loading raised."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await asyncio.wrap_future(self._loaded)

    @property
    def settings(self) -> BatchSettings:
        """The limits in force; assigning new ones takes effect at once."""
        return self._queue.settings

    @settings.setter
    def settings(self, settings: BatchSettings) -> None:
        with self._lock:
            self._queue.settings = settings
            self._bell.ring()

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._queue)

    async def submit(self, value: Any) -> Answer:
        """Predict on one request's input, in whatever batch it fits; may be called from any event loop.

        Parameters
        ----------
        value
            An ndarray (one sample), a dict of arrays (one sample) or a DataFrame (any number of rows).
            With batching off: anything.

        Returns
        -------
        Answer
            With ``error`` set when predict failed for this request.

        Raises
        ------
        BadInputError
            When the value can't be put into a batch.
        QueueFullError
            When ``max_queue_size`` requests wait already.
        """
        ticket = _Ticket(value, batched=self.settings.enabled, loop=asyncio.get_running_loop())
        if ticket.rows == 0:
            return Answer(value=[])
        self._enqueue(ticket)
        try:
            return await ticket.future
        except asyncio.CancelledError:
            with self._lock:
                self._queue.discard(ticket)
            raise

    def _enqueue(self, ticket: _Ticket) -> None:
        with self._lock:
            if self._closing:
                raise QueueFullError("This version is being stopped; send the request again.")
            if len(self._queue) >= self.settings.max_queue_size:
                raise QueueFullError(
                    f"{len(self._queue)} requests wait already, as many as the queue holds; "
                    "try again later, or raise max_queue_size."
                )
            self._queue.add(ticket)
            wake = self._asleep and not self._wake_scheduled
            self._wake_scheduled |= wake
        if wake:
            # At the end of this turn of the loop: requests that arrived together share the first batch.
            ticket.loop.call_soon(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._wake_scheduled = False
            self._bell.ring()

    async def close(self) -> None:
        """Refuse new requests, let the waiting ones run, and end the model thread."""
        self.give_up()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def give_up(self) -> None:
        """Begin what :meth:`close` does, and wait for nothing."""
        with self._lock:
            self._closing = True
            self._queue.draining = True
            self._bell.ring()

    # -- the model thread's side ----------------------------------------------------------------

    def _run(self) -> None:
        assert self._loop is not None  # noqa: S101 - start() came first, or there would be no thread
        # From here on it can't be cancelled, only given up.
        self._loaded.set_running_or_notify_cancel()
        try:
            predict = self._load()
        except Exception as error:  # noqa: BLE001 - whoever awaits start() gets it
            self._loaded.set_exception(error)
            return
        except BaseException as error:  # noqa: BLE001 - SystemExit would end the server's event loop
            refusal = DeployError(f"Loading the model raised {as_sentence(describe(error))}")
            refusal.__cause__ = error
            self._loaded.set_exception(refusal)
            return
        self._loaded.set_result(None)
        fairness = LoopFairness(self._loop)
        execution = Execution(
            functools.partial(fairness.call, predict),
            next_batch_id=self._next_batch_id,
            wait_for=self._wait_for,
            recorder=self._recorder,
            version=self._version,
            replica=self._replica,
        )
        answers: list[tuple[Waiting, Answer]] = []
        while True:
            if fairness.starved:
                _deliver(answers)
                answers = []
                fairness.pause()
            free_since = time.perf_counter()
            release = self._take(free_since)
            _deliver(answers)
            # Nothing of a batch is kept while the model is idle.
            answers = []
            release = release or self._take_when_ready(free_since)
            if release is None:
                return
            answers = execution.run(release, self.settings)

    def _take(self, free_since: float) -> Release | None:
        if not len(self._queue):
            return None
        with self._lock:
            return self._queue.take(time.perf_counter(), free_since)

    def _take_when_ready(self, free_since: float) -> Release | None:
        """Sleep until a batch is ready; None when the batcher is closed and its queue empty."""
        while True:
            with self._lock:
                self._asleep = False
                now = time.perf_counter()
                release = self._queue.take(now, free_since)
                if release is not None or self._closing:
                    return release
                ready_at = self._queue.ready_at()
                self._asleep = True
            self._bell.wait(None if ready_at is None else ready_at - now)

    def _wait_for(self, awaitable: Awaitable[Any]) -> Any:
        """Let the server's event loop run a coroutine predict; this thread waits for its result."""
        if self._loop is None:
            raise RuntimeError("The batcher was not started.")
        return asyncio.run_coroutine_threadsafe(_as_coroutine(awaitable), self._loop).result()


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _deliver(answers: list[tuple[Waiting, Answer]]) -> None:
    """Hand answers to the loops that wait for them, in one message a loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Ticket, Answer]]] = {}
    for ticket, answer in answers:
        if isinstance(ticket, _Ticket):
            by_loop.setdefault(ticket.loop, []).append((ticket, answer))
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, pairs)
        except RuntimeError:
            # The loop is closed: nobody is left to read these answers.
            logger.debug("%d answers had no reader any more.", len(pairs))


def _resolve(pairs: list[tuple[_Ticket, Answer]]) -> None:
    for ticket, answer in pairs:
        if not ticket.future.done():
            ticket.future.set_result(answer)
