"""HTTP adapters: the short way and the FastAPI way agree, and every refusal is a sentence."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import types
from functools import partial
from typing import Annotated, Any

import cloudpickle
import httpx
import numpy as np
import pandas as pd
import pytest
from fastapi import Depends, Header, HTTPException, Query
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airserve_nb import http_adapters
from airserve_nb._adapter_example import example_from_openapi
from airserve_nb.errors import BadInputError, OptionError, RequestError
from airserve_nb.http_adapters import (
    NdArray,
    RawRequest,
    compile_adapter,
    example_for,
    image_to_ndarray,
    json_request,
    json_to_multi_ndarray,
    json_to_ndarray,
    load_http_adapter,
    pandas_read_json,
    starlette_request,
)

JSON_TYPE = {"content-type": "application/json"}


class Served:
    """An adapter behind its FastAPI application, with what came out of it."""

    def __init__(self, adapter: object, answer: Any = None) -> None:
        self.seen: list[Any] = []
        self.errors: list[RequestError] = []
        self.compiled = compile_adapter(adapter)
        self.app = self.compiled.fastapi_app(answer or self._answer, self._refuse, title="<b>Test</b>")

    async def _answer(self, value: Any, request: Request) -> Response:
        self.seen.append(value)
        return JSONResponse("fine")

    def _refuse(self, error: RequestError, request: Request) -> Response:
        self.errors.append(error)
        return JSONResponse({"error": str(error), "request_id": "1"}, status_code=error.status)

    def send(
        self, method: str = "POST", path: str = "/", *, root_path: str = "", **arguments: Any
    ) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, root_path=root_path)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(run())

    def value(self, **arguments: Any) -> Any:
        response = self.send(**arguments)
        assert response.status_code == 200, response.text
        return self.seen[-1]

    def refusal(self, **arguments: Any) -> tuple[int, str]:
        response = self.send(**arguments)
        body = response.json()
        assert set(body) == {"error", "request_id"}
        sentence = body["error"]
        assert sentence.endswith((".", "?")), sentence
        assert "Traceback" not in sentence
        return response.status_code, sentence


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal to the last bit and dtype."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
        return True
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    return bool(one == other)


BODIES = [
    '{"array": [40]}', '{"array": []}', '{"array": [[]]}', '{"array": [[1, 2.5], [true, "NaN"]]}', '{"array": 40}',
    '{"array": null}', '{"array": [null]}', '{"array": [1, [2]]}', '{"array": [[1], 2]}', '{"array": [[1, 2], [3]]}',
    '{"array": ["x"]}', '{"array": [{}]}', '{"array": [NaN, Infinity]}', '{"array": [1], "shape": [1, 1]}',
    '{"array": [1, 2], "shape": [-1, 1]}', '{"array": [1, 2], "shape": [3]}', '{"array": [1], "shape": [-1, -1]}',
    '{"array": [1], "shape": [1.5]}', '{"array": [1], "shape": [true]}', '{"array": [1], "shape": []}',
    '{"array": [1], "shape": null, "dtype": null}', '{"array": [1], "shape": [1e99]}', '{"array": [1], "shape": "1"}',
    '{"array": [1.9], "dtype": "int"}', '{"array": [1], "dtype": "foo"}', '{"array": [1], "dtype": "object"}',
    '{"array": [9223372036854775807], "dtype": "int64"}', '{"array": [18446744073709551615], "dtype": "uint64"}',
    '{"array": [1], "dtype": "i4,f4"}', '{"array": [1], "dtype": 3}', '{"array": [1], "dtpye": "int"}', '{"arrya": [1]}',
    '{"a": {"array": [40]}}', '{"a": {"array": ["x"]}}', '{"a": {}, "b": 1}', "{}", "[]", "[40]", "null", "1", '"x"',
    '[{"a": 1, "b": 2.5}]', '[{"a": 1}, {"b": 2}]', '{"a": 1}', '{"a": [1, 2]}', '[{"date": 2000000000}]', "{", "",
    "  ", "[1,]", '{"a": "\\ud800"}', "[" * 100_000, '{"array": ' + "[" * 70 + "1" + "]" * 70 + "}", "1" * 5000,
]  # fmt: skip
CONTENT_TYPES = [
    None,
    "",
    "application/json",
    "application/json; charset=utf-8",
    "application/ld+json",
    "text/plain",
]
BUILT_IN = [json_to_ndarray, json_to_multi_ndarray, pandas_read_json, json_request]


def short_way(adapter: Any, body: bytes, query: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[int, Any]:
    read = compile_adapter(adapter).read
    assert read is not None
    try:
        return 200, read(RawRequest(body, query, headers))
    except BadInputError as error:
        return error.status, str(error)


def assert_both_ways_agree(
    adapter: Any, body: bytes, query: str = "", content_type: str | None = None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    status, short = short_way(
        adapter, body, query.encode(), [(name.encode(), value.encode()) for name, value in headers.items()]
    )
    served = Served(adapter)
    response = served.send(path=f"/?{query}", content=body, headers=headers)
    assert response.status_code == status, (short, response.text)
    if status == 200:
        assert same(short, served.seen[-1])
    else:
        assert short == response.json()["error"]


class TestBothWays:
    @pytest.mark.parametrize("adapter", BUILT_IN)
    def test_bodies(self, adapter: Any) -> None:
        """A built-in adapter gives the same result, status and sentence with FastAPI and without."""
        for body in BODIES:
            assert_both_ways_agree(adapter, body.encode())

    @pytest.mark.parametrize("adapter", BUILT_IN)
    def test_requests(self, adapter: Any) -> None:
        """So it does for content types, queries and bytes that are no text."""
        for content_type in CONTENT_TYPES:
            assert_both_ways_agree(adapter, b'{"array": [1]}', content_type=content_type)
        for query in (
            "orient=records",
            "x=1",
            "orient=bogus",
            "lines=maybe&nrows=x",
            "orient=split&orient=records",
        ):
            assert_both_ways_agree(adapter, b'[{"a": 1}]', query=query)
        assert_both_ways_agree(adapter, b"\xff\xfe{")

    @settings(max_examples=40, deadline=None)
    @given(
        st.fixed_dictionaries(
            {"array": st.recursive(st.floats() | st.integers() | st.booleans() | st.text(max_size=3) | st.none(),
                                   lambda inner: st.lists(inner, max_size=3), max_leaves=6)},
            optional={"shape": st.lists(st.integers(-2, 3), max_size=3),
                      "dtype": st.sampled_from(["int64", "uint8", "float16", "str", "bool", "complex", "V8"])},
        )
    )  # fmt: skip
    def test_any_array(self, payload: dict[str, Any]) -> None:
        """Any payload of the right form is an array, or one sentence, the same on both ways."""
        assert_both_ways_agree(json_to_ndarray, json.dumps(payload).encode())


class TestJsonToNdarray:
    def test_directly(self) -> None:
        """It can be called like any function."""
        array = json_to_ndarray(NdArray(array=[40]))
        assert same(array, np.array([40.0]))

    def test_direct_misuse(self) -> None:
        """A model that exists can be converted, so a bad one can't be made."""
        with pytest.raises(ValidationError, match="ragged"):
            NdArray(array=[[1], [2, 3]])

    @pytest.mark.parametrize(
        ("payload", "expected"),
        [
            ({"array": [40]}, np.array([40.0])),
            ({"array": [[[[[1]]]]]}, np.ones((1, 1, 1, 1, 1))),
            (
                {"array": ["1.5", True, "NaN", "-Infinity", " 2e3 "]},
                np.array([1.5, 1, np.nan, -np.inf, 2000]),
            ),
            ({"array": [1, 2, 3, 4], "shape": [-1, 2]}, np.array([[1.0, 2], [3, 4]])),
            ({"array": [40], "shape": []}, np.array(40.0)),
            ({"array": [1.9, -2.1], "dtype": "int"}, np.array([1, -2])),
            ({"array": [2**63 - 1, 1.0], "dtype": "int64"}, np.array([2**63 - 1, 1])),
            ({"array": [2**64 - 1], "dtype": "uint64"}, np.array([2**64 - 1], dtype=np.uint64)),
            ({"array": ["18446744073709551615"], "dtype": "uint64"}, np.array([2**64 - 1], dtype=np.uint64)),
            ({"array": [-0.5], "dtype": "uint8"}, np.array([0], dtype=np.uint8)),
            ({"array": [1], "dtype": ">f4"}, np.array([1], dtype=np.float32)),
            ({"array": ["a", 1], "dtype": "str"}, np.array(["a", "1"])),
            ({"array": ["1+2j"], "dtype": "complex64"}, np.array([1 + 2j], dtype=np.complex64)),
        ],
    )
    def test_values(self, payload: Any, expected: Any) -> None:
        """Numbers keep their exact value, in the dtype asked for and float64 otherwise."""
        status, array = short_way(json_to_ndarray, json.dumps(payload).encode(), b"", [])
        assert status == 200, array
        assert same(array, expected)

    @pytest.mark.parametrize(
        ("payload", "words"),
        [
            ({"array": 40}, ["40", "list"]),
            ([40], ["[40]", '{"array": [40]}']),
            ({"array": [[1, 2], [3]]}, ["ragged", "array[1]", "1 values", "2"]),
            ({"array": [1, [2]]}, ["depths", "array[1]"]),
            ({"array": [1, None]}, ["null", "array[1]", "NaN"]),
            ({"array": ["x"]}, ['"x"', "array[0]", "number"]),
            ({"array": ["1_000"]}, ['"1_000"', "number"]),
            ({"array": [1, 2, 3], "shape": [2, 2]}, ["3 values", "[2, 2]"]),
            ({"array": [1], "shape": [-2]}, ["[-2]", "-1 at most once"]),
            ({"array": [1], "shape": [2.0]}, ["[2.0]", "integers"]),
            ({"array": [1], "shape": [1] * 40}, ["40 dimensions"]),
            ({"array": [1], "dtype": "flot32"}, ["flot32", "did you mean 'float32'?"]),
            ({"array": [1], "dtype": "object"}, ["object"]),
            ({"array": ["long"], "dtype": "U1"}, ["U1"]),
            ({"array": [300], "dtype": "uint8"}, ["300", "uint8"]),
            ({"array": [-1.0], "dtype": "uint8"}, ["-1.0", "uint8"]),
            ({"array": [1e300], "dtype": "int64"}, ["1e+300", "int64"]),
            ({"array": [1e10], "dtype": "float16"}, ["float16"]),
            ({"array": [float("nan")], "dtype": "int"}, ["NaN", "int64"]),
            ({"array": [10**400]}, ["float64"]),
            ({"array": [1], "dtpye": "int"}, ["dtpye", "did you mean 'dtype'?"]),
            ({"arrya": [1]}, ["missing", "did you mean 'array'?"]),
        ],
    )
    def test_refusals(self, payload: Any, words: list[str]) -> None:
        """What a newcomer gets wrong is answered by what came, where, and what is expected."""
        status, sentence = short_way(json_to_ndarray, json.dumps(payload).encode(), b"", [])
        assert status == 422
        assert all(word in sentence for word in words), sentence

    def test_get_without_body(self) -> None:
        """A GET is told to POST, with an example."""
        status, sentence = Served(json_to_ndarray).refusal(method="GET")
        assert status == 422
        assert 'POST with JSON such as {"array": [40]}' in sentence

    def test_wrong_content_type(self) -> None:
        """A form, which curl sends by default, is a 415 that names the header to send."""
        status, sentence = Served(json_to_ndarray).refusal(data={"array": "40"})
        assert status == 415
        assert "Content-Type: application/json" in sentence


