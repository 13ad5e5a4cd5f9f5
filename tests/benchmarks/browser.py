"""A panel under load, in a real browser: ``python -m tests.benchmarks.browser [seconds requests-a-second]``.

JupyterLab runs in Chromium; a cell serves a model on Ray, and its panel is open. A load client of its own process
sends at a fixed rate. Meanwhile the page is asked four times a second to draw a frame, and its memory is read after a
forced garbage collection. Then the slider of max_batch_size is moved to and fro under a closed loop: how long it takes
from its release to the first batch that the old limit forbade, and to the panel's saying so. Prints one line a figure,
as ``run.py`` does.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from typing import Any

from playwright.sync_api import CDPSession, Locator, Page, expect, sync_playwright

from airserve_nb import start_probe
from tests.benchmarks.panel import report
from tests.browser.conftest import CHROMIUM_OPTIONS, Notebook, running_lab, write_notebook

SECONDS, RATE = 60.0, 1_000.0
ANSWER_MS = 200.0
# From when on the page's memory must not grow, and by how much it may seem to: what is shown at the moment varies.
WARM_S, GROWTH = 20.0, 1.05
PERIOD_S = 0.25
KNOB_MS = 300.0
SMALL, LARGE, TURNS = 8, 32, 10

CELLS = (
    "%load_ext airserve_nb\nimport time\nimport numpy as np",
    """
%%serve model --engine ray --max-batch-size 64 --example example
example = {"array": [40]}

def predict(batch: np.ndarray) -> np.ndarray:
    time.sleep(0.02)
    return batch + 2
""",
)
FRAME = """() => new Promise((tell) => {
  const asked = performance.now();
  requestAnimationFrame(() => setTimeout(() => tell(performance.now() - asked)));
})"""

# Moves a slider as a hand does; tells when it was released, by the wall clock, and how long it took until it was shown.
TURN = """([slider, limit]) => new Promise((tell) => {
  const state = slider.closest(".as-knob").querySelector(".as-applied"), released = performance.now();
  new MutationObserver((_, observer) => {
    if (state.textContent !== `applied ${limit}`) return;
    observer.disconnect();
    tell([(performance.timeOrigin + released) / 1000, performance.now() - released]);
  }).observe(state, {childList: true, characterData: true, subtree: true});
  slider.value = limit;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
  slider.dispatchEvent(new Event("change", {bubbles: true}));
})"""


def heap_mib(tools: CDPSession) -> float:
    """Return what the page's scripts hold, after a garbage collection."""
    tools.send("HeapProfiler.collectGarbage")
    return float(tools.send("Runtime.getHeapUsage")["usedSize"]) / 2**20


def watch(
    page: Page, tools: CDPSession, url: str, seconds: float, rate: float
) -> tuple[Any, list[float], list[float]]:
    """Return the load's result, how long each frame took in ms, and the page's memory in MiB from when it is warm."""
    handle = start_probe(url, {"array": [40]}, rate=rate, duration=seconds)
    began = time.monotonic()
    frames, memory = [], []
    next_reading = WARM_S
    while (elapsed := time.monotonic() - began) < seconds:
        frames.append(float(page.evaluate(FRAME)))
        if elapsed >= next_reading:
            memory.append(heap_mib(tools))
            next_reading += 10
        page.wait_for_timeout(PERIOD_S * 1000)
    result = handle.result()
    memory.append(heap_mib(tools))
    return result, frames, memory


def turn_the_knob(panel: Locator, url: str) -> bool:
    """Report how soon a limit acts, and is shown."""
    slider = panel.locator(".as-knob", has_text="Batch limit").get_by_role("slider").element_handle()
    page = panel.page
    handle = start_probe(url, {"array": [40]}, concurrency=64, duration=TURNS * 2.5 + 5)
    page.wait_for_timeout(1_000)
    page.evaluate(TURN, [slider, SMALL])
    raised, shown = [], []
    for _ in range(TURNS):
        page.wait_for_timeout(1_000)
        released, took = page.evaluate(TURN, [slider, LARGE])
        raised.append(released)
        shown.append(took)
        page.wait_for_timeout(1_000)
        page.evaluate(TURN, [slider, SMALL])
    batches = handle.result().batches
    larger = batches[batches.batch_size > SMALL].released_at.astype("int64") / 1e9
    first = [1e3 * float(larger[larger > released].min() - released) for released in raised]
    kept = report(
        "slider's release to the first larger batch, longest, ms", max(first), KNOB_MS, middle(first)
    )
    return kept & report(
        "slider's release to its being shown, longest, ms", max(shown), KNOB_MS, middle(shown)
    )


def middle(figures: list[float]) -> str:
    return f", median {statistics.median(figures):.0f}, {len(figures)} readings"


def measure(notebook: Notebook, seconds: float, rate: float) -> bool:
    notebook.run_all()
    panel = notebook.output(1).locator(".airserve-panel")
    expect(panel).to_be_visible()
    tools = notebook.page.context.new_cdp_session(notebook.page)
    url = panel.locator(".as-url").inner_text()
    result, frames, memory = watch(notebook.page, tools, url, seconds, rate)
    print(f"     {result.summary()}".replace("\n", "\n     "))
    shown = panel.locator("[data-figure=total] dd")
    expect(shown).to_have_text(f"{len(result.requests):,}", timeout=30_000)
    print(f"ok   the panel's total is the client's count: {shown.inner_text()}")
    print(f"     the page's memory from {WARM_S:g} s on, MiB: {', '.join(f'{each:.1f}' for each in memory)}")
    kept = report("the page's longest answer, ms", max(frames), ANSWER_MS, middle(frames))
    kept &= report("the page's memory at the end, over that when warm", memory[-1] / memory[0], GROWTH)
    print(
        f"     what the panel says of its log: {' '.join(panel.locator('.as-soft.as-push').all_inner_texts())}"
    )
    kept &= turn_the_knob(panel, url)
    print(f"     errors in the browser's console: {notebook.errors or 'none'}")
    return kept and not notebook.errors


def main() -> None:
    seconds, rate = map(float, sys.argv[1:] or (SECONDS, RATE))
    with running_lab() as lab, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(CHROMIUM_OPTIONS)
        )
        path = lab.folder / "load.ipynb"
        write_notebook(path, CELLS)
        page = browser.new_page(viewport={"width": 1100, "height": 2000})
        try:
            kept = measure(Notebook(lab, page, path), seconds, rate)
        finally:
            browser.close()
    sys.exit(not kept)


if __name__ == "__main__":
    main()
