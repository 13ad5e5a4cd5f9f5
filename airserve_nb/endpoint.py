"""The endpoint: an ASGI application that answers predictions, whoever hosts it.

Routes, below whatever prefix the host mounts it at: the root (GET and POST, with and without a
trailing slash) predicts; ``/openapi.json`` and ``/docs`` describe it.

One request: read the body, let the adapter make a model input of it, submit that to the version's
batcher, encode the answer, record what happened. Built-in adapters do this without FastAPI; others go
through a FastAPI application of one route, which calls back here for everything after the adapter.

An error is answered as ``{"error": "<one sentence>", "request_id": "<id>"}``. A traceback never leaves the
server: it goes to the log, under the same id.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from airserve_nb._sentences import describe, printable
from airserve_nb.asgi import (
    ClientLeftError,
    Message,
    Receive,
    Scope,
    Send,
    acknowledge_lifespan,
    read_body,
    send_whole,
)
from airserve_nb.batching.execution import FIRST_ERROR_STATUS, LAST_ERROR_STATUS
from airserve_nb.encoding import encode
from airserve_nb.errors import BadOutputError, QueueFullError, RequestError
from airserve_nb.exchange import HTTP_OK, JSON_CONTENT, Exchange, client_id
from airserve_nb.http_adapters import RawRequest
from airserve_nb.logbook import users_traceback
from airserve_nb.output import Reader
from airserve_nb.sharing.plan import OUTSIDE_HEADER
from airserve_nb.telemetry import Cursor, Page, Recorder, ReplicaState, preview
from airserve_nb.version import Version, VersionSpec, numbered
from airserve_nb.version_slot import VersionSlot

__all__ = ["Endpoint"]

logger = logging.getLogger("airserve_nb.endpoint")

Reply = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers, body."""

HTTP_SERVER_ERROR = 500

# Where the FastAPI route finds the exchange it belongs to.
EXCHANGE_KEY = "airserve_nb.exchange"
_OUTSIDE = OUTSIDE_HEADER.encode()


