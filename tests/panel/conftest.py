"""Panels without a browser: what would be sent to a page is kept here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from airserve_nb.panel.panel import Panel
from airserve_nb.service import Service


def predict(batch: np.ndarray) -> np.ndarray:
    """Add 2; 13 is refused."""
    if (batch == 13).any():
        raise ValueError("13 <b>is</b> refused")
    return batch + 2


class Page:
    """A page that shows a panel: keeps what it is told, says what a browser would."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.messages: list[dict[str, Any]] = []
        """Ticks, their buffer decoded."""
        self.results: dict[Any, dict[str, Any]] = {}
        panel.send = self._receive

    def _receive(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        if content["kind"] == "tick":
            assert buffers is not None
            self.messages.append({"number": content["number"], **json.loads(buffers[0])})
        else:
            self.results[content["number"]] = content | {"buffers": buffers}

    def look(self, *, visible: bool = True, page: str = "page", shown: int | None = None) -> None:
        content = {"kind": "view", "page": page, "visible": visible}
        self.panel._hear(self.panel, content | ({} if shown is None else {"shown": shown}), [])

    def ask(self, number: Any, command: Any, **arguments: Any) -> None:
        content = {"kind": "ask", "number": number, "command": command, "arguments": arguments}
        self.panel._hear(self.panel, content, [])

    def last(self, part: str) -> Any:
        """Return the newest form of a part; None before the first."""
        return next((each[part] for each in reversed(self.messages) if part in each), None)

    def rows(self) -> list[list[Any]]:
        return [row for each in self.messages for row in each.get("rows", [])]


@pytest.fixture
def service(serve_local: Any) -> Service:
    made: Service = serve_local(predict, name="adder", example={"array": [1]}, max_batch_size=8)
    return made


@pytest.fixture
def open_page(no_leftovers: None) -> Iterator[Callable[[Service], Page]]:
    """Open a page on a service's panel; every panel is closed at the end."""
    panels: list[Panel] = []

    def open_(service: Service) -> Page:
        panels.append(service.panel())
        return Page(panels[-1])

    yield open_
    for panel in panels:
        panel.close()


@pytest.fixture
def page(service: Service, open_page: Any) -> Page:
    opened: Page = open_page(service)
    return opened