class TestMultiNdarray:
    def test_directly(self) -> None:
        """It takes a dict of models too."""
        assert same(json_to_multi_ndarray({"a": NdArray(array=[1])}), {"a": np.array([1.0])})  # type: ignore[arg-type]

    def test_names_the_key(self) -> None:
        """The sentence says under which key the bad array stands."""
        status, sentence = Served(json_to_multi_ndarray).refusal(
            json={"a": {"array": [1]}, "b": {"array": ["x"]}}
        )
        assert (status, sentence.startswith('In "b": ')) == (422, True)

    def test_empty(self) -> None:
        """Nothing can't be batched."""
        assert "at least one array" in Served(json_to_multi_ndarray).refusal(json={})[1]


NAMES = st.sampled_from(
    ["a", "mean radius", "b1", "1", "date", "x_at", "2024", "nan", "May", "ä", "index", ""]
)
CELLS = (
    st.integers(-5, 5)
    | st.integers()
    | st.floats()
    | st.floats(-3, 3).map(lambda value: round(value, 1))
    | st.booleans()
    | st.none()
    | st.text(max_size=4)
    | st.sampled_from(["a", "b", "1", "nan", "2024-01-01", 2_000_000_000, 1.0, -0.0])
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    cells = {
        name: draw(st.sampled_from([CELLS, st.integers(-9, 9), st.floats(-9, 9), st.booleans()]))
        for name in names
    }
    return draw(st.lists(st.fixed_dictionaries(cells), max_size=3))


class TestPandasReadJson:
    def read(self, body: str, query: str = "") -> Any:
        status, result = short_way(pandas_read_json, body.encode(), query.encode(), [])
        assert status == 200, result
        return result

    @pytest.mark.filterwarnings("ignore")
    @settings(max_examples=150, deadline=None)
    @given(tables())
    def test_short_cut_is_pandas(self, records: list[dict[str, Any]]) -> None:
        """The short cut for records gives exactly the frame of pandas.read_json: dates, dtypes, last digit."""
        body = json.dumps(records)
        try:
            expected = pd.read_json(io.StringIO(body), precise_float=True)
        except Exception as error:  # noqa: BLE001 - whatever pandas refuses
            if "Range error" in str(error):  # a number below 2.3e-308, which the short cut reads exactly
                return
            assert short_way(pandas_read_json, body.encode(), b"", [])[0] == 422
        else:
            pd.testing.assert_frame_equal(
                self.read(body), expected, check_column_type=True, check_index_type=True
            )

    def test_short_cut_is_taken(self) -> None:
        """Plain numbers and names go the short way, which does not call pandas.read_json for each request."""
        body = json.dumps([{"mean radius": 17.99, "worst area": 2019.0, "kind": "b"}])
        self.read(body)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pd, "read_json", lambda *_args, **_kwargs: pytest.fail("the long way"))
            frame = self.read(body)
        assert [str(dtype) for dtype in frame.dtypes][:2] == ["float64", "int64"]

    @pytest.mark.parametrize(
        ("body", "query", "expected"),
        [
            ('[{"a": 1}, {"a": 2}]', "orient=records", {"a": [1, 2]}),
            ('{"a": {"0": 1}, "b": {"0": 2}}', "", {"a": [1], "b": [2]}),
            ('{"columns": ["a"], "index": [0], "data": [[1]]}', "orient=split", {"a": [1]}),
            ("[[1, 2]]", "orient=values", {0: [1], 1: [2]}),
            ('{"a": 1}\n{"a": 2}', "lines=true", {"a": [1, 2]}),
            ('{"a": 1}\n{"a": 2}', "lines=true&nrows=1", {"a": [1]}),
            ('[{"a": 1}]', "lines=false", {"a": [1]}),
            ('[{"a": 1}]', "orient=split&orient=records", {"a": [1]}),
        ],
    )
    def test_options(self, body: str, query: str, expected: Any) -> None:
        """The options are typed: false means false, nrows is a number, the last of two counts."""
        pd.testing.assert_frame_equal(self.read(body, query), pd.DataFrame(expected), check_index_type=False)

    def test_dates(self) -> None:
        """Columns named like dates are converted, unless the query says no."""
        assert self.read('[{"date": 2000000000}]').dtypes["date"].kind == "M"
        assert self.read('[{"date": 2000000000}]', "convert_dates=false").dtypes["date"].kind == "i"

    @pytest.mark.parametrize(
        ("body", "query", "words"),
        [
            ("[{}]", "orient=bogus", ["orient", "bogus", "records"]),
            ("[{}]", "typ=series", ["typ", "series", "frame"]),
            ("[{}]", "orinet=records", ["orinet", "did you mean 'orient'?"]),
            ("[{}]", "lines=perhaps", ["lines", "perhaps", "boolean"]),
            ("[{}]", "nrows=x", ["nrows", '"x"', "integer"]),
            ('[{"a": 1}]', "nrows=1", ["lines"]),
            ('{"a": 1}', "", ["list of records"]),
            ('"text"', "", ["list of records"]),
            ("[1", "", ["list of records"]),
            ("", "", ["no body", "POST"]),
        ],
    )
    def test_refusals(self, body: str, query: str, words: list[str]) -> None:
        """Bad options and bodies are a 422 with the name, what came and what is expected."""
        status, sentence = short_way(pandas_read_json, body.encode(), query.encode(), [])
        assert status == 422
        assert all(word in sentence for word in words), sentence

    def test_never_opens_a_path(self, tmp_path: Any) -> None:
        """A body that is the path of a JSON file, or a URL, opens nothing."""
        path = tmp_path / "secret.json"
        path.write_text('[{"a": 1}]')
        for body in (str(path), json.dumps(str(path)), f"file://{path}", "http://localhost:1/x.json"):
            for query in (b"", b"lines=true", b"orient=split"):
                status, result = short_way(pandas_read_json, body.encode(), query, [])
                # With lines=true, a JSON text is a table of that text.
                assert status == 422 or result.to_numpy().tolist() == [[json.loads(body)]]

    def test_directly(self) -> None:
        """Called with a request alone, as it used to be, it reads the options from the query."""

        async def receive() -> Any:
            return {"type": "http.request", "body": b'{"a": 1}\n{"a": 2}'}

        request = Request({"type": "http", "query_string": b"lines=true", "headers": []}, receive)
        assert len(asyncio.run(pandas_read_json(request))) == 2


