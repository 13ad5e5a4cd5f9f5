"""The panel in JupyterLab: it lives, its knobs act, its log can be searched, strangers' texts stay text, and it is kept.

One notebook serves for most of it, in the order of this file. Requests come from this process, so that nothing in the
page or the kernel has to be waited for.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
import requests
from playwright.sync_api import Browser, Locator, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

CELLS = (
    "%load_ext airserve_nb\nimport time\nimport numpy as np",
    """
%%serve adder --engine local --max-batch-size 8 --example example
example = {"array": [40]}

def predict(batch: np.ndarray) -> np.ndarray:
    time.sleep(0.01)
    if (batch == 13).any():
        raise ValueError("13 is refused")
    return batch + 2
""",
    "time.sleep(600)",
    "adder",
)
SERVE, SLEEP, AGAIN = 1, 2, 3
AXE = """async ([script, root]) => {
  if (!window.axe) (0, eval)(script);
  const found = await window.axe.run(root, {resultTypes: ["violations"]});
  return found.violations.map((each) => `${each.id}: ${each.nodes.map((node) => `${node.target} ${node.failureSummary}`).join("; ")}`);
}"""


class View:
    """A panel in a page."""

    def __init__(self, root: Locator) -> None:
        self.root = root
        self.page = root.page
        self.url = root.locator(".as-url").inner_text()
        self.rows = root.get_by_role("grid").locator("tr[data-place]")
        self.news = root.locator(".as-news")

    def figure(self, name: str) -> Locator:
        return self.root.locator(f"[data-figure={name}] dd")

    def total(self) -> int:
        return int(self.figure("total").inner_text().replace(",", ""))

    def post(self, *values: Any) -> list[requests.Response]:
        """Send numbers at once, and wait until the panel has counted them."""
        return self.post_bodies(*({"array": [value]} for value in values))

    def post_bodies(self, *bodies: Any) -> list[requests.Response]:
        before = self.total()
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(lambda body: requests.post(self.url, json=body, timeout=30), bodies))
        expect(self.figure("total")).to_have_text(f"{before + len(bodies):,}")
        return answers

    def post_raw(self, body: bytes) -> None:
        before = self.total()
        requests.post(self.url, data=body, headers={"Content-Type": "application/json"}, timeout=30)
        expect(self.figure("total")).to_have_text(f"{before + 1:,}")

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    def knob(self, label: str) -> Locator:
        return self.root.locator(".as-knob", has_text=label)


@pytest.fixture(scope="module")
def notebook(open_notebook: Any) -> Any:
    # All of it on the screen: a view that is scrolled away is not drawn.
    opened = open_notebook(CELLS, height=3000)
    opened.wait_for_kernel()
    for cell in (0, SERVE):
        opened.start(cell)
    expect(opened.output(SERVE).locator(".airserve-panel")).to_be_visible()
    return opened


@pytest.fixture(scope="module")
def view(notebook: Any) -> Iterator[View]:
    shown = View(notebook.output(SERVE).locator(".airserve-panel"))
    yield shown
    assert shown.root.locator(".as-failure").inner_text() == ""


# -- it lives ---------------------------------------------------------------------------------------


def test_a_served_cell_shows_its_panel(view: View, notebook: Any) -> None:
    """Name, state and address at a glance; what is kept in the file is hidden behind it."""
    expect(view.root).to_have_attribute("aria-label", "Panel of adder")
    expect(view.root.locator(".as-name")).to_have_text("adder")
    expect(view.root.locator(".as-badge")).to_have_text("running")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/adder", view.url)
    expect(notebook.output(SERVE).locator(".airserve-card")).to_be_hidden()


def test_bars_grow(view: View) -> None:
    """Every request is in the totals, the histogram counts its batch, the log lists it."""
    assert {answer.status_code for answer in view.post(*range(20, 50))} == {200}
    plot = view.root.locator(".as-plot")
    expect(plot).to_have_attribute("aria-label", re.compile(r"^\d+ batch(es)?, mean size \d\.\d: "))
    heights = view.root.locator(".as-stack").evaluate_all("all => all.map((each) => each.style.height)")
    assert len(heights) == 8
    assert "100%" in heights
    expect(view.root.locator(".as-limit")).to_have_text("limit 8")
    expect(view.rows.first).to_be_visible()


def test_it_goes_on_while_a_cell_runs(view: View, notebook: Any) -> None:
    """A busy kernel does not stop the panel; an interrupt does not, either."""
    notebook.start(SLEEP)
    view.page.wait_for_function(
        "(cell) => cell.innerText.includes('*')", arg=notebook.cell(SLEEP).element_handle()
    )
    view.post(1, 2, 3)
    assert notebook.prompt(SLEEP) == "[*]:"
    notebook.command("notebook:interrupt-kernel")
    expect(notebook.output(SLEEP)).to_contain_text("KeyboardInterrupt")
    view.post(4)


def test_a_second_view_shows_the_same(view: View, notebook: Any) -> None:
    """The service shown again is the same panel, and both views live."""
    notebook.start(AGAIN)
    other = View(notebook.output(AGAIN).locator(".airserve-panel"))
    expect(other.figure("total")).to_have_text(f"{view.total():,}")
    view.post(5, 6)
    expect(other.figure("total")).to_have_text(f"{view.total():,}")
    notebook.write(AGAIN, "None")
    notebook.start(AGAIN)
    expect(other.root).to_have_count(0)


def test_a_knob_changes_the_batches(view: View, record_property: Callable[[str, object], None]) -> None:
    """After the slider's release says that it is applied, no batch is larger; the number box works as well."""
    knob = view.knob("Batch limit")
    slider = knob.get_by_role("slider")
    took = slider.evaluate("""(slider) => new Promise((done) => {
      const state = slider.closest(".as-knob").querySelector(".as-applied"), began = performance.now();
      new MutationObserver(() => { if (state.textContent === "applied 3") done(performance.now() - began); })
        .observe(state, {childList: true, characterData: true, subtree: true});
      slider.value = 3;
      slider.dispatchEvent(new Event("input", {bubbles: true}));
      slider.dispatchEvent(new Event("change", {bubbles: true}));
    })""")
    record_property("knob_applied_ms", round(took))
    sizes = {
        int(answer.headers["Server-Timing"].rpartition("/")[2].strip('"'))
        for answer in view.post(*range(20, 44))
    }
    assert max(sizes) == 3
    expect(view.root.locator(".as-limit")).to_have_text("limit 3")
    number = knob.get_by_role("spinbutton")
    number.fill("6")
    number.press("Enter")
    expect(knob.locator(".as-applied")).to_have_text("applied 6")
    number.fill("0")
    number.press("Enter")
    expect(knob.locator(".as-applied")).to_have_text("applied 6")
    expect(view.knob("Replicas")).to_contain_text("the local engine has one")


