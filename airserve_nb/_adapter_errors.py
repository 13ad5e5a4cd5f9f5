"""Whatever an adapter raises, as one sentence and a status: a client never sees a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from airserve_nb._adapter_read import show
from airserve_nb._sentences import as_sentence, describe
from airserve_nb.errors import BadInputError, RequestError

__all__ = ["refusal_for", "refusal_for_fields"]

_SHOWN_ERRORS = 3
_SOURCES = {
    "query": "query parameter",
    "path": "path parameter",
    "header": "header",
    "cookie": "cookie",
    "body": "body's field",
}


def refusal_for(error: Exception, *, adapter: str, example: str) -> RequestError:
    """Return what a client is told of ``error``.

    Parameters
    ----------
    error
        What the adapter, or the reading of its arguments, raised.
    adapter
        Its name.
    example
        JSON text of a body that it takes, for requests without one.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestValidationError):
        return refusal_for_fields(error.errors(), example=example)
    if isinstance(error, HTTPException):
        # FastAPI hides what reading the body raised behind a 400 of its own.
        if isinstance(error.__cause__, RequestError):
            return error.__cause__
        detail = error.detail if isinstance(error.detail, str) else json.dumps(error.detail, default=str)
        refusal = RequestError(detail, status=error.status_code)
    elif isinstance(error, ValidationError):
        # A model built by the adapter itself from what the client sent.
        refusal = refusal_for_fields(error.errors(), example=example)
    else:
        refusal = RequestError(
            as_sentence(f"The HTTP adapter {adapter} raised {describe(error)}"), status=500
        )
    refusal.__cause__ = error
    return refusal


def refusal_for_fields(errors: Sequence[Any], *, example: str = "", source: str = "") -> BadInputError:
    """Return pydantic's list of errors as one sentence; ``source`` stands before every location."""
    inner = [error["ctx"]["error"] for error in errors if isinstance(_cause(error), BadInputError)]
    if inner and len(errors) == 1:
        first: BadInputError = inner[0]
        location = _location(errors[0]["loc"])
        where = f"In {location}: " if len(errors[0]["loc"]) > 1 else ""
        return BadInputError(where + str(first), status=first.status)
    phrases = [
        _phrase({**error, "loc": (source, *error["loc"])} if source else error, example) for error in errors
    ]
    # A union reports every branch that failed: once is enough.
    phrases = list(dict.fromkeys(phrases))
    text = "; ".join(phrases[:_SHOWN_ERRORS])
    more = len(phrases) - _SHOWN_ERRORS
    ending = f"; and {more} more." if more > 0 else "."
    return BadInputError(text[:1].upper() + text[1:] + ending)


def _cause(error: Mapping[str, Any]) -> object:
    context = error.get("ctx")
    return context.get("error") if isinstance(context, dict) else None


def _phrase(error: Mapping[str, Any], example: str) -> str:
    location = _location(error["loc"])
    if error["type"] == "missing":
        if tuple(error["loc"]) == ("body",):
            hint = f" such as {example}" if example else ""
            return f"the request has no body; send a POST with JSON{hint}"
        return f"{location} is missing"
    if error["type"] == "extra_forbidden":
        return f"{location} is unknown"
    return f"{location} is {show(_plain(error.get('input')))}, but {_expectation(error)}"


def _plain(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _expectation(error: Mapping[str, Any]) -> str:
    """Return pydantic's message as the second half of a sentence."""
    message = str(error["msg"])
    for start in ("Input should be ", "Value error, ", "Assertion failed, "):
        if message.startswith(start):
            rest = message[len(start) :].rstrip(".")
            # "a valid integer, unable to parse string as an integer": the second half adds nothing.
            rest = rest.split(", unable to parse", 1)[0]
            return f"{rest} is expected" if start == "Input should be " else rest
    return message[:1].lower() + message[1:].rstrip(".")


def _location(loc: Sequence[Any]) -> str:
    """Return ``("body", "rows", 0, "age")`` as ``the body's field 'rows[0].age'``."""
    source, *parts = loc or ("body",)
    if not parts:
        return "the body" if source == "body" else f"the {_SOURCES.get(str(source), str(source))}"
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else ("." if path else "") + str(part)
    return f"the {_SOURCES.get(str(source), str(source))} {path!r}"
