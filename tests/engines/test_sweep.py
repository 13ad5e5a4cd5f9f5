"""Sweeps on both engines: every replica batches by each setting in turn, and by its own again afterwards."""

from __future__ import annotations

from typing import Any

from airserve_nb import sweep


def test_on_each_engine(serve_on: Any, script: Any) -> None:
    """The batches of each setting keep its limit, and what was is in force again, live."""
    service = serve_on(script.predictor, script.checkpoint, max_batch_size=5, example=script.row())
    before, version = service.settings, service.version
    found = sweep(service, max_batch_size=[1, 3], batch_wait_timeout_s=0.05, rate=100, duration=3, rounds=1)
    assert (service.settings, service.version) == (before, version)
    assert found.table["errors"].tolist() == [0, 0]
    single, three = (trial.probes[0].batches["batch_size"] for trial in found.trials)
    assert single.max() == 1
    assert three.max() == 3
    assert "Take max_batch_size=" in str(found.recommend())
