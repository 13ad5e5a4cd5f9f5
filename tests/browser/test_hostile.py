"""Texts of strangers - error messages, examples, answers, addresses - are shown as text and never run."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

MARKUP = (
    "<b class=injected>bold</b><img src=x onerror='window.__hacked = 1'><script>window.__hacked = 2</script>"
)
CELLS = (
    f"""
%load_ext airserve_nb
import numpy as np
import pandas as pd
from airserve_nb import Predictor, probe

pd.set_option("display.max_colwidth", None)
MARKUP = {MARKUP!r}
example = {{"array": [MARKUP]}}
""",
    """
%%serve hostile --engine local --example example
def predict(batch: np.ndarray) -> np.ndarray:
    if batch[0, 0] == 1:
        raise ValueError(MARKUP)
    return np.array([MARKUP] * len(batch))
""",
    "refused = probe(hostile, requests=2)\nrefused",
    'failed = probe(hostile, {"array": [1]}, requests=2)\nfailed',
    'answered = probe(hostile, {"array": [0]}, requests=2)\nanswered',
    'failed.requests[["error"]]',
    'answered.requests[["answer"]]',
    'hostile.requests()[["error"]]',
    "failed.summary()",
    "print(hostile.logs())",
    'probe(hostile.url + "/" + MARKUP, {"array": [1]}, requests=1)',
    # A script of a cell's own does run, so the above could have; and it runs after them.
    'from IPython.display import HTML\nHTML(MARKUP.replace("hacked", "control"))',
    # Last, as it stops the run.
    """
%%serve failing --engine local
class Failing(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        raise ValueError(MARKUP)

    def predict(self, batch):
        return batch
""",
)
CONTROL = 11
SAYING_IT = (1, 2, 3, 5, 6, 7, 8, 9, 12)
"""The cells whose output holds the text, readable."""


@pytest.fixture(scope="module")
def shown(open_notebook: Any) -> Any:
    notebook = open_notebook(CELLS)
    notebook.run_all()
    notebook.page.wait_for_function("() => window.__control !== undefined")
    return notebook


def test_nothing_runs(shown: Any) -> None:
    """No script of a stranger has run, although the page would have run it."""
    assert shown.page.evaluate("() => window.__hacked") is None


def test_no_element_is_made_of_text(shown: Any) -> None:
    """No element has come of a stranger's text, but where the test itself asked for it."""
    assert shown.prompt(len(CELLS) - 1) == f"[{len(CELLS)}]:"
    expect(shown.output(CONTROL).locator(".injected")).to_have_count(1)
    expect(shown.page.locator(".jp-OutputArea .injected")).to_have_count(1)


@pytest.mark.parametrize("cell", SAYING_IT)
def test_the_text_is_shown(shown: Any, cell: int) -> None:
    """Text that looks like markup is not swallowed either: it can be read."""
    expect(shown.output(cell)).to_contain_text("<b class=injected>")
