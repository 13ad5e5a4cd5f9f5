"""Splitting: each request gets its own rows, or everybody gets an error."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve_nb.batching.collate import collate, split
from airserve_nb.errors import BadOutputError

ARRAYS = [np.array([n, n]) for n in range(3)]
DICTS = [{"a": n} for n in range(3)]


def requests_of(lengths: list[int]) -> list[pd.DataFrame]:
    """Make frames whose every row names its request and its place there."""
    return [
        pd.DataFrame({"owner": np.full(length, i), "place": np.arange(length)})
        for i, length in enumerate(lengths)
    ]


def own(inputs: list[pd.DataFrame], predict: Callable[[pd.DataFrame], Any]) -> list[Any]:
    return split(predict(collate(inputs)), inputs)


FRAMES = requests_of([1, 3, 0])


def assert_each_gets_its_own(answers: list[pd.DataFrame]) -> None:
    for i, answer in enumerate(answers):
        assert set(answer["owner"]) <= {i}
        pd.testing.assert_index_equal(answer.index, pd.RangeIndex(len(answer)), exact=True)


# --- frames in, frames out


@settings(deadline=None)
@given(
    st.data(),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.sampled_from(["index", "column", "float"]),
)
def test_marked_rows_go_home_wherever_they_went(data: st.DataObject, lengths: list[int], mark: str) -> None:
    """Shuffled, filtered and repeated rows reach their own requests, in the output's order."""
    inputs = requests_of(lengths)
    batch = collate(inputs)
    places = st.integers(0, max(len(batch) - 1, 0))
    picked = data.draw(st.lists(places, max_size=12) if len(batch) else st.just([]))
    output = batch.iloc[picked]
    if mark == "column":
        output = output.reset_index()
    elif mark == "float":
        output.index = output.index.astype(float)
    answers = split(output, inputs)
    assert_each_gets_its_own(answers)
    for i, answer in enumerate(answers):
        expected = [batch["place"].iloc[n] for n in picked if batch["owner"].iloc[n] == i]
        assert answer["place"].tolist() == expected
        assert list(answer.columns) == ["owner", "place"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.randoms())
def test_an_unnamed_permutation_goes_by_label(lengths: list[int], random: Any) -> None:
    """A fresh frame that was sorted afterwards still shows which row is which."""
    inputs = requests_of(lengths)
    order = list(range(sum(lengths)))
    random.shuffle(order)
    answers = own(inputs, lambda batch: batch.reset_index(drop=True).iloc[order])
    assert_each_gets_its_own(answers)
    assert [len(answer) for answer in answers] == lengths


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_an_identity_predictor_gives_back_what_was_sent(lengths: list[int]) -> None:
    """Frames come back equal, by whichever type of output."""
    inputs = requests_of(lengths)
    for given_, back in zip(inputs, own(inputs, lambda batch: batch), strict=True):
        pd.testing.assert_frame_equal(back, given_)
    for given_, back in zip(inputs, own(inputs, lambda batch: batch.to_numpy()), strict=True):
        np.testing.assert_array_equal(back, given_.to_numpy())
    for given_, back in zip(inputs, own(inputs, lambda batch: batch["place"]), strict=True):
        pd.testing.assert_series_equal(back, given_["place"])
    for given_, back in zip(inputs, own(inputs, lambda batch: batch["place"].tolist()), strict=True):
        assert back == given_["place"].tolist()
    for given_, back in zip(inputs, own(inputs, lambda batch: {"p": batch["place"].to_numpy()}), strict=True):
        assert back["p"].tolist() == given_["place"].tolist()


