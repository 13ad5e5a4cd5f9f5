"""HTTP adapters: what makes the model's input of a request.

An adapter is a function with annotated parameters. FastAPI's dependency injection fills them: numbers and text
from the query, pydantic models from the body, ``Request``, ``Header``, ``File`` and nested ``Depends`` as
usual. The adapters here can be given to a deployment, used in ``Depends`` of your own, or called directly.

=========================  ===========================================  =============================
adapter                    takes                                        gives
=========================  ===========================================  =============================
``json_to_ndarray``        ``{"array": [40]}``, ``shape``, ``dtype``    one array (the default)
``json_to_multi_ndarray``  ``{"a": {"array": [40]}, "b": ...}``         a dict of arrays
``pandas_read_json``       ``[{"a": 1.5}, {"a": 2.5}]``, query options  a DataFrame
``image_to_ndarray``       a file in the form field ``img``             an array, H x W (x channels)
``json_request``           any JSON                                     what it holds
``starlette_request``      anything                                     the request itself
=========================  ===========================================  =============================

What they can't use is refused with a 4xx and one sentence. A query parameter that nothing reads is refused too.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from fastapi import File, Query
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator
from pydantic.config import JsonDict
from starlette.requests import Request

from airserve_nb._adapter_arrays import ARRAY_EXAMPLE, array_from_payload
from airserve_nb._adapter_compile import CompiledAdapter, compile_adapter
from airserve_nb._adapter_example import example_for
from airserve_nb._adapter_frames import FRAME_EXAMPLE, FrameOptions, frame_from_body, frame_options
from airserve_nb._adapter_read import RawRequest, check_json_content_type, check_query_names, parse_json, show
from airserve_nb.errors import BadInputError

__all__ = [
    "CompiledAdapter",
    "NdArray",
    "RawRequest",
    "compile_adapter",
    "example_for",
    "image_to_ndarray",
    "json_request",
    "json_to_multi_ndarray",
    "json_to_ndarray",
    "load_http_adapter",
    "pandas_read_json",
    "starlette_request",
]

Array = npt.NDArray[Any]

# What a decompressed image may hold: 64 million pixels are 192 MB of RGB.
_MOST_PIXELS = 64_000_000
# No format that runs a program to be read (EPS), and none that nobody sends.
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_TOO_LARGE = 413
_MULTI_EXAMPLE = '{"a": {"array": [40]}}'

_NUMBERS_SCHEMA: JsonDict = {
    "type": "array",
    "items": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "boolean"}, {"type": "array"}]},
}


class NdArray(BaseModel):
    """The JSON form of an array: ``{"array": [[1, 2], [3, 4]], "dtype": "float32"}``.

    It is checked whole when it is made: an ``NdArray`` that exists can be converted.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"array": [0.0]}]})

    array: list[Any] = Field(
        description="Numbers in lists, nested to any depth; a number may be sent as text, 'NaN' and 'Infinity' too.",
        json_schema_extra=_NUMBERS_SCHEMA,
    )
    shape: list[int] | None = Field(
        default=None, description="The shape to give it; -1 once for what is left."
    )
    dtype: str | None = Field(
        default=None, description="Such as 'float32' or 'int64'; float64 when not given."
    )

    @model_validator(mode="before")
    @classmethod
    def _check(cls, payload: Any) -> Any:
        if not isinstance(payload, cls):
            array_from_payload(payload)
        return payload


