"""From payloads to bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.payload import materialise
from airserve_nb.loadgen.plan import Message

URL = "http://127.0.0.1:8000/adder"


def bodies(payload: Any, count: int = 4) -> list[Any]:
    return [json.loads(message.body) for message in materialise(URL, payload, count)]


def only(payload: Any) -> Message:
    (message,) = materialise(URL, payload, 1)
    return message


class TestKinds:
    def test_one_body_is_sent_every_time(self) -> None:
        """A JSON body goes out as a POST with its content type, unchanged; encoded once."""
        message = only({"array": [40]})
        assert (message.method, message.url, message.body) == ("POST", URL, b'{"array":[40]}')
        assert message.headers == (("Content-Type", "application/json"),)
        assert bodies({"array": [40]}) == [{"array": [40]}]

    def test_a_list_is_several_payloads_taken_in_turns(self) -> None:
        """A list gives its elements one after the other, as many as there are requests."""
        assert bodies([1, 2, 3]) == [1, 2, 3]
        assert bodies([1, 2, 3, 4, 5]) == [1, 2, 3, 4]

    def test_elements_that_are_lists_are_bodies(self) -> None:
        """Rows in lists of their own are one request a row."""
        assert bodies([[{"x": 1}], [{"x": 2}]]) == [[{"x": 1}], [{"x": 2}]]

    def test_a_function_gets_the_index_from_0(self) -> None:
        """Each request's payload is the function's answer to its number."""
        assert bodies(lambda index: {"array": [index]}) == [{"array": [index]} for index in range(4)]

    def test_a_list_from_a_function_is_one_body(self) -> None:
        """Only the payload itself may be several."""
        assert bodies(lambda index: [index, index]) == [[index, index] for index in range(4)]

    def test_falsy_bodies_are_bodies(self) -> None:
        """0, false and {} are sent, not taken for a missing payload."""
        falsy: list[Any] = [0, False, {}, ""]
        assert [bodies(value, 1) for value in falsy] == [[0], [False], [{}], [""]]

    def test_numpy_inside_is_sent_as_lists_and_numbers(self) -> None:
        """A row of a dataset may go in as it is."""
        assert bodies({"array": np.array([1.5, 2]), "n": np.int64(7)}, 1) == [{"array": [1.5, 2.0], "n": 7}]


class TestRequestArguments:
    def test_params_alone_make_a_get(self) -> None:
        """Query parameters are encoded, repeated when lists, left out when None."""
        message = only({"params": {"q": "ä b", "n": [1, 2], "flag": True, "none": None}})
        assert (message.method, message.body) == ("GET", b"")
        assert message.url == f"{URL}?q=%C3%A4+b&n=1&n=2&flag=true"

    def test_params_are_added_to_a_query(self) -> None:
        """A query in the URL stays."""
        (message,) = materialise(f"{URL}?a=1", {"params": {"b": 2}}, 1)
        assert message.url == f"{URL}?a=1&b=2"

    def test_json_with_headers_and_method(self) -> None:
        """Headers are added, a method is taken, the content type is set unless given."""
        message = only({"json": [1], "headers": {"X-A": "b"}, "method": "put"})
        assert (message.method, message.body) == ("PUT", b"[1]")
        assert message.headers == (("X-A", "b"), ("Content-Type", "application/json"))
        message = only({"json": [1], "headers": {"content-type": "text/x"}})
        assert message.headers == (("content-type", "text/x"),)

    @pytest.mark.parametrize(
        ("data", "body", "content_type"),
        [
            ("ä", "ä".encode(), "text/plain; charset=utf-8"),
            (b"\x00", b"\x00", "application/octet-stream"),
            ({"a": "1 2"}, b"a=1+2", "application/x-www-form-urlencoded"),
        ],
    )
    def test_data(self, data: Any, body: bytes, content_type: str) -> None:
        """Text, bytes and form fields go out as they do elsewhere."""
        message = only({"data": data})
        assert (message.method, message.body) == ("POST", body)
        assert message.headers == (("Content-Type", content_type),)

    def test_headers_alone_are_a_body(self) -> None:
        """Without json, params or data a dict is a JSON body, whatever its keys."""
        assert bodies({"method": "x"}, 1) == [{"method": "x"}]


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class TestRefusals:
    @pytest.mark.parametrize(
        ("payload", "words"),
        [
            ([], "empty list"),
            (np.zeros((2, 3)), "x.tolist()"),
            (pd.DataFrame({"a": [1]}), 'df.to_dict("records")'),
            (b"x", '{"data": ...}'),
            ('{"array": [1]}', "json.loads(text)"),
            ({"a": {1, 2}}, "a set is no JSON value"),
            ({"json": cyclic()}, "contains itself"),
            ({"json": 1, "data": "x"}, "leave one out"),
            ({"json": 1, "header": {}}, "did you mean 'headers'"),
            ({"json": 1, "timeout": 3}, "there are json, params"),
            ({"json": 1, "headers": ["x"]}, "a dict of texts"),
            ({"json": 1, "headers": {"a": "b\r\nc"}}, "line break"),
            ({"json": 1, "method": "GO AWAY"}, "the method 'GO AWAY'"),
            ({"params": [1]}, "params of type list"),
            ({"data": 3}, "data of type int"),
            ([1, b"x"], "payload[1] is bytes"),
            (lambda index: None, "payload(0) returned None"),
            (lambda: 1, "raised TypeError for request 0"),
            (lambda index: 1 // (1 - index), "raised ZeroDivisionError for request 1"),
        ],
    )
    def test_a_sentence_helps(self, payload: Any, words: str) -> None:
        """What newcomers give is refused by one sentence that says what to give instead."""
        with pytest.raises(ProbeError) as caught:
            materialise(URL, payload, 2)
        assert words in str(caught.value)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)

    def test_an_async_function(self) -> None:
        """A coroutine function is named as such, and leaves no warning about a coroutine never awaited."""

        async def payload(index: int) -> int:
            return index

        with pytest.raises(ProbeError, match="asynchronous"):
            materialise(URL, payload, 1)
