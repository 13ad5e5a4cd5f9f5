"""What the client is to send: plain data that travels as one line of JSON.

A :class:`Plan` holds every message as it will be written, so that the client spends no time on encoding while it
measures. Messages are taken in turns, so a plan of a hundred thousand equal requests holds one.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass

__all__ = ["Message", "Plan"]


@dataclass(frozen=True, slots=True)
class Message:
    """One request, ready to be written; without a place in time."""

    method: str
    url: str
    """The whole URL, query and percent-encoding included."""
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Messages, and when they are to be sent.

    Either *open loop*: ``planned`` has the time of each request, and nothing that the server does moves it. Or *closed
    loop*: ``concurrency`` requests are in flight, and each answer lets the next one go, until ``requests`` have been
    sent or ``duration_s`` seconds have gone by.
    """

    messages: tuple[Message, ...]
    """Taken in turns: request ``i`` is message ``i`` modulo their number. All go to the same host."""
    timeout_s: float
    """How long one request may take, in seconds from its sending."""
    planned: tuple[float, ...] | None = None
    """When each request is to be sent, in seconds from the start, ascending; None: closed loop."""
    requests: int | None = None
    """Closed loop: how many; None: as many as go into ``duration_s``."""
    duration_s: float | None = None
    """Closed loop: after so many seconds no further request is sent."""
    concurrency: int | None = None
    """Requests in flight at most; None, in an open loop: as many as come together."""

    @property
    def count(self) -> int | None:
        """How many requests are planned; None where the duration decides."""
        return self.requests if self.planned is None else len(self.planned)

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps(
            {
                "messages": [
                    [message.method, message.url, message.headers, b64encode(message.body).decode("ascii")]
                    for message in self.messages
                ],
                "timeout_s": self.timeout_s,
                "planned": self.planned,
                "requests": self.requests,
                "duration_s": self.duration_s,
                "concurrency": self.concurrency,
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read what :meth:`to_json` wrote."""
        parts = json.loads(text)
        parts["messages"] = tuple(
            Message(method, url, tuple((name, value) for name, value in headers), b64decode(body))
            for method, url, headers, body in parts["messages"]
        )
        if parts["planned"] is not None:
            parts["planned"] = tuple(parts["planned"])
        return cls(**parts)
