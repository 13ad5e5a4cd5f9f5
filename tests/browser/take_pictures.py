"""The pictures of the README, taken of a real run: ``python -m pytest tests/browser/take_pictures.py``.

No test, hence its name, which pytest only collects when it is given. It runs one notebook, sends it requests as a dozen
of clients would, and takes its picture in JupyterLab's light and dark themes.
"""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from playwright.sync_api import expect

IMAGES = Path(__file__).parents[2] / "notebooks" / "images"
WIDTH, SCALE = 1040, 1.6
MARGIN = 4
LARGEST_BYTES = 250_000
RAY_STARTS_MS = 150_000

CELLS = (
    """
%load_ext airserve_nb
import time
import numpy as np
from airserve_nb import probe
""",
    """
%%serve adder --max-batch-size 8 --example example

example = {"array": [40]}

def predict(batch: np.ndarray) -> np.ndarray:
    time.sleep(0.02)  # a model that takes 20 ms, for one input or for many
    return batch + 2
""",
)
SERVE = 1
CLIENTS = 14
# Long enough for lines and histogram to have a shape.
LOAD_S = 28


@pytest.mark.browser
@pytest.mark.own_cluster
@pytest.mark.timeout(400)
def test_first_screen(open_notebook: Any) -> None:
    """A cell, and the panel of its service under load."""
    notebook = open_notebook(CELLS, width=WIDTH, height=1600, scale=SCALE)
    notebook.start_all()
    panel = notebook.output(SERVE).locator(".airserve-panel")
    expect(panel).to_be_visible(timeout=RAY_STARTS_MS)
    notebook.page.evaluate("() => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = 0; }")
    notebook.page.add_style_tag(content=PLAIN)
    with load(panel.locator(".as-url").inner_text()):
        notebook.page.wait_for_timeout(LOAD_S * 1000)
        for theme in ("Light", "Dark"):
            notebook.set_theme(theme)
            panel.locator("tr[data-place]").nth(2).click()
            panel.get_by_role("button", name="Close").click()
            # The mouse leaves no trace, and half a second more is drawn.
            notebook.page.mouse.move(0, 0)
            notebook.page.wait_for_timeout(700)
            take(notebook, IMAGES / f"first_screen_{theme.lower()}.png")


@contextmanager
def load(url: str) -> Iterator[None]:
    """Send requests from some clients, each at random moments; now and then one that is refused."""
    over = threading.Event()

    def client(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - load, not a secret
        with requests.Session() as session:
            while not over.wait(chance.expovariate(1 / 0.05)):
                value: Any = "forty" if chance.random() < 0.003 else chance.randrange(100)
                session.post(url, json={"array": [value]}, timeout=30)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


PLAIN = ".jp-Toolbar.jp-cell-toolbar, .jp-Collapser { visibility: hidden !important; }"
"""What JupyterLab shows for the mouse is no part of the picture."""


def take(notebook: Any, path: Path) -> None:
    """Take the picture of the cell with its panel."""
    cell = notebook.cell(SERVE).bounding_box()
    clip = {**cell, "y": cell["y"] - MARGIN, "height": cell["height"] + 2 * MARGIN}
    save(notebook.page.screenshot(clip=clip), path)


def save(screenshot: bytes, path: Path) -> None:
    """Write a picture in as many colours as it needs, few enough for a small file."""
    path.parent.mkdir(exist_ok=True)
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < LARGEST_BYTES