@pytest.mark.parametrize(
    "predict",
    [
        lambda batch: batch.sort_values("place", ascending=False),
        lambda batch: batch[batch["place"] > 0],
        lambda batch: batch.loc[batch.index.repeat(2)],
        lambda batch: pd.concat([batch, batch]),
        lambda batch: batch[batch["place"] > 99],
        lambda batch: batch.set_index("place", append=True).assign(place=0)[::-1],
        lambda batch: batch.groupby("airserve_row").first(),
        lambda batch: batch.reset_index(drop=True).query("place > 0"),
        lambda batch: batch.reset_index(drop=True).loc[[3, 3, 1]],
        lambda batch: batch.set_index(pd.Index(list("wxyz"))),
        lambda batch: batch.set_index("owner", drop=False),
        lambda batch: batch.assign(owner=batch["owner"].astype("category")).iloc[::-1],
        lambda batch: batch.assign(text="x").sort_values("place"),
    ],
)
def test_what_predictors_do_to_frames_leaks_no_row(predict: Callable[[pd.DataFrame], Any]) -> None:
    """Sorting, filtering, repeating, grouping and re-indexing keep every row with its owner."""
    assert_each_gets_its_own(own(FRAMES, predict))


@pytest.mark.parametrize(
    ("predict", "hint"),
    [
        (
            lambda batch: batch.reset_index(drop=True).head(2),
            "a DataFrame of 2 rows for 4 rows of 3 requests",
        ),
        (lambda batch: batch.reset_index(drop=True)[:0], "a DataFrame of 0 rows"),
        (lambda _: pd.DataFrame({"p": range(5)}), "a DataFrame of 5 rows"),
        (lambda _: pd.concat([pd.DataFrame({"p": [1, 2]})] * 2), "uncertain whose rows"),
        (lambda batch: batch.rename(index={0: 9}), "labels are not the batch's"),
        (lambda batch: batch.rename(index={0: 0.5}), "labels are not the batch's"),
        (lambda batch: batch.reindex([0, 1, 7]), "labels are not the batch's"),
        (lambda batch: batch.reset_index().replace({"airserve_row": {0: -1}}), "labels are not the batch's"),
        (lambda batch: batch.set_index("place")[::-1], "in another order"),
        (lambda batch: batch.groupby("owner").first(), "a DataFrame of 2 rows"),
        (lambda batch: batch["place"].reset_index(drop=True).head(2), "a Series of 2 rows"),
    ],
)
def test_uncertain_rows_are_refused_rather_than_guessed(
    predict: Callable[[pd.DataFrame], Any], hint: str
) -> None:
    """Where labels and length don't say whose rows these are, nobody gets any."""
    with pytest.raises(BadOutputError, match=rf"{hint}.*keep the index of the batch.*\.$"):
        own(FRAMES, predict)


def test_groups_that_happen_to_be_distinct_are_not_taken_for_rows() -> None:
    """A groupby on a column sorts by it: as many rows as came in, but others'."""
    inputs = [pd.DataFrame({"customer": [name], "x": [1.0]}) for name in ("zoe", "adam")]
    with pytest.raises(BadOutputError, match="a column of the input in another order"):
        own(inputs, lambda batch: batch.groupby("customer").mean())


def test_a_request_alone_in_its_batch_keeps_all_rows() -> None:
    """With nobody else in the batch, any frame is the request's own, numbered afresh."""
    inputs = requests_of([3])
    fresh = own(inputs, lambda _: pd.DataFrame({"p": [1, 2]}, index=[7, 7]))[0]
    pd.testing.assert_frame_equal(fresh, pd.DataFrame({"p": [1, 2]}))
    assert list(own(inputs, lambda batch: batch.reset_index())[0].columns) == ["owner", "place"]


def test_a_clients_own_column_may_have_the_marks_name() -> None:
    """A column airserve_row that came with the request is data, not a label."""
    inputs = [pd.DataFrame({"airserve_row": [n]}) for n in (1, 0)]
    answers = own(inputs, lambda batch: batch)
    assert [answer["airserve_row"].tolist() for answer in answers] == [[1], [0]]


