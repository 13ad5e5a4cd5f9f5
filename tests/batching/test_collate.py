"""Collating: a fresh batch in which every value survives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve_nb.batching.collate import collate
from airserve_nb.batching.signature import signature

number = st.one_of(
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -0.0, 2**53 - 1, -(2**53), 0.5, 1e300]),
)
big = st.integers(-(2**63), 2**63 - 1)
text = st.text(max_size=4)
instant = st.datetimes(min_value=pd.Timestamp("1700-01-01"), max_value=pd.Timestamp("2200-01-01"))
colour = st.sampled_from(["red", "green", None])


def zoned(cells: list[Any]) -> pd.Series[Any]:
    return pd.Series(pd.DatetimeIndex(cells, tz="UTC").as_unit("us").tz_convert("Asia/Tokyo"))


def numbers(cells: list[Any]) -> pd.Series[Any]:
    """Make of whole numbers a column of integers, as JSON readers do."""
    whole = all(isinstance(cell, int) for cell in cells)
    return pd.Series(cells, dtype="int64" if whole else "float64")


# For each kind of column what its cells are, and what makes a column of them (one of several dtypes).
COLUMNS: dict[str, tuple[st.SearchStrategy[Any], list[Any]]] = {
    "number": (number, [numbers]),
    "small": (st.integers(0, 100), ["int8", "float32", "uint64"]),
    "big": (big, ["int64"]),
    "bool": (st.booleans(), ["bool"]),
    "text": (text, ["str"]),
    "object": (st.one_of(text, number, st.none()), ["object"]),
    "nullable": (st.one_of(big, st.none()), ["Int64"]),
    "instant": (instant, ["datetime64[ms]", "datetime64[us]", "datetime64[ns]"]),
    "zoned": (instant, [zoned]),
    "colour": (colour, [pd.CategoricalDtype(["red", "green"])]),
}


def column(draw: st.DrawFn, kind: str, length: int) -> pd.Series[Any]:
    cells, makers = COLUMNS[kind]
    values = draw(st.lists(cells, min_size=length, max_size=length))
    maker = draw(st.sampled_from(makers))
    made: pd.Series[Any] = maker(values) if callable(maker) else pd.Series(values, dtype=maker)
    return made


KINDS = tuple(COLUMNS)


@st.composite
def frames(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, min_rows: int = 1) -> list[pd.DataFrame]:
    """Draw one to five frames of the same columns."""
    columns = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    lengths = draw(st.lists(st.integers(min_rows, 3), min_size=1, max_size=5))
    return [
        pd.DataFrame({f"{i}_{kind}": column(draw, kind, length) for i, kind in enumerate(columns)})
        for length in lengths
    ]


def of_one_signature(values: list[pd.DataFrame]) -> list[pd.DataFrame]:
    return [value for value in values if signature(value) == signature(values[0])]


@settings(deadline=None)
@given(frames())
def test_values_of_one_signature_survive_exactly(values: list[pd.DataFrame]) -> None:
    """Equal signatures: collating works, and every cell equals what was sent."""
    values = of_one_signature(values)
    batch = collate(values)
    start = 0
    for value in values:
        part = batch.iloc[start : start + len(value)].reset_index(drop=True)
        start += len(value)
        for name in value.columns:
            before, after = value[name].tolist(), part[name].tolist()
            for a, b in zip(before, after, strict=True):
                assert pd.isna(b) if pd.isna(a) else bool(pd.notna(b) and a == b), name
            if value[name].dtype.kind not in "iufmM":
                assert part[name].dtype == value[name].dtype
    assert start == len(batch)


@settings(deadline=None)
@given(frames(kinds=("number",)))
def test_frames_of_numbers_concatenate_as_pandas_does(values: list[pd.DataFrame]) -> None:
    """The quick way through float64 gives the values and dtypes of pd.concat."""
    values = of_one_signature(values)
    expected = pd.concat(values, ignore_index=True)
    pd.testing.assert_frame_equal(collate(values).reset_index(drop=True), expected, check_exact=True)


def test_a_column_of_big_integers_stays_exact_beside_floats() -> None:
    """The quick way is not taken where it would round."""
    values = [pd.DataFrame({"id": [2**53 + n], "x": [0.5]}) for n in (1, 3)]
    assert collate(values)["id"].tolist() == [2**53 + 1, 2**53 + 3]


def test_frames_get_one_index_that_marks_their_rows() -> None:
    """Rows are numbered through, under the batch's own name, whatever index they came with."""
    values = [pd.DataFrame({"a": [1.5]}, index=["x"]), pd.DataFrame({"a": [2, 3]}, index=[7, 7])]
    batch = collate(values)
    pd.testing.assert_index_equal(batch.index, pd.RangeIndex(3, name="airserve_row"), exact=True)