# -- the log ------------------------------------------------------------------------------------------


def test_filter_choose_pause_and_clear(view: View) -> None:
    """Errors alone, a text alone; a chosen request names its batch, its neighbours and its error; pause and clear."""
    view.post(13, 77)
    view.button("errors").click()
    expect(view.rows).to_have_count(1)
    view.rows.first.click()
    detail = view.root.get_by_role("group", name="Chosen request")
    expect(detail).to_contain_text("13 is refused")
    expect(detail).to_contain_text("rode in batch")
    detail.get_by_role("button", name="Close").click()

    view.root.get_by_role("group", name="Status").get_by_role("button", name="all").click()
    view.root.get_by_role("searchbox").fill('"array": [77]')
    expect(view.rows).to_have_count(1)
    view.rows.first.press("Enter")
    expect(view.rows.first).to_have_attribute("aria-selected", "true")
    view.rows.first.press("Escape")
    view.root.get_by_role("searchbox").fill("")

    view.button("Pause").click()
    before = view.rows.first.get_attribute("data-id")
    view.post(78)
    assert view.rows.first.get_attribute("data-id") == before
    view.button("Pause").click()
    expect(view.rows.first).to_contain_text('"array": [78]')
    view.button("Clear").click()
    expect(view.rows).to_have_count(0)
    view.post(79)
    expect(view.rows).to_have_count(1)


