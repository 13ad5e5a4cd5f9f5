"""The probe against each engine: what the client saw and what the server recorded are the same requests."""

from __future__ import annotations

from typing import Any

import pytest

from airserve_nb import ProbeResult, probe


@pytest.fixture(scope="module")
def service(serve_on_shared: Any, shared_script: Any) -> Any:
    return serve_on_shared(
        shared_script.predictor,
        shared_script.checkpoint,
        name="probed",
        max_batch_size=8,
        batch_wait_timeout_s=0.005,
    )


def check(result: ProbeResult, count: int) -> None:
    """Every request was answered and recorded once, in batches that add up."""
    assert result.requests.outcome.tolist() == ["ok"] * count
    assert result.records is not None
    assert (result.records.answered, result.records.recorded) == (count, count)
    assert result.batches.batch_size.sum() == count
    assert result.batches.release_reason.isin(["full", "timeout", "model_free"]).all()
    assert result.requests.request_id.is_unique
    assert result.requests.replica.notna().all()
    assert set(result.requests.version) == set(result.batches.version)
    times = result.requests[["planned", "sent", "first_byte", "done"]].to_numpy()
    assert (times[:, 1:] >= times[:, :-1]).all()


def test_open_loop(service: Any, shared_script: Any) -> None:
    """Requests that come on their own are all accounted for, on both sides."""
    result = probe(service, shared_script.row(), rate=[100, 200], duration=1)
    check(result, len(result.requests))
    assert result.steps.ok.sum() == len(result.requests)
    assert str(result.diagnose())


def test_closed_loop(service: Any, shared_script: Any) -> None:
    """The same of a closed loop; failures that the model makes are told by both."""
    check(probe(service, shared_script.row(), requests=300, concurrency=16), 300)
    rows = [shared_script.row(), shared_script.row(shared_script.POISON)]
    result = probe(service, rows, requests=20, concurrency=4)
    # A bad row always fails; beside many of them a good one may not be told apart, and fail too.
    assert (result.requests.outcome[1::2] == "http_error").all()
    summary = result.summary()
    assert summary.statuses == {200: summary.ok, 500: summary.http_errors}
    assert summary.ok + summary.http_errors == 20
    assert result.records is not None
    assert result.records.missing == 0
