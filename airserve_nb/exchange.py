"""One request on its way through the endpoint: what is known of it, and what is told of it at last."""

from __future__ import annotations

import re
import time

from airserve_nb.asgi import Scope
from airserve_nb.batching.execution import Answer
from airserve_nb.telemetry import Recorder, RequestRecord
from airserve_nb.version import Version

__all__ = ["HTTP_OK", "JSON_CONTENT", "Exchange", "client_id"]

HTTP_OK = 200
HTTP_CLIENT_LEFT = 499

JSON_CONTENT = (b"content-type", b"application/json")
CLIENT_ID_LENGTH = 64
_NOT_IN_CLIENT_ID = re.compile(rb"[^A-Za-z0-9._:-]")
_NO_ANSWER = Answer()


class Exchange:
    """One request on its way through the endpoint."""

    __slots__ = (
        "answer", "arrived", "arrived_at", "client_id", "error", "from_outside", "payload", "reply", "request_id",
        "status", "version",
    )  # fmt: skip

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.version: Version | None = None
        self.client_id = b""
        self.payload = b""
        self.reply = b""
        self.from_outside = False
        self.arrived = time.perf_counter()
        self.arrived_at = time.time()
        self.answer: Answer | None = None
        self.status = HTTP_OK
        self.error: str | None = None

    def bind(self, version: Version) -> Version:
        """Be answered by this version, whatever serves by then."""
        version.hold()
        self.version = version
        return version

    def leave(self) -> None:
        """Note that nobody waits for the answer any more."""
        self.status, self.error = HTTP_CLIENT_LEFT, "The client left before the answer."

    def end(self, recorder: Recorder, replica: str) -> None:
        """Write down how it went, and let go of the version."""
        if self.version is not None:
            self.version.release()
        total_ms = (time.perf_counter() - self.arrived) * 1e3
        answer = self.answer or _NO_ANSWER
        recorder.add_request(
            RequestRecord(
                request_id=self.request_id,
                arrived_at=self.arrived_at,
                status=self.status,
                batch_id=answer.batch_id,
                batch_size=answer.batch_size,
                queue_ms=answer.queue_ms,
                predict_ms=answer.predict_ms,
                overhead_ms=total_ms - answer.queue_ms - answer.predict_ms,
                total_ms=total_ms,
                version=self.version.name if self.version is not None else "",
                replica=replica,
                error=self.error,
                payload=self.payload,
                answer=self.reply,
            )
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer, as far as it is known."""
        headers = [
            JSON_CONTENT,
            (b"x-airserve-request-id", self.request_id.encode()),
        ]
        if self.version is not None:
            headers.append((b"x-airserve-version", self.version.name.encode()))
        if self.client_id:
            headers.append((b"x-request-id", self.client_id))
        answer = self.answer
        if answer is not None and answer.batch_id is not None:
            timing = (
                f"queue;dur={answer.queue_ms:.3f}, predict;dur={answer.predict_ms:.3f}, "
                f'batch;desc="{answer.batch_id}/{answer.batch_size}"'
            )
            headers.append((b"server-timing", timing.encode()))
        return headers


def client_id(scope: Scope) -> bytes:
    """Return the client's X-Request-Id, cut and with nothing in it that could do harm in a log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return bytes(_NOT_IN_CLIENT_ID.sub(b"", value)[:CLIENT_ID_LENGTH])
    return b""