class Endpoint:
    """Serves the active version of a deployment.

    Parameters
    ----------
    name
        The deployment's name.
    replica
        This replica's name, unique in the deployment; by default a random one.
    show_errors
        Whether an answer may hold a predictor's exception message; only its type otherwise. True where
        the server can be reached from this machine alone. What the proxy of a shared deployment passes on is never
        answered with it.
    echo_client_id
        Whether to return a client's ``X-Request-Id``; False where the host does so.
    let_go
        Called when a model has been let go to make room for the next one.
    output
        Gets what the models' threads print; None lets it pass.
    """

    def __init__(
        self,
        name: str,
        *,
        replica: str | None = None,
        show_errors: bool = False,
        echo_client_id: bool = True,
        let_go: Callable[[], object] = gc.collect,
        output: Reader | None = None,
    ) -> None:
        self.name = name
        self.replica = replica or secrets.token_hex(3)
        self.recorder = Recorder()
        self._show_errors = show_errors
        self._echo_client_id = echo_client_id
        self._next_request_id = numbered(f"r{self.replica}")
        self._next_batch_id = numbered(f"b{self.replica}")
        self._output = output
        self.versions = VersionSlot(self._new_version, name=name, let_go=let_go)
        self.logger = logging.getLogger(f"{logger.name}.{self.replica}")
        """Gets the tracebacks of this replica's failed predictions."""

    def _new_version(self, spec: VersionSpec) -> Version:
        return Version(
            spec,
            recorder=self.recorder,
            replica=self.replica,
            next_batch_id=self._next_batch_id,
            output=self._output,
        )

    @property
    def version(self) -> Version | None:
        """The version that serves; None while there is none."""
        return self.versions.version

    def page(self, cursor: Cursor, limit: int | None = None) -> Page:
        """Return the records that come after ``cursor``, and how this replica does now."""
        page = self.recorder.since(cursor, limit)
        version = self.versions.in_force
        if version is None:
            return page
        settings = version.settings
        waiting = 0 if self.version is None else len(self.version.batcher)
        state = ReplicaState(
            version.version,
            settings.enabled,
            settings.max_batch_size,
            settings.batch_wait_timeout_s,
            waiting,
        )
        return replace(page, state=state)

    async def close(self) -> None:
        """Let the requests that are here be answered, then end the model threads."""
        await self.versions.close()

    # -- ASGI -----------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "lifespan":
            await acknowledge_lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"The endpoint speaks HTTP, not {scope['type']}.")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in {"", "/"}:
            await self._serve_prediction(scope, receive, send)
        elif path in {"/openapi.json", "/docs"}:
            await self._serve_description(scope, receive, send)
        else:
            home = scope.get("root_path") or "/"
            await self.refuse_early(
                send, 404, f"There is nothing at {printable(path)}; predictions are at {home}."
            )

    async def _serve_description(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            await self.refuse_early(
                send, 405, f"{scope['method']} is not allowed here; use GET.", [_allow("GET")]
            )
        elif self.version is None:
            missing = self.versions.not_loaded()
            await self.refuse_early(send, missing.status, str(missing), _retry_after(missing))
        else:
            await self._fastapi(self.version)(scope, receive, send)

    async def _serve_prediction(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in {"GET", "POST"}:
            sentence = f"{scope['method']} is not allowed here; use POST or GET."
            await self.refuse_early(send, 405, sentence, [_allow("GET, POST")])
            return
        exchange = Exchange(self._next_request_id())
        if self._echo_client_id:
            exchange.client_id = client_id(scope)
        exchange.from_outside = any(name == _OUTSIDE for name, _ in scope["headers"])
        try:
            body = await read_body(receive)
            exchange.arrived, exchange.arrived_at = time.perf_counter(), time.time()
            exchange.payload = preview(body or scope["query_string"])
            status, headers, content = await self._guarded_answer(exchange, scope, body)
            exchange.reply = preview(content)
        except (ClientLeftError, asyncio.CancelledError) as error:
            # The host cancels when the client is gone.
            exchange.leave()
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        finally:
            # Before the answer is sent: who has it finds it among the records.
            exchange.end(self.recorder, self.replica)
        await send_whole(send, status, content, headers)

    async def _guarded_answer(self, exchange: Exchange, scope: Scope, body: bytes) -> Reply:
        """Answer, whatever an adapter or an encoder raises on its way."""
        try:
            version = exchange.bind(self.version or await self.versions.take())
            read = version.adapter.read
            if read is None:
                return await self._answer_through_fastapi(exchange, version, scope, body)
            # Built in: without FastAPI.
            value = read(RawRequest(body, scope["query_string"], scope["headers"]))
            return await self._predict(exchange, version, value)
        except RequestError as error:
            return self._refuse(exchange, error)
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            failure = RequestError(f"The request could not be handled: {describe(error)}.")
            failure.__cause__ = error
            return self._refuse(exchange, failure)

    async def _answer_through_fastapi(
        self, exchange: Exchange, version: Version, scope: Scope, body: bytes
    ) -> Reply:
        """Answer through FastAPI, with the body read already; what it would send is handed back."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        start: Message = {}
        parts: list[bytes] = []

        async def receive() -> Message:
            # An empty list: FastAPI asks only to learn of a disconnect, which the host watches for.
            return unread.pop() if unread else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            start.update(message if message["type"] == "http.response.start" else {})
            parts.append(message.get("body", b""))

        await self._fastapi(version)({**scope, EXCHANGE_KEY: exchange}, receive, send)
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        return start["status"], headers, b"".join(parts)

    def _fastapi(self, version: Version) -> FastAPI:
        """Return the version's FastAPI application; made when it is first needed."""
        app = version.fastapi_app
        if app is None:

            async def answer(value: Any, request: Request) -> Response:
                return _as_response(await self._predict(request.scope[EXCHANGE_KEY], version, value))

            def refuse(error: RequestError, request: Request) -> Response:
                return _as_response(self._refuse(request.scope[EXCHANGE_KEY], error))

            app = version.adapter.fastapi_app(answer, refuse=refuse, title=self.name)
            version.fastapi_app = app
        return app

    # -- one prediction -------------------------------------------------------------------------

    async def predict(self, value: Any) -> Any:
        """Predict on a model input, past HTTP and the adapter, through the same batcher.

        Raises
        ------
        RequestError
            What an HTTP client would have been answered.
        """
        exchange = Exchange(self._next_request_id())
        try:
            version = exchange.bind(self.version or await self.versions.take())
            answer = await version.batcher.submit(value)
            exchange.answer = answer
            if answer.error is not None:
                raise answer.error
            return answer.value
        except RequestError as error:
            exchange.status, exchange.error = error.status, printable(str(error))
            self._log(exchange, error)
            # The cause may not be picklable, and its traceback stays here.
            raise error from None
        except asyncio.CancelledError:
            exchange.leave()
            raise
        finally:
            exchange.end(self.recorder, self.replica)

    async def _predict(self, exchange: Exchange, version: Version, value: Any) -> Reply:
        try:
            answer = await version.batcher.submit(value)
            exchange.answer = answer
            if answer.error is not None:
                return self._refuse(exchange, answer.error)
            return HTTP_OK, exchange.headers(), encode(answer.value)
        except RequestError as error:
            return self._refuse(exchange, error)

    def _refuse(self, exchange: Exchange, error: RequestError) -> Reply:
        if not FIRST_ERROR_STATUS <= error.status <= LAST_ERROR_STATUS:
            # Chosen by an adapter: a refusal that claims success would be taken for a prediction.
            error.status = HTTP_SERVER_ERROR
        exchange.status, exchange.error = error.status, printable(str(error))
        self._log(exchange, error)
        headers = exchange.headers()
        if isinstance(error, QueueFullError):
            headers += _retry_after(error)
        return error.status, headers, _error_body(self._public_sentence(exchange, error), exchange.request_id)

    def _public_sentence(self, exchange: Exchange, error: RequestError) -> str:
        # What a predictor or an adapter raised by accident may tell what only its owner should read.
        by_accident = error.status >= HTTP_SERVER_ERROR and not isinstance(
            error, QueueFullError | BadOutputError
        )
        if by_accident and (exchange.from_outside or not self._show_errors):
            kind = type(error.__cause__).__name__ if error.__cause__ else type(error).__name__
            return f"The prediction failed with {kind}; the server's log has more under the request's id."
        return printable(str(error))

    def _log(self, exchange: Exchange, error: RequestError) -> None:
        if error.status >= HTTP_SERVER_ERROR and not isinstance(error, QueueFullError):
            cause = users_traceback(error.__cause__ or error)
            self.logger.error("%s: %s\n%s", exchange.request_id, printable(str(error)), cause)

    async def refuse_early(
        self, send: Send, status: int, sentence: str, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """Refuse what is no prediction, so that nothing is recorded."""
        request_id = self._next_request_id()
        ours = [JSON_CONTENT, (b"x-airserve-request-id", request_id.encode()), *(headers or [])]
        await send_whole(send, status, _error_body(sentence, request_id), ours)


def _error_body(sentence: str, request_id: str) -> bytes:
    # Escaped: a message may hold anything, lone surrogates too.
    return json.dumps({"error": sentence, "request_id": request_id}, separators=(",", ":")).encode()


def _allow(methods: str) -> tuple[bytes, bytes]:
    return b"allow", methods.encode()


def _as_response(reply: Reply) -> Response:
    status, headers, content = reply
    response = Response(content, status_code=status)
    response.raw_headers = [*headers, (b"content-length", str(len(content)).encode())]
    return response


def _retry_after(error: QueueFullError) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", str(max(1, round(error.retry_after_s))).encode())]