def image_bytes(mode: str = "RGB", size: tuple[int, int] = (3, 2), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


class TestImage:
    @pytest.mark.parametrize(
        ("mode", "shape", "dtype"),
        [("RGB", (2, 3, 3), "uint8"), ("RGBA", (2, 3, 4), "uint8"), ("L", (2, 3), "uint8"), ("P", (2, 3), "uint8"),
         ("1", (2, 3), "bool")],
    )  # fmt: skip
    def test_modes(self, mode: str, shape: tuple[int, ...], dtype: str) -> None:
        """The array is what the file holds, without conversion."""
        array = Served(image_to_ndarray).value(files={"img": image_bytes(mode)})
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))

    def test_refusals(self) -> None:
        """No image, half an image, no file: a sentence each."""
        served = Served(image_to_ndarray)
        for content in (b"", b"no image", image_bytes()[:-30], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
            status, sentence = served.refusal(files={"img": content})
            assert (status, "can't be read as an image" in sentence) == (422, True)
        status, sentence = served.refusal(json={"img": 1})
        assert (status, "multipart/form-data is expected" in sentence) == (415, True)
        status, sentence = served.refusal(files={"image": image_bytes()})
        assert (status, "'img' is missing" in sentence) == (422, True)
        assert "Content-Type is missing" in served.refusal(method="GET")[1]

    def test_decompression_bomb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A small file that would fill the memory is refused before it is unpacked."""
        monkeypatch.setattr(http_adapters, "_MOST_PIXELS", 5)
        status, sentence = Served(image_to_ndarray).refusal(files={"img": image_bytes()})
        assert (status, "pixels" in sentence) == (413, True)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
        assert Served(image_to_ndarray).refusal(files={"img": image_bytes()})[0] == 413


def adds(base: int, multiplier: int = 2) -> int:
    """Add what the query says."""
    return base * multiplier


async def adds_later(base: int) -> int:
    return base + 1


class Flower(BaseModel):
    petals: Annotated[int, Field(ge=3)]
    name: str = ""
    colours: list[str] = []


def with_header(x_token: Annotated[str, Header()], base: Annotated[int, Depends(adds)]) -> str:
    return f"{x_token}{base}"


class Anything(BaseModel, extra="allow"):
    pass


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, base: float) -> float:
        return base * self.factor


class TestCustomAdapters:
    def test_query_parameters(self) -> None:
        """Plain parameters come from the query, converted, on GET and POST."""
        served = Served(adds)
        assert served.value(params={"base": 2}) == 4
        assert served.value(method="GET", params={"base": 2, "multiplier": 5}) == 10
        assert served.compiled.read is None

    @pytest.mark.parametrize(
        ("params", "words"),
        [
            ({}, ["query parameter 'base'", "missing"]),
            ({"base": "x"}, ["'base'", '"x"', "a valid integer is expected"]),
            ({"base": 1, "multplier": 2}, ["multplier", "did you mean 'multiplier'?"]),
        ],
    )
    def test_query_refusals(self, params: Any, words: list[str]) -> None:
        """A bad query names the parameter, what came and what is expected."""
        status, sentence = Served(adds).refusal(params=params)
        assert status == 422
        assert all(word in sentence for word in words), sentence

    def test_other_kinds(self) -> None:
        """Async functions, headers, nested dependencies, objects, methods and partials work."""
        assert Served(adds_later).value(params={"base": 1}) == 2
        assert Served(with_header).value(params={"base": 1}, headers={"x-token": "t"}) == "t2"
        assert Served(Scaler(3)).value(params={"base": 2}) == 6
        assert Served(Scaler(3).__call__).value(params={"base": 2}) == 6
        assert Served(partial(adds, multiplier=7)).value(params={"base": 1}) == 7
        assert Served(lambda: 5).value() == 5

    def test_pydantic_class(self) -> None:
        """A pydantic class takes the body and passes the instance on."""
        served = Served(Flower)
        assert served.value(json={"petals": 5}) == Flower(petals=5)
        status, sentence = served.refusal(json={"petals": 1, "colours": [1]})
        assert status == 422
        assert "'petals' is 1, but greater than or equal to 3 is expected" in sentence
        assert "'colours[0]'" in sentence
        assert '{"petals": 3}' in served.refusal()[1]
        assert "not JSON" in served.refusal(content=b"{", headers=JSON_TYPE)[1]
        assert served.refusal(content=b"petals=5", headers={"content-type": "text/plain"})[0] == 415
        assert served.value(content=b'{"petals": 5}').petals == 5

    def test_dependence_on_a_built_in(self) -> None:
        """A built-in adapter can be a dependency; its sentences and its query parameters stay."""

        def scaled(scale: float, frame: Annotated[pd.DataFrame, Depends(pandas_read_json)]) -> Any:
            return frame * scale

        served = Served(scaled)
        frame = served.value(params={"scale": 2, "orient": "records"}, json=[{"a": 1}])
        assert frame["a"].tolist() == [2]
        assert "did you mean 'scale'?" in served.refusal(params={"sclae": 2}, json=[{"a": 1}])[1]

        def negative(array: Annotated[Any, Depends(json_to_ndarray)]) -> Any:
            return -array

        assert "ragged" in Served(negative).refusal(json={"array": [[1], [2, 3]]})[1]

    def test_unknown_query_with_request(self) -> None:
        """Who takes the request, or a query model that keeps extras, may read any parameter."""

        def whole(request: Request) -> Any:
            return dict(request.query_params)

        def extras(query: Annotated[Anything, Query()]) -> Any:
            return query.model_extra

        assert Served(whole).value(params={"x": 1}) == {"x": "1"}
        assert Served(extras).value(params={"x": 1}) == {"x": "1"}
        assert Served(None).value(params={"x": 1}).query_params["x"] == "1"

    def test_bad_json_in_an_adapter(self) -> None:
        """An adapter that reads the JSON itself need not look after bad JSON."""

        async def reads(request: Request) -> Any:
            return await request.json()

        assert "not JSON" in Served(reads).refusal(content=b"{")[1]

    def test_http_exception(self) -> None:
        """An adapter chooses status, words and headers by HTTPException."""

        def picky(base: int) -> int:
            raise HTTPException(418, "I am a teapot.", headers={"x-tea": "green"})

        served = Served(picky)
        response = served.send(params={"base": 1})
        assert (response.status_code, response.json()["error"]) == (418, "I am a teapot.")
        assert response.headers["x-tea"] == "green"

    def test_unexpected_exception(self) -> None:
        """Any other exception is a 500 with its type and message; the original is kept for the log."""

        def broken(base: int) -> Any:
            return base + "x"  # type: ignore[operator]

        served = Served(broken)
        status, sentence = served.refusal(params={"base": 1})
        assert status == 500
        assert sentence.startswith("The HTTP adapter broken raised TypeError: ")
        assert isinstance(served.errors[-1].__cause__, TypeError)

    def test_answer_s_exception_is_not_the_adapter_s(self) -> None:
        """What the endpoint raises passes through as it is."""

        async def answer(value: Any, request: Request) -> Response:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            Served(adds, answer).send(params={"base": 1})

    def test_starlette_request(self) -> None:
        """The request is passed on with its body read."""
        request = Served(starlette_request).value(content=b"any")
        assert asyncio.run(request.body()) == b"any"


def unannotated(x) -> Any:  # type: ignore[no-untyped-def]  # noqa: ANN001 - the point
    return x


class TestCompile:
    @pytest.mark.parametrize(
        ("adapter", "words"),
        [
            (lambda x: x, ["'x'", "type annotated"]),
            (unannotated, ["unannotated", "'x'", "type annotated"]),
            (partial(unannotated), ["'x'", "type annotated"]),
            (Scaler, ["Scaler", "not a pydantic model", "callable function or pydantic model class"]),
            ([1], ["[1]", "callable function or pydantic model class"]),
            (eval("lambda *a: a"), ["*a"]),  # noqa: S307 - its annotations are none
            ("no_such_module_x:y", ["no_such_module_x", "imported"]),
            ("airserve_nb.http_adapters:json_to_ndaray", ["did you mean 'json_to_ndarray'?"]),
            ("json", ["'package.module:name'"]),
            ("a:b:c", ["'package.module:name'"]),
        ],
        ids=str,
    )
    def test_refusals(self, adapter: Any, words: list[str]) -> None:
        """What can't be an adapter is refused when it is compiled, by a sentence that says what to mend."""
        with pytest.raises(OptionError) as caught:
            compile_adapter(adapter)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    def test_unusable_annotation(self) -> None:
        """A type that FastAPI can't read from a request is refused, and named."""

        def wrong(x: np.ndarray) -> Any:
            return x

        with pytest.raises(OptionError, match=r"wrong can't be used by FastAPI: .*ndarray"):
            compile_adapter(wrong)

    def test_unresolved_annotation(self) -> None:
        """A name that can't be found is refused, and the parameter named."""

        def lost(x: Missing) -> Any:  # type: ignore[name-defined]  # noqa: F821 - the point
            return x

        with pytest.raises(OptionError, match=r"'x'.*Missing"):
            compile_adapter(lost)

    def test_positional_only(self) -> None:
        """Parameters are filled by name, so a '/' is refused."""

        def odd(x: int, /) -> int:
            return x

        with pytest.raises(OptionError, match="positional-only"):
            compile_adapter(odd)

    @pytest.mark.parametrize(
        "path",
        [
            "airserve_nb.http_adapters.json_to_ndarray",
            "airserve_nb.http_adapters:json_to_ndarray",
            "ray.serve.http_adapters.json_to_ndarray",
        ],
    )
    def test_import_strings(self, path: str) -> None:
        """Both spellings work, and the old home of the built-in adapters is known."""
        compiled = compile_adapter(path)
        assert compiled.function is json_to_ndarray
        assert compiled.name == "json_to_ndarray"
        assert load_http_adapter(path) is json_to_ndarray

    def test_none(self) -> None:
        """None stands for the raw request."""
        assert load_http_adapter() is starlette_request

    def test_compiled_again(self) -> None:
        """Compiling does not change what compiling gives."""
        assert compile_adapter(compile_adapter(Flower).function).function is not None
        assert compile_adapter(adds).function is compile_adapter(adds).function is adds


NOTEBOOK = """
from __future__ import annotations
from typing import Annotated
from fastapi import Depends, Query
from pydantic import BaseModel
import numpy as np
from airserve_nb.http_adapters import NdArray

class Item(BaseModel):
    value: float

def factor(by: Annotated[int, Query(ge=1)] = 1) -> int:
    return by

def adapter(item: Item, by: Annotated[int, Depends(factor)]) -> np.ndarray:
    return item.value * by
"""
REPLICA = """
import asyncio, pickle, sys
import httpx
from starlette.responses import JSONResponse
from airserve_nb.http_adapters import compile_adapter

async def answer(value, request):
    return JSONResponse(value)

async def main():
    for adapter in pickle.loads(sys.stdin.buffer.read()):
        app = compile_adapter(adapter).fastapi_app(answer, None, title="t")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            print((await client.post("/?by=2" if adapter.__name__ == "adapter" else "/", json={"value": 1.5})).text)

asyncio.run(main())
"""


def test_notebook_functions_travel() -> None:
    """A notebook's adapter with text annotations works in another process, compiled here and there."""
    notebook = types.ModuleType("__main__")
    exec(NOTEBOOK, notebook.__dict__)  # noqa: S102 - what a cell does
    adapter, item = notebook.__dict__["adapter"], notebook.__dict__["Item"]
    compile_adapter(adapter)
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", REPLICA],
        input=cloudpickle.dumps([adapter, item, compile_adapter(item).function][:1]),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.decode().split() == ["3.0"], done.stderr.decode()


class TestRoutes:
    def test_slash_and_root_path(self) -> None:
        """The route answers with and without a trailing slash, also below a prefix, with no redirect."""
        served = Served(adds)
        for path, root_path in (("/", ""), ("/name/", "/name"), ("/name", "/name")):
            for method in ("GET", "POST"):
                response = served.send(method, path, root_path=root_path, params={"base": 1})
                assert response.status_code == 200, (method, path, response.text)

    def test_elsewhere(self) -> None:
        """Other paths and methods are refused in one sentence, with the allowed methods."""
        served = Served(adds)
        assert served.refusal(path="/predict")[0] == 404
        response = served.send("PUT")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
        assert "use POST or GET" in response.json()["error"]

    @pytest.mark.parametrize("adapter", [*BUILT_IN, image_to_ndarray, None, adds, Flower, with_header])
    def test_openapi(self, adapter: Any) -> None:
        """Every schema has the route with a body where one is taken, and the form of errors."""
        openapi = Served(adapter).app.openapi()
        route = openapi["paths"]["/"]["post"]
        takes_body = adapter not in (None, adds, with_header)
        assert ("requestBody" in route) == takes_body
        assert ("get" in openapi["paths"]["/"]) == (not takes_body)
        assert set(route["responses"]) == {"200", "4XX", "5XX"}
        assert set(openapi["components"]["schemas"]["ErrorAnswer"]["properties"]) == {"error", "request_id"}

    def test_docs(self) -> None:
        """The page needs nothing from elsewhere, and escapes the title."""
        page = Served(json_to_ndarray).send("GET", "/docs")
        assert page.status_code == 200
        assert "&lt;b&gt;Test&lt;/b&gt;" in page.text
        assert "<b>" not in page.text
        assert "http://" not in page.text.replace("http://test", "")
        assert "https://" not in page.text
        assert '{"array": [0.0]}' in page.text


class TestExamples:
    @pytest.mark.parametrize(
        ("adapter", "expected"),
        [
            (json_to_ndarray, {"json": {"array": [0.0]}}),
            (json_to_multi_ndarray, {"json": {"a": {"array": [0.0]}}}),
            (pandas_read_json, {"json": [{"a": 1.5, "b": 2}]}),
            (json_request, {"json": {"a": 1}}),
            (starlette_request, {}),
            (adds, {"params": {"base": 0}}),
            (Flower, {"json": {"petals": 3}}),
            (with_header, {"params": {"base": 0}, "headers": {"x-token": ""}}),
        ],
    )
    def test_examples(self, adapter: Any, expected: Any) -> None:
        """The simplest request has the required parts only, and the adapter takes it."""
        example = example_for(compile_adapter(adapter))
        assert example == expected
        assert Served(adapter).send(**example).status_code == 200

    def test_no_example(self) -> None:
        """A file has no JSON form, so a payload is asked for."""
        with pytest.raises(OptionError, match=r"multipart/form-data.*give a payload"):
            example_for(compile_adapter(image_to_ndarray))
        with pytest.raises(OptionError, match="no route '/'"):
            example_from_openapi({"paths": {}})

    def test_values_obey_the_schema(self) -> None:
        """Bounds, lengths, enumerations and nested models are obeyed."""

        class Rich(BaseModel):
            low: Annotated[int, Field(gt=4)]
            part: Annotated[float, Field(gt=0, lt=1)]
            step: Annotated[int, Field(ge=5, multiple_of=4)]
            name: Annotated[str, Field(min_length=3)]
            pair: tuple[int, str]
            some: Annotated[list[float], Field(min_length=2)]
            maybe: int | None
            flag: bool

        example = example_for(compile_adapter(Rich))["json"]
        Rich.model_validate(example)
        assert example["maybe"] == 0
