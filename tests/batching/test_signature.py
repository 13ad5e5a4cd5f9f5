"""Signatures: what may share a batch, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb.batching.signature import rows, signature
from airserve_nb.errors import BadInputError

BEYOND = 2**53 + 1


def same(first: Any, second: Any) -> bool:
    one, other = signature(first), signature(second)
    if one == other:
        assert hash(one) == hash(other)
    return one == other


def frame(*values: Any, dtype: Any = None) -> pd.DataFrame:
    return pd.DataFrame({"a": pd.Series(values, dtype=dtype)})


def stamps(*days: str, unit: str = "ns", zone: str | None = None) -> pd.DataFrame:
    column = pd.Series(np.array(days, dtype="M8[s]")).dt.as_unit(unit)  # type: ignore[arg-type]
    return pd.DataFrame({"a": column if zone is None else column.dt.tz_localize(zone)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros(3), np.ones(3)),
        (np.array(1), np.array(2)),
        (np.array(["a"]), np.array(["longer"])),
        (np.ma.masked_array([1.0], mask=[True]), np.zeros(1)),
        ({"a": 1, "b": 2}, {"b": 3, "a": 4}),
        ({"a": 1}, {"a": 2.5}),
        ({"a": [1, 2]}, {"a": [1.5, 2]}),
        ({"a": "x"}, {"a": "longer"}),
        ({}, {}),
        (frame(1), frame(2.5)),
        (frame(1), frame(1, 2, 3)),
        (frame(1, BEYOND), frame(BEYOND)),
        (frame(1, dtype="int8"), frame(2, dtype="float32")),
        (frame("x"), frame("y")),
        (frame(True), frame(False)),
        (stamps("2020-01-01"), stamps("2021-01-01", unit="s")),
        (stamps("2020-01-01", zone="UTC"), stamps("2021-01-01", unit="ms", zone="UTC")),
        (
            frame("x", dtype=pd.CategoricalDtype(["x", "y"])),
            frame("y", dtype=pd.CategoricalDtype(["x", "y"])),
        ),
        (pd.DataFrame({"a": [1], "b": [1e300]}), pd.DataFrame({"a": [1], "b": [1.0]})),
        (pd.DataFrame({"a": [1], "b": [np.nan]}), pd.DataFrame({"a": [1.5], "b": [np.inf]})),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame([[3, 4]], columns=["a", "a"])),
    ],
)
def test_inputs_that_stack_without_loss_share_a_signature(first: Any, second: Any) -> None:
    """Equal shape, dtype (or family) and names: one batch."""
    assert same(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3), np.zeros((1, 3))),
        (np.zeros(3), np.zeros(3, dtype="float32")),
        (np.zeros(3), np.zeros(3, dtype=">f8")),
        (np.zeros(1), {"a": 0.0}),
        (np.zeros(1), frame(0.0)),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": [1]}),
        ({"a": 1}, {"a": "1"}),
        ({"a": BEYOND}, {"a": 1.5}),
        ({"a": [BEYOND]}, {"a": [1.5]}),
        ({"a": np.zeros(1)}, {"a": np.zeros(1, dtype=int)}),
        (frame(1), frame(True)),
        (frame(1), frame("1")),
        (frame(1), frame(None)),
        (frame(1.5), frame(BEYOND)),
        (frame(1.5), frame(-BEYOND)),
        (frame(1), frame(1, dtype="Int64")),
        (frame(1j), frame(1.0)),
        (stamps("2020-01-01"), stamps("2020-01-01", zone="UTC")),
        (stamps("2020-01-01", zone="Asia/Tokyo"), stamps("2020-01-01", zone="UTC")),
        (stamps("2020-01-01"), stamps("9999-01-01", unit="s")),
        (
            frame("x", dtype=pd.CategoricalDtype(["x", "y"])),
            frame("x", dtype=pd.CategoricalDtype(["y", "x"])),
        ),
        (frame(1, dtype=pd.CategoricalDtype([1])), frame(1, dtype=pd.CategoricalDtype([1.0]))),
        (frame("category"), frame("x", dtype="category")),
        (pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"b": [2], "a": [1]})),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1], "b": [2]})),
        (pd.DataFrame([[1]], columns=[0]), pd.DataFrame([[1]], columns=["0"])),
        (pd.DataFrame([[1]], columns=[0]), pd.DataFrame([[1]], columns=[0.0])),
    ],
)
def test_inputs_that_would_change_in_company_do_not_share_one(first: Any, second: Any) -> None:
    """Whatever stacking would reshape, round, mix or mislabel gets a batch of its own."""
    assert not same(first, second)


def test_a_big_integer_is_seen_beside_a_missing_value() -> None:
    """NaN in another column does not hide an integer that a float can't hold."""
    big = pd.DataFrame({"a": [BEYOND], "b": [np.nan]})
    assert not same(big, pd.DataFrame({"a": [1.5], "b": [1.0]}))


@pytest.mark.parametrize(
    "value",
    [[1], (1,), "text", None, 3, np.float64(3), pd.Series([1]), b"x", {1}, object()],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_batched_is_refused_with_its_type(value: Any) -> None:
    """The sentence names the type, what is accepted, and the way out."""
    with pytest.raises(
        BadInputError, match=rf"type {type(value).__name__} .*dict of arrays, or turn batching off.*\.$"
    ):
        signature(value)


@pytest.mark.parametrize("value", [[[1, 2], [3]], pd.DataFrame({"x": [1]})])
def test_a_bad_value_in_a_dict_is_named_by_its_key(value: Any) -> None:
    """A ragged list or a frame inside a dict is refused, with the key."""
    with pytest.raises(BadInputError, match=r"under 'a' .*\.$"):
        signature({"a": value})


def test_rows_counts_frames_only() -> None:
    """A frame brings its rows; an array or a dict is one sample, whatever its shape."""
    assert [rows(frame(1, 2, 3)), rows(frame()), rows(np.zeros((5, 2))), rows({"a": [1, 2]})] == [3, 0, 1, 1]