def test_the_log_is_virtual(view: View) -> None:
    """Of some hundred rows the page holds a screenful; keys reach the last one."""
    for _ in range(3):
        view.post(*range(20, 60))
    assert view.rows.count() < 30
    view.rows.first.focus()
    view.page.keyboard.press("End")
    expect(view.root.get_by_role("grid").locator("tr[data-place]").last).to_be_focused()
    view.page.keyboard.press("Home")
    expect(view.rows.first).to_be_focused()


# -- buttons ---------------------------------------------------------------------------------------------


def test_redeploy_and_roll_back(view: View, notebook: Any) -> None:
    """Redeploy takes the function as the notebook defines it now; roll back gives the one before."""
    notebook.write(AGAIN, "def predict(batch: np.ndarray) -> np.ndarray:\n    return batch + 1000")
    notebook.start(AGAIN)
    view.button("Redeploy").click()
    expect(view.root).to_contain_text("v2 serves, as its names are defined now.")
    expect(view.root.locator(".as-title")).to_contain_text("v2")
    assert view.post(1)[0].json() == [1001]
    view.button("Roll back").click()
    expect(view.root.locator(".as-title")).to_contain_text("v1")
    assert view.post(1)[0].json() == [3]


def test_try_it(view: View) -> None:
    """One request is answered with its times; a probe's picture appears; what is no JSON is refused in a sentence."""
    view.root.get_by_role("tab", name="Try it").click()
    expect(view.root.get_by_role("textbox", name="Payload, JSON")).to_have_value('{"array": [40]}')
    outcome = view.root.locator(".as-outcome")
    view.button("Send one request").click()
    expect(outcome).to_contain_text("HTTP 200 in ")
    expect(outcome).to_contain_text("[42.0]")
    view.root.get_by_role("textbox", name="Payload, JSON").fill("[1")
    view.button("Send one request").click()
    expect(outcome).to_contain_text("The payload is no JSON")
    view.root.get_by_role("textbox", name="Payload, JSON").fill('{"array": [1]}')
    view.button("Probe").click()
    picture = outcome.get_by_role("img")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 600
    expect(outcome).to_contain_text("200 of 200 requests ok")
    view.root.get_by_role("tab", name="Try it").press("ArrowLeft")
    expect(view.root.get_by_role("tab", name="Requests")).to_be_focused()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_accessible(view: View, notebook: Any, axe: str, theme: str) -> None:
    """axe-core finds nothing to complain of, in both themes, with every part open."""
    notebook.set_theme(theme)
    view.post(13, 21)
    view.rows.first.click()
    for tab in ("Try it", "Requests"):
        view.root.get_by_role("tab", name=tab).click()
        view.root.evaluate(
            "(root) => Promise.all(root.getAnimations({subtree: true}).map((each) => each.finished))"
        )
        assert view.page.evaluate(AXE, [axe, ".airserve-panel"]) == []


def test_it_fits_a_narrow_page(view: View) -> None:
    """At 320 pixels nothing sticks out but what scrolls by itself."""
    view.root.evaluate("(root) => { root.style.width = '320px'; }")
    assert (
        view.root.evaluate("""(root) => [...root.querySelectorAll(":not(.as-scroller *, .as-column *)")]
      .filter((each) => each.getBoundingClientRect().right > root.getBoundingClientRect().right)
      .map((each) => `${each.tagName} ${each.className} ${each.textContent}`)""")
        == []
    )
    view.root.evaluate("(root) => { root.style.width = ''; }")


