"""A line that counts the seconds of something slow, and leaves nothing behind."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from airserve_nb.progress import Progress

WAIT_S = 10  # far beyond what is waited for


class Publisher:
    """Stands in for the kernel's display publisher."""

    def __init__(self) -> None:
        self.messages: list[tuple[dict[str, str], bool]] = []
        self.ids: set[str] = set()
        self.threads: list[str] = []
        self.updated = threading.Event()

    def publish(
        self, data: dict[str, str], *, metadata: Any, transient: dict[str, str], update: bool = False
    ) -> None:
        self.messages.append((data, update))
        self.ids.add(transient["display_id"])
        self.threads.append(threading.current_thread().name)
        if data:
            self.updated.set()


class Shell:
    kernel = object()

    def __init__(self) -> None:
        self.display_pub = Publisher()


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    import IPython

    shell = Shell()
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    return shell.display_pub


def tickers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "airserve-progress"]


class TestNotebook:
    def test_counts_and_clears(self, publisher: Publisher) -> None:
        """One display, made empty by the calling thread, updated, and empty again at the end."""
        now = [0.0]
        with Progress(tick_s=0.001, clock=lambda: now[0]) as progress:
            progress("Starting Ray ...")
            now[0] = 6.0
            assert publisher.updated.wait(WAIT_S)
        assert publisher.messages == [({}, False), ({"text/plain": "Starting Ray … 6 s"}, True), ({}, True)]
        assert len(publisher.ids) == 1
        assert publisher.threads[0] == threading.current_thread().name
        assert not tickers()

    def test_each_step_counts_anew(self, publisher: Publisher) -> None:
        """The seconds are the step's own."""
        now = [0.0]
        with Progress(tick_s=0.001, clock=lambda: now[0]) as progress:
            progress("Starting Ray")
            now[0] = 6.0
            progress("Starting Ray Serve")
            now[0] = 9.0
            while ({"text/plain": "Starting Ray Serve … 3 s"}, True) not in publisher.messages:
                assert publisher.updated.wait(WAIT_S)

    def test_quiet_when_quick(self, publisher: Publisher) -> None:
        """Something quick publishes only the empty display."""
        with Progress(tick_s=0.001, clock=lambda: 0.0) as progress:
            progress("Swapping")
        assert publisher.messages == [({}, False)]

    def test_ends_with_an_exception(self, publisher: Publisher) -> None:
        """An error or an interrupt leaves no thread behind."""

        def work() -> None:
            with Progress() as progress:
                progress("Starting Ray")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work()
        assert not tickers()

    def test_unused(self, publisher: Publisher) -> None:
        """Without a step nothing is published at all."""
        with Progress():
            pass
        assert not publisher.messages


class TestElsewhere:
    def test_each_step_is_printed_once(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In a script there is no display to update, and no thread."""
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
        with Progress() as progress:
            progress("Starting Ray ...")
            progress("Starting Ray Serve ...")
            assert not tickers()
        assert capsys.readouterr().out == "Starting Ray …\nStarting Ray Serve …\n"
