"""``probe`` from end to end, against a server in the test's process."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from airserve_nb.errors import DeployError, ProbeError
from airserve_nb.loadgen import run as run_module
from airserve_nb.loadgen.launch import start_in_thread
from airserve_nb.loadgen.run import probe

if TYPE_CHECKING:
    from tests.loadgen.conftest import ToyServer
else:
    ToyServer = Any

NDARRAY_SCHEMA = {
    "openapi": "3.1.0",
    "paths": {
        "/": {
            "post": {
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["array"],
                                "properties": {"array": {"type": "array", "items": {"type": "number"}}},
                            }
                        }
                    }
                }
            }
        }
    },
}


@dataclass
class FakeService:
    """What ``probe`` knows of a Service."""

    url: str
    name: str = "adder"
    example: Any = None
    state: str = "running"
    engine: str = "local"
    calls: int = 0
    error: Exception | None = None

    def batches(self) -> pd.DataFrame:
        """Tell of batches 0 and 1 at once, of all from the second call on, as a collector that lags."""
        self.calls += 1
        if self.error is not None:
            raise self.error
        rows = [self._row(number) for number in range(2 if self.calls == 1 else 9)]
        return pd.DataFrame(rows)

    def requests(self) -> pd.DataFrame:
        """Tell of the first twelve requests."""
        return pd.DataFrame({"request_id": [f"request-{number}" for number in range(12)]})

    def _row(self, number: int) -> dict[str, Any]:
        return {
            "batch_id": f"r1-{number}",
            "released_at": time.time(),
            "batch_size": 4,
            "rows": 8,
            "predict_ms": 5.5,
            "release_reason": "full",
            "queue_depth": 0,
            "version": "v1",
            "replica": "r1",
        }


@pytest.fixture(autouse=True)
def _in_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the start of a process; test_launch has both ways."""
    monkeypatch.setattr(run_module, "start_plan", start_in_thread)


def sent(server: ToyServer) -> list[Any]:
    return [json.loads(body) for body in server.bodies]


class TestUrl:
    def test_a_url_is_probed(self, server: ToyServer) -> None:
        """A bare URL gives requests with answers, and batches as far as the headers tell."""
        result = probe(server.url, {"array": [40]}, requests=8)
        assert result.requests.answer.tolist() == [{"array": [40]}] * 8
        assert (result.requests.status == 200).all()
        assert (result.requests.queue_ms == 2).all()
        assert (result.requests.predict_ms == 5.5).all()
        assert sorted(result.batches.batch_id) == ["r1-0", "r1-1"]
        assert result.batches.release_reason.isna().all()
        assert (result.target, result.url) == ("/toy", server.url)
        assert not result.interrupted

    def test_a_password_is_not_shown(self, server: ToyServer) -> None:
        """What a URL holds for its server alone reaches the server, and neither the page nor the text of a result."""
        url = server.url.replace("://", "://me:secret@")
        found = probe(url, 1, requests=1)
        assert found.url == server.url
        assert "Authorization: Basic bWU6c2VjcmV0" in server.heads[0]
        assert "secret" not in found._repr_html_() + found.to_json()
        with pytest.raises(ProbeError) as caught:
            probe(url)
        assert "secret" not in str(caught.value)

    def test_a_foreign_server(self, server: ToyServer) -> None:
        """Any HTTP endpoint can be probed; what it does not tell is empty."""
        server.timing = False
        result = probe(server.url, 1, requests=3)
        assert result.requests.outcome.tolist() == ["ok"] * 3
        assert result.requests.overhead_ms.isna().all()
        assert result.batches.empty
        assert len(result.plot().axes) == 1

    def test_payloads_arrive(self, server: ToyServer) -> None:
        """What a function gives for each index arrives, each once."""
        result = probe(server.url, lambda index: {"i": index}, requests=20, concurrency=3)
        assert sorted(body["i"] for body in sent(server)) == list(range(20))
        assert result.requests.answer.tolist() == [{"i": index} for index in range(20)]

    def test_params_arrive(self, server: ToyServer) -> None:
        """Query parameters make a GET with a query."""
        probe(server.url + "?a=1", {"params": {"b": "x y"}}, requests=1)
        assert server.heads[0].startswith("GET /toy?a=1&b=x+y HTTP/1.1")

    def test_inside_a_running_loop(self, server: ToyServer) -> None:
        """Probe can be called where an event loop is running, as in a notebook."""

        async def cell() -> list[str]:
            return probe(server.url, 1, requests=2).requests.outcome.tolist()

        assert asyncio.run(cell()) == ["ok", "ok"]

    def test_failures_are_rows(self, server: ToyServer) -> None:
        """Failures of each kind are counted exactly and raise nothing."""
        payload = [{"do": order} for order in ("ok", "fail", "hang", "close")]
        summary = probe(server.url, payload, requests=20, timeout_s=1).summary()
        assert (summary.ok, summary.http_errors, summary.timeouts, summary.connection_errors) == (5, 5, 5, 5)
        assert summary.failed == 15