def test_nothing_goes_wrong_behind_the_scenes(notebook: Any) -> None:
    """No script failed, nothing was asked for that is not there, nothing was written to stderr."""
    assert notebook.errors == []
    # The interrupted cell shows its traceback, as it must.
    assert [text for text in notebook.stderr().all_inner_texts() if "KeyboardInterrupt" not in text] == []


# -- what is kept -------------------------------------------------------------------------------------------


def test_stop_is_asked_twice_and_leaves_the_last_picture(view: View, notebook: Any) -> None:
    """The question is in the panel; kept it goes on, stopped the last picture stays and says so."""
    view.button("Stop").click()
    expect(view.button("Keep it")).to_be_focused()
    view.button("Keep it").press("Escape")
    expect(view.button("Stop")).to_be_focused()
    total = view.total()
    view.button("Stop").click()
    view.button("Stop it").click()
    expect(view.news).to_contain_text("Stopped. This is the last picture")
    expect(view.figure("total")).to_have_text(f"{total:,}")
    expect(view.button("Redeploy")).to_be_disabled()
    with pytest.raises(requests.ConnectionError):
        requests.get(view.url, timeout=5)


@pytest.fixture(scope="module")
def saved(notebook: Any, view: View) -> Any:
    """Return the file, once the summary in it has the last numbers."""
    expect(notebook.output(SERVE).locator(".airserve-figures")).to_contain_text(f"{view.total():,}")
    return notebook.save()


def test_the_file_keeps_a_summary_and_no_payload(saved: Any, view: View) -> None:
    """Totals, picture and the last requests are in the file, and no answer; it has grown by less than 150 kB."""
    outputs = saved.cells[SERVE].outputs
    kept, live = outputs[-2].data, outputs[-1].data
    assert "application/vnd.jupyter.widget-view+json" in live
    assert kept["text/plain"].startswith("<Service adder: ")
    assert f">{view.total():,}<" in kept["text/html"]
    assert kept["text/html"].count("<tr") == 21
    assert "[1001" not in kept["text/html"]
    assert len(nbformat.writes(saved)) < 150_000


def test_a_restarted_kernel_leaves_the_last_picture(open_notebook: Any, saved: Any, notebook: Any) -> None:
    """The panel says that its kernel is gone; loaded anew without it, the summary takes its place, and no error."""
    other = open_notebook(CELLS[:2])
    other.run_all()
    view = View(other.output(SERVE).locator(".airserve-panel"))
    view.post(1, 2, 3)
    other.restart_kernel()
    expect(view.news).to_contain_text("The kernel was restarted or is gone")
    expect(view.figure("total")).to_have_text("3")
    expect(view.button("Stop")).to_be_disabled()
    other.save()
    other.reload()
    output = other.output(SERVE)
    expect(output.locator(".airserve-card")).to_be_visible()
    expect(output.locator(".jupyter-widgets", has_text="Error displaying widget")).to_be_hidden()


def test_a_page_made_of_the_file_shows_the_summary(
    lab: Any, saved: Any, chromium: Browser, tmp_path: Path
) -> None:
    """The page has card, picture and table, with nothing but itself."""
    source, page_file = tmp_path / "kept.ipynb", tmp_path / "kept.html"
    nbformat.write(saved, source)
    subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "nbconvert", "--to", "html", str(source)],
        check=True, capture_output=True, env=lab.environment(), timeout=90,
    )  # fmt: skip
    page = chromium.new_page()
    page.route(re.compile("^https?:"), lambda route: route.abort())
    page.goto(page_file.as_uri())
    expect(page.locator(".airserve-card")).to_be_visible()
    picture = page.locator(".airserve-card img")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 640
    expect(page.get_by_role("table", name="The last requests").get_by_role("row")).to_have_count(21)
    page.close()


# -- strangers' texts -----------------------------------------------------------------------------------------

