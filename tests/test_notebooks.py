"""The notebooks as they are saved: what a reader sees on a page without a kernel. Nbval runs them besides."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = (
    "01_quickstart.ipynb",
    "02_the_guide.ipynb",
    "03_see_micro_batching.ipynb",
    "04_find_your_settings.ipynb",
)

# Folders and addresses of the machine that ran it; the loopback address is the same on all.
OF_A_MACHINE = re.compile(
    r"/(?:home|root|tmp|work|Users|usr|opt|var)/|\b(?!127\.0\.0\.1\b)\d{1,3}(?:\.\d{1,3}){3}\b"
)
PICTURE = re.compile(r'"data:image/png;base64,[^"]*"')
# The values that Ray AIR's guide prints for the same calls, by the cell that makes them.
GUIDE = {
    "arrays-serve": "[42.0]",
    "frames": """'[{"base":1,"multiplier":2,"prediction":4},{"base":3,"multiplier":4,"prediction":14}]'""",
    "adapters": """'[{"base":10,"multiplier":4,"prediction":42}]'""",
    "tuned": f"batch sizes: {[10] * 10}\n",
}


@pytest.fixture(params=NAMES)
def notebook(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(FOLDER / request.param, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(output: Any) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


def test_every_notebook_is_looked_at() -> None:
    """A new notebook is added to this list."""
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


def test_valid_and_run_in_order(notebook: Any) -> None:
    """The file is a valid notebook for any Python 3 kernel, run once from top to bottom."""
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_pictures_are_saved(notebook: Any) -> None:
    """Each probe has left a picture, as PNG and within its HTML, so that every page shows one of them; a figure is a PNG."""
    shown = [output.data for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert shown
    for data in shown:
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
        if "text/html" in data:
            assert PICTURE.search(data["text/html"])
    assert any("text/html" in data for data in shown)


def test_no_error_and_no_noise(notebook: Any) -> None:
    """No cell failed, and none wrote to stderr."""
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


def test_nothing_of_the_machine(notebook: Any) -> None:
    """No path and no address of the machine that ran it, no state of widgets, no times of execution."""
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
    for output in outputs(notebook):
        for kind, content in {"text": text_of(output), **output.get("data", {})}.items():
            found = None if kind == "image/png" else OF_A_MACHINE.search(PICTURE.sub("", str(content)))
            assert not found, found


def test_the_guides_values() -> None:
    """Where the notebook makes a call of Ray AIR's guide, it shows the value printed there, and nbval compares it."""
    notebook = nbformat.read(FOLDER / "02_the_guide.ipynb", as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    assert {name: "".join(map(text_of, cells[name].outputs)) for name in GUIDE} == GUIDE
    assert all("nbval-check-output" in cells[name].metadata.tags for name in GUIDE)
