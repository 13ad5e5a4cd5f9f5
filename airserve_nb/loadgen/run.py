"""``probe``: fire requests at an endpoint, see in which batches they rode."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pandas as pd
import requests as http

from airserve_nb.errors import AirServeError, ProbeError
from airserve_nb.loadgen.launch import run_plan
from airserve_nb.loadgen.payload import Message, encode_request, materialise
from airserve_nb.loadgen.plan import Plan, PlannedRequest
from airserve_nb.loadgen.result import ProbeResult
from airserve_nb.loadgen.tables import batch_table, request_table

__all__ = ["probe"]

RECORDS_WITHIN_S = 2.0
"""How long to wait for the server's records of batches whose answers have already come."""


def probe(
    target: Any,
    payload: Any = None,
    *,
    requests: int = 10,
    concurrency: int | None = None,
    timeout_s: float = 30,
) -> ProbeResult:
    """Send requests to ``target`` and return what became of each, and in which batches they rode.

    All requests are encoded beforehand and leave at the same moment, each on a connection of its own that
    is already open; with ``concurrency`` fewer are in flight, and each answer lets the next one go. The
    client is a process of its own, so a busy notebook does not distort its times. An interrupt stops the
    sending and returns what there is, marked as interrupted.

    Parameters
    ----------
    target
        A ``Service``, or the URL of any HTTP endpoint.
    payload
        What to send: None (the service's example, else the simplest body that the schema at
        ``/openapi.json`` allows), a JSON body, a list of them (*several* payloads, taken in turns: one
        body that is a list goes into another list), a function of the request's number (from 0), or a
        dict of request arguments (``json``, ``params``, ``headers``, ``data``, ``method``; at least one of
        ``json``, ``params``, ``data`` and no other key). ``{"json": body}`` sends any body as it is.
    requests
        How many.
    concurrency
        How many are in flight at most; None: all of them.
    timeout_s
        How long one request may take, in seconds.

    Returns
    -------
    ProbeResult
        Failures are among its rows: no HTTP error, timeout or refused connection raises.

    Raises
    ------
    ProbeError
        When target, payload or a number is of no use, before anything is sent.

    Examples
    --------
    >>> result = probe("http://127.0.0.1:8000/adder", {"array": [40]})  # doctest: +SKIP
    >>> result.batches.batch_size.tolist()  # doctest: +SKIP
    [10]
    """
    _check_whole("requests", requests)
    if concurrency is not None:
        _check_whole("concurrency", concurrency)
    _check_timeout(timeout_s)
    aim = _aim_at(target)
    messages = _messages(aim, payload, requests)
    run = run_plan(_plan(messages, concurrency, timeout_s))
    table = request_table(run)
    batches = batch_table(table, run, _records(aim.service, set(table["batch_id"].dropna())))
    return ProbeResult(
        target=aim.name,
        url=aim.url,
        requests=table,
        batches=batches,
        elapsed_s=run.elapsed_s,
        interrupted=run.interrupted,
    )


@dataclass(frozen=True)
class _Aim:
    """Where the requests go."""

    url: str
    name: str
    service: Any = None
    """The service that keeps the records; None of a bare URL."""


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ProbeError(f"{name} is {value!r}; give a whole number from 1 on.")


def _check_timeout(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ProbeError(f"timeout_s is {value!r}; give a number of seconds above 0.")


def _aim_at(target: Any) -> _Aim:
    if isinstance(target, str):
        url = _checked_url(target)
        return _Aim(url=url, name=urlsplit(url).path or "/")
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
    return _Aim(url=_checked_url(target.url), name=str(target.name), service=target)


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


def _messages(aim: _Aim, payload: Any, count: int) -> list[Message]:
    if payload is not None:
        return materialise(aim.url, payload, count)
    example = getattr(aim.service, "example", None)
    if example is not None:
        # An example is one request, also when it is a list.
        return [encode_request(aim.url, example, place="the service's example")] * count
    return [_simplest_request(aim)] * count


def _simplest_request(aim: _Aim) -> Message:
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
        reason = f"{schema_url} is no OpenAPI schema."
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
        raise ProbeError(f"{schema_url} gives no answer.") from error
    if not answer.ok:
        raise ProbeError(f"{schema_url} answers HTTP {answer.status_code}.")
    schema: dict[str, Any] = answer.json()
    return schema


def _plan(messages: list[Message], concurrency: int | None, timeout_s: float) -> Plan:
    # A burst has a plan: everything at once. In a closed loop the server's answers set the pace.
    planned_s = 0.0 if concurrency is None else None
    return Plan(
        requests=tuple(
            PlannedRequest(index, planned_s, message.method, message.url, message.headers, message.body)
            for index, message in enumerate(messages)
        ),
        concurrency=concurrency,
        timeout_s=float(timeout_s),
    )


def _records(service: Any, batch_ids: set[str]) -> pd.DataFrame | None:
    """Return the service's records of these batches; fewer when it does not tell them in time."""
    if service is None or not batch_ids:
        return None
    deadline = time.monotonic() + RECORDS_WITHIN_S
    while True:
        try:
            records: pd.DataFrame = service.batches()
        except AirServeError:
            return None  # it is gone: what the answers themselves told remains
        records = records[records["batch_id"].isin(batch_ids)]
        if len(records) >= len(batch_ids) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)  # a replica's records come a moment after its answers
