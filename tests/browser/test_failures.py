"""A cell that can't be served stops "Run All", and says why in one line."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

PREDICTOR = """
class {name}(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        {loads}

    def predict(self, batch):
        return batch
"""
GOOD = PREDICTOR.format(name="Echo", loads="return cls()")
OTHER = PREDICTOR.format(name="Other", loads="return cls()")
UNLOADABLE = PREDICTOR.format(name="Unloadable", loads='raise OSError("weights.bin is cut short")')

CASES = {
    "cannot load": (
        f"%%serve echo --engine local\n{UNLOADABLE}",
        "DeployError: echo could not start: OSError: weights.bin is cut short.",
    ),
    "two predictors": (
        f"%%serve echo --engine local\n{GOOD}{OTHER}",
        "CellError: The cell defines 2 predictors, Echo and Other: choose one with --class, or move the others to a cell above.",
    ),
    "no such option": (
        f"%%serve echo --engine local --max-bach-size 3\n{GOOD}",
        "UsageError: %%serve has no option --max-bach-size (did you mean --max-batch-size?).",
    ),
}


@pytest.fixture(scope="module")
def notebook(open_notebook: Any) -> Any:
    """Return one notebook for all cases: its second cell is to be written."""
    return open_notebook(["%load_ext airserve_nb\nfrom airserve_nb import Predictor", "", "6 * 7"])


@pytest.mark.parametrize("case", CASES)
def test_a_failing_cell_stops_run_all(notebook: Any, case: str) -> None:
    """The failing cell shows its one line and nothing else; the next one does not run."""
    source, line = CASES[case]
    notebook.clear()
    notebook.write(1, source)
    notebook.run_all()
    expect(notebook.output(1)).to_have_text(line)
    assert notebook.prompt(2) == "[ ]:"
    expect(notebook.output(2)).to_have_text("")


def test_a_cell_of_broken_code_shows_its_own_traceback(notebook: Any) -> None:
    """What the cell's code raises is shown as by any cell; the line below says that nothing was deployed."""
    notebook.clear()
    notebook.write(1, f"%%serve echo --engine local\nimport nowhere_to_be_found\n{GOOD}")
    notebook.run_all()
    output = notebook.output(1)
    expect(output).to_contain_text("----> 2 import nowhere_to_be_found")
    expect(output.get_by_text("Not deployed: the cell above raised ModuleNotFoundError.")).to_be_visible()
    assert "magics.py" not in output.inner_text()
    assert notebook.prompt(2) == "[ ]:"


def test_a_mended_cell_goes_through(notebook: Any) -> None:
    """After the failures the same kernel serves the mended cell, and the next cell runs."""
    notebook.clear()
    notebook.write(1, f"%%serve echo --engine local\n{GOOD}")
    notebook.run_all()
    expect(notebook.output(1).get_by_role("group", name="Panel of echo")).to_be_visible()
    expect(notebook.output(2)).to_contain_text("42")
