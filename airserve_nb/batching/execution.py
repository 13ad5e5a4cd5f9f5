"""One released batch through the model: collate, predict, split, and what to do when that fails.

Everything here runs in the model thread.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airserve_nb._sentences import as_sentence, describe, message_of, printable
from airserve_nb.batching.collate import collate, split
from airserve_nb.batching.isolation import Blame, isolate
from airserve_nb.batching.policy import Release, Waiting
from airserve_nb.batching.settings import BatchSettings
from airserve_nb.errors import BadOutputError, PredictFailedError, RequestError
from airserve_nb.telemetry import BatchRecord, Recorder, ReleaseReason

__all__ = ["Answer", "Execution", "Predict"]

logger = logging.getLogger("airserve_nb.predict")

Predict = Callable[[Any], Any]
"""A batch in, its predictions (or an awaitable of them) out."""

# After so many batches in a row without a single answer the model is broken, not a request.
GIVE_UP_RETRIES_AFTER = 3
FIRST_ERROR_STATUS, LAST_ERROR_STATUS = 400, 599


@dataclass(slots=True)
class Answer:
    """What became of one request: ``value`` or ``error``, and the batch that settled it."""

    value: Any = None
    error: RequestError | None = None
    batch_id: str | None = None
    batch_size: int = 0
    queue_ms: float = 0.0
    predict_ms: float = 0.0


@dataclass(slots=True)
class _Call:
    """One call of predict."""

    batch_id: str
    members: Sequence[Waiting]
    started_at: float
    predict_ms: float = 0.0
    values: Sequence[Any] = ()
    """One for each member; none when the call failed."""
    error: BaseException | None = None

    def answers(self) -> list[tuple[Waiting, Answer]]:
        """Return the members with their answers; none when the call failed."""
        if self.error is not None:
            return []
        pairs = zip(self.members, self.values, strict=True)
        return [(member, self.answer(member, value=value)) for member, value in pairs]

    def answer(self, member: Waiting, *, value: Any = None, error: RequestError | None = None) -> Answer:
        return Answer(
            value=value,
            error=error,
            batch_id=self.batch_id,
            batch_size=len(self.members),
            queue_ms=(self.started_at - member.arrived_at) * 1e3,
            predict_ms=self.predict_ms,
        )


class Execution:
    """Runs released batches on one model.

    Parameters
    ----------
    predict
        The model.
    next_batch_id
        Gives the id of each call.
    wait_for
        Waits for a coroutine predict and returns its result.
    recorder
        Gets a record of each call.
    version, replica
        Named in the records.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        next_batch_id: Callable[[], str],
        wait_for: Callable[[Awaitable[Any]], Any],
        recorder: Recorder,
        version: str = "",
        replica: str = "",
    ) -> None:
        self._predict = predict
        self._next_batch_id = next_batch_id
        self._wait_for = wait_for
        self._recorder = recorder
        self._version = version
        self._replica = replica
        self._failed_in_a_row = 0

    def run(self, release: Release, settings: BatchSettings) -> list[tuple[Waiting, Answer]]:
        """Answer every member of the batch, whatever the model does."""
        try:
            return self._run(release, settings)
        except Exception as error:
            # A defect of ours; but a dead model thread would be a dead deployment, without a word.
            logger.exception("A batch could not be run.")
            blames = [Blame(member, error, isolated=False) for member in release.members]
            return [(blame.member, Answer(error=_as_request_error(blame))) for blame in blames]

    def _run(self, release: Release, settings: BatchSettings) -> list[tuple[Waiting, Answer]]:
        first = self._call(release, release.members, release.reason, batching=settings.enabled)
        if first.error is None:
            self._failed_in_a_row = 0
            return first.answers()
        answers: list[tuple[Waiting, Answer]] = []
        last_call = dict.fromkeys((member.number for member in release.members), first)

        def attempt(members: Sequence[Waiting]) -> BaseException | None:
            call = self._call(release, members, "retry", batching=settings.enabled)
            answers.extend(call.answers())
            last_call.update((member.number, call) for member in members)
            return call.error

        for blame in self._find_guilty(release.members, first.error, settings, attempt):
            call = last_call[blame.member.number]
            answers.append((blame.member, call.answer(blame.member, error=_as_request_error(blame))))
        if any(answer.error is None for _, answer in answers):
            self._failed_in_a_row = 0
        elif len(release.members) > 1:
            # A request that fails alone tells nothing of the model.
            self._failed_in_a_row += 1
        return answers

    def _call(
        self, release: Release, members: Sequence[Waiting], reason: ReleaseReason, *, batching: bool
    ) -> _Call:
        """Call predict once, and write it down."""
        call = _Call(self._next_batch_id(), members, time.perf_counter())
        inputs = [member.payload for member in members]
        try:
            # Collated afresh for each call: predictors change their input.
            batch = collate(inputs) if batching else inputs[0]
            output = self._predict_timed(call, batch)
            call.values = split(output, inputs) if batching else [output]
        except BaseException as error:  # noqa: BLE001 - a model may raise anything; this thread must live on
            call.error = error
        self._record(call, release, reason)
        return call

    def _predict_timed(self, call: _Call, batch: Any) -> Any:
        started = time.perf_counter()
        try:
            output = self._predict(batch)
            return self._wait_for(output) if inspect.isawaitable(output) else output
        finally:
            call.predict_ms = (time.perf_counter() - started) * 1e3

    def _find_guilty(
        self,
        members: Sequence[Waiting],
        error: BaseException,
        settings: BatchSettings,
        attempt: Callable[[Sequence[Waiting]], BaseException | None],
    ) -> list[Blame[Waiting]]:
        worth_it = (
            settings.retry_failed_batches
            and self._failed_in_a_row < GIVE_UP_RETRIES_AFTER
            # An output that can't be divided is the predictor's doing, whatever the requests.
            and not isinstance(error, BadOutputError)
        )
        if worth_it:
            return isolate(members, error, attempt)
        return [Blame(member, error, isolated=len(members) == 1) for member in members]

    def _record(self, call: _Call, release: Release, reason: ReleaseReason) -> None:
        self._recorder.add_batch(
            BatchRecord(
                batch_id=call.batch_id,
                released_at=time.time() - (time.perf_counter() - call.started_at),
                batch_size=len(call.members),
                rows=sum(member.rows for member in call.members),
                predict_ms=call.predict_ms,
                release_reason=reason,
                queue_depth=release.queue_depth,
                other_signatures=release.other_signatures,
                version=self._version,
                replica=self._replica,
                error=None if call.error is None else describe(call.error),
            )
        )


