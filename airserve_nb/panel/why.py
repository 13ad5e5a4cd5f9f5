"""The panel's sentence on why batches are as large as they are."""

from __future__ import annotations

import time
from typing import Any

from airserve_nb.panel.picture import Picture

__all__ = ["why"]

NOTHING = "No batch in the last ten seconds, so there is nothing to explain."


def why(picture: Picture, service: Any) -> list[str] | None:
    """Return a sentence on the size of the batches of the last ten seconds and, where there is one, on latency.

    None before the first request.
    """
    from airserve_nb.diagnosis import diagnose  # late: the panel is shown before it has anything to explain

    requests, batches = picture.recent
    if not batches:
        # A batch may have ended just before the answers of its requests.
        requests = [record for record in requests if record.batch_id is None]
        if not requests and not picture.waiting:
            return [NOTHING] if picture.counters.batches else None
    found = diagnose(
        requests,
        batches,
        service._host.settings,  # noqa: SLF001 - the panel is a part of its service
        replicas=picture.replicas or None,
        waiting=picture.waiting,
        now=time.time(),
    )
    return [part.sentence for part in (found.size, found.latency) if part is not None]