def test_labels_survive_reset_index_under_two_levels_of_columns() -> None:
    """The column that reset_index makes is found under a MultiIndex too."""
    columns = pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])
    inputs = [pd.DataFrame([[n, n]], columns=columns) for n in range(3)]
    answers = own(inputs, lambda batch: batch[::-1].reset_index())
    assert [answer[("a", "x")].tolist() for answer in answers] == [[0], [1], [2]]
    assert all(list(answer.columns) == list(columns) for answer in answers)


# --- arrays and dicts in


@pytest.mark.parametrize("inputs", [ARRAYS, DICTS])
@pytest.mark.parametrize(
    ("output", "answers"),
    [
        (np.array([10, 11, 12]), [10, 11, 12]),
        (np.array(["a", "b", "c"], dtype=object), ["a", "b", "c"]),
        ([1, None, "x"], [1, None, "x"]),
        (pd.Series([10, 11, 12]), [10, 11, 12]),
        (pd.Series([12, 11, 10], index=[2, 1, 0]), [10, 11, 12]),
        (pd.Series([10, 11, 12], index=list("xyz")), [10, 11, 12]),
        (pd.Categorical(["a", "b", "a"]), ["a", "b", "a"]),
        (
            pd.DataFrame({"p": [0.5, 1.5, 2.5], "q": [1, 2, 3]}),
            [{"p": 0.5, "q": 1}, {"p": 1.5, "q": 2}, {"p": 2.5, "q": 3}],
        ),
        (pd.DataFrame({"p": [3, 1, 2]}).sort_values("p"), [{"p": 3}, {"p": 1}, {"p": 2}]),
        ({"m": np.array([1, 2, 3]), "s": [4, 5, 6]}, [{"m": 1, "s": 4}, {"m": 2, "s": 5}, {"m": 3, "s": 6}]),
        ({}, [{}, {}, {}]),
    ],
)
def test_each_request_gets_its_element(inputs: list[Any], output: Any, answers: list[Any]) -> None:
    """The leading axis goes; frames become one record a request, by label where there is one."""
    assert split(output, inputs) == answers


def test_elements_of_arrays_keep_their_shape_and_type() -> None:
    """An n-d output gives (n-1)-d arrays, a 1-d one numpy scalars of its dtype."""
    parts = split(np.arange(6, dtype="float32").reshape(3, 2), ARRAYS)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert isinstance(split(np.zeros(3, dtype="float32"), ARRAYS)[0], np.float32)


@pytest.mark.parametrize(
    "output",
    [
        np.arange(6.0).reshape(3, 2),
        list(np.arange(6.0).reshape(3, 2)),
        np.zeros(3, dtype=[("x", "f8")]),
        {"a": np.arange(6.0).reshape(3, 2)},
    ],
)
def test_no_answer_is_a_view_of_the_whole_output(output: Any) -> None:
    """Nobody can reach the others' elements through the memory of their own."""
    parts = [part["a"] if isinstance(part, dict) else part for part in split(output, ARRAYS)]
    for i, part in enumerate(parts):
        assert part.base is None or part.base.shape == part.shape
        assert not any(np.shares_memory(part, other) for other in parts[i + 1 :])


@pytest.mark.parametrize(
    "as_output", [lambda batch: batch, lambda batch: batch["place"], lambda batch: batch.to_numpy()]
)
def test_no_answer_frame_shares_memory_with_the_output(as_output: Callable[[pd.DataFrame], Any]) -> None:
    """A predictor that reuses its output buffer does not change answers already given."""
    output = as_output(collate(FRAMES))
    for part in split(output, FRAMES):
        assert not np.shares_memory(np.asarray(part), np.asarray(output))


class Tensor:
    """Stands in for a framework's tensor: numpy can make an array of it, or is told why not."""

    def __init__(self, values: Any, error: str = "") -> None:
        self.values, self.error = values, error

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        if self.error:
            raise RuntimeError(self.error)
        return np.array(self.values, dtype)


class Sparse:
    """Stands in for a sparse matrix."""

    def toarray(self) -> np.ndarray[Any, Any]:
        return np.zeros((3, 3))


