"""What the client is to send, and what became of it: plain data that travels as JSON text.

A :class:`Plan` holds every request ready to be written, so that the client spends no time on encoding
while it measures. A :class:`Run` is its answer. Both go through a pipe as JSON lines, bodies in base64:
nothing is unpickled. Equal messages are written once, however often the plan sends them.

All times are seconds from the start of the run, on one monotonic clock.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Outcome", "OutcomeKind", "Plan", "PlannedRequest", "Run"]

OutcomeKind = Literal["ok", "http_error", "timeout", "connection_error", "cancelled"]
"""What became of a request; exactly one of these.

``ok``: a status from 200 to 299. ``http_error``: any other status. ``timeout``: no whole answer in time.
``connection_error``: refused, reset, cut off or not HTTP. ``cancelled``: the run was stopped before.
"""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, ready to be sent."""

    index: int
    """Its number in the plan, from 0."""
    planned_s: float | None
    """When it is to be sent, in seconds; None: as soon as one of the plan's lanes is free."""
    method: str
    url: str
    """The whole URL, query and percent-encoding included."""
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Requests, and how they are to be sent."""

    requests: tuple[PlannedRequest, ...]
    concurrency: int | None
    """Requests in flight at most; None: as many as there are."""
    timeout_s: float
    """How long one request may take, in seconds from its sending."""

    @property
    def lanes(self) -> int:
        """How many requests are in flight at most, never more than there are."""
        return min(self.concurrency or len(self.requests), len(self.requests))

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        messages: dict[tuple[Any, ...], int] = {}
        requests = []
        for request in self.requests:
            message = (request.method, request.url, request.headers, request.body)
            number = messages.setdefault(message, len(messages))
            requests.append([request.index, request.planned_s, number])
        return json.dumps(
            {
                "concurrency": self.concurrency,
                "timeout_s": self.timeout_s,
                "messages": [
                    [method, url, headers, _to_text(body)] for method, url, headers, body in messages
                ],
                "requests": requests,
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read what :meth:`to_json` wrote."""
        parts = json.loads(text)
        messages = [
            (method, url, tuple((name, value) for name, value in headers), b64decode(body))
            for method, url, headers, body in parts["messages"]
        ]
        requests = tuple(
            PlannedRequest(index, planned_s, *messages[number])
            for index, planned_s, number in parts["requests"]
        )
        return cls(requests=requests, concurrency=parts["concurrency"], timeout_s=parts["timeout_s"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    index: int
    """Its number in the plan."""
    kind: OutcomeKind
    planned: float | None
    """When it was to be sent; of an unplanned one, when its lane was free for it. None: that never came."""
    sent: float | None
    """When it was handed to its connection; None when it never was."""
    first_byte: float | None
    """When status and headers of the answer had been read."""
    done: float | None
    """When the answer was complete, or the request had failed; None when the run was stopped before."""
    status: int | None
    """HTTP status; None without an answer."""
    headers: dict[str, str]
    """The answer's headers, names in lower case."""
    body: bytes
    """The answer's body."""
    error: str | None
    """One sentence when the request got no answer; None else, also of HTTP errors."""


@dataclass(frozen=True, slots=True)
class Run:
    """The outcomes of a plan, one a request, in the plan's order."""

    outcomes: tuple[Outcome, ...]
    started_at: float
    """When the run started, in seconds of the wall clock: the zero of all other times."""
    elapsed_s: float
    """From the start to the end of the last request."""
    interrupted: bool
    """Whether the run was stopped before its end."""

    def to_lines(self) -> str:
        """Return JSON lines: one about the run, then one an outcome."""
        head = {"started_at": self.started_at, "elapsed_s": self.elapsed_s, "interrupted": self.interrupted}
        rows = [json.dumps(asdict(outcome) | {"body": _to_text(outcome.body)}) for outcome in self.outcomes]
        return "\n".join([json.dumps(head), *rows, ""])

    @classmethod
    def from_lines(cls, text: str | bytes) -> Run:
        """Read what :meth:`to_lines` wrote."""
        head, *rows = [json.loads(line) for line in text.splitlines()]
        return cls(outcomes=tuple(Outcome(**row | {"body": b64decode(row["body"])}) for row in rows), **head)


def _to_text(body: bytes) -> str:
    return b64encode(body).decode("ascii")
