"""Answers as JSON: every row of the policy's table, and no exception but BadOutputError."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import math
import uuid
from collections import OrderedDict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from airserve_nb.encoding import encode
from airserve_nb.errors import BadOutputError


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Model(BaseModel):
    score: float = Field(serialization_alias="Score")


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the untyped kind is meant

TABLE: list[tuple[str, Any, Any]] = [
    ("None", None, None),
    ("NaN", math.nan, None),
    ("NaT", pd.NaT, None),
    ("NA", pd.NA, None),
    ("numpy NaT", np.datetime64("NaT"), None),
    ("timedelta NaT", np.timedelta64("NaT"), None),
    ("masked", np.ma.array([1, 2], mask=[True, False]), [None, 2]),
    ("infinities", np.array([np.inf, -np.inf, 1]), ["Infinity", "-Infinity", 1.0]),
    ("uint64", np.array([2**64 - 1], dtype=np.uint64), [2**64 - 1]),
    ("long integer", 2**80, 2**80),
    ("0-d", np.array(42.0), 42.0),
    ("float32", np.float32(1 / 3), 0.3333333432674408),
    ("float32 array", np.array([1 / 3], dtype=np.float32), [0.3333333432674408]),
    ("long double", np.array([1.5, np.nan], dtype=np.longdouble), [1.5, None]),
    ("bool", np.array([True, False]), [True, False]),
    ("numpy bool", np.bool_(1), True),
    ("complex", np.array([1 + 2j]), [{"real": 1.0, "imag": 2.0}]),
    ("complex NaN", complex(math.nan, math.inf), {"real": None, "imag": "Infinity"}),
    ("text array", np.array(["ä"]), ["ä"]),
    ("nested array", np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (
        "object array",
        np.array([None, np.array([1.5]), {"a": math.nan}], dtype=object),
        [None, [1.5], {"a": None}],
    ),
    ("empty array", np.zeros((0, 3)), []),
    ("record array", np.array([(1, 2.5)], dtype=[("a", int), ("b", float)]), [{"a": 1, "b": 2.5}]),
    ("timestamp", pd.Timestamp("2024-02-29 12:00:00.5"), "2024-02-29T12:00:00.500000"),
    ("zone", pd.Timestamp("2024-02-29 12:00", tz="Europe/Berlin"), "2024-02-29T12:00:00+01:00"),
    (
        "nanoseconds",
        np.array(["2024-02-29T00:00:00.000000001"], dtype="M8[ns]"),
        ["2024-02-29T00:00:00.000000001"],
    ),
    ("day", np.datetime64("2024-02-29"), "2024-02-29T00:00:00"),
    ("far year", np.datetime64("20240-01-01T00:00:00"), "20240-01-01T00:00:00"),
    ("date", dt.date(2024, 2, 29), "2024-02-29"),
    ("time", dt.time(1, 2, 3), "01:02:03"),
    ("datetime", dt.datetime(2024, 2, 29, tzinfo=dt.UTC), "2024-02-29T00:00:00+00:00"),
    ("duration", dt.timedelta(hours=1, seconds=1.5), "PT1H1.5S"),
    ("negative", dt.timedelta(days=-1, hours=-2), "-P1DT2H"),
    ("whole days", np.timedelta64(2, "D"), "P2D"),
    ("months", np.timedelta64(-3, "M"), "-P3M"),
    ("no duration", pd.Timedelta(0), "PT0S"),
    ("one nanosecond", pd.Timedelta("1ns"), "PT0.000000001S"),
    ("bytes", b"abc", "abc"),
    ("no text", b"\xff", {"base64": "/w=="}),
    ("byte array", np.array([b"\xff", b"a"]), [{"base64": "/w=="}, "a"]),
    ("decimal", Decimal("1.10"), "1.10"),
    ("decimal NaN", Decimal("NaN"), None),
    ("uuid", uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ("path", PurePosixPath("/a/b"), "/a/b"),
    ("enum", [Colour.RED, Level.HIGH], ["red", 3]),
    ("model", Model(score=1), {"Score": 1.0}),
    ("dataclass", Point(np.float64(1.5)), {"x": 1.5, "y": None}),
    ("exception", ValueError("too hot"), "too hot"),
    ("series", pd.Series([1.5, None]), [1.5, None]),
    ("nullable", pd.Series([1, None], dtype="Int64"), [1, None]),
    ("category", pd.Categorical(["a", None]), ["a", None]),
    ("intervals", pd.interval_range(0, 2), ["(0, 1]", "(1, 2]"]),
    ("periods", pd.period_range("2024", periods=2, freq="M"), ["2024-01", "2024-02"]),
    ("index", pd.Index(["a", "b"]), ["a", "b"]),
    ("set", {3, 1, 2}, [1, 2, 3]),
    ("mixed set", frozenset({"a"}), ["a"]),
    ("tuple", (1, Pair(2, 3)), [1, [2, 3]]),
    ("deque", deque([1]), [1]),
    ("range", range(3), [0, 1, 2]),
    ("views", [{"a": 1}.keys(), {"a": 1}.values()], [["a"], [1]]),
    ("ordered", OrderedDict(a=1), {"a": 1}),
    ("keys", {None: 0, 1: 1, 2.5: 2, np.int64(7): 3, dt.date(2024, 2, 29): 4, ("a", 1): 5}, None),
    ("cells", pd.DataFrame({"a": [np.arange(2), [math.nan]], "b": [{"x": 1}, None]}), None),
    ("no column", pd.DataFrame(index=[1, 2]), [{}, {}]),
    ("no row", pd.DataFrame({"a": []}), []),
    ("no text either", "\ud800", "\ud800"),
]
EXPECTED = {
    "keys": {"null": 0, "1": 1, "2.5": 2, "7": 3, "2024-02-29": 4, "('a', 1)": 5},
    "cells": [{"a": [0, 1], "b": {"x": 1}}, {"a": [None], "b": None}],
}


@pytest.mark.parametrize(("name", "value", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_table(name: str, value: Any, expected: Any) -> None:
    """Every row of the documented policy holds."""
    assert json.loads(encode(value)) == EXPECTED.get(name, expected)


def test_frame_keeps_every_column_s_type() -> None:
    """A frame is a list of records: integers stay exact beside floats, zones and missing values are kept."""
    frame = pd.DataFrame(
        {
            "id": np.array([2**63 - 1, 1]),
            "big": np.array([2**64 - 1, 1], dtype=np.uint64),
            "score": np.array([0.1, np.nan], dtype=np.float32),
            "when": pd.DatetimeIndex(["2024-02-29 12:00", pd.NaT], tz="UTC"),
            "kind": pd.Categorical(["a", "b"]),
            "text": ["ä", None],
        },
        index=[7, 7],
    )
    first, second = json.loads(encode(frame))
    assert first == {
        "id": 2**63 - 1,
        "big": 2**64 - 1,
        "score": float(np.float32(0.1)),
        "when": "2024-02-29T12:00:00+00:00",
        "kind": "a",
        "text": "ä",
    }
    assert second == {"id": 1, "big": 1, "score": None, "when": None, "kind": "b", "text": None}


def test_compact_utf8() -> None:
    """The bytes are as short as JSON allows, and text is UTF-8."""
    assert encode({"a": [1, "é"]}) == '{"a":[1,"é"]}'.encode()


def test_array_like_of_another_library() -> None:
    """What knows how to become an array, such as a tensor, is encoded as one."""

    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.array([[1.5]])

    assert encode(Tensor()) == b"[[1.5]]"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([{"a": Fraction(1, 2)}], ["[0]['a']", "fractions.Fraction"]),
        (pd.DataFrame({"a": [1, Fraction(1, 2)]}), ["[1]['a']", "fractions.Fraction"]),
        (np.array([None, iter([])], dtype=object), ["[1]", "list_iterator"]),
        (dict, ["the class dict"]),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ["two columns", "'a'"]),
        (pd.DataFrame([[1, 2]], columns=[1, "1"]), ["two columns", "'1'"]),
        ({1: "a", "1": "b"}, ["two keys", "'1'"]),
        (10**5000, ["4300 digits"]),
    ],
    ids=["in a dict", "in a frame", "in an array", "a class", "columns", "labels", "keys", "digits"],
)
def test_no_json_form(value: Any, words: list[str]) -> None:
    """What has no JSON form is refused in one sentence with the type and the place."""
    with pytest.raises(BadOutputError) as caught:
        encode(value)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.endswith(".")
    assert caught.value.status == 500


def test_containing_itself() -> None:
    """A value inside itself is refused, however it got there."""
    ring: list[Any] = []
    ring.append(ring)
    table: dict[str, Any] = {}
    table["x"] = [table]
    cell = np.empty((), dtype=object)
    cell[()] = cell
    point = Point(None)
    point.x = point
    for value in (ring, table, cell, point):
        with pytest.raises(BadOutputError, match=r"contains itself.{0,200}\.$"):
            encode(value)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON_LIKE)
def test_json_round_trip(value: Any) -> None:
    """What JSON can say comes back the same."""
    assert json.loads(encode(value)) == value


@given(st.lists(st.text(alphabet=st.characters(codec=None))))
def test_any_text(texts: list[str]) -> None:
    """No text crashes the encoder, lone surrogates included."""
    assert json.loads(encode(texts)) == texts


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(),
    st.dates(), st.datetimes(), st.timedeltas(), st.times(), st.decimals(), st.uuids(), st.fractions(),
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.sampled_from(["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"])).map(
        lambda parts: np.array(parts[0]).astype(f"m8[{parts[1]}]")[()]),
    st.integers(-(10**6), 10**6).map(lambda n: np.datetime64(n, "D")),
    st.sampled_from([pd.NA, pd.NaT, Colour.RED, Level.HIGH, Model(score=1), object(), int, np.float16(1), ValueError("x")]),
)  # fmt: skip


def _object_array(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


KEYS = st.none() | st.integers() | st.text() | st.binary() | st.dates() | st.complex_numbers() | st.floats()

MIXTURES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.lists(inner, max_size=3).map(_object_array),
        st.lists(inner, max_size=3).map(
            lambda values: pd.DataFrame({"a": pd.Series(_object_array(values), dtype=object)})
        ),
        inner.map(Point),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(MIXTURES)
def test_only_bad_output_errors(value: Any) -> None:
    """Any mixture gives strict JSON or BadOutputError, nothing else."""
    try:
        content = encode(value)
    except BadOutputError:
        return
    json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
