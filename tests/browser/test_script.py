"""The panel's script in Chromium, with a kernel that the test plays: what takes a real one too long, or chance, to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, expect

import airserve_nb
from airserve_nb.telemetry import bucket

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

FOLDER = Path(airserve_nb.__file__).parent / "panel"
SCRIPT = (FOLDER / "panel.js").read_text(encoding="utf-8")
SETUP = """async (script) => {
  const module = await import(`data:text/javascript;charset=utf-8,${encodeURIComponent(script)}`);
  const now = Date.now;
  window.later = 0;
  Date.now = () => now() + window.later;
  window.open_ = (id, snapshot) => {
    const heard = {}, asked = [], el = document.createElement("div");
    const model = {get: () => snapshot, on: (name, call) => { heard[name] = call; }, off() {}, send: (content) => asked.push(content)};
    let number = 0;
    el.id = id;
    document.body.append(el);
    const parts = module.default();
    parts.initialize({model});
    parts.render({model, el});
    window[id] = {
      asked: () => asked.filter((each) => each.kind === "ask").at(-1),
      tell: (content, buffers = []) => heard["msg:custom"](content, buffers),
      tick: (told) => window[id].tell({kind: "tick", number: ++number},
        [new DataView(new TextEncoder().encode(JSON.stringify({now: Date.now() / 1000, ...told})).buffer)]),
    };
  };
}"""
HEAD = {
    "name": "adder", "state": "running", "engine": "local", "batching": True, "max_batch_size": 8, "batch_wait_timeout_s": 0,
    "can": {"stop": True},
}  # fmt: skip
TOTALS = {"requests": 1, "errors": 0, "batches": 1, "batched": 1, "rows": 1, "lacking": ""}


def row(number: int, *, status: int = 200, payload: str = "") -> list[Any]:
    return [f"r{number}", 1.0, status, "v1", "a", "b1", 1, "full", 1, 2, 3, payload, "", None]


class Played:
    """A panel whose kernel is played."""

    def __init__(self, root: Locator, name: str) -> None:
        self.root = root
        self.rows = root.locator("tr[data-place]")
        self.count = root.locator(".as-push").first
        self._page, self._name = root.page, name

    def tick(self, **parts: Any) -> None:
        self._page.evaluate("([name, parts]) => window[name].tick(parts)", [self._name, parts])

    def asked(self) -> dict[str, Any]:
        found: dict[str, Any] = self._page.evaluate("(name) => window[name].asked()", self._name)
        return found


@pytest.fixture
def play(chromium: Browser) -> Iterator[Callable[..., Played]]:
    # A view that is scrolled away is not drawn.
    page = chromium.new_page(viewport={"width": 1100, "height": 3000})
    page.add_style_tag(path=FOLDER / "panel.css")
    page.evaluate(SETUP, SCRIPT)

    def play(name: str = "panel", **snapshot: Any) -> Played:
        page.evaluate("([name, snapshot]) => window.open_(name, snapshot)", [name, snapshot])
        return Played(page.locator(f"#{name}"), name)

    yield play
    page.close()


def test_a_stopped_service_stays_stopped(play: Callable[..., Played]) -> None:
    """It has nothing more to say, and is not taken for a kernel that is silent."""
    stopped, running = play("stopped"), play("running")
    stopped.tick(head={**HEAD, "state": "stopped", "can": {}})
    running.tick(head=HEAD)
    expect(stopped.root.locator(".as-news")).to_contain_text("Stopped. This is the last picture")
    expect(running.root.locator(".as-badge")).to_have_text("running")
    stopped.root.page.evaluate("() => { window.later = 20_000; }")
    expect(running.root.locator(".as-news")).to_contain_text("The kernel has said nothing for a while")
    expect(stopped.root.locator(".as-news")).to_contain_text("Stopped. This is the last picture")
    expect(stopped.root.locator(".as-badge")).to_have_text("stopped")


def test_saved_rows_give_way_to_those_of_the_kernel(play: Callable[..., Played]) -> None:
    """The saved ones have no payload; as many with payloads take their place."""
    panel = play(head=HEAD, totals=TOTALS, rows=[row(1)])
    expect(panel.rows).to_have_count(1)
    expect(panel.rows.first).not_to_contain_text("[40]")
    panel.tick(reset=True, rows=[row(1, payload='{"array": [40]}')])
    expect(panel.rows.first).to_contain_text('{"array": [40]}')


def test_what_lacks_is_told_without_a_new_request(play: Callable[..., Played]) -> None:
    """Where a replica is gone there may be none for a while."""
    panel = play(head=HEAD, totals=TOTALS, rows=[row(1)])
    expect(panel.count).to_have_text("1 request")
    panel.tick(totals={**TOTALS, "lacking": "1 replica gone, its last records may be missing"})
    expect(panel.count).to_have_text("1 request, 1 replica gone, its last records may be missing")


def test_who_scrolled_down_goes_on_reading(play: Callable[..., Played]) -> None:
    """Rows that the filter hides move nothing; one that it shows moves the lines by its height."""
    panel = play(head=HEAD, totals=TOTALS, rows=[row(number, status=500) for number in range(60)])
    panel.root.page.add_style_tag(
        content=".as-scroller { height: 100px; overflow: auto; } tr { height: 27px; }"
    )
    panel.root.get_by_role("button", name="errors", exact=True).click()
    scroller = panel.root.locator(".as-scroller")
    scroller.evaluate("(scroller) => { scroller.scrollTop = 270; }")
    panel.tick(rows=[row(100), row(101)], totals={**TOTALS, "lacking": "once"})
    expect(panel.count).to_have_text("60 requests, once")
    assert scroller.evaluate("(scroller) => scroller.scrollTop") == 270
    panel.tick(rows=[row(102, status=500)], totals={**TOTALS, "lacking": "twice"})
    expect(panel.count).to_have_text("61 requests, twice")
    assert scroller.evaluate("(scroller) => scroller.scrollTop") == 297


def test_a_knob_asks_for_what_can_be_told(play: Callable[..., Played]) -> None:
    """A wait of more digits than are told back does not stay pending."""
    panel = play(head=HEAD, totals=TOTALS)
    panel.tick(states=[["a", "v1", True, 8, 0, 0]])
    knob = panel.root.locator(".as-knob", has_text="Wait for others")
    box = knob.get_by_role("spinbutton")
    box.fill("12.34567")
    box.press("Enter")
    expect(knob.locator(".as-applied")).to_have_text("asked 12.346, applied 0")
    asked = panel.asked()["arguments"]["batch_wait_timeout_s"]
    panel.tick(head={**HEAD, "batch_wait_timeout_s": asked}, states=[["a", "v1", True, 8, asked, 0]])
    expect(knob.locator(".as-applied")).to_have_text("applied 12.346")


def test_the_note_of_a_service_is_told(play: Callable[..., Played]) -> None:
    """What its user should know stands on the card, whose place the panel takes."""
    panel = play(head={**HEAD, "note": "Requests from here may not reach it."})
    expect(panel.root.locator(".as-title")).to_contain_text("Requests from here may not reach it.")


def test_all_rows_are_where_recent_ones_are(play: Callable[..., Played]) -> None:
    """Large batches are counted by powers of two; their column and their mean are the same as those of the last seconds."""
    panel = play(head=HEAD)
    recent = [[40, "full", 3]]
    second = panel.root.page.evaluate("() => Math.floor(Date.now() / 1000)")
    panel.tick(
        row_sizes=[[bucket(40), "full", 3]],
        totals={**TOTALS, "batches": 3, "rows": 120},
        seconds=[[second, 3, 0, 1, 1, 1, 1, 1, 0, recent, recent]],
    )
    panel.root.get_by_role("button", name="rows", exact=True).click()
    plot = panel.root.locator(".as-plot")
    expect(plot).to_have_attribute("aria-label", "3 batches, mean size 40.0: 3 of 33 to 64")
    panel.root.get_by_role("button", name="all", exact=True).first.click()
    expect(plot).to_have_attribute("aria-label", "3 batches, mean size 40.0: 3 of 33 to 64")
