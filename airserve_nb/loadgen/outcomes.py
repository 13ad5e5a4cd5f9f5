"""What became of the requests of a plan: columns, so that a hundred thousand of them are some megabytes.

The client fills :class:`Outcomes` while it runs. A :class:`Run` is these and what the client says of itself. It goes
through a pipe as a line of JSON and, behind it, the columns' bytes: nothing is unpickled.

All times are seconds from the start of the run, on one monotonic clock; NaN where it never came to that.
"""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import asdict, dataclass
from typing import Literal, get_args

__all__ = ["KEPT_ANSWERS", "KINDS", "ClientReport", "OutcomeKind", "Outcomes", "Run"]

OutcomeKind = Literal["ok", "http_error", "timeout", "connection_error", "cancelled"]
"""What became of a request; exactly one of these.

``ok``: a status from 200 to 299. ``http_error``: any other status. ``timeout``: no whole answer in time.
``connection_error``: refused, reset, cut off or not HTTP. ``cancelled``: the run was stopped before.
"""
KINDS: tuple[OutcomeKind, ...] = get_args(OutcomeKind)

KEPT_ANSWERS = 32 * 2**20
"""Bytes of answers that are kept, the first ones; decoded they take some times that. Later answers are counted only."""

_CANCELLED = KINDS.index("cancelled")
_NUMBERS = {
    "planned": "d",  # of a closed loop: when it was its turn
    "sent": "d",  # when it was handed to its connection, or a connection was opened for it
    "first_byte": "d",  # when the first bytes of the answer had been read
    "done": "d",  # when the answer was complete, or the request had failed
    "status": "h",  # HTTP status; 0 without an answer
    "kind": "b",  # place in KINDS
    "error": "i",  # place in ``errors``; -1 for none
    "length": "q",  # bytes of the answer's body that are kept; -1 when it is not
}
_TEXTS = ("timing", "request_id", "version", "location")


class Outcomes:
    """One row a request; a row that nobody touches again says that it was never sent."""

    def __init__(self) -> None:
        self.planned, self.sent = array("d"), array("d")
        self.first_byte, self.done = array("d"), array("d")
        self.status, self.kind = array("h"), array("b")
        self.error, self.length = array("i"), array("q")
        # Header values, "" where there is none.
        self.timing: list[str] = []
        self.request_id: list[str] = []
        self.version: list[str] = []
        self.location: list[str] = []
        self.bodies: list[bytes] = []
        """The kept bodies, one a row, empty where it is not kept."""
        self.errors: list[str] = []
        """Each sentence once."""
        self._kept = 0

    def __len__(self) -> int:
        return len(self.kind)

    def add(self, planned: float) -> int:
        """Add a request and return its number; ``planned`` in seconds, NaN when not known yet."""
        self.planned.append(planned)
        for column in (self.sent, self.first_byte, self.done):
            column.append(math.nan)
        self.status.append(0)
        self.kind.append(_CANCELLED)
        self.error.append(-1)
        self.length.append(-1)
        for texts in (self.timing, self.request_id, self.version, self.location):
            texts.append("")
        self.bodies.append(b"")
        return len(self.kind) - 1

    def answered(
        self, request: int, status: int, first_byte: float, done: float, body: bytes = b""
    ) -> OutcomeKind:
        """Note a whole answer; returns what that makes of the request."""
        kind: OutcomeKind = "ok" if 200 <= status < 300 else "http_error"  # noqa: PLR2004 - 2xx
        self.status[request], self.kind[request] = status, KINDS.index(kind)
        self.first_byte[request], self.done[request] = first_byte, done
        if self._kept + len(body) <= KEPT_ANSWERS:
            self._kept += len(body)
            self.length[request] = len(body)
            self.bodies[request] = body
        return kind

    def failed(self, request: int, kind: OutcomeKind, sentence: str, done: float) -> None:
        """Note that there will be no answer; ``done`` is NaN for a request that was stopped."""
        self.kind[request] = KINDS.index(kind)
        self.done[request] = done
        if sentence not in self.errors:  # a handful
            self.errors.append(sentence)
        self.error[request] = self.errors.index(sentence)

    def kinds(self) -> list[OutcomeKind]:
        """Return the outcome of every request."""
        return [KINDS[number] for number in self.kind]

    def sentences(self) -> list[str | None]:
        """Return why each request got no answer; None where it got one."""
        return [None if number < 0 else self.errors[number] for number in self.error]

    def not_kept(self) -> int:
        """Return how many answers there were no room for."""
        return sum(kept < 0 < status for kept, status in zip(self.length, self.status, strict=True))

    def to_bytes(self) -> tuple[dict[str, object], bytes]:
        """Return what goes into JSON, and the bytes that follow it."""
        head = {
            "count": len(self),
            "errors": self.errors,
            "texts": {name: getattr(self, name) for name in _TEXTS},
        }
        return head, b"".join([*(getattr(self, name).tobytes() for name in _NUMBERS), *self.bodies])

    @classmethod
    def from_bytes(cls, head: dict[str, object], data: bytes) -> Outcomes:
        """Read what :meth:`to_bytes` wrote."""
        made = cls()
        vars(made).update(head["texts"], errors=head["errors"])  # type: ignore[call-overload] # a dict of lists
        place = 0
        for name, code in _NUMBERS.items():
            column = array(code)
            end = place + int(head["count"]) * column.itemsize  # type: ignore[call-overload] # a number
            column.frombytes(data[place:end])
            setattr(made, name, column)
            place = end
        for length in made.length:
            end = place + max(length, 0)
            made.bodies.append(data[place:end])
            place = end
        return made


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What the client says of itself, in milliseconds where a name ends so."""

    lag_p50_ms: float = 0.0
    """How much later than planned a request was sent: the median; 0 in a closed loop, which has no plan in time."""
    lag_p99_ms: float = 0.0
    lag_max_ms: float = 0.0
    loop_p50_ms: float = 0.0
    """How long something that was ready waited for its event loop, as an answer that has come: the median."""
    loop_p99_ms: float = 0.0
    cpu_share: float = 0.0
    """Of one core, while it ran: 1 is all that a client can have."""
    most_in_flight: int = 0
    """The most requests that were under way together."""
    held_back: int = 0
    """Requests that were due and had to wait, because as many were in flight as there may be."""
    held_back_ms: float = 0.0
    """How long the longest of these waited."""


@dataclass(frozen=True, slots=True)
class Run:
    """The outcomes of a plan, one a request, in the plan's order."""

    outcomes: Outcomes
    started_at: float
    """When the run started, in seconds of the wall clock: the zero of all other times."""
    elapsed_s: float
    """From the start to the end of the last request."""
    interrupted: bool
    """Whether the run was stopped before its end."""
    client: ClientReport = ClientReport()

    def to_bytes(self) -> bytes:
        """Return the run as a line of JSON and the columns behind it."""
        head, data = self.outcomes.to_bytes()
        head |= {
            "started_at": self.started_at,
            "elapsed_s": self.elapsed_s,
            "interrupted": self.interrupted,
            "client": asdict(self.client),
        }
        return json.dumps({"run": head}).encode() + b"\n" + data

    @classmethod
    def from_bytes(cls, line: bytes, data: bytes) -> Run:
        """Read what :meth:`to_bytes` wrote: its line, and the rest."""
        head = json.loads(line)["run"]
        return cls(
            outcomes=Outcomes.from_bytes(head, data),
            started_at=head["started_at"],
            elapsed_s=head["elapsed_s"],
            interrupted=head["interrupted"],
            client=ClientReport(**head["client"]),
        )
