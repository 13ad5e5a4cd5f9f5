"""The magics in a real kernel: what a front end is told, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

PATIENCE_S = 90.0

PREDICT = """
import logging, sys, time, warnings
import numpy as np

def predict(batch: np.ndarray) -> np.ndarray:
    {body}
    return batch
"""
SLOW = """
import pathlib, time
from airserve_nb import Predictor

class Slow(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        (pathlib.Path({folder!r}) / "loading").touch()
        time.sleep({seconds})
        return cls()

    def predict(self, batch):
        return batch * 0 + 2
"""


@dataclass
class Ran:
    """What the front end got of one cell."""

    status: str = ""
    text: dict[str, str] = field(default_factory=lambda: {"stdout": "", "stderr": ""})
    results: list[str] = field(default_factory=list)
    traceback: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)


class Notebook:
    """A kernel, and the messages that it sends."""

    def __init__(self, client: Any, manager: Any) -> None:
        self.client = client
        self.manager = manager
        self.by_cell: dict[str, Ran] = {}

    def send(self, cell: str) -> str:
        request = str(self.client.execute(cell, stop_on_error=True))
        self.by_cell[request] = Ran()
        return request

    def run(self, cell: str) -> Ran:
        return self.wait(self.send(cell))

    def wait(self, request: str) -> Ran:
        reply = None
        while reply is None or reply["parent_header"]["msg_id"] != request:
            reply = self.client.get_shell_msg(timeout=PATIENCE_S)
        self.by_cell[request].status = reply["content"]["status"]
        idle = self.by_cell[request].status == "aborted"
        while not idle:
            idle = self.read(PATIENCE_S) == request
        return self.by_cell[request]

    def read(self, timeout_s: float) -> str | None:
        """Take one message in; returns whose cell has ended by it."""
        message = self.client.get_iopub_msg(timeout=timeout_s)
        parent, content = message["parent_header"].get("msg_id", ""), message["content"]
        ran = self.by_cell.setdefault(parent, Ran())
        kind = message["msg_type"]
        if kind == "stream":
            ran.text[content["name"]] += content["text"]
        elif kind in {"execute_result", "display_data"} and "text/plain" in content["data"]:
            ran.results.append(content["data"]["text/plain"])
            ran.data.append(content["data"])
        elif kind == "error":
            ran.traceback = "\n".join(content["traceback"])
        return parent if kind == "status" and content["execution_state"] == "idle" else None

    def complete(self, cell: str) -> tuple[str, list[str]]:
        """Ask for what may stand at the mark ``|``: what is replaced, and by what."""
        offset = cell.index("|")
        code = cell.replace("|", "", 1)
        request = self.client.complete(code, offset)
        while True:
            reply = self.client.get_shell_msg(timeout=PATIENCE_S)
            if reply["parent_header"]["msg_id"] == request:
                content = reply["content"]
                return code[content["cursor_start"] : content["cursor_end"]], content["matches"]


def opened(folder: Path) -> Iterator[Notebook]:
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=PATIENCE_S, cwd=str(folder))
    try:
        notebook = Notebook(client, manager)
        # In a kernel as it is: tests make errors of warnings, users don't.
        assert notebook.run("%colors nocolor\n%load_ext airserve_nb").status == "ok"
        yield notebook
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    yield from opened(tmp_path_factory.mktemp("kernel"))


def serve(notebook: Notebook, line: str, body: str = "pass") -> Ran:
    return notebook.run(f"%%serve {line} --engine local\n{PREDICT.format(body=body)}")


def test_a_predictors_output_stays_out_of_the_cells(notebook: Notebook) -> None:
    """Prints, logs and warnings are in the log, those of a request that another cell runs beside, too."""
    said = (
        "print('printed 1 2'); print('to stderr', file=sys.stderr); "
        "logging.getLogger('model').warning('logged'); warnings.warn('beware')"
    )
    # As many notebooks begin: its handler writes to the stream of that time.
    notebook.run("import logging; logging.basicConfig()")
    assert serve(notebook, "talk", said).status == "ok"
    ran = notebook.run("answer = talk.request({'array': [1]}).json(); print('mine'); answer")
    assert (ran.text, ran.results) == ({"stdout": "mine\n", "stderr": ""}, ["[1.0]"])
    logs = notebook.run("%serve_logs talk").text["stdout"]
    for words in ("STDOUT printed 1 2", "STDERR to stderr", "logged", "UserWarning: beware"):
        assert words in logs
    notebook.run("%serve_stop talk")
    after = notebook.run("import sys; print(type(sys.stdout).__name__); logging.warning('theirs')")
    assert after.text["stdout"] == "OutStream\n"
    assert "theirs" in after.text["stderr"]


def test_an_exception_is_found_by_the_requests_id(notebook: Notebook) -> None:
    """The id of a failed request leads to its traceback, from the notebook."""
    serve(notebook, "fails", "raise KeyError('weights')")
    request_id = notebook.run("fails.request({'array': [1]}).headers['x-airserve-request-id']").results[0]
    logs = notebook.run("%serve_logs fails -n 1").text["stdout"]
    assert f"{request_id.strip(chr(39))}: predict raised KeyError: 'weights'" in logs
    assert "raise KeyError('weights')" in logs
    notebook.run("%serve_stop fails")


def test_completion(notebook: Notebook) -> None:
    """The front end's Tab finds options, values and names, in a cell of many lines."""
    body = PREDICT.format(body="pass")
    notebook.run("weights = {'a': 1}")
    assert notebook.complete(f"%%serve adder --max-ba|{body}") == ("--max-ba", ["--max-batch-size"])
    assert notebook.complete(f"%%serve adder --engine lo|{body}") == ("lo", ["local"])
    assert notebook.complete(f"%%serve adder --predict-kwargs wei|{body}") == ("wei", ["weights"])
    assert "keys" in " ".join(notebook.complete(f"%%serve adder{body}\nweights.ke|")[1])
    notebook.run("%unload_ext airserve_nb")
    assert "--max-batch-size" not in notebook.complete(f"%%serve adder --max-ba|{body}")[1]
    notebook.run("%load_ext airserve_nb")


def test_an_interrupt_says_what_serves(notebook: Notebook, tmp_path: Path, eventually: Any) -> None:
    """In one line, in the cell: which version goes on, or that there is none."""
    for version, sentence in ((None, "napper was not deployed."), ("v2", "napper v2 goes on serving.")):
        if version:
            assert serve(notebook, "napper").status == "ok"
        (tmp_path / "loading").unlink(missing_ok=True)
        code = SLOW.format(folder=str(tmp_path), seconds=60)
        cell = notebook.send(f"%%serve napper --engine local\n{code}")
        eventually((tmp_path / "loading").exists, "the new version is being loaded")
        notebook.manager.interrupt_kernel()
        ran = notebook.wait(cell)
        assert ran.status == "error"
        assert ran.traceback == f"KeyboardInterrupt: {sentence}"
    assert notebook.run("napper.request({'array': [1]}).json()").results == ["[1.0]"]
    assert "napper  running, engine local" in notebook.run("%serve").results[0]
    notebook.run("%serve_stop --all")


def test_run_all_stops(notebook: Notebook) -> None:
    """The cell after one that could not be served does not run."""
    for body in ("1 / 0", "class Predictor(: pass", "x = 1"):
        cells = [notebook.send(f"%%serve broken --engine local\n{body}"), notebook.send("print('reached')")]
        failed, after = (notebook.wait(cell) for cell in cells)
        assert (failed.status, after.status) == ("error", "aborted")
        assert after.text["stdout"] == ""


def test_names_of_other_cells_work_in_the_predictor(notebook: Notebook) -> None:
    """Functions, values and modules that other cells define are there."""
    notebook.run("import math\noffset = 2\ndef helper(x):\n    return x + math.floor(offset)")
    served = notebook.run(
        "%%serve helped --engine local\nimport numpy as np\ndef predict(batch: np.ndarray):\n    return helper(batch)"
    )
    assert served.status == "ok"
    assert notebook.run("helped.request({'array': [40]}).json()").results == ["[42.0]"]
    notebook.run("%serve_stop helped")


def test_the_text_is_the_same_on_every_run(notebook: Notebook) -> None:
    """Neither times nor ports nor ids: a saved notebook can be compared with a new run."""
    texts = [serve(notebook, "same").results[0] for _ in range(2)]
    assert texts[0] == texts[1]
    assert not any(character.isdigit() for character in texts[0].replace("10 requests, wait 0 ms", ""))
    notebook.run("%serve_stop same")
