"""Where a probe's requests go, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import requests as http

from airserve_nb.errors import AirServeError, ProbeError
from airserve_nb.loadgen.payload import encode_request, materialise
from airserve_nb.loadgen.plan import Message

__all__ = ["Aim", "aim_at", "messages_for"]


@dataclass(frozen=True)
class Aim:
    """Where the requests go."""

    url: str
    name: str
    service: Any = None
    """The service that keeps the records; None of a bare URL."""

    @property
    def shown(self) -> str:
        """The URL as it may be read by others: without the user and password in it."""
        return _without_user(self.url)


def aim_at(target: Any) -> Aim:
    """Take a ``Service``, or a URL.

    Raises
    ------
    ProbeError
        When it is neither, or stopped.
    """
    if isinstance(target, str):
        url = _checked_url(target)
        return Aim(url=url, name=urlsplit(url).path or "/")
    if isinstance(target, type) or not (hasattr(target, "url") and hasattr(target, "batches")):
        kind = f"the class {target.__name__}" if isinstance(target, type) else f"a {type(target).__name__}"
        raise ProbeError(
            f"The target is {kind}, which can't be probed; give the Service that %%serve or deploy() returned, "
            "or a URL."
        )
    if getattr(target, "state", "running") == "stopped":
        raise ProbeError(
            f"{target.name} is stopped and answers nothing; run its cell again, then probe.",
            deployment=target.name,
        )
    return Aim(url=_checked_url(target.url), name=str(target.name), service=target)


def _checked_url(url: str) -> str:
    """Return the URL with whatever is needed percent-encoded, or say what is wrong with it."""
    stripped = url.strip()
    try:
        parts = urlsplit(stripped)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ProbeError(f"The target {url!r} is no URL: {error}.") from None
    if parts.scheme not in {"http", "https"} or not host:
        hint = (
            f'did you mean "http://{stripped}"'
            if "://" not in stripped and ("." in stripped or ":" in stripped)
            else "give the whole URL, such as http://127.0.0.1:8000/adder, or the Service itself"
        )
        raise ProbeError(f"The target {url!r} is no HTTP URL; {hint}.")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~")
    return urlunsplit((parts.scheme, parts.netloc, path or "/", query, ""))


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def messages_for(aim: Aim, payload: Any, count: int) -> list[Message]:
    """Return the messages of ``count`` requests, to be taken in turns.

    Raises
    ------
    ProbeError
        When there is no payload and none can be made, or it can't be sent.
    """
    if payload is not None:
        return materialise(aim.url, payload, count)
    example = getattr(aim.service, "example", None)
    if example is not None:
        # An example is one request, also when it is a list.
        return [encode_request(aim.url, example, place="the service's example")]
    return [_simplest_request(aim)]


def _simplest_request(aim: Aim) -> Message:
    """Make the simplest request that the endpoint's own schema allows."""
    from airserve_nb._adapter_example import example_from_openapi

    schema_url = urlunsplit(urlsplit(aim.url)._replace(query="")).rstrip("/") + "/openapi.json"
    try:
        arguments = example_from_openapi(_fetch_schema(schema_url))
    except ProbeError as error:
        reason = str(error)
    except AirServeError as error:
        reason = f"its schema says: {error}"
    except (LookupError, TypeError, ValueError, AttributeError):
        reason = f"{_without_user(schema_url)} is no OpenAPI schema."
    else:
        cookies = arguments.pop("cookies", None)
        if cookies:
            text = "; ".join(f"{name}={value}" for name, value in cookies.items())
            arguments["headers"] = {**arguments.get("headers", {}), "Cookie": text}
        # With params, if only empty ones, it can't be taken for a JSON body.
        return encode_request(aim.url, {"params": {}, **arguments}, place="the schema's example")
    raise ProbeError(
        f'There is no payload, so give one, such as probe(target, {{"array": [1.0]}}); none can be made, because {reason}'
    )


def _fetch_schema(schema_url: str) -> dict[str, Any]:
    try:
        with http.Session() as session:
            session.trust_env = False  # a proxy for the internet is no way to 127.0.0.1
            answer = session.get(schema_url, timeout=10)
    except http.RequestException as error:
        raise ProbeError(f"{_without_user(schema_url)} gives no answer.") from error
    if not answer.ok:
        raise ProbeError(f"{_without_user(schema_url)} answers HTTP {answer.status_code}.")
    schema: dict[str, Any] = answer.json()
    return schema