HOSTILE = (
    "<script>window.__hacked = 1</script>", "<img src=x onerror='window.__hacked = 2'>", "<b class=injected>bold</b>",
    "\x1b[31mred\x1b[0m", "null\x00byte", "\u202eright to left", "</bdi></td><td class=injected>", "x" * 1_000_000,
    "\ud800 alone", "{{constructor.constructor('window.__hacked = 3')()}}", "javascript:window.__hacked=4",
)  # fmt: skip
HOSTILE_CELLS = (
    CELLS[0],
    f"""
%%serve hostile --engine local --example example
import pandas as pd
example = [{{"text": {HOSTILE[1]!r}}}]

def predict(batch: pd.DataFrame) -> pd.DataFrame:
    text = batch["text"].iloc[0]
    if text.startswith("<script>"):
        raise ValueError(text)
    return batch
""",
)


def test_strangers_texts_stay_text(open_notebook: Any) -> None:
    """Markup, control characters and a megabyte in payloads, answers and errors: no script runs, no element is made."""
    notebook = open_notebook(HOSTILE_CELLS)
    notebook.run_all()
    view = View(notebook.output(SERVE).locator(".airserve-panel"))
    for text in HOSTILE:
        view.post_bodies([{"text": text}])
        view.post_raw(text.encode("utf-8", "surrogatepass"))
    for row in range(8):
        view.rows.nth(row).click()
    view.root.get_by_role("searchbox").fill('"<script>')
    expect(view.rows).to_have_count(1)
    expect(view.rows.first).to_contain_text("<script>window.__hacked = 1</script>")
    view.root.get_by_role("searchbox").fill("")
    view.root.get_by_role("tab", name="Try it").click()
    for text in HOSTILE[:4]:
        view.root.get_by_role("textbox", name="Payload, JSON").fill(json.dumps([{"text": text}]))
        view.button("Send one request").click()
        expect(view.root.locator(".as-outcome")).not_to_contain_text("Sending")
    view.root.get_by_role("tab", name="Requests").click()
    expect(view.root.locator(".injected")).to_have_count(0)
    expect(view.root.locator("script, iframe, object")).to_have_count(0)
    assert view.root.locator("img").count() == 0
    assert view.page.evaluate("() => window.__hacked") is None
    shown = ""
    for searched, made_visible in (
        ("byte", "null\u2400byte"),
        ("[31m", "\u241b[31mred"),
        ("right to left", "\u27e8202E\u27e9right to left"),
    ):
        view.root.get_by_role("searchbox").fill(searched)
        expect(view.root).to_contain_text(made_visible)
        shown += view.root.inner_text()
    assert not set(shown) & {"\x00", "\x1b", "\u202e"}
    assert len(shown) < 30_000


def test_freezing_leaves_plain_numbers(open_notebook: Any) -> None:
    """A frozen panel is the summary with its final numbers; shown again, it lives again."""
    notebook = open_notebook((*CELLS[:2], "adder.panel().freeze()", "adder"))
    notebook.wait_for_kernel()
    for cell in (0, SERVE):
        notebook.start(cell)
    output = notebook.output(SERVE)
    expect(output.locator(".airserve-panel")).to_be_visible()
    View(output.locator(".airserve-panel")).post(*range(20, 27))
    notebook.start(2)
    expect(output.locator(".airserve-panel")).to_have_count(0)
    expect(output.locator(".airserve-card")).to_contain_text("The last 7 requests")
    kept = notebook.save().cells[SERVE].outputs
    assert not any("application/vnd.jupyter.widget-view+json" in each.data for each in kept)
    notebook.start(3)
    expect(notebook.output(3).locator("[data-figure=total] dd")).to_have_text("7")


def test_a_failing_script_is_shown(open_notebook: Any) -> None:
    """What goes wrong in the page is said in the panel, not only in the browser's console."""
    notebook = open_notebook(CELLS[:2])
    notebook.run_all()
    view = View(notebook.output(SERVE).locator(".airserve-panel"))
    view.page.evaluate(
        "() => { Number.prototype.toLocaleString = () => { throw new Error('no numbers today'); }; }"
    )
    expect(view.root.get_by_role("alert")).to_contain_text(
        "The panel's script failed: Error: no numbers today"
    )
