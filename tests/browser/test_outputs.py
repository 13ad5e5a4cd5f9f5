"""The card, the list and the probe's picture: shown, readable in both themes, and kept in the saved file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Browser, Locator, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

CELLS = (
    "%load_ext airserve_nb",
    """
%%serve adder --engine local --max-batch-size 8 --example example
import numpy as np

example = {"array": [40]}

def predict(batch: np.ndarray) -> np.ndarray:
    return batch + 2
""",
    'adder.request({"array": [40]}).json()',
    "%probe adder --requests 24",
    "%serve",
)
CARD, ANSWER, PROBE, LIST = 1, 2, 3, 4

LEAST_CONTRAST = 4.5
"""What the Web Content Accessibility Guidelines (level AA) ask of text of ordinary size."""

# For each piece of text: its contrast to what lies behind it, colours as computed, made opaque layer by layer.
CONTRASTS = """(root) => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = pen.getImageData(0, 0, 1, 1).data;
    return [red, green, blue, alpha / 255];
  };
  const over = (top, below) => below.map((value, i) => top[i] * top[3] + value * (1 - top[3]));
  const layers = (element) => element ? [...layers(element.parentElement), getComputedStyle(element)] : [];
  const luminance = (color) => {
    const [red, green, blue] = color.map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const found = [];
  const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.tagName === "STYLE") continue;
    const styles = layers(element);
    const behind = styles.reduce((below, style) => over(rgba(style.backgroundColor), below), [255, 255, 255]);
    const ink = rgba(getComputedStyle(element).color);
    ink[3] *= styles.reduce((product, style) => product * style.opacity, 1);
    const [one, other] = [luminance(over(ink, behind)), luminance(behind)];
    found.push([text, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def shown(open_notebook: Any) -> Any:
    """Return a notebook in which all cells have run."""
    notebook = open_notebook(CELLS)
    notebook.run_all()
    return notebook


@pytest.fixture(scope="module")
def saved(shown: Any) -> Any:
    """Return the file of the notebook, read."""
    return shown.save()


def expect_card(output: Locator) -> None:
    # By its class: of a file that is not trusted JupyterLab drops roles and labels.
    card = output.locator(".airserve-card")
    expect(card).to_be_visible()
    expect(card).to_contain_text("adder")
    expect(card).to_contain_text("running")
    link = card.get_by_role("link").first
    expect(link).to_have_text(re.compile(r"^http://127\.0\.0\.1:\d+/adder$"))
    expect(link).to_have_attribute("href", link.inner_text())
    expect(card).to_contain_text("""-d '{"array": [40]}'""")


def expect_picture(output: Locator) -> None:
    picture = output.get_by_role("img", name=re.compile("^Timeline of adder: 24 requests, 24 ok, "))
    expect(picture).to_be_visible()
    size = picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])")
    assert size[0] > 600
    assert size[1] > 200
    expect(output).to_contain_text("Probe of adder")
    expect(output).to_contain_text("of 24 requests ok")


def test_a_served_cell_shows_its_card(shown: Any) -> None:
    """The card says name, state and URL, and how to call the service from a shell."""
    expect_card(shown.output(CARD))
    expect(shown.output(CARD).get_by_role("group", name="Service adder")).to_be_visible()


def test_a_request_is_answered(shown: Any) -> None:
    """What the card offers answers."""
    expect(shown.output(ANSWER)).to_contain_text("[42.0]")


def test_a_probe_shows_its_picture(shown: Any) -> None:
    """A probe shows one picture, not a second one beside it, and a caption with its figures."""
    expect_picture(shown.output(PROBE))
    expect(shown.output(PROBE).locator("img")).to_have_count(1)


def test_the_list_names_the_service(shown: Any) -> None:
    """``%serve`` shows a row with what the service has done: one request of ours, and the probe's."""
    row = shown.output(LIST).get_by_role("row").nth(1)
    expect(row.get_by_role("cell")).to_have_text(
        [
            re.compile(r"^v\d+$"),
            "running",
            re.compile("^http://"),
            "this kernel",
            "1",
            re.compile("up to 8 requests"),
            "25",
            "0",
            re.compile(r"\d\.\d"),
        ]
    )


def test_nothing_goes_wrong_behind_the_scenes(shown: Any) -> None:
    """Our output makes no script fail, asks for nothing that is not there, and writes nothing to stderr."""
    assert shown.errors == []
    expect(shown.stderr()).to_have_count(0)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_text_is_readable(shown: Any, theme: str) -> None:
    """Every piece of text stands out from what lies behind it, and a change of theme reaches what is shown."""
    shown.set_theme(theme)
    for cell, outer, sample in (
        (CARD, ".airserve-card", "adder"),
        (PROBE, ".jp-RenderedHTML", "of 24 requests ok"),
        (LIST, ".airserve-card", "running"),
    ):
        contrasts = shown.output(cell).locator(outer).first.evaluate(CONTRASTS)
        assert sample in dict(contrasts)
        assert [each for each in contrasts if each[1] < LEAST_CONTRAST] == []


def test_a_stranger_sees_the_outputs_without_a_kernel(shown: Any, saved: Any, open_notebook: Any) -> None:
    """Card and picture are there for who opens the file of another: not trusted, hence sanitised, and no kernel."""
    # One more cell, and JupyterLab no longer takes the file for the one that it has run itself.
    saved.cells.append(nbformat.v4.new_markdown_cell("From a friend."))
    saved.metadata.kernelspec = {"name": "elsewhere", "display_name": "Elsewhere", "language": "elsewhere"}
    saved.metadata.language_info = {"name": "elsewhere"}
    path = shown.path.with_name("received.ipynb")
    nbformat.write(saved, path)
    received = open_notebook(path)
    received.page.locator("dialog").get_by_role("button", name="No Kernel").click()
    expect(received.page.locator("dialog")).to_have_count(0)
    assert not received.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.trusted"
    )
    expect_card(received.output(CARD))
    # Without its style sheet it still has its shape.
    expect(received.output(CARD).locator(".airserve-card")).to_have_css("border-top-width", "1px")
    expect(received.output(CARD).locator(".airserve-name")).to_have_css("font-weight", "600")
    expect_picture(received.output(PROBE))


def test_a_page_made_of_the_notebook_shows_the_outputs(
    lab: Any, saved: Any, chromium: Browser, tmp_path: Path
) -> None:
    """Card and picture are there on a page that nbconvert makes, with nothing but the page itself."""
    source, page_file = tmp_path / "kept.ipynb", tmp_path / "kept.html"
    nbformat.write(saved, source)
    subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "nbconvert", "--to", "html", str(source)],
        check=True,
        capture_output=True,
        env=lab.environment(),
        timeout=90,
    )
    page = chromium.new_page()
    page.route(re.compile("^https?:"), lambda route: route.abort())
    page.goto(page_file.as_uri())
    outputs = page.locator(".jp-Cell-outputArea")
    expect_card(outputs.nth(0))
    expect_picture(outputs.nth(2))
    page.close()
