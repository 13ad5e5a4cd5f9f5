"""Finding the requests that make a batch fail."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from airserve_nb.batching.isolation import isolate, retry_budget


class Model:
    """Fails for every batch with a guilty member."""

    def __init__(self, guilty: set[int]) -> None:
        self.guilty = guilty
        self.calls = 0
        self.answered: set[int] = set()

    def attempt(self, part: Sequence[int]) -> BaseException | None:
        self.calls += 1
        if self.guilty & set(part):
            return ValueError(str(sorted(self.guilty & set(part))))
        self.answered |= set(part)
        return None


@given(size=st.integers(1, 200), data=st.data())
def test_one_guilty_request_is_always_found(size: int, data: st.DataObject) -> None:
    """One guilty among n: all others are answered, within the budget."""
    guilty = data.draw(st.integers(0, size - 1))
    model = Model({guilty})
    blamed = isolate(range(size), ValueError("all"), model.attempt)
    assert [(blame.member, blame.isolated) for blame in blamed] == [(guilty, True)]
    assert model.answered == set(range(size)) - {guilty}
    assert model.calls <= retry_budget(size)


@given(size=st.integers(1, 100), guilty=st.sets(st.integers(0, 99)))
def test_every_request_is_settled_once(size: int, guilty: set[int]) -> None:
    """Whoever is guilty: each request is answered or blamed, and only the guilty are blamed alone."""
    guilty = {number % size for number in guilty} or {0}
    model = Model(guilty)
    blamed = isolate(range(size), ValueError("all"), model.attempt)
    members = [blame.member for blame in blamed]
    assert len(members) == len(set(members))
    assert set(members) | model.answered == set(range(size))
    assert not set(members) & model.answered
    assert {blame.member for blame in blamed if blame.isolated} <= guilty
    assert model.calls <= retry_budget(size)


def test_a_failure_that_passes_blames_nobody() -> None:
    """When the parts succeed, the whole was bad luck, and everybody is answered."""
    answered: list[int] = []

    def attempt(part: Sequence[int]) -> None:
        answered.extend(part)

    assert isolate(range(8), ConnectionError(), attempt) == []
    assert sorted(answered) == list(range(8))


def test_the_budget_of_32() -> None:
    """At most 2·log2(32)+1 further calls."""
    assert retry_budget(32) == 11
    assert retry_budget(33) == 13
    assert retry_budget(1) == 1