@pytest.mark.parametrize("columns", [["a", "a"], pd.MultiIndex.from_tuples([("a", 1), ("a", 2)]), [0, 1]])
@pytest.mark.parametrize("cells", [[1, 2.5], ["x", 2.5], [1, 2]])
def test_unusual_column_names_survive(columns: Any, cells: list[Any]) -> None:
    """Repeated names, several levels of names and numbers as names are kept as they are."""
    values = [pd.DataFrame([cells], columns=columns) for _ in range(3)]
    batch = collate(values)
    pd.testing.assert_index_equal(batch.columns, values[0].columns)
    assert batch.shape == (3, 2)


def test_arrays_gain_a_leading_axis() -> None:
    """One array a request becomes one row of the batch; 0-d arrays make a 1-d one."""
    assert collate([np.zeros((2, 3))] * 4).shape == (4, 2, 3)
    assert collate([np.array(1), np.array(2)]).tolist() == [1, 2]
    assert collate([np.array(["a"]), np.array(["long"])]).tolist() == [["a"], ["long"]]
    assert type(collate([np.ma.masked_array([1.0])])) is np.ndarray


def test_dicts_are_stacked_per_key() -> None:
    """Keys come in the order of the first request; scalars count as 0-d arrays."""
    batch = collate([{"b": 1, "a": np.zeros(2)}, {"a": np.ones(2), "b": 2.5}])
    assert list(batch) == ["b", "a"]
    assert batch["b"].tolist() == [1.0, 2.5]
    assert batch["a"].tolist() == [[0, 0], [1, 1]]
    assert collate([{"a": 3}])["a"].tolist() == [3]


def spoil(batch: Any) -> None:
    """Write into every corner of a batch, as a careless predictor does."""
    if isinstance(batch, dict):
        for values in batch.values():
            spoil(values)
    elif isinstance(batch, pd.DataFrame):
        batch.columns.name = "spoilt"
        for name in batch.columns:
            if not spoil_lists(batch[name]):
                batch[name] = batch[name].iloc[0]
        batch["new"] = 1
    elif not spoil_lists(batch.flat):
        batch[...] = batch.flat[0]


def spoil_lists(cells: Iterable[Any]) -> bool:
    lists = [cell for cell in cells if isinstance(cell, list)]
    for cell in lists:
        cell.append("spoilt")
    return bool(lists)


def listed(cells: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(1, dtype=object)
    array[0] = cells
    return array


@pytest.mark.parametrize(
    "values",
    [
        [np.arange(3.0)],
        [np.arange(3.0), np.arange(3.0) + 1],
        [listed([1]), listed([2])],
        [{"a": np.arange(3)}, {"a": np.arange(3) + 1}],
        [pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})],
        [pd.DataFrame({"a": [1], "b": [0.5]}), pd.DataFrame({"a": [2], "b": [1.5]})],
        [pd.DataFrame({"a": [0.5]}), pd.DataFrame({"a": [1.5]})],
        [pd.DataFrame({"a": [[1]], "b": ["x"]}), pd.DataFrame({"a": [[2]], "b": ["y"]})],
        [pd.DataFrame({"a": [[1]]})],
    ],
)
def test_a_predictor_may_write_into_its_batch(values: list[Any]) -> None:
    """Collating again after a spoilt batch gives the same batch: nothing is shared with the inputs."""
    first, again = collate(values), collate(values)
    spoil(first)
    fresh = collate(values)
    if isinstance(fresh, pd.DataFrame):
        pd.testing.assert_frame_equal(fresh, again)
        assert fresh.columns.name is None
    else:
        assert str(fresh) == str(again)


def test_arrays_of_a_batch_own_their_memory() -> None:
    """Not even read-only views of the inputs are handed to the predictor."""
    array, table = np.arange(3.0), pd.DataFrame({"a": [1.5, 2.5]})
    assert not np.shares_memory(collate([array]), array)
    assert not np.shares_memory(collate([table])["a"].to_numpy(), table["a"].to_numpy())
    assert not np.shares_memory(collate([table, table])["a"].to_numpy(), table["a"].to_numpy())


def test_frames_without_rows_or_columns_are_no_accident() -> None:
    """Empty frames keep their columns; rows without columns are still counted."""
    assert collate([pd.DataFrame({"a": [0.5]})[:0]] * 2).columns.tolist() == ["a"]
    assert collate([pd.DataFrame({"a": [1], "b": [0.5]})[:0]] * 2).dtypes.tolist() == ["int64", "float64"]
    assert len(collate([pd.DataFrame(index=[0, 1])] * 2)) == 4


def test_an_empty_batch_is_refused() -> None:
    """Nothing to collate is a mistake of the caller, not a batch."""
    with pytest.raises(ValueError, match="at least one"):
        collate([])
