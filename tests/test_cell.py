"""A cell is run as any other, and the predictor that it defines is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from airserve_nb.cell import CellFailedError, find_predictor, run_cell
from airserve_nb.cell_names import Definitions
from airserve_nb.errors import CellError

IMPORT = "from airserve_nb.predictor import Predictor\n"
ADDER = """
class Adder(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint):
        return cls()

    def predict(self, data):
        return data + 2
"""


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, colors="nocolor")
    yield shell
    shell.reset(new_session=False)


def found_in(shell: InteractiveShell, source: str) -> Any:
    definitions = Definitions.of(source, shell=shell, namespace=shell.user_ns)
    run_cell(shell, source)
    return find_predictor(definitions, shell.user_ns)


class TestFinding:
    @pytest.mark.parametrize(
        "source",
        [
            IMPORT + ADDER,
            f"# a comment\n\n{IMPORT}{ADDER}",
            f"from __future__ import annotations\n{IMPORT}{ADDER}",
            IMPORT + "if True:\n" + "".join(f"    {line}\n" for line in ADDER.splitlines()),
            IMPORT + "try:\n" + "".join(f"    {line}\n" for line in ADDER.splitlines()) + "finally: pass",
            IMPORT + ADDER.replace("class", "@lambda cls: cls\nclass", 1),
            IMPORT + ADDER + "\ndef helper(x):\n    return x\n\nAdder.__name__\n",
            f"%pwd\n{IMPORT}{ADDER}",
            f"%%time\n{IMPORT}{ADDER}",
            IMPORT + "class Base(Predictor):\n    def predict(self, data):\n        return data\n"
            "class Adder(Base):\n    @classmethod\n    def from_checkpoint(cls, c):\n        return cls()\n",
        ],
        ids=["plain", "comment", "future", "if", "try", "decorated", "helper", "magic", "%%time", "base"],
    )
    def test_class_is_found(self, shell: InteractiveShell, source: str) -> None:
        """However the class is written at the top level, it is the one that is served."""
        assert found_in(shell, source).__name__ == "Adder"

    @pytest.mark.parametrize(
        "source",
        [
            "def predict(batch):\n    return batch",
            "async def predict(batch):\n    return batch",
            "def add(batch):\n    return batch\npredict = add",
        ],
    )
    def test_function_is_found(self, shell: InteractiveShell, source: str) -> None:
        """A function called predict will do, async or assigned."""
        assert found_in(shell, source) is shell.user_ns["predict"]

    def test_names_of_other_cells_work(self, shell: InteractiveShell) -> None:
        """The cell's functions have the notebook's globals."""
        shell.run_cell("import math\ndef double(x):\n    return 2 * x")
        assert found_in(shell, "def predict(batch):\n    return double(math.floor(batch))")(1.5) == 2

    def test_running_again_finds_the_new_class(self, shell: InteractiveShell) -> None:
        """The second run's class is served, though the name was there before."""
        first = found_in(shell, IMPORT + ADDER)
        assert found_in(shell, IMPORT + ADDER) is not first

    def test_class_of_an_earlier_cell_is_not_found(self, shell: InteractiveShell) -> None:
        """A definition that this run skipped is not mistaken for its own."""
        found_in(shell, IMPORT + ADDER)
        skipped = "if False:\n    class Adder: pass\ndef predict(batch):\n    return batch"
        assert found_in(shell, skipped) is shell.user_ns["predict"]

    def test_one_of_several_by_name(self, shell: InteractiveShell) -> None:
        """A class name picks one, and only one of the cell's own."""
        source = IMPORT + ADDER + ADDER.replace("Adder", "Other")
        run_cell(shell, source)
        assert find_predictor(source, shell.user_ns, class_name="Other").__name__ == "Other"
        with pytest.raises(CellError, match="no predictor called 'Third', only Adder and Other"):
            find_predictor(source, shell.user_ns, class_name="Third")

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            (
                IMPORT + ADDER + ADDER.replace("Adder", "Other"),
                "defines 2 predictors, Adder and Other: choose one with --class",
            ),
            (IMPORT + ADDER + "\ndef predict(batch): return batch", "2 predictors, Adder and predict"),
            ("x = 1", "defines no predictor: define a class derived from Predictor"),
            ("# nothing", "defines no predictor"),
            ("def add(batch): return batch", "the function add but no predictor: call it predict"),
            ("class Adder:\n    def predict(self, data): ...", r"write class Adder\(Predictor\)"),
            (IMPORT + "class Adder(Predictor): ...", "Adder doesn't define from_checkpoint"),
            (
                "from airserve_nb.predictors.xgboost import XGBoostPredictor",
                "imports XGBoostPredictor but defines no predictor",
            ),
            (IMPORT + ADDER + "\ndel Adder", "defines no predictor"),
            (IMPORT + "def make():\n    class Adder(Predictor): ...\n", "the function make but"),
        ],
    )
    def test_cell_without_one_predictor(self, shell: InteractiveShell, source: str, words: str) -> None:
        """The sentence begins with the nearest miss."""
        with pytest.raises(CellError, match=words):
            found_in(shell, source)


