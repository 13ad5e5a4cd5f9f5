"""Tab on a line of ours offers what may come next; everywhere else IPython's completion is as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from airserve_nb import deploying, http_adapters, magic_loading
from airserve_nb.magic_line import option_names
from airserve_nb.magics import AirServeMagics

BODY = "\nclass One:\n    pass\nclass Two:\n    pass\n"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config)
    # As in a kernel without jedi; with it the offers below must be the same.
    magic_loading.load(shell)
    monkeypatch.setattr(deploying, "services", lambda: {"adder": object(), "addition": object()})
    shell.run_cell(
        "class result: checkpoint = {'a': 1}\nweights = {'b': 2}\n_hidden = {}\ndef read(x: int): ..."
    )
    yield shell
    magic_loading.unload(shell)


def offered(shell: InteractiveShell, cell: str, *, jedi: bool = False) -> list[str]:
    """Complete at the mark ``|``; returns the cell's words that would stand there."""
    shell.Completer.use_jedi = jedi
    offset = cell.index("|")
    text = cell.replace("|", "", 1)
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, offset))
    starts = {each.start for each in found}
    assert len(starts) <= 1
    return [each.text for each in found]


@pytest.mark.parametrize("body", ["", BODY], ids=["one line", "cell"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%%serve adder --max|", ["--max-batch-size"]),
        ("%%serve adder --engine |", ["ray", "local"]),
        ("%%serve adder --engine l|", ["local"]),
        ("%%serve adder --engine=l|", ["local"]),
        ("%%serve adder --ingress |", ["auto", "haproxy", "python"]),
        ("%%serve add|", ["adder", "addition"]),
        ("%%serve --quiet add|", ["adder", "addition"]),
        ("%%serve adder --checkpoint res|", ["result"]),
        ("%%serve adder --checkpoint result.ch|", ["result.checkpoint"]),
        ("%%serve adder --predict-kwargs wei|", ["weights"]),
        ("%%serve adder --http-adapter re|", ["read", "result"]),
        ("%%serve adder --http-adapter pandas_r|", ["pandas_read_json"]),
        ("%%serve adder --max-batch-size 8 --num-r|", ["--num-replicas"]),
        ("%serve --w|", ["--warm"]),
        ("%serve_stop |", ["adder", "addition", "--all", "--help"]),
        ("%serve_stop --a|", ["--all"]),
        ("%serve_logs addi|", ["addition"]),
        ("%serve_code adde|", ["adder"]),
        ("%probe adder --c|", ["--concurrency"]),
        ("found = %probe addi|", ["addition"]),
    ],
)
def test_words_that_may_come_next(shell: InteractiveShell, line: str, words: list[str], body: str) -> None:
    """Options, their values, services and names of the notebook, each in its place."""
    assert offered(shell, line + (body if line.startswith("%%") else "")) == words


@pytest.mark.parametrize("jedi", [False, True])
def test_options_are_offered_once(shell: InteractiveShell, jedi: bool) -> None:
    """After the name come all options, and none that the line has; Python's own completion stays out."""
    words = offered(shell, f"%%serve adder --engine local --quiet --|{BODY}", jedi=jedi)
    assert set(words) == set(option_names(AirServeMagics.serve_cell)) - {"--engine", "--quiet"}
    assert offered(shell, f"%%serve adder --eng|{BODY}", jedi=jedi) == ["--engine"]


def test_the_cells_classes(shell: InteractiveShell) -> None:
    """--class offers the classes of the cell, before it has ever run."""
    assert offered(shell, f"%%serve adder --class |{BODY}") == ["One", "Two"]


def test_nothing_hidden_and_nothing_computed(shell: InteractiveShell) -> None:
    """IPython's own names and underscores are not offered; a property is not computed for a completion."""
    shell.run_cell("class Trap:\n    @property\n    def inner(self): raise SystemExit\n\ntrap = Trap()")
    names = offered(shell, "%%serve adder --example |")
    assert "weights" in names
    assert not {"_hidden", "In", "Out", "exit", "get_ipython"} & set(names)
    assert set(http_adapters.__all__).isdisjoint(names)
    assert offered(shell, "%%serve adder --example trap.inn|") == ["trap.inner"]
    assert offered(shell, "%%serve adder --example trap.inner.re|") == []


@pytest.mark.parametrize(
    "cell", ["x = 1\n%%serve adder --eng|", "%%timeit --eng|", "weights.ke|", "%%serve adder\nweights.ke|"]
)
def test_elsewhere_it_is_silent(shell: InteractiveShell, cell: str) -> None:
    """Below the line, in other magics, and where %% begins no cell, IPython's own offers stand."""
    loaded = offered(shell, cell)
    magic_loading.unload(shell)
    assert offered(shell, cell) == loaded
    assert "--engine" not in loaded


def test_the_older_interface(shell: InteractiveShell) -> None:
    """IPython's older completion, which front ends without the newer one use, offers the same."""
    with pytest.warns(PendingDeprecationWarning):
        assert shell.complete("", "%%serve adder --max", 19) == ("--max", ["--max-batch-size"])


def test_a_magic_that_was_replaced_is_left_alone(shell: InteractiveShell) -> None:
    """When somebody registers a %probe of theirs, our options are not offered on its line."""
    shell.register_magic_function(lambda line: None, "line", "probe")
    assert "--requests" not in offered(shell, "%probe adder --req|")


def test_a_complete_word_keeps_others_out(shell: InteractiveShell) -> None:
    """Python's locals() is no engine."""
    assert offered(shell, "%%serve adder --engine local|") == ["local"]
