"""What the proxy is told, and the numbers that limit who comes from outside. Pure: nothing heavy is imported."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from airserve_nb.errors import OptionError

__all__ = ["OUTSIDE_HEADER", "ShareLimits", "SharePlan", "hashed"]

OUTSIDE_HEADER = "x-airserve-outside"
"""Marks a request that came through the proxy: it is answered without a predictor's exception message.

A client that sends it by itself gains nothing, for it only ever hides.
"""

# A phone's photo fits. A body is held in memory while it is forwarded.
MAX_BODY_BYTES = 10 * 2**20
# Thirty people at full rate stay below what the fast ingress answers (some 2,400 a second on two cores).
REQUESTS_PER_S = 50.0
# A probe of a hundred requests at once passes.
BURST_S = 2.0


@dataclass(frozen=True, kw_only=True)
class ShareLimits:
    """How much one client may ask.

    Parameters
    ----------
    max_body_bytes
        Bytes of a request's body, at most.
    requests_per_s
        Requests a second and client address, in the long run. Twice as many may come at once.
    """

    max_body_bytes: int = MAX_BODY_BYTES
    requests_per_s: float = REQUESTS_PER_S

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        size, rate = self.max_body_bytes, self.requests_per_s
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"max_body_bytes is {size!r}, but must be a whole number, 1 or more.")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise OptionError(f"requests_per_s is {rate!r}, but must be a number above 0.")

    @property
    def burst(self) -> float:
        """How many requests may come at once; never less than one."""
        return max(1.0, BURST_S * self.requests_per_s)


@dataclass(frozen=True, kw_only=True)
class SharePlan:
    """What the proxy needs to know: never the token itself."""

    name: str
    host: str
    """The address to listen on."""
    ports: tuple[int, ...]
    """The ports to try, in this order; 0 is any."""
    target: str
    """The service's URL."""
    token_hash: str
    limits: ShareLimits

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> SharePlan:
        """Return what :meth:`to_json` wrote."""
        fields: dict[str, Any] = json.loads(line)
        fields["limits"] = ShareLimits(**fields["limits"])
        fields["ports"] = tuple(fields["ports"])
        return cls(**fields)


def hashed(token: str) -> str:
    """Return a token's hash; a token is long and random, so that one round is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
