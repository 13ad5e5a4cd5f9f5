"""%config AirServeMagics: what %%serve uses where its line says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from airserve_nb import deploying, magic_loading

PREDICT = "import numpy as np\ndef predict(batch: np.ndarray):\n    return batch"


class Fake:
    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def deploy(self, predictor: Any, *, name: str, progress: Any, code: str, **options: Any) -> Any:
        self.options = options
        # A service, of which the magic only notes how to deploy it again.
        return SimpleNamespace()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(deploying, "deploy", fake.deploy)
    monkeypatch.delenv("AIRSERVE_ENGINE", raising=False)
    return fake


def new_shell(**settings: Any) -> InteractiveShell:
    config = Config()
    config.HistoryManager.enabled = False
    config.AirServeMagics.update(settings)
    shell = InteractiveShell(config=config, colors="nocolor")
    magic_loading.load(shell)
    return shell


@pytest.fixture
def shell(fake: Fake) -> Iterator[InteractiveShell]:
    shell = new_shell()
    yield shell
    magic_loading.unload(shell)


def configure(shell: InteractiveShell, *lines: str) -> None:
    for line in lines:
        shell.run_line_magic("config", f"AirServeMagics.{line}")


def serve(shell: InteractiveShell, fake: Fake, line: str) -> dict[str, Any]:
    shell.user_ns.pop("adder", None)
    shell.run_cell_magic("serve", line, PREDICT)
    return fake.options


def test_nothing_set_passes_nothing(shell: InteractiveShell, fake: Fake) -> None:
    """The defaults have one home, deploy(), as long as nobody sets others."""
    assert serve(shell, fake, "adder") == {}


def test_the_line_goes_first(shell: InteractiveShell, fake: Fake) -> None:
    """What is set holds where the line is silent, and gives way where it is not."""
    configure(shell, "engine = 'local'", "max_batch_size = 4", "batch_wait_timeout_s = 0.5", "port = 8123")
    settings = {"engine": "local", "max_batch_size": 4, "batch_wait_timeout_s": 0.5, "port": 8123}
    assert serve(shell, fake, "adder") == settings
    assert serve(shell, fake, "adder --engine ray --max-batch-size 8") == settings | {
        "engine": "ray",
        "max_batch_size": 8,
    }


def test_the_environment_comes_last(
    shell: InteractiveShell, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """%config goes before AIRSERVE_ENGINE, which deploy itself reads."""
    monkeypatch.setenv("AIRSERVE_ENGINE", "local")
    assert serve(shell, fake, "adder") == {}
    configure(shell, "engine = 'ray'")
    assert serve(shell, fake, "adder") == {"engine": "ray"}


def test_settings_of_ray_do_not_reach_the_local_engine(
    shell: InteractiveShell, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they have no meaning they are left out, however the local engine was chosen."""
    configure(shell, "num_cpus = 0.5", "ingress = 'python'")
    assert serve(shell, fake, "adder") == {"num_cpus": 0.5, "ingress": "python"}
    assert serve(shell, fake, "adder --engine local") == {"engine": "local"}
    monkeypatch.setenv("AIRSERVE_ENGINE", "local")
    assert serve(shell, fake, "adder") == {}
    configure(shell, "engine = 'local'")
    assert serve(shell, fake, "adder") == {"engine": "local"}


def test_no_batching_leaves_the_settings_of_batching_out(shell: InteractiveShell, fake: Fake) -> None:
    """Turned off on the line, batching is not given limits from elsewhere."""
    configure(shell, "max_batch_size = 4", "batch_wait_timeout_s = 0.5")
    assert serve(shell, fake, "adder --no-batching") == {"batching": False}


def test_quiet(shell: InteractiveShell, fake: Fake) -> None:
    """Set once, every cell is quiet."""
    assert shell.run_cell_magic("serve", "adder", PREDICT) is not None
    configure(shell, "quiet = True")
    assert shell.run_cell_magic("serve", "other", PREDICT) is None


def test_a_profile_may_set_them(fake: Fake) -> None:
    """What stands in IPython's configuration file holds from the start."""
    shell = new_shell(engine="local", max_batch_size=3)
    assert serve(shell, fake, "adder") == {"engine": "local", "max_batch_size": 3}
    magic_loading.unload(shell)


def test_config_documents_itself(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    """%config AirServeMagics prints every setting, what it means and its value; %config lists the name."""
    configure(shell, "max_batch_size = 4")
    shell.run_line_magic("config", "AirServeMagics")
    out = capsys.readouterr().out
    for name in ("engine", "ingress", "max_batch_size", "batch_wait_timeout_s", "num_cpus", "port", "quiet"):
        assert f"AirServeMagics.{name}=<" in out
    assert "Current: 4" in out
    assert "AIRSERVE_ENGINE" in out
    shell.run_line_magic("config", "")
    assert "AirServeMagics" in capsys.readouterr().out
    magic_loading.unload(shell)
    shell.run_line_magic("config", "")
    assert "AirServeMagics" not in capsys.readouterr().out
    magic_loading.load(shell)


@pytest.mark.parametrize(
    "line", ["engine = 'rey'", "max_batch_size = 0", "port = 70000", "batch_wait_timeout_s = -1"]
)
def test_what_can_not_be_is_refused(
    shell: InteractiveShell, fake: Fake, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    """A wrong value is told at once, and changes nothing."""
    configure(shell, line)
    assert line.partition(" ")[0] in caplog.text
    assert serve(shell, fake, "adder") == {}


def test_a_misspelt_setting_is_told(shell: InteractiveShell, fake: Fake) -> None:
    """A name that is no setting gets the nearest one for an answer."""
    with pytest.warns(UserWarning, match="max_batch_size"):
        configure(shell, "max_bach_size = 4")
    assert serve(shell, fake, "adder") == {}
