"""What a page may ask: a fixed list, done in threads of our own and never where the kernel reads its messages.

Commands are done one after the other, in the order in which they were asked. Probes have a lane of their own, and so
has scaling, for which processes start: a knob that is turned meanwhile must act at once. A lane has a thread only
while it has work.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from airserve_nb._sentences import as_sentence, describe, message_of
from airserve_nb.display import is_request
from airserve_nb.errors import AirServeError, DeployError, ProbeError

__all__ = ["Commands"]

LONGEST_ANSWER = 4_000
LONGEST_PAYLOAD = 1_000_000
MOST_WAITING = 20
MOST_PROBED = 100_000

Report = Callable[[dict[str, Any], list[bytes]], None]


class Commands:
    """Does what a page asks.

    Parameters
    ----------
    service
        The service.
    report
        Called, from a thread, with the outcome of each.
    """

    def __init__(self, service: Any, report: Report) -> None:
        self._service = service
        self._report = report
        self._steering, probing = _Lane("airserve-panel-commands"), _Lane("airserve-panel-probe")
        self._others = {"probe": probing, "request": probing, "scale": _Lane("airserve-panel-scale")}
        self._known: dict[str, Callable[..., dict[str, Any]]] = {
            "redeploy": self._redeploy,
            "rollback": self._rollback,
            "stop": self._stop,
            "set_batching": self._set_batching,
            "scale": self._scale,
            "request": self._request,
            "probe": self._probe,
        }

    def ask(self, number: Any, name: Any, arguments: Any) -> None:
        """Have a command done; returns at once. What is not on the list is answered with an error."""
        work = self._known.get(name) if isinstance(name, str) else None
        if work is None or not isinstance(arguments, Mapping):
            self._answer(number, name, {"ok": False, "text": "The panel knows no such command."})
            return
        lane = self._others.get(name, self._steering)
        if not lane.submit(lambda: self._answer(number, name, self._outcome(work, arguments))):
            self._answer(number, name, {"ok": False, "text": "Too much was asked at once; wait a moment."})

    def close(self) -> None:
        """Do nothing more; what has begun comes to its end."""
        for lane in (self._steering, *self._others.values()):
            lane.close()

    def _answer(self, number: Any, name: Any, outcome: dict[str, Any]) -> None:
        buffers = outcome.pop("buffers", [])
        self._report({"kind": "result", "number": number, "command": name, **outcome}, buffers)

    def _outcome(self, work: Callable[..., dict[str, Any]], arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": True, **work(**arguments)}
        except AirServeError as error:
            frames = str(getattr(error, "frames", ""))[-LONGEST_ANSWER:]
            return {"ok": False, "text": as_sentence(message_of(error)), "details": frames}
        except BaseException as error:  # noqa: BLE001 - whatever a model or a client library raises is told
            return {"ok": False, "text": as_sentence(describe(error))}

    # -- the list -------------------------------------------------------------------------------

    def _redeploy(self) -> dict[str, Any]:
        again = self._service._again  # noqa: SLF001 - the panel is a part of its service
        if again is None:
            raise DeployError("It was not deployed by this kernel; run the cell that deploys it.")
        again()
        return {"text": f"{self._service.version} serves, as its names are defined now."}

    def _rollback(self) -> dict[str, Any]:
        self._service.rollback()
        return {"text": f"{self._service.version} serves again."}

    def _stop(self) -> dict[str, Any]:
        self._service.stop()
        return {"text": "Stopped."}

    def _set_batching(self, **limits: Any) -> dict[str, Any]:
        self._service.set_batching(**limits)
        return {"text": ""}

    def _scale(self, num_replicas: Any) -> dict[str, Any]:
        self._service.scale(num_replicas)
        return {"text": ""}

    def _request(self, payload: Any) -> dict[str, Any]:
        value = _payload(payload)
        arguments = dict(value) if is_request(value) else {"json": value}
        began = time.perf_counter()
        answer = self._service.request(**arguments)
        return {
            "text": "",
            "ms": (time.perf_counter() - began) * 1e3,
            "status": answer.status_code,
            "timing": answer.headers.get("Server-Timing", ""),
            "request_id": answer.headers.get("X-Airserve-Request-Id", ""),
            "answer": _cut(answer.content.decode(errors="replace")),
        }

    def _probe(self, payload: Any, requests: Any, concurrency: Any) -> dict[str, Any]:
        from airserve_nb.loadgen.run import start_probe

        if isinstance(requests, int) and requests > MOST_PROBED:
            raise ProbeError(f"requests is {requests}; from here at most {MOST_PROBED} can be sent.")
        value = None if not str(payload).strip() else _payload(payload)
        # A body that is a list is one body.
        body = value if value is None or is_request(value) else {"json": value}
        # Not probe(): its progress would be shown in whichever cell ran last.
        result = start_probe(self._service, body, requests=requests, concurrency=concurrency).result()
        return {"text": str(result.summary()), "label": repr(result), "buffers": [_png(result)]}


def _payload(text: Any) -> Any:
    if not isinstance(text, str) or len(text) > LONGEST_PAYLOAD:
        raise ProbeError("The payload is no text, or longer than a million characters; send it from a cell.")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ProbeError(f"The payload is no JSON: {message_of(error)}.") from None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_ANSWER else f"{text[:LONGEST_ANSWER]}…"


def _png(result: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    result.plot().savefig(buffer, format="png")  # a Figure of its own: pyplot belongs to the cells
    return buffer.getvalue()


class _Lane:
    """Does work in order, in a thread that is there only while there is work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._work: deque[Callable[[], object]] = deque()
        self._running = self._closed = False

    def submit(self, work: Callable[[], object]) -> bool:
        """Take work on; False when there is too much already."""
        with self._lock:
            if self._closed or len(self._work) >= MOST_WAITING:
                return False
            self._work.append(work)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            return True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._work:
                    self._running = False
                    return
                work = self._work.popleft()
            # A page that can't be reached must not end what others ask.
            with contextlib.suppress(Exception):
                work()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._work.clear()