class TestRunning:
    def test_failure_is_shown_once_and_ends_the_cell(
        self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The traceback is the user's own; our error adds one line to it."""
        shell.user_ns["go"] = lambda: run_cell(shell, "1 / 0", heading="%%serve adder")
        result = shell.run_cell("go()")
        out = capsys.readouterr().out
        assert not result.success
        assert out.count("ZeroDivisionError: division by zero") == 1
        assert out.count("Traceback") == 1
        assert out.rstrip().endswith("Not deployed: the cell above raised ZeroDivisionError.")

    def test_syntax_error(self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        """What is no Python is shown by IPython, and nothing is deployed."""
        with pytest.raises(CellFailedError, match="raised SyntaxError"):
            run_cell(shell, "class Adder(:")
        assert "class Adder(:" in capsys.readouterr().out

    def test_interrupt(self, shell: InteractiveShell) -> None:
        """An interrupted cell is not deployed."""
        with pytest.raises(CellFailedError, match="was interrupted"):
            run_cell(shell, "raise KeyboardInterrupt")

    def test_line_numbers_are_the_cell_s(
        self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The magic's line counts, as it does in the notebook."""
        with pytest.raises(CellFailedError):
            run_cell(shell, "x = 1\n1 / 0", heading="%%serve adder")
        assert "----> 3 1 / 0" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("source", "shown"), [("6 * 7", 1), ("6 * 7;", 0), ("6 * 7;  # so", 0), ("x = 42", 0)]
    )
    def test_last_expression_is_displayed_once(
        self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str], source: str, shown: int
    ) -> None:
        """As in any cell, unless a semicolon ends it."""
        run_cell(shell, source)
        assert capsys.readouterr().out.count("42") == shown
        assert shell.ast_node_interactivity == "last_expr"

    def test_indented_body(self, shell: InteractiveShell) -> None:
        """A body that is indented as a whole runs, as any such cell does."""
        run_cell(shell, "    x = 1\n    y = 2", heading="%%serve adder")
        assert shell.user_ns["y"] == 2

    @pytest.mark.parametrize(
        "source", ["await nap()", "async for x in nap(): pass", "async with nap(): pass"]
    )
    def test_await_in_a_running_loop_is_refused(self, shell: InteractiveShell, source: str) -> None:
        """In a kernel the cell can't await; the sentence says where it can."""

        async def in_kernel() -> None:
            run_cell(shell, source)

        with pytest.raises(CellError, match="await in a cell above"):
            asyncio.run(in_kernel())

    def test_await_inside_a_function_is_no_await(self, shell: InteractiveShell) -> None:
        """An async predictor is no reason to refuse a cell."""

        async def in_kernel() -> None:
            run_cell(shell, "async def predict(batch):\n    await nap()")

        asyncio.run(in_kernel())

    def test_await_works_without_a_running_loop(self, shell: InteractiveShell) -> None:
        """In a terminal IPython awaits as it does elsewhere."""
        run_cell(shell, "import asyncio\nx = await asyncio.sleep(0, 5)")
        assert shell.user_ns["x"] == 5


class TestDefinitions:
    def test_every_kind_of_binding(self) -> None:
        """Whatever binds a name at the top level is seen, and nothing within functions is."""
        source = (
            "import os.path, numpy as np\nfrom a import b as c\nx, (y, *z) = 1, (2, 3)\n"
            "for i in []: pass\nwith open('f') as f: pass\nif (w := 1): pass\n"
            "def g():\n    hidden = 1\nclass K:\n    attribute = 1\n[e for e in []]\n"
        )
        definitions = Definitions.of(source)
        assert definitions.imported == ("os", "np", "c")
        assert definitions.functions == ("g",)
        assert definitions.classes == ("K",)
        assert {"x", "y", "z", "i", "f", "w"} <= definitions.bound
        assert definitions.bound.isdisjoint({"hidden", "attribute"})

    def test_magics_that_write_elsewhere_define_nothing(self, shell: InteractiveShell) -> None:
        """What %%writefile writes is not in the notebook."""
        assert not Definitions.of("%%writefile x.py\nclass Adder: ...", shell=shell).bound
        assert Definitions.of("%%capture\nclass Adder: ...", shell=shell).classes == ("Adder",)
