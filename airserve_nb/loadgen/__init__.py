"""The probe: requests planned ahead, sent by a client of its own, and what became of each.

``options`` checks what was asked for, ``target`` and ``payload`` turn it into messages, ``plan`` holds these as plain
data. ``client`` sends them (in this process or as ``python -m airserve_nb.loadgen.client``), by way of ``sender``
(who goes when), ``wire`` (one connection), ``address``, ``alarm``, ``limits`` and ``selfwatch``; ``outcomes`` is what
it hands back. ``launch`` starts it, ``running`` is the handle of a probe under way. ``tables`` and ``records`` make
frames, ``result`` is what the user gets, with ``summary``, ``steps``, ``slo``, ``comparison`` and its two forms,
``result_text`` and ``result_html``. ``run`` ties it together.

This module imports nothing, so that the client's process starts quickly.
"""

from __future__ import annotations

__all__: list[str] = []
