"""The default engine in JupyterLab: a Ray of the kernel's own, which is heard of only while it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.own_cluster, pytest.mark.timeout(300)]

# On a loaded machine Ray takes half a minute to start, and is given a second try.
RAY_STARTS_MS = 150_000
CELLS = (
    "%load_ext airserve_nb",
    """
%%serve adder
import numpy as np

def predict(batch: np.ndarray) -> np.ndarray:
    return batch + 2
""",
    'adder.request({"array": [40]}).json()',
    "from airserve_nb.engines import ray_cluster\nprint(ray_cluster._folder)",
)
SERVE, ANSWER, FOLDER = 1, 2, 3


def test_ray_starts_with_a_word_and_ends_without_a_trace(open_notebook: Any, eventually: Any) -> None:
    """A line tells of the start, the card takes its place, no log is shown, and Ray ends with the kernel."""
    notebook = open_notebook(CELLS)
    notebook.start_all()
    output = notebook.output(SERVE)
    expect(output).to_contain_text("Starting Ray", timeout=RAY_STARTS_MS)
    expect(output.get_by_role("group", name="Panel of adder")).to_be_visible(timeout=RAY_STARTS_MS)
    expect(notebook.output(ANSWER)).to_contain_text("[42.0]", timeout=30_000)
    expect(notebook.output(FOLDER)).to_contain_text("airserve-")

    expect(output).not_to_contain_text("Starting Ray")
    expect(output.locator(".jp-OutputArea-output:visible")).to_have_count(1)
    expect(notebook.stderr()).to_have_count(0)
    assert notebook.errors == []

    folder = Path(notebook.output(FOLDER).inner_text().strip())
    servers = processes_of(folder)
    assert {"raylet", "gcs_server"} <= {process.info["name"] for process in servers}
    notebook.shut_kernel_down()
    eventually(
        lambda: not processes_of(folder) and not folder.exists(), "Ray ends with its kernel", timeout_s=15
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """Find the processes, whoever their parent is, that have ``folder`` in their command line."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
    ]
