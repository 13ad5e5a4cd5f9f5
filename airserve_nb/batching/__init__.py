"""Micro-batching: which requests run together, when, and how their answers come apart again.

``signature`` says what may be stacked with what, ``collate`` stacks it, and ``split`` divides the
output among the requests. All three are plain functions: no clock, no thread, no event loop.
"""

from __future__ import annotations

__all__: list[str] = []
