"""The first look at a request, shared by the built-in adapters and by those that go through FastAPI.

Both ways must refuse the same requests with the same sentence and status. So everything that is checked
before the content is checked here, once: the query's names, the content type, and the body's JSON.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from airserve_nb.errors import BadInputError

__all__ = [
    "RawRequest",
    "check_form_content_type",
    "check_json_content_type",
    "check_query_names",
    "parse_json",
    "query_pairs",
    "show",
    "suggestion",
]

_SHOWN_CHARACTERS = 60
_UNSUPPORTED_MEDIA_TYPE = 415


class RawRequest(NamedTuple):
    """All that a built-in adapter looks at, as it stands in the ASGI scope."""

    body: bytes
    """The whole body."""
    query_string: bytes
    """What follows the question mark, still percent-encoded."""
    headers: Sequence[tuple[bytes, bytes]]
    """Header names (lower case) and values."""


def show(value: object) -> str:
    """Return ``value`` as it looks in JSON, cut to some 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = str(value) if isinstance(value, str) else type(value).__name__
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` or ``"; known are 'x' and 'y'."``: the end of a sentence."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not names:
        return "; none is known here."
    listed = ", ".join(map(repr, names[:-1])) + (" and " if names[1:] else "") + repr(names[-1])
    return f"; known {'are' if names[1:] else 'is'} {listed}."


def query_pairs(query_string: bytes) -> list[tuple[str, str]]:
    """Return the query's names and values, decoded, in the order sent."""
    return parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)


def check_query_names(query_string: bytes, known: Collection[str]) -> None:
    """Refuse a query parameter that nothing would read: it is a typing error more often than not."""
    if not query_string:
        return
    for name, _ in query_pairs(query_string):
        if name not in known:
            raise BadInputError(f"The query parameter {show(name)} is unknown{suggestion(name, known)}")


def check_json_content_type(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse a body that says it is not JSON; one that says nothing is taken for JSON."""
    for name, value in headers:
        if name == b"content-type":
            if value != b"application/json" and not _is_json(value):
                raise BadInputError(
                    f"The Content-Type is {show(value.decode('latin-1'))}, but application/json is expected;"
                    " send the header 'Content-Type: application/json'.",
                    status=_UNSUPPORTED_MEDIA_TYPE,
                )
            return


def check_form_content_type(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse a body that is no form where a file or a form's fields are expected."""
    content_type = next((value for name, value in headers if name == b"content-type"), b"")
    media_type = content_type.split(b";", 1)[0].strip().lower()
    if media_type not in (b"multipart/form-data", b"application/x-www-form-urlencoded"):
        found = show(content_type.decode("latin-1")) if content_type else "missing"
        raise BadInputError(
            f"The Content-Type is {found}, but multipart/form-data is expected; send the body as a form, for example"
            " with 'curl -F name=@file'.",
            status=_UNSUPPORTED_MEDIA_TYPE,
        )


def _is_json(content_type: bytes) -> bool:
    """Whether a Content-Type is none at all, JSON, or a dialect of it such as ``application/ld+json``."""
    media_type = content_type.split(b";", 1)[0].strip().lower()
    main, _, sub = media_type.partition(b"/")
    return not media_type or (main == b"application" and (sub == b"json" or sub.endswith(b"+json")))


def parse_json(body: bytes, example: str) -> Any:
    """Return the parsed body; ``example`` is what the sentences for bad ones show, or empty."""
    such_as = f" such as {example}" if example else ""
    try:
        return json.loads(body)
    except UnicodeDecodeError as error:
        message = f"The body is not valid UTF-8 at byte {error.start}; send JSON as UTF-8."
    except json.JSONDecodeError as error:
        if not body.strip():
            message = f"The request has no body; send a POST with JSON{such_as}."
        else:
            message = (
                f"The body is not JSON: {_lower_first(error.msg)} at line {error.lineno}, column {error.colno};"
                f" send JSON{such_as}."
            )
    except RecursionError:
        message = "The body's JSON is nested too deeply to be read; send a flatter one."
    except ValueError:  # Python's own limit, against integers that take seconds to parse
        message = "The body's JSON holds an integer with too many digits; send it as text or as a float."
    raise BadInputError(message)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
