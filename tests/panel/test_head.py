"""The ``%%serve`` line that reproduces a panel's settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airserve_nb.batching.settings import BatchSettings
from airserve_nb.panel.head import serve_line


def service(code: str | None, *, engine: str = "ray", replicas: int = 1, **settings: Any) -> Any:
    host = SimpleNamespace(settings=BatchSettings(**settings))
    return SimpleNamespace(name="adder", code=code, engine=engine, replicas=replicas, _host=host)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (None, "%%serve adder --max-batch-size 16"),
        ("%%serve adder", "%%serve adder --max-batch-size 16"),
        ("%%serve adder --max-batch-size 4 --example x", "%%serve adder --example x --max-batch-size 16"),
        ("%%serve adder --max-batch-size=4 --num-cpus 1", "%%serve adder --num-cpus 1 --max-batch-size 16"),
        ("%%serve adder --max 4 --batch .1 --num-r 3 --port 1", "%%serve adder --port 1 --max-batch-size 16"),
        ("%%serve adder --no-batching", "%%serve adder --max-batch-size 16"),
        ("%%serve adder --http-adapter 'a b'", "%%serve adder --http-adapter 'a b' --max-batch-size 16"),
        ("%%serve adder 'unclosed", "%%serve adder 'unclosed --max-batch-size 16"),
    ],
)
def test_line(line: str | None, expected: str) -> None:
    """The cell's own options stay, but for those that the knobs have replaced."""
    code = None if line is None else f"{line}\ndef predict(x): ..."
    assert serve_line(service(code, max_batch_size=16)) == expected


def test_all_knobs() -> None:
    """Wait and replicas are told where they are not the defaults, and the engine of a deploy() call."""
    made = service(None, engine="local", replicas=1, max_batch_size=2, batch_wait_timeout_s=0.005)
    assert serve_line(made) == "%%serve adder --max-batch-size 2 --batch-wait-timeout-s 0.005 --engine local"
    assert serve_line(service("%%serve a", replicas=3)).endswith("--num-replicas 3")
    assert serve_line(service("%%serve a", enabled=False)) == "%%serve a --no-batching"
