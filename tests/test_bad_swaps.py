"""A cell that can't be served says why within ten lines, and what ran before goes on; on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from airserve_nb import deploying, magic_loading

MOST_LINES = 10

CLASS = """
from airserve_nb import Predictor

class {name}(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        {loads}
        return cls()

    def predict(self, batch):
        return {answer}
"""
DEEP = (
    "\n".join(f"def step{i}():\n    step{i + 1}()" for i in range(20))
    + "\ndef step20():\n    {}['weights']\n"
)


def cell(loads: str = "pass", answer: str = "batch", name: str = "Echo") -> str:
    return CLASS.format(name=name, loads=loads, answer=answer)


BAD = {
    "raises": (cell("raise OSError('weights.bin is cut short')"), "OSError: weights.bin is cut short"),
    "raises deep inside": (DEEP + cell("step0()"), "KeyError: 'weights'"),
    "no such module": (cell("import nowhere_to_be_found"), "No module named 'nowhere_to_be_found'"),
    "no such module at all": ("import nowhere_to_be_found" + cell(), "No module named 'nowhere_to_be_found'"),
    "no Python": ("class Echo(:\n    pass", "SyntaxError"),
    "two classes": (cell(name="One") + cell(name="Two"), "defines 2 predictors, One and Two"),
    "exits": (cell("raise SystemExit(3)"), "SystemExit"),
}
BAD_ON_RAY = {
    "cannot travel": (
        "import threading\nguard = threading.Lock()" + cell(answer="batch if guard else 0"),
        "'guard'",
    ),
}


@pytest.fixture
def shell(engine: str, no_leftovers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("AIRSERVE_ENGINE", engine)
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, colors="nocolor")
    # Its classes are a notebook's: they travel by value.
    shell.user_ns["__name__"] = "__main__"
    magic_loading.load(shell)
    replicas = "" if engine == "local" else " --num-replicas 2"
    assert shell.run_cell(f"%%serve echo --quiet{replicas}\n{cell(answer='batch + 1')}").success
    yield shell
    deploying.stop()
    magic_loading.unload(shell)


def test_each_names_its_cause_and_changes_nothing(
    shell: InteractiveShell, engine: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The old version answers after each, %serve says which it is, and a mended cell goes through."""
    service: Any = shell.user_ns["echo"]
    version = service.version
    # Exclusive creation: with two replicas that load at once, one of them fails.
    flag = f"open({str(tmp_path / 'flag')!r}, 'x').close()"
    cases = {**BAD, **(BAD_ON_RAY if engine == "ray" else {})}
    if engine == "ray":
        cases["one of two replicas"] = (cell(flag), "FileExistsError")
    capsys.readouterr()
    for name, (body, words) in cases.items():
        assert not shell.run_cell(f"%%serve echo --quiet\n{body}").success, name
        printed = capsys.readouterr()
        lines = (printed.out + printed.err).strip().splitlines()
        assert len(lines) <= MOST_LINES, (name, lines)
        assert words in "\n".join(lines), (name, lines)
        assert not [line for line in lines if "magic_serve.py" in line or "deploying.py" in line], name
        assert service.request({"array": [1]}).json() == [2.0], name
        (view,) = shell.run_line_magic("serve", "").views
        assert (view.version, view.state) == (version, "running"), name
    assert shell.run_cell(f"%%serve echo --quiet\n{cell(answer='batch + 2')}").success
    assert service.request({"array": [1]}).json() == [3.0]