class TestNoPayload:
    def test_the_schema_s_simplest(self, server: ToyServer) -> None:
        """Without a payload the endpoint's schema gives one."""
        server.files["/toy/openapi.json"] = NDARRAY_SCHEMA
        probe(server.url + "?a=1", requests=2)
        (body, again) = sent(server)
        assert body == again
        assert isinstance(body["array"], list)

    def test_a_schema_without_a_body_makes_a_get(self, server: ToyServer) -> None:
        """An endpoint that takes nothing is sent nothing."""
        server.files["/toy/openapi.json"] = {"paths": {"/": {"get": {}}}}
        probe(server.url, requests=1)
        assert server.heads[0].startswith("GET /toy HTTP/1.1")
        assert server.bodies == [b""]

    @pytest.mark.parametrize(
        ("schema", "words"),
        [(None, "answers HTTP 404."), ([], "is no OpenAPI schema."), ({"paths": {}}, "its schema says:")],
    )
    def test_no_schema(self, server: ToyServer, schema: Any, words: str) -> None:
        """Without a payload and a schema, a sentence says to give one, and why none could be made."""
        if schema is not None:
            server.files["/toy/openapi.json"] = schema
        with pytest.raises(ProbeError, match="There is no payload, so give one") as caught:
            probe(server.url)
        assert words in str(caught.value)
        assert str(caught.value).endswith(".")
        assert server.bodies == []

    def test_the_service_s_example(self, server: ToyServer) -> None:
        """A service's example is one request, also when it is a list."""
        probe(FakeService(server.url, example=[{"x": 1}]), requests=2)
        assert sent(server) == [[{"x": 1}]] * 2


class TestService:
    def test_its_records_are_joined(self, server: ToyServer) -> None:
        """The service's records of this probe's batches are waited for and joined; others are left out."""
        service = FakeService(server.url)
        result = probe(service, 1, requests=12)
        assert service.calls == 2
        assert sorted(result.batches.batch_id) == ["r1-0", "r1-1", "r1-2"]
        assert result.batches.rows.tolist() == [8, 8, 8]
        assert result.batches.release_reason.tolist() == ["full"] * 3
        assert result.requests.replica.tolist() == ["r1"] * 12
        assert result.target == "adder"

    def test_a_service_that_goes_away(self, server: ToyServer) -> None:
        """When the records can't be had, what the answers told remains."""
        result = probe(FakeService(server.url, error=DeployError("It is gone.")), 1, requests=4)
        assert result.batches.batch_id.tolist() == ["r1-0"]
        assert result.batches.rows.isna().all()

    def test_a_stopped_service(self) -> None:
        """A stopped service is not probed."""
        with pytest.raises(ProbeError, match="adder is stopped") as caught:
            probe(FakeService("http://127.0.0.1:1/adder", state="stopped"), 1)
        assert caught.value.deployment == "adder"


class TestRefusals:
    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("127.0.0.1:8000/adder", 'did you mean "http://127.0.0.1:8000/adder"'),
            ("localhost:8000", 'did you mean "http://localhost:8000"'),
            ("adder", "or the Service itself"),
            ("", "give the whole URL"),
            ("ftp://host/x", "is no HTTP URL"),
            ("http://", "is no HTTP URL"),
            ("http://host:port/", "is no URL"),
            (42, "The target is a int"),
            (None, "The target is a NoneType"),
            (FakeService, "The target is the class FakeService"),
            (lambda x: x, "give the Service"),
        ],
    )
    def test_targets(self, target: Any, words: str) -> None:
        """What is no target is answered by a sentence that says what is one."""
        with pytest.raises(ProbeError) as caught:
            probe(target, 1)
        assert words in str(caught.value)
        assert str(caught.value).endswith(".")

    @pytest.mark.parametrize(
        "options",
        [
            *({"requests": value} for value in (0, -1, 1.5, "10", True)),
            *({"concurrency": value} for value in (0, 2.0, False)),
            *({"timeout_s": value} for value in (0, -1, float("nan"), float("inf"), "30", None)),
        ],
    )
    def test_numbers(self, options: dict[str, Any]) -> None:
        """A number of no use is refused with its name and value before anything is sent."""
        ((name, value),) = options.items()
        with pytest.raises(ProbeError) as caught:
            probe("http://127.0.0.1:1/", 1, **options)
        assert str(caught.value).startswith(f"{name} is {value!r}; give a ")

    def test_a_url_with_spaces_is_encoded(self, server: ToyServer) -> None:
        """Blanks and letters beyond ASCII in a URL are encoded, percent signs left alone."""
        probe(server.url + "/a b%20ä?q=x y", 1, requests=1)
        assert server.heads[0].startswith("POST /toy/a%20b%20%C3%A4?q=x%20y HTTP/1.1")