def _as_request_error(blame: Blame[Waiting]) -> RequestError:
    """Make the error that one request is answered with; each gets an object of its own."""
    cause = blame.error
    status = _status_chosen_by(cause)
    error: RequestError
    if isinstance(cause, BadOutputError):
        error = BadOutputError(message_of(cause))
    elif status is not None and blame.isolated:
        # Raised on purpose, for the client to read.
        error = RequestError(printable(str(getattr(cause, "detail", ""))) or message_of(cause), status=status)
    else:
        together = "" if blame.isolated else " (in a batch with others; this request was not tried alone)"
        error = PredictFailedError(
            as_sentence(f"predict raised {describe(cause)}{together}"),
            error_type=type(cause).__name__,
            error_message=message_of(cause),
            isolated=blame.isolated,
        )
    error.__cause__ = cause
    return error


def _status_chosen_by(cause: BaseException) -> int | None:
    """Return the HTTP error status that a predictor chose by raising a RequestError or an HTTPException."""
    if isinstance(cause, RequestError) or type(cause).__name__ == "HTTPException":
        status = getattr(cause, "status", None) or getattr(cause, "status_code", None)
        if isinstance(status, int) and FIRST_ERROR_STATUS <= status <= LAST_ERROR_STATUS:
            return status
    return None
