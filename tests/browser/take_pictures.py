"""The pictures of the README, taken of a real run: ``python -m pytest tests/browser/take_pictures.py``.

No test, hence its name, which pytest only collects when it is given. It runs one notebook and takes its
picture in JupyterLab's light and dark themes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

IMAGES = Path(__file__).parents[2] / "notebooks" / "images"
WIDTH, SCALE = 1000, 1.6
MARGIN = 4
LARGEST_BYTES = 150_000

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
    "probe(adder, requests=32)",
)
SERVE, PROBE = 1, 2


@pytest.mark.browser
@pytest.mark.own_cluster
def test_first_screen(open_notebook: Any) -> None:
    """A cell, its card, and what 32 requests at once met."""
    notebook = open_notebook(CELLS, width=WIDTH, height=1300, scale=SCALE)
    notebook.run_all()
    notebook.page.evaluate("() => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = 0; }")
    expect(notebook.output(SERVE).locator(".airserve-card")).to_be_visible()
    expect(notebook.output(PROBE).get_by_role("img")).to_be_visible()
    notebook.page.add_style_tag(content=PLAIN)
    for theme in ("Light", "Dark"):
        notebook.set_theme(theme)
        first, last = notebook.cell(SERVE).bounding_box(), notebook.cell(PROBE).bounding_box()
        clip = {
            "x": first["x"],
            "y": first["y"] - MARGIN,
            "width": first["width"],
            "height": last["y"] + last["height"] - first["y"] + 2 * MARGIN,
        }
        save(notebook.page.screenshot(clip=clip), IMAGES / f"first_screen_{theme.lower()}.png")


PLAIN = ".jp-Toolbar.jp-cell-toolbar, .jp-Collapser { visibility: hidden !important; }"
"""What JupyterLab shows for the mouse is no part of the picture."""


def save(screenshot: bytes, path: Path) -> None:
    """Write a picture in as many colours as it needs, few enough for a small file."""
    path.parent.mkdir(exist_ok=True)
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < LARGEST_BYTES
