"""The contract: whatever is sent, the answer is one that ``/openapi.json`` promises."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from airserve_nb import Predictor, Service, deploy, http_adapters

# Examples take milliseconds each, on a machine that others use too.
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Customer(BaseModel):
    """A body of several kinds of fields."""

    age: int
    name: str
    since: dt.date | None = None
    scores: list[float] = []


def adapter(customer: Customer, weight: float = 1.0) -> np.ndarray[Any, Any]:
    """Take a customer and a weight."""
    return np.array([float(np.clip(customer.age, -1e9, 1e9)) * weight, float(len(customer.name))])


class Echo(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint: Any, **_kwargs: Any) -> Echo:
        return cls()

    def predict(self, data: Any, **_kwargs: Any) -> Any:
        return data


ADAPTERS = {
    "array": http_adapters.json_to_ndarray,
    "arrays": http_adapters.json_to_multi_ndarray,
    "table": http_adapters.pandas_read_json,
    "own": adapter,
}


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Service]]:
    """One service an adapter."""
    made = {name: deploy(Echo, name=name, engine="local", http_adapter=one) for name, one in ADAPTERS.items()}
    yield made
    for service in made.values():
        service.stop()


def check(answer: requests.Response) -> None:
    """Hold an answer against the promise: a prediction, or a refusal in one sentence; never a failure of ours."""
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    if answer.status_code != 200:
        assert set(body) == {"error", "request_id"}
        assert "Traceback" not in body["error"]
        assert len(body["error"]) < 2_000


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_the_schema_allows_is_never_a_failure(served: dict[str, Service], name: str) -> None:
    """Requests made from /openapi.json are answered, or refused with a sentence, and never with a 5xx."""
    schema = schemathesis.openapi.from_dict(
        requests.get(f"{served[name].url}/openapi.json", timeout=30).json()
    )

    @given(case=schema["/"]["POST"].as_strategy())
    @QUICK
    def ask(case: Any) -> None:
        body = None if isinstance(case.body, type(schemathesis.core.NOT_SET)) else case.body
        params = dict(case.query or {})
        check(requests.post(served[name].url, json=body, params=params, timeout=30))

    ask()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", ADAPTERS)
def test_any_json_is_answered_or_refused(served: dict[str, Service], name: str) -> None:
    """Whatever JSON comes (NaN, large integers, any text), it is a 200 or a 4xx with a sentence."""

    @given(body=JSON)
    @QUICK
    def ask(body: Any) -> None:
        check(requests.post(served[name].url, data=json.dumps(body), timeout=30))

    ask()


@pytest.mark.parametrize("name", ADAPTERS)
def test_any_bytes_are_answered_or_refused(served: dict[str, Service], name: str) -> None:
    """Whatever bytes come, with whatever type they claim and whatever query, it is a 200 or a 4xx."""
    types = st.sampled_from(
        ["application/json", "text/plain", "application/x-www-form-urlencoded", "", "a/b;c"]
    )
    queries = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2)

    @given(body=st.binary(max_size=200), kind=types, query=queries)
    @QUICK
    def ask(body: bytes, kind: str, query: dict[str, str]) -> None:
        safe = {
            key.encode("utf-8", "replace"): value.encode("utf-8", "replace") for key, value in query.items()
        }
        headers = {"Content-Type": kind}
        check(requests.post(served[name].url, data=body, headers=headers, params=safe, timeout=30))

    ask()


@given(rows=st.lists(st.tuples(st.floats(allow_nan=True), st.integers(-(2**40), 2**40)), max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_values_survive_the_way(served: dict[str, Service], rows: list[tuple[float, int]]) -> None:
    """What an echo returns is what was sent: every digit of every float, NaN as null, infinity by name."""
    sent = [[a, float(b)] for a, b in rows]
    answer = requests.post(served["array"].url, data=json.dumps({"array": sent}), timeout=30)
    assert answer.status_code == 200
    for row, back in zip(sent, answer.json(), strict=True):
        for value, returned in zip(row, back, strict=True):
            assert spelled(value) == returned


def spelled(value: float) -> Any:
    if value != value:  # noqa: PLR0124 - NaN
        return None
    return {np.inf: "Infinity", -np.inf: "-Infinity"}.get(value, value)
