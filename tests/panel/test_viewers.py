"""Who looks: pages that speak, fall silent, or can't be heard because a cell runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from airserve_nb.panel.viewers import PATIENCE_S, CellWatch, Viewers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Shell:
    """IPython's events, as far as they are used."""

    def __init__(self) -> None:
        self.events = self
        self.handlers: dict[str, list[Any]] = {"pre_run_cell": [], "post_run_cell": []}

    def register(self, name: str, handler: Any) -> None:
        self.handlers[name].append(handler)

    def unregister(self, name: str, handler: Any) -> None:
        self.handlers[name].remove(handler)

    def begin(self) -> Any:
        info = SimpleNamespace()
        for handler in self.handlers["pre_run_cell"]:
            handler(info)
        return info

    def end(self, info: Any) -> None:
        for handler in self.handlers["post_run_cell"]:
            handler(SimpleNamespace(info=info))


def test_a_page_is_there_until_it_is_silent_or_hidden() -> None:
    """Beats keep a page; silence and a hidden tab end it; a second page is one of its own."""
    clock = Clock()
    viewers = Viewers(CellWatch(clock=clock), clock=clock)
    assert not viewers.anybody()
    assert viewers.heard("a", visible=True)
    assert not viewers.heard("a", visible=True)
    assert viewers.heard("b", visible=True)
    viewers.heard("b", visible=False)
    assert viewers.anybody()
    clock.now += PATIENCE_S + 1
    assert not viewers.anybody()
    assert viewers.heard("a", visible=True)


def test_silence_does_not_count_while_a_cell_runs() -> None:
    """A kernel that runs a cell may hear nobody; afterwards pages have their time to speak."""
    clock, shell = Clock(), Shell()
    cells = CellWatch(shell, clock=clock)
    viewers = Viewers(cells, clock=clock)
    viewers.heard("a", visible=True)
    clock.now += 1_000
    assert viewers.anybody(), "the cell that made the panel still runs"
    shell.end(None)
    assert viewers.anybody()
    clock.now += PATIENCE_S + 1
    assert not viewers.anybody()


def test_cells_within_cells() -> None:
    """A magic runs a cell inside its own: the outer one goes on when the inner one has ended."""
    shell = Shell()
    cells = CellWatch(shell)
    shell.end(None)
    assert cells.idle_since() is not None
    outer = shell.begin()
    inner = shell.begin()
    shell.end(inner)
    assert cells.idle_since() is None
    shell.end(outer)
    assert cells.idle_since() is not None


def test_closing_unhooks() -> None:
    """Nothing of ours stays in IPython."""
    shell = Shell()
    CellWatch(shell).close()
    assert shell.handlers == {"pre_run_cell": [], "post_run_cell": []}
