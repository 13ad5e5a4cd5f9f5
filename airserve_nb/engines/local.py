"""The local engine: the same endpoint under uvicorn, in a thread of this process. Ray is not involved.

One server, one event loop and one thread a deployment. The model's own thread is the batcher's. It has one
replica and shares the interpreter lock with the notebook; what it is for is a first look, teaching without
a cluster, and tests that take milliseconds.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import uvicorn

from airserve_nb import output
from airserve_nb._deploy_options import check_replicas
from airserve_nb._sentences import describe
from airserve_nb.asgi import Message, Receive, Scope, Send
from airserve_nb.endpoint import Endpoint
from airserve_nb.engines.ports import listen_near
from airserve_nb.errors import AirServeError, DeployError
from airserve_nb.logbook import LogBook
from airserve_nb.telemetry import Cursor, Page
from airserve_nb.version import Version, VersionSpec

__all__ = ["LocalHost"]

T = TypeVar("T")

# How long requests under way may take to end when the deployment is stopped.
STOP_PATIENCE_S = 5
# Passes of the event loop in which an idle connection is closed.
PASSES_TO_CLOSE = 3


class LocalHost:
    """A deployment in this process.

    Parameters
    ----------
    name
        The deployment's name.
    spec
        What to serve; raises what loading it raised.
    route_prefix
        The path it is served at, such as ``/adder``.
    port
        The port on 127.0.0.1; None for 8000 or the next free one.
    """

    engine = "local"
    ingress = "uvicorn"
    replicas = 1

    def __init__(self, name: str, spec: VersionSpec, *, route_prefix: str, port: int | None = None) -> None:
        self.name = name
        self._route_prefix = route_prefix
        self._log = LogBook()
        self._endpoint = Endpoint(name, show_errors=True, output=self._log)
        self._versions = self._endpoint.versions
        self.settings = spec.settings
        self._endpoint.logger.addHandler(self._log)
        self._socket = listen_near(port)
        self._port = int(self._socket.getsockname()[1])
        app = self._mounted(_cancelled_on_disconnect(self._endpoint))
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=STOP_PATIENCE_S,
            )
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"airserve-local-{name}", daemon=True)
        output.divert()
        self._thread.start()
        try:
            self.swap(spec)
        except BaseException:
            self.stop()
            raise
        self._call(self._server.ready.wait())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        # An adapter prints here.
        output.send_to(self._log)
        try:
            self._loop.run_until_complete(self._server.serve(sockets=[self._socket]))
        finally:
            self._loop.run_until_complete(self._endpoint.close())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._socket.close()
            output.restore()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def swap(self, spec: VersionSpec, route_prefix: str | None = None, *, overlap: bool = True) -> None:
        """Serve another version, at this route, from now on; on an error the old one goes on."""
        goes_on = f" {self.version} goes on serving." if self.version else ""
        loading = asyncio.run_coroutine_threadsafe(self._load(spec, overlap=overlap), self._loop)
        try:
            version = loading.result()
        except AirServeError:
            raise
        except Exception as error:
            raise DeployError(
                f"{self.name} could not start: {describe(error)}.{goes_on}", deployment=self.name
            ) from error
        except BaseException:
            # Interrupted: loading can't be stopped, but what comes of it is let go.
            loading.add_done_callback(lambda loaded: self._loop.call_soon_threadsafe(self._discard, loaded))
            raise
        self._route_prefix = route_prefix or self._route_prefix
        self.settings = spec.settings
        self._call(self._switch_to(version))

    async def _load(self, spec: VersionSpec, *, overlap: bool) -> Version:
        if not overlap:
            await self._versions.vacate()
        try:
            return await self._versions.prepare(spec)
        except BaseException:
            await self._versions.restore()
            raise

    async def _switch_to(self, version: Version) -> None:
        self._versions.switch_to(version)

    def _discard(self, loading: Future[Version]) -> None:
        if loading.exception() is None:
            self._versions.discard(loading.result())
            self._restoring = asyncio.ensure_future(self._versions.restore())

    def set_batching(self, changes: Mapping[str, Any]) -> None:
        """Batch by other limits from now on."""
        self.settings = self.settings.changed(changes)
        self._loop.call_soon_threadsafe(self._versions.set_batching, self.settings)

    def scale(self, num_replicas: int) -> None:
        """Refuse: there is one."""
        check_replicas(num_replicas, self.engine)

    @property
    def version(self) -> str | None:
        """The name of the version that serves."""
        spec = self._versions.in_force
        return None if spec is None else spec.version

    def is_on(self, port: int | None) -> bool:
        """Whether it listens on this port (None: any port)."""
        return port in {None, self._port}

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}{self._route_prefix}"

    def _mounted(self, app: Any) -> Any:
        """Serve ``app`` below the route prefix, and a sentence elsewhere."""

        async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
            prefix, path = self._route_prefix.rstrip("/"), scope["path"]
            if path != prefix and not path.startswith(f"{prefix}/"):
                sentence = f"There is nothing here; the deployment is at {prefix}."
                await self._endpoint.refuse_early(send, 404, sentence)
                return
            await app({**scope, "root_path": prefix}, receive, send)

        return mounted

    def predict(self, value: Any) -> Any:
        """Predict on a model input; blocks."""
        return self._call(self._endpoint.predict(value))

    def pages(self, cursors: Mapping[str, Cursor]) -> list[tuple[str, Page]]:
        """Return the records since the cursor."""
        replica = self._endpoint.replica
        return [(replica, self._endpoint.page(cursors.get(replica, Cursor())))]

    def log_entries(self, count: int) -> list[tuple[str, list[str]]]:
        """Return the last log entries."""
        return [(self._endpoint.replica, self._log.tail(count))]

    def remember(self, told: list[dict[str, Any]]) -> None:
        """Do nothing: it ends with this kernel."""

    def recall(self) -> list[dict[str, Any]]:
        """Return nothing, as nobody was told anything."""
        return []

    def is_running(self) -> bool:
        """Whether the server's thread lives."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the server after the requests that it has, and its threads."""
        with suppress(RuntimeError):  # of a loop that has ended already
            self._loop.call_soon_threadsafe(self._server.end)
        # A predict that never ends must not take the notebook with it; its thread is a daemon.
        self._thread.join(2 * STOP_PATIENCE_S)
        self._endpoint.logger.removeHandler(self._log)


class _Server(uvicorn.Server):
    """A uvicorn server that says when it listens, leaves the process's signals alone, and ends at once.

    uvicorn by itself looks ten times a second whether it is to end, and then waits for another tenth: too long for a
    test that deploys, asks and stops in milliseconds.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._ending = asyncio.Event()

    def end(self) -> None:
        """End after the requests that there are; to be called on its loop."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            # As many as uvicorn counts in a second, which is how often it writes the date of its answers.
            ticks += 10
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(PASSES_TO_CLOSE):
            await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def _cancelled_on_disconnect(app: Any) -> Any:
    """Cancel a request when its client leaves, as Ray Serve does; uvicorn by itself lets it run on."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        body_complete = asyncio.Event()

        async def receive_body() -> Message:
            message = await receive()
            if not message.get("more_body", False):
                body_complete.set()
            return message

        async def client_left() -> None:
            await body_complete.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        serving = asyncio.ensure_future(app(scope, receive_body, send))
        leaving = asyncio.ensure_future(client_left())
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The server is being stopped, and has waited long enough.
            serving.cancel()
            raise
        finally:
            leaving.cancel()
        if serving.done():
            # Raises what the endpoint raised.
            await serving
            return
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving

    return watched
