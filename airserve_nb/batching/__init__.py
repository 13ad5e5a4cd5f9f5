"""Micro-batching: which requests run together, when, and how their answers come apart again.

``signature`` says what may be stacked with what, ``collate`` stacks it, ``split`` divides the output among the
requests, and ``policy`` holds the rules of when a batch leaves: plain functions and classes, with neither clock
nor thread nor event loop. ``isolation`` finds the guilty of a batch that failed. ``execution`` takes one batch
through the model, and ``batcher`` drives it all with one model thread, fair to the event loop by ``fairness``.
"""

from __future__ import annotations

__all__: list[str] = []
