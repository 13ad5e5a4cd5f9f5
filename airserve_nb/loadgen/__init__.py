"""The probe: requests planned ahead, sent by a client of its own, and what became of each.

``payload`` turns what a user gives into requests, ``plan`` holds them as plain data, ``client`` sends
them (in this process or as ``python -m airserve_nb.loadgen.client``), ``launch`` starts the client,
``tables`` makes frames of the outcomes, ``result`` is what the user gets, ``run`` ties it together.

This module imports nothing, so that the client's process starts quickly.
"""

from __future__ import annotations

__all__: list[str] = []
