"""From what a user gives as payload to the bytes of each request.

=============================  ===============================================================
``payload``                    what is sent
=============================  ===============================================================
a dict of request arguments    ``{"json": …, "params": …, "headers": …, "data": …, "method": …}``
                               with at least one of ``json``, ``params``, ``data``
any other dict, a number, …    that value as the JSON body
a list                         several payloads, one a request, from the first again after the last
a function                     ``payload(index)`` for each request, the index counting from 0
=============================  ===============================================================

So one body that is a list goes into another list, or into ``{"json": [...]}``; and a JSON body whose only
keys are, say, ``data`` and ``params`` goes into ``{"json": {...}}`` too. Elements of the list and what the
function returns are bodies or dicts of request arguments, never lists of several payloads again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlencode

from airserve_nb.errors import ProbeError
from airserve_nb.loadgen.plan import Message

__all__ = ["encode_request", "materialise"]

ARGUMENT_NAMES = ("json", "params", "headers", "data", "method")
_BODY_NAMES = frozenset({"json", "params", "data"})


def materialise(url: str, payload: Any, count: int) -> list[Message]:
    """Make the messages of a probe of ``count`` requests, all of them before the first is sent.

    Returns
    -------
    list of Message
        To be taken in turns: never more than ``count``, and one where all requests are equal.

    Raises
    ------
    ProbeError
        When the payload has no JSON form, is empty, or its function fails.
    """
    if callable(payload):
        return [_from_function(url, payload, index) for index in range(count)]
    if isinstance(payload, list | tuple):
        if not payload:
            raise ProbeError(
                "The payload is an empty list, and a list is several payloads, one a request; "
                'give at least one, or {"json": []} to send an empty list.'
            )
        return [
            encode_request(url, value, place=f"payload[{number}]")
            for number, value in enumerate(payload[:count])
        ]
    return [encode_request(url, payload)]


def _from_function(url: str, function: Callable[[int], Any], index: int) -> Message:
    place = f"payload({index})"
    try:
        value = function(index)
    except Exception as error:
        raise ProbeError(
            f"The payload function raised {type(error).__name__} for request {index}: {error}; "
            "it is called with the request's number, from 0."
        ) from error
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise ProbeError("The payload function is asynchronous; write it with def instead of async def.")
    if value is None:
        raise ProbeError(f'{place} returned None; return a JSON body, or {{"json": None}} to send null.')
    return encode_request(url, value, place=place)


def encode_request(url: str, value: Any, *, place: str = "the payload") -> Message:
    """Make one request of a JSON body or a dict of request arguments.

    Parameters
    ----------
    url
        Where it goes; ``params`` are added to its query.
    value
        The body or the arguments. NumPy arrays and numbers inside are sent as lists and numbers.
    place
        What to call the value in an error.

    Raises
    ------
    ProbeError
        When the value can't be sent.
    """
    if not _is_arguments(value, place):
        _refuse_look_alikes(value, place)
        return Message("POST", url, (("Content-Type", "application/json"),), _to_json(value, place))
    if "json" in value and "data" in value:
        raise ProbeError(
            f"{_start(place)} has both json and data, but a request has one body; leave one out."
        )
    headers = _headers(value.get("headers"), place)
    body, content_type = _body(value, place)
    if content_type and "content-type" not in {name.lower() for name, _ in headers}:
        headers = (*headers, ("Content-Type", content_type))
    has_body = "json" in value or "data" in value
    method = value.get("method", "POST" if has_body else "GET")
    if not isinstance(method, str) or not method.isalpha():
        raise ProbeError(f'{_start(place)} has the method {method!r}; give a name such as "GET" or "POST".')
    return Message(method.upper(), _with_params(url, value.get("params"), place), headers, body)


def _is_arguments(value: Any, place: str) -> bool:
    """Tell request arguments from a JSON body; refuse what looks like a misspelt mixture."""
    if not isinstance(value, dict):
        return False
    unknown = [key for key in value if key not in ARGUMENT_NAMES]
    if not unknown:
        return not _BODY_NAMES.isdisjoint(value)
    if "json" not in value:
        return False
    guess = get_close_matches(str(unknown[0]), ARGUMENT_NAMES, n=1)
    hint = f"did you mean {guess[0]!r}" if guess else f"there are {', '.join(ARGUMENT_NAMES)}"
    raise ProbeError(
        f"{_start(place)} has the key 'json' and so reads as request arguments, but {unknown[0]!r} is none "
        f"({hint}); a JSON body with a key 'json' of its own goes into {{\"json\": {{...}}}}."
    )


def _refuse_look_alikes(value: Any, place: str) -> None:
    """Answer what newcomers give instead of a JSON value."""
    kind = f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        raise ProbeError(
            f"{_start(place)} is a {kind}, and it is not said how to divide it: give "
            '{"json": df.to_dict("records")} for one request with all rows, or '
            '[[row] for row in df.to_dict("records")] for one row a request.'
        )
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        raise ProbeError(
            f"{_start(place)} is a {kind}, and it is not said how to divide it: give "
            '{"array": x.tolist()} for one request, or [{"array": row.tolist()} for row in x] for one row a request.'
        )
    if isinstance(value, bytes | bytearray):
        raise ProbeError(f'{_start(place)} is bytes; give {{"data": ...}} to send them as they are.')
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        raise ProbeError(
            f"{_start(place)} is text that looks like JSON and would be encoded a second time; give "
            'json.loads(text), or {"data": text, "headers": {"Content-Type": "application/json"}}.'
        )


def _to_json(value: Any, place: str) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), default=_plain).encode()
    except RecursionError:
        reason = "it is nested too deeply"
    except (TypeError, ValueError) as error:
        reason = str(error).replace("Circular reference detected", "it contains itself")
    raise ProbeError(f"{_start(place)} has no JSON form: {reason.rstrip('.')}.") from None


def _plain(value: Any) -> Any:
    """Turn NumPy's arrays and numbers, which rows of a dataset are made of, into Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__qualname__} is no JSON value")