def test_tensors_count_as_arrays() -> None:
    """Whatever has __array__ is divided like one."""
    assert split(Tensor([1, 2, 3]), ARRAYS) == [1, 2, 3]


def yielding() -> Iterator[int]:
    yield 1


async def yielding_later() -> AsyncIterator[int]:
    yield 1


async def later() -> int:
    return 1


@pytest.mark.parametrize(
    ("make", "came", "advice"),
    [
        (
            lambda: (np.zeros(3), np.zeros(3)),
            "a tuple of 2 elements",
            "return a list, or stack mean and std into one array",
        ),
        (lambda: None, "None", "return statement"),
        (lambda: 3.5, "a single value", "return an array"),
        (lambda: np.float64(3), "a single value", "return one"),
        (lambda: np.array(3), "a single value", "return one"),
        (lambda: "abc", "a str", "return an array"),
        (lambda: {1, 2, 3}, "a set", "return an array"),
        (lambda: np.zeros((2, 5)), r"an array of shape \(2, 5\)", "return one"),
        (lambda: [1, 2], "a list of 2 elements", "return one"),
        (lambda: np.zeros(0), r"an array of shape \(0,\)", "return one"),
        (later, "a coroutine", "async def"),
        (yielding, "a generator", "return a list"),
        (yielding_later, "an async_generator", "return a list"),
        (lambda: np.ma.masked_array(np.zeros(3), mask=True), r"an array of shape \(3,\)", "fill the masked"),
        (lambda: Tensor(0, "on a GPU"), "a Tensor", "cpu"),
        (Sparse, "a Sparse", "toarray"),
        (lambda: {"a": 3}, "under 'a' a single value", "return"),
        (lambda: {"a": (1, 2, 3)}, "under 'a' a tuple", "list"),
        (lambda: {"a": {"b": [1, 2, 3]}}, "under 'a' a dict", "dict of arrays"),
        (lambda: {"b": np.zeros(2)}, r"under 'b' an array of shape \(2,\)", "return one"),
    ],
)
@pytest.mark.parametrize("inputs", [ARRAYS, DICTS, requests_of([1, 3])])
def test_unusable_outputs_get_one_helpful_sentence(
    make: Callable[[], Any], came: str, advice: str, inputs: list[Any]
) -> None:
    """The sentence names what came, what was expected and what to do; and nothing is left un-awaited."""
    expected = "4 rows of 2 requests" if isinstance(inputs[0], pd.DataFrame) else "3 requests"
    with pytest.raises(
        BadOutputError, match=rf"^predict returned .*{came}.* for {expected}: .*{advice}.*\.$"
    ) as caught:
        split(make(), inputs)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 500
    gc.collect()


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        (pd.DataFrame({"p": [1, 2]}), "a DataFrame of 2 rows for 3 requests"),
        (pd.DataFrame({"p": [1, 2, 3]}, index=[0, 0, 2]), "one element for each request"),
        (pd.Series([1, 2]), "a Series of 2 rows for 3 requests"),
        (pd.DataFrame([[1, 2]] * 3, columns=["p", "p"]), "rename one of its columns 'p'"),
    ],
)
def test_frames_for_array_requests_need_one_row_each(output: Any, hint: str) -> None:
    """A row too few, a row twice or a column twice can't be made one record a request."""
    with pytest.raises(BadOutputError, match=rf"{hint}.*\.$"):
        split(output, ARRAYS)


def test_a_single_wrong_row_is_a_singular() -> None:
    """Sentences count properly."""
    with pytest.raises(BadOutputError, match="a list of 2 elements for 1 request: "):
        split([1, 2], ARRAYS[:1])
    with pytest.raises(BadOutputError, match="a list of 2 elements for 1 row of 1 request: "):
        split([1, 2], requests_of([1]))


def test_nothing_in_gives_nothing_out() -> None:
    """No requests, no answers; requests without rows get answers without rows."""
    assert split(np.zeros(3), []) == []
    assert [len(answer) for answer in own(requests_of([0, 0]), lambda batch: batch)] == [0, 0]
