"""The proxy that stands before a shared deployment, in a process of its own.

Run as ``python -m airserve_nb.sharing.proxy``. Its plan is the first line of its input, and a later line is a new
target; each is answered by a line. It ends when its input ends: with the deployment, and with the kernel, however that
ends. The token itself never comes here, only its hash.

A request is looked at in this order: how often its client asks, its token, its path, its body. Only the paths
of the one deployment are passed on, and only as the plan writes them: other deployments behind the same port, and
Serve's own pages, can't be reached.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import hmac
import json
import math
import os
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from airserve_nb.engines.ports import listen
from airserve_nb.sharing.plan import OUTSIDE_HEADER, SharePlan, hashed
from airserve_nb.sharing.rate import RateLimit

__all__ = ["Proxy"]

# Of one connection, not of the request (RFC 9110, 7.6.1); and what is ours to say.
_NOT_PASSED_ON = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "host", "content-length", "authorization", "expect", OUTSIDE_HEADER,
}  # fmt: skip
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

BODY_PATIENCE_S = 30.0
CONNECT_PATIENCE_S = 10.0
# uvicorn closes an idle connection after 5 s: let go of it earlier, or a request could meet its end.
IDLE_CONNECTION_S = 2.0
CLOSING_PATIENCE_S = 1.0
PARENT_POLL_S = 0.5


class Proxy:
    """Passes requests with the token on to one deployment.

    Parameters
    ----------
    plan
        What to listen on, for whom, and where to.
    session
        Sends the requests on.
    """

    def __init__(self, plan: SharePlan, session: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._session = session
        self._rate = RateLimit(plan.limits.requests_per_s, plan.limits.burst)
        self.aim_at(plan.target)

    def aim_at(self, target: str) -> None:
        """Pass requests on to this URL from now on."""
        url = URL(target)
        self._origin, prefix = url.origin(), url.raw_path.rstrip("/")
        self._home = prefix or "/"
        self._paths = {self._home, f"{prefix}/", f"{prefix}/docs", f"{prefix}/openapi.json"}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        wait_s = self._rate.wait_s(request.remote or "")
        if wait_s:
            rate = self._plan.limits.requests_per_s
            return _refusal(
                429,
                f"This client asks more than {rate:g} times a second; wait a moment.",
                {"Retry-After": str(math.ceil(wait_s))},
            )
        if not self._has_token(request):
            # Basic is for browsers: they ask for a name, which is not looked at, and a password, which is the token.
            challenge = f'Bearer realm="{self._plan.name}", Basic realm="{self._plan.name}", charset="UTF-8"'
            sentence = "This needs the token that its owner has: send the header Authorization: Bearer TOKEN."
            return _refusal(401, sentence, {"WWW-Authenticate": challenge})
        path, _, query = request.raw_path.partition("?")
        if path not in self._paths:
            return _refusal(404, f"There is nothing here; predictions are at {self._home}.")
        try:
            async with asyncio.timeout(BODY_PATIENCE_S):
                body = await self._body(request)
        except TimeoutError:
            return _refusal(408, f"The body did not come within {BODY_PATIENCE_S:g} s; send it again.")
        if body is None:
            limit = self._plan.limits.max_body_bytes
            return _refusal(413, f"The body has more than {limit:,} bytes; send less at once.")
        return await self._passed_on(request, URL(f"{self._origin}{path}?{query}", encoded=True), body)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        token = given.strip()
        if scheme.lower() == "basic":
            # Browsers add it by themselves, also to what another site's page makes them send: not for those.
            origin = request.headers.get("Origin")
            token = _password(token) if origin in {None, f"http://{request.host}"} else ""
        elif scheme.lower() != "bearer":
            token = ""
        return hmac.compare_digest(hashed(token), self._plan.token_hash)

    async def _body(self, request: web.Request) -> bytes | None:
        """Return the body; None when it is too large, which is known before it is read where its length is told."""
        limit = self._plan.limits.max_body_bytes
        if (request.content_length or 0) > limit:
            return None
        body = bytearray()
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:
                return None
        return bytes(body)

    async def _passed_on(self, request: web.Request, url: URL, body: bytes) -> web.Response:
        headers = _passing(request.headers)
        headers[OUTSIDE_HEADER] = "1"
        try:
            async with self._session.request(
                request.method,
                url,
                headers=headers,
                data=body or None,
                allow_redirects=False,
                skip_auto_headers=_NOT_ADDED,
            ) as answer:
                content = await answer.read()
                return web.Response(status=answer.status, headers=_passing(answer.headers), body=content)
        except aiohttp.ClientError:
            # Without its reason: that names addresses behind the proxy.
            sentence = f"{self._plan.name} does not answer now; try again in a moment."
            return _refusal(502, sentence, {"Retry-After": "1"})


def _password(credentials: str) -> str:
    """Return the password of Basic credentials; empty when they are none."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _passing(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Return the headers that concern the request itself, in their order."""
    of_connection = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    dropped = _NOT_PASSED_ON | of_connection
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def _refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": sentence}, status=status, headers=headers)


# -- the process ------------------------------------------------------------------------------------


async def _serve(plan: SharePlan, lines: Iterable[bytes]) -> None:
    """Serve until the input ends."""
    try:
        listener = _listen(plan)
    except OSError as error:
        _say(error=error.strerror or str(error))
        return
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_PATIENCE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    async with session:
        proxy = Proxy(plan, session)
        app = web.Application()
        app.router.add_route("*", "/{anything:.*}", proxy.answer)
        # With cancellation a client that leaves cancels what it asked for, there too.
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, auto_decompress=False,
            shutdown_timeout=CLOSING_PATIENCE_S,
        )  # fmt: skip
        await runner.setup()
        await web.SockSite(runner, listener).start()
        _say(port=listener.getsockname()[1])
        try:
            await _until_told_to_end(proxy, lines)
        finally:
            await runner.cleanup()


def _listen(plan: SharePlan) -> socket.socket:
    for port in plan.ports:
        listener = listen(plan.host, port)
        if listener is not None:
            return listener
    raise OSError(errno.EADDRINUSE, f"port {plan.ports[0]} is taken")


async def _until_told_to_end(proxy: Proxy, lines: Iterable[bytes]) -> None:
    loop, ended, parent = asyncio.get_running_loop(), asyncio.Event(), os.getppid()

    def aim_at(target: str) -> None:
        proxy.aim_at(target)
        _say(target=target)

    def read() -> None:
        for line in lines:
            loop.call_soon_threadsafe(aim_at, json.loads(line)["target"])
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    # A child that the kernel forked may hold the input open beyond the kernel's end.
    while not ended.is_set() and os.getppid() == parent:
        try:
            async with asyncio.timeout(PARENT_POLL_S):
                await ended.wait()
        except TimeoutError:
            continue


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)  # noqa: T201 - the kernel reads it


def _main() -> None:
    lines = iter(sys.stdin.buffer.readline, b"")
    first = next(lines, None)
    if first is not None:
        asyncio.run(_serve(SharePlan.from_json(first), lines))
    # At once: the thread that reads the input can't be woken.
    os._exit(0)


if __name__ == "__main__":
    _main()