class _NdArrays(RootModel[dict[str, NdArray]]):
    """Arrays by name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"a": {"array": [0.0]}}]})

    @model_validator(mode="before")
    @classmethod
    def _check(cls, payload: Any) -> Any:
        if not isinstance(payload, cls):
            _arrays_from_payload(payload)
        return payload


def json_to_ndarray(payload: NdArray) -> Array:
    """Turn a JSON body such as ``{"array": [40]}`` into an array.

    Parameters
    ----------
    payload
        The body. ``array`` is a list of any depth (up to 31); ``shape`` and ``dtype`` are optional.

    Returns
    -------
    numpy.ndarray
        float64 unless ``dtype`` says otherwise: ``[40]`` gives ``array([40.])``. Integers sent with an
        integer dtype stay exact. An empty ``shape`` makes a 0-dimensional array of one value.
    """
    return array_from_payload(_ndarray_fields(payload))


def json_to_multi_ndarray(payload: _NdArrays) -> dict[str, Array]:
    """Turn a JSON body such as ``{"a": {"array": [40]}, "b": {"array": [1, 2]}}`` into a dict of arrays.

    Parameters
    ----------
    payload
        The body, or a dict of :class:`NdArray`. At least one array: nothing can't be batched.
    """
    arrays = payload.root if isinstance(payload, _NdArrays) else payload
    return _arrays_from_payload({name: _ndarray_fields(array) for name, array in arrays.items()})


async def pandas_read_json(
    raw_request: Request,
    options: Annotated[FrameOptions, Query()] = None,  # type: ignore[assignment]  # FastAPI gives one
) -> pd.DataFrame:
    """Turn a JSON body such as ``[{"a": 1.5, "b": 2}]`` into a DataFrame, as ``pandas.read_json`` does.

    The query parameters are those of ``pandas.read_json`` that make sense for a body, typed and listed in the
    schema. The body is always taken for JSON, never for a path or a URL. Floats keep every digit
    (``precise_float`` is True here).

    Parameters
    ----------
    raw_request
        The request.
    options
        The query parameters; read from the request when not given.

    Returns
    -------
    pandas.DataFrame
        One row a record. As in pandas, dtypes are inferred from each body by itself: ``1.0`` gives int64.
    """
    options = options or frame_options(raw_request.scope["query_string"])
    check_json_content_type(raw_request.scope["headers"])
    return frame_from_body(await raw_request.body(), options)


def image_to_ndarray(img: Annotated[bytes, File(description="The image file.")]) -> Array:
    """Turn an uploaded image (multipart form field ``img``) into an array, without any conversion.

    Returns
    -------
    numpy.ndarray
        RGB gives (H, W, 3) uint8, RGBA (H, W, 4) uint8, greyscale and palette images (H, W) uint8, and black and
        white (H, W) bool.
    """
    from PIL import Image

    formats = ", ".join(_IMAGE_FORMATS)
    too_large = BadInputError(
        f"The image has more than {_MOST_PIXELS:,} pixels; send a smaller one.", status=_TOO_LARGE
    )
    try:
        with Image.open(BytesIO(img), formats=_IMAGE_FORMATS) as image:
            # The size stands in the file's head: nothing is decompressed yet.
            if image.width * image.height <= _MOST_PIXELS:
                return np.array(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except Exception as error:
        # Pillow's readers raise whatever their format's parsing runs into.
        raise BadInputError(
            f"The file in 'img' ({len(img)} bytes) can't be read as an image; send one of {formats}."
        ) from error
    raise too_large


async def json_request(request: Request) -> Any:
    """Pass on what the JSON body holds: a dict, a list, a number, text, a boolean or None."""
    check_json_content_type(request.scope["headers"])
    return parse_json(await request.body(), _ANY_EXAMPLE)


async def starlette_request(request: Request) -> Request:
    """Pass on the request itself, its body read already: for predictors that look at everything."""
    await request.body()
    return request


def load_http_adapter(adapter: object = None) -> Callable[..., Any]:
    """Return the function that ``adapter`` stands for, checked: it can be used in FastAPI's ``Depends``.

    Parameters
    ----------
    adapter
        A function with annotated parameters, another callable with them, a pydantic class, the import string
        of one of these, or None for :func:`starlette_request`.

    Raises
    ------
    OptionError
        When it can't be an adapter; the sentence says why.
    """
    return compile_adapter(adapter).function


_ANY_EXAMPLE = '{"a": 1}'


def _ndarray_fields(payload: Any) -> Any:
    """Return the fields that were given, so that what was not sent counts as not sent."""
    return payload.model_dump(exclude_unset=True) if isinstance(payload, BaseModel) else payload


def _arrays_from_payload(payload: object) -> dict[str, Array]:
    if not isinstance(payload, dict):
        raise BadInputError(f"An object of arrays such as {_MULTI_EXAMPLE} is expected, not {show(payload)}.")
    if not payload:
        raise BadInputError(
            f"The object has no key, but at least one array is needed; send {_MULTI_EXAMPLE}."
        )
    return {
        name: array_from_payload(_ndarray_fields(item), where=f"In {show(name)}: ")
        for name, item in payload.items()
    }


def _read_ndarray(raw: RawRequest) -> Array:
    check_query_names(raw.query_string, ())
    check_json_content_type(raw.headers)
    return array_from_payload(parse_json(raw.body, ARRAY_EXAMPLE))


def _read_multi_ndarray(raw: RawRequest) -> dict[str, Array]:
    check_query_names(raw.query_string, ())
    check_json_content_type(raw.headers)
    return _arrays_from_payload(parse_json(raw.body, _MULTI_EXAMPLE))


def _read_frame(raw: RawRequest) -> pd.DataFrame:
    check_query_names(raw.query_string, FrameOptions.model_fields.keys())
    options = frame_options(raw.query_string)
    check_json_content_type(raw.headers)
    return frame_from_body(raw.body, options)


def _read_json(raw: RawRequest) -> Any:
    check_query_names(raw.query_string, ())
    check_json_content_type(raw.headers)
    return parse_json(raw.body, _ANY_EXAMPLE)


READERS: dict[Callable[..., Any], Callable[[RawRequest], Any]] = {
    json_to_ndarray: _read_ndarray,
    json_to_multi_ndarray: _read_multi_ndarray,
    pandas_read_json: _read_frame,
    json_request: _read_json,
}
"""Adapter -> the short way to the same result, past FastAPI. For the endpoint."""

EXAMPLES = {
    json_to_ndarray: ARRAY_EXAMPLE,
    json_to_multi_ndarray: _MULTI_EXAMPLE,
    pandas_read_json: FRAME_EXAMPLE,
    json_request: _ANY_EXAMPLE,
}
"""Adapter -> the body that its sentences show; other adapters' come from their schema."""

BODY_READERS: frozenset[Callable[..., Any]] = frozenset({pandas_read_json, json_request})
"""Adapters that take the request, but nothing of its query beyond what their signature lists."""


def _json_body(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


OPENAPI_EXTRA: dict[Callable[..., Any], dict[str, Any]] = {
    pandas_read_json: _json_body(
        {
            "title": "Table",
            "anyOf": [{"type": "array", "items": {"type": "object"}}, {"type": "object"}],
            "description": "A list of records, or the layout that 'orient' names.",
        },
        [{"a": 1.5, "b": 2}],
    ),
    json_request: _json_body({"title": "Any JSON"}, {"a": 1}),
}
"""What the schema says of bodies that FastAPI can't see, since the adapter reads them itself."""
