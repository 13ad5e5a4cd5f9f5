"""warm_up(): what it refuses, and what it tells the next deployment. That it starts Ray is tested beside Ray's start."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from airserve_nb import DeployError, OptionError, warm_up, warming

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace the start of Ray by a list of what it was asked for."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(warming, "_start", lambda *args: asked.append(args))
    return asked


def test_options_are_refused_at_once(starts: list[Any]) -> None:
    """A value that can't be is said in the cell that asks, and nothing is started."""
    for options in ({"ingress": "nginx"}, {"port": 0}, {"engine": "spark"}):
        with pytest.raises(OptionError):
            warm_up(**options)
    assert starts == []


def test_the_local_engine_needs_none(starts: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the local engine, asked for or an operator's default, nothing is started."""
    warm_up(engine="local")
    monkeypatch.setenv("AIRSERVE_ENGINE", "local")
    warm_up()
    warming.finish_warming()
    assert starts == []


def test_it_starts_once_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns at once; a second call while it starts does nothing; a deployment waits, and says so."""
    go_on = threading.Event()
    starts: list[tuple[Any, ...]] = []

    def start(*args: Any) -> None:
        starts.append(args)
        assert go_on.wait(30)

    monkeypatch.setattr(warming, "_start", start)
    warm_up(engine="ray", port=8123, ingress="python")
    warm_up(engine="ray")
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        go_on.set()

    warming.finish_warming(progress)
    assert starts == [(8123, "python")]
    assert lines == ["Waiting for Ray, which is starting ..."]
    warming.finish_warming(progress)
    assert len(lines) == 1


def test_its_error_is_raised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it could not start is raised by the next deployment, and by no later one."""

    def start(*_args: Any) -> None:
        raise DeployError("no")

    monkeypatch.setattr(warming, "_start", start)
    warm_up(engine="ray")
    with pytest.raises(DeployError, match="no"):
        warming.finish_warming()
    warming.finish_warming()


def test_who_attaches_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that is just starting here is not pulled down by a cell that names another one: it is waited for."""
    from airserve_nb.engines import ray_attach

    def start(*_args: Any) -> None:
        raise DeployError("warm-up failed")

    monkeypatch.setattr(warming, "_start", start)
    warm_up(engine="ray")
    with pytest.raises(DeployError, match="warm-up failed"):
        ray_attach.attach("127.0.0.1:1")