def _body(arguments: Mapping[str, Any], place: str) -> tuple[bytes, str | None]:
    if "json" in arguments:
        return _to_json(arguments["json"], place), "application/json"
    data = arguments.get("data")
    if data is None:
        return b"", None
    if isinstance(data, str):
        return data.encode(), "text/plain; charset=utf-8"
    if isinstance(data, bytes | bytearray):
        return bytes(data), "application/octet-stream"
    if isinstance(data, Mapping):
        return urlencode(data, doseq=True).encode(), "application/x-www-form-urlencoded"
    raise ProbeError(
        f"{_start(place)} has data of type {type(data).__qualname__}; give text, bytes or a dict of form fields, "
        "or use json for a JSON body."
    )


def _headers(headers: Any, place: str) -> tuple[tuple[str, str], ...]:
    if headers is None:
        return ()
    if not isinstance(headers, Mapping):
        raise ProbeError(
            f"{_start(place)} has headers of type {type(headers).__qualname__}; give a dict of texts."
        )
    pairs = tuple((str(name), str(value)) for name, value in headers.items())
    for pair in pairs:
        if any(character in text for text in pair for character in "\r\n\0"):
            raise ProbeError(f"{_start(place)} has a line break in the header {pair[0]!r}; leave it out.")
    return pairs


def _with_params(url: str, params: Any, place: str) -> str:
    if not params:
        return url
    if not isinstance(params, Mapping):
        raise ProbeError(
            f"{_start(place)} has params of type {type(params).__qualname__}; give a dict such as {{'x': 1}}."
        )
    pairs = [(str(name), _param(one)) for name, value in params.items() for one in _each(value)]
    return f"{url}{'&' if '?' in url else '?'}{urlencode(pairs)}" if pairs else url


def _each(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _param(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _start(place: str) -> str:
    """Begin a sentence with the name of the value."""
    return place[0].upper() + place[1:] if place.startswith("the ") else place
