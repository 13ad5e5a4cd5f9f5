"""Calls to replicas from a notebook's thread: outside its event loop, and with the replica's own errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import ray
from ray.serve.exceptions import DeploymentUnavailableError

__all__ = ["broadcast", "called_outside_loop", "unwrapped"]

T = TypeVar("T")


def called_outside_loop(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call in a thread: a notebook's cells run inside an event loop, where Serve refuses blocking calls.

    An interrupt ends the wait, not the call.
    """
    done: Future[T] = Future()

    def call() -> None:
        try:
            done.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            done.set_exception(error)

    threading.Thread(target=call, name="airserve-call", daemon=True).start()
    return done.result()


def broadcast(handle: Any, method: str, *args: Any, timeout_s: float | None) -> list[Any]:
    """Call a method on every live replica; one that dies meanwhile counts for nothing: it is being replaced.

    Parameters
    ----------
    handle
        The deployment's.
    method, *args
        What to call.
    timeout_s
        Seconds to wait for all answers; None for ever.
    """

    def call() -> list[Any]:
        try:
            response = handle.broadcast(method, *args)
            return list(response.results(timeout_s=timeout_s, return_exceptions=True))
        except DeploymentUnavailableError:
            return []

    answers = [answer for answer in called_outside_loop(call) if not _is_of_a_dead_replica(answer)]
    for answer in answers:
        if isinstance(answer, BaseException):
            raise _own_error(answer)
    return answers


def _is_of_a_dead_replica(answer: Any) -> bool:
    # A task's error is the replica's own; Ray's other errors are about the replica.
    return isinstance(answer, ray.exceptions.RayError) and not isinstance(answer, ray.exceptions.RayTaskError)


def unwrapped(call: Callable[[], T]) -> T:
    """Raise the replica's own error rather than Ray's wrapping of it."""
    try:
        return call()
    except ray.exceptions.RayTaskError as error:
        raise _own_error(error) from None


def _own_error(error: BaseException) -> BaseException:
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
