"""Find the requests that make a batch fail, in few further calls.

A batch of n that raises is halved again and again until the guilty stand alone. Where one half
succeeds the other is known to hold the guilty, so it is halved without being called again; only a
request that failed *alone* is blamed alone. With one guilty request that takes at most 2·⌈log₂ n⌉ calls.
The number of calls is bounded, because each is a predict that others wait for; what the bound leaves
undecided gets the error, marked as not isolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Blame", "isolate", "retry_budget"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blame(Generic[T]):
    """A request that gets an error."""

    member: T
    error: BaseException
    isolated: bool
    """True when it failed alone."""


def retry_budget(size: int) -> int:
    """Return how many further calls a failed batch of ``size`` requests may cost: 2·⌈log₂ size⌉ + 1."""
    return 2 * (size - 1).bit_length() + 1


def isolate(
    members: Sequence[T],
    error: BaseException,
    attempt: Callable[[Sequence[T]], BaseException | None],
) -> list[Blame[T]]:
    """Try the failed batch again in parts.

    Parameters
    ----------
    members
        The requests of the batch, at least one.
    error
        What the whole batch raised.
    attempt
        Runs some of them as a batch; returns None when that went well (their answers are then the
        caller's) or what it raised.

    Returns
    -------
    list of Blame
        The requests that get an error; all others were answered by a successful attempt.
    """
    search = _Search(attempt, retry_budget(len(members)))
    search.split(members, error)
    return search.blamed


class _Search(Generic[T]):
    def __init__(self, attempt: Callable[[Sequence[T]], BaseException | None], budget: int) -> None:
        self.attempt = attempt
        self.budget = budget
        self.blamed: list[Blame[T]] = []

    def split(self, failing: Sequence[T], error: BaseException) -> None:
        """Divide requests that are known to fail together."""
        if len(failing) == 1:
            self.blamed.append(Blame(failing[0], error, isolated=True))
            return
        middle = len(failing) // 2
        left, right = failing[:middle], failing[middle:]
        left_error = self._try(left, error)
        if left_error is None and len(right) > 1:
            self.split(right, error)
            return
        right_error = self._try(right, error)
        if left_error is not None:
            self.split_unless_spent(left, left_error)
        if right_error is not None:
            self.split_unless_spent(right, right_error)

    def split_unless_spent(self, failing: Sequence[T], error: BaseException | _Untried) -> None:
        if isinstance(error, _Untried):
            self.blamed += [Blame(member, error.error, isolated=False) for member in failing]
        else:
            self.split(failing, error)

    def _try(self, part: Sequence[T], error: BaseException) -> BaseException | _Untried | None:
        if self.budget == 0:
            return _Untried(error)
        self.budget -= 1
        return self.attempt(part)


@dataclass(frozen=True, slots=True)
class _Untried:
    """The calls are used up; ``error`` is what the last larger part raised."""

    error: BaseException
