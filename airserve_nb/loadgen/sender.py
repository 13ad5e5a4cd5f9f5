"""The client's heart: who is sent when, over which connection, and what became of it.

A *lane* is a connection, or the place of one that is being opened. In a closed loop each lane takes the next request as
soon as its last one has ended. In an open loop an alarm rings at each planned time; the request takes a free lane, or a
new one, or waits where there may be no more. Connections are opened before the clock starts, so that the first requests
leave together and no connecting is measured; one that can't be opened ahead is tried again on the clock, where its
failure is an outcome like any other.

Everything happens in callbacks of one event loop. Latency is not corrected afterwards: each request has the time it was
planned for and the time it was sent, and both stay.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque

from airserve_nb.loadgen.address import Address
from airserve_nb.loadgen.alarm import Alarm
from airserve_nb.loadgen.limits import MOST_REQUESTS, most_connections
from airserve_nb.loadgen.outcomes import OutcomeKind, Outcomes, Run
from airserve_nb.loadgen.plan import Plan
from airserve_nb.loadgen.selfwatch import SelfWatch
from airserve_nb.loadgen.wire import Connection, encoded

__all__ = ["Sender"]

CONNECT_AHEAD_S = 5.0
"""How long the start waits for connections at most: a host that swallows packets must not hold up the rest."""
AHEAD = 64
"""So many connections of an open loop are opened before the clock starts; more as they are needed."""


class Sender:
    """Sends a plan; made and used inside a running event loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._wire = [(encoded(message), message.method == "HEAD") for message in plan.messages]
        self.outcomes = Outcomes()
        for planned in plan.planned or ():
            self.outcomes.add(planned)
        if plan.planned is None:
            for _ in range(plan.requests or 0):
                self.outcomes.add(math.nan)
        most = len(self.outcomes) or plan.concurrency or 1
        self._most_lanes = min(plan.concurrency or most, most, most_connections())
        self._address = Address(plan.messages[0].url)
        self._lanes = 0
        self._free: list[Connection] = []
        self._flying: dict[int, Connection | asyncio.Task[None]] = {}
        self._deadlines: deque[tuple[float, int]] = deque()
        self._held: deque[int] = deque()
        self._next = 0
        self._has_read = False
        self._zero = time.perf_counter()
        self._done = asyncio.Event()
        self._watch = SelfWatch()
        self.tally: Counter[OutcomeKind] = Counter()
        """How many requests have ended in each way so far."""
        self.recent_ms: list[float] = []
        """Latencies of the answers since somebody last emptied it."""

    # -- the run --------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> Run:
        """Send everything; when ``stop`` is set, nothing more, and what is under way is given up."""
        await self._connect_ahead()
        self._pacer, self._timer = Alarm(self._pump), Alarm(self._time_out)
        self._zero = time.perf_counter()
        started_at = time.time()
        self._watch.start()
        if not stop.is_set():  # it may have been, while connecting
            self._start()
        waiting = [asyncio.ensure_future(self._done.wait()), asyncio.ensure_future(stop.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
            interrupted = not self._done.is_set()
            elapsed_s = self.now()
            self._watch.stop()
            self._done.set()
            await self._close()
        ended = [moment for moment in self.outcomes.done if moment == moment]  # noqa: PLR0124 - not NaN
        return Run(
            outcomes=self.outcomes,
            started_at=started_at,
            elapsed_s=elapsed_s if interrupted or not ended else max(ended),
            interrupted=interrupted,
            client=self._watch.report(elapsed_s),
        )

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._zero

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self._flying)

    async def _connect_ahead(self) -> None:
        planned = self._plan.planned
        wanted = self._most_lanes
        if planned is not None:
            # A burst leaves together; of others, so many come before connecting could keep up.
            wanted = min(wanted, max(AHEAD, sum(moment <= 0 for moment in planned)))
        tasks = [asyncio.ensure_future(self._address.connect(self)) for _ in range(wanted)]
        done, late = await asyncio.wait(tasks, timeout=CONNECT_AHEAD_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        self._free = [task.result() for task in done if not task.cancelled() and task.exception() is None]
        self._free = [connection for connection in self._free if connection.transport is not None]
        self._lanes = len(self._free)

    def _start(self) -> None:
        if self._plan.planned is not None:
            self._pump()
            return
        for _ in range(self._most_lanes):
            if self._free:
                self._go_on(self._free.pop())
            else:
                self._lanes += 1
                self._go_on(None)

    async def _close(self) -> None:
        self._pacer.close()
        self._timer.close()
        tasks = []
        for request, carrier in list(self._flying.items()):
            self.outcomes.failed(request, "cancelled", "No answer yet when the probe was stopped.", math.nan)
            if isinstance(carrier, Connection):
                carrier.abort()
            else:
                carrier.cancel()
                tasks.append(carrier)
        for request in range(len(self.outcomes)):
            if math.isnan(self.outcomes.sent[request]):
                self.outcomes.failed(request, "cancelled", "Not sent when the probe was stopped.", math.nan)
        self._flying.clear()
        for connection in self._free:
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports' last callbacks

    # -- sending --------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what is due in an open loop, and set the alarm for what comes next."""
        planned = self.outcomes.planned
        while (
            self._next < len(planned) and not self._done.is_set()
        ):  # a call may be left over from before the end
            lag = self.now() - planned[self._next]
            if lag < 0:
                self._pacer.set(self._zero + planned[self._next])
                return
            if not (self._free or self._has_read):
                # Answers that lie unread would free a lane: no new one before they are read.
                self._has_read = True
                asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, self._pump)
                return
            request = self._next
            self._next += 1
            self._watch.lags.append(lag)
            if self._free:
                self._has_read = False
                self._launch(request, self._free.pop())
            elif self._lanes < self._most_lanes:
                self._lanes += 1
                self._launch(request, None)
            else:
                self._held.append(request)
                self._watch.held_back += 1

    def _go_on(self, connection: Connection | None) -> None:
        """Give a lane its next request, or rest it."""
        request = self._take()
        if request >= 0:
            self._launch(request, connection)
            return
        if connection is None:
            self._lanes -= 1
        else:
            self._free.append(connection)
        planned = self._plan.planned
        if not self._flying and (planned is None or self._next == len(planned)):
            self._done.set()

    def _take(self) -> int:
        """Return the request whose turn it is; -1 when there is none now."""
        if self._plan.planned is not None:
            if not self._held:
                return -1
            request = self._held.popleft()
            self._watch.held(self.now() - self.outcomes.planned[request])
            return request
        now = self.now()
        limit, until = self._plan.requests, self._plan.duration_s
        most = MOST_REQUESTS if limit is None else limit
        if self._next >= most or (until is not None and now >= until) or self._done.is_set():
            return -1
        request = self._next
        self._next += 1
        if limit is None:
            self.outcomes.add(now)
        else:
            self.outcomes.planned[request] = now
        return request

    def _launch(self, request: int, connection: Connection | None) -> None:
        now = self.now()
        self.outcomes.sent[request] = now
        self._deadlines.append((now + self._plan.timeout_s, request))
        if len(self._deadlines) == 1:
            self._timer.set(self._zero + self._deadlines[0][0])
        if connection is None:
            self._flying[request] = asyncio.ensure_future(self._connect(request))
        else:
            self._send(request, connection)
        self._watch.most_in_flight = max(self._watch.most_in_flight, len(self._flying))

    def _send(self, request: int, connection: Connection) -> None:
        self._flying[request] = connection
        message, headless = self._wire[request % len(self._wire)]
        connection.send(request, message, headless=headless)

    async def _connect(self, request: int) -> None:
        try:
            connection = await self._address.connect(self)
        except Exception as error:  # noqa: BLE001 - every request is accounted for, whatever a connection meets
            self._fail(request, "connection_error", self._address.sentence(error))
        else:
            self._send(request, connection)

    # -- what comes of it -----------------------------------------------------------------------

    def answered(self, connection: Connection, now: float) -> None:
        """Take an answer that is complete."""
        request = connection.request
        connection.request = -1
        del self._flying[request]
        outcomes, headers = self.outcomes, connection.headers
        first_byte = (connection.first_byte or now) - self._zero
        kind = outcomes.answered(request, connection.status, first_byte, now - self._zero, connection.body())
        self.tally[kind] += 1
        if headers:
            outcomes.timing[request] = _text(headers, b"server-timing")
            outcomes.request_id[request] = _text(headers, b"x-airserve-request-id") or _text(
                headers, b"x-request-id"
            )
            outcomes.version[request] = _text(headers, b"x-airserve-version")
            outcomes.location[request] = _text(headers, b"location")
        start = outcomes.sent[request] if self._plan.planned is None else outcomes.planned[request]
        self.recent_ms.append((now - self._zero - start) * 1000)
        if connection.reusable:
            self._go_on(connection)
        else:
            connection.abort()
            self._go_on(None)

    def broken(self, connection: Connection, sentence: str) -> None:
        """Take that a connection ended."""
        if connection.request >= 0:
            self._fail(connection.request, "connection_error", sentence)
        elif connection in self._free:
            self._free.remove(connection)
            self._lanes -= 1

    def _fail(self, request: int, kind: OutcomeKind, sentence: str) -> None:
        self.outcomes.failed(request, kind, sentence, self.now())
        self.tally[kind] += 1
        self._flying.pop(request, None)
        self._go_on(None)

    def _time_out(self) -> None:
        """End what has taken too long, and set the alarm for the next one that could."""
        now = self.now()
        while self._deadlines:
            deadline, request = self._deadlines[0]
            carrier = self._flying.get(request)
            if carrier is not None and deadline > now:
                self._timer.set(self._zero + deadline)
                return
            self._deadlines.popleft()
            if carrier is not None:
                carrier.abort() if isinstance(carrier, Connection) else carrier.cancel()
                self._fail(request, "timeout", f"No answer within {self._plan.timeout_s:g} s.")


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")
