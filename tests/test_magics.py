"""The magics read their line, look names up, and call the functions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import airserve_nb
from airserve_nb import applications, deploying, http_adapters, magic_loading, magics, service
from airserve_nb.errors import CellError, DeployError
from airserve_nb.magic_line import option_names

PREDICT = "import numpy as np\ndef predict(batch: np.ndarray):\n    return batch"


class FakeService:
    def __init__(self, name: str) -> None:
        self.name = name
        self.engine = "local"
        self.state = "running"
        self.url = f"http://127.0.0.1:8000/{name}"

    def statistics(self) -> None:
        raise DeployError("It doesn't answer.")


class Deployments:
    """Stands in for airserve_nb.deploying: remembers what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.running: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.sharing: Any = None

    def deploy(self, predictor: Any, *, name: str, progress: Any, **options: Any) -> FakeService:
        progress("Starting")
        if self.error is not None:
            raise self.error
        self.calls.append((predictor, options))
        self.running[name] = FakeService(name)
        self.running[name].sharing = self.sharing
        return self.running[name]  # type: ignore[no-any-return]

    def services(self) -> dict[str, Any]:
        return self.running

    @property
    def options(self) -> dict[str, Any]:
        return {key: value for key, value in self.calls[-1][1].items() if key != "code"}


@pytest.fixture
def deployments(monkeypatch: pytest.MonkeyPatch) -> Deployments:
    fake = Deployments()
    monkeypatch.setattr(deploying, "deploy", fake.deploy)
    monkeypatch.setattr(deploying, "services", fake.services)
    monkeypatch.setattr(applications, "services", fake.services)
    monkeypatch.setattr(service, "Service", FakeService)
    return fake


@pytest.fixture
def shell(deployments: Deployments) -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell(config=config, colors="nocolor")
    magic_loading.load(shell)
    yield shell
    shell.reset(new_session=False)


def serve(shell: InteractiveShell, line: str, cell: str = PREDICT) -> Any:
    return shell.run_cell_magic("serve", line, cell)


class TestServe:
    def test_deploys_binds_and_returns_the_service(
        self, shell: InteractiveShell, deployments: Deployments
    ) -> None:
        """NAME is the service's name and the notebook's variable; unnamed options are left to deploy."""
        deployed = serve(shell, "adder")
        assert shell.user_ns["adder"] is deployed
        predictor, options = deployments.calls[0]
        assert predictor is shell.user_ns["predict"]
        assert options == {"code": f"%%serve adder\n{PREDICT}"}

    def test_every_option(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """Each option reaches deploy under its own name, with its own type."""
        shell.run_cell("class result: checkpoint = {'a': 1}\nbody = {'array': [40]}\ndef read(x: int): ...")
        line = (
            "adder --checkpoint result.checkpoint --http-adapter read --max-batch-size 4 --num-replicas=2 "
            "--batch-wait-timeout-s 0.5 --route-prefix /v1/add --port 8123 --engine local --example body"
        )
        serve(shell, line)
        assert deployments.options == {
            "checkpoint": {"a": 1},
            "http_adapter": shell.user_ns["read"],
            "max_batch_size": 4,
            "batch_wait_timeout_s": 0.5,
            "num_replicas": 2,
            "route_prefix": "/v1/add",
            "port": 8123,
            "engine": "local",
            "example": {"array": [40]},
        }

    def test_no_batching(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """--no-batching turns batching off."""
        serve(shell, "adder --no-batching")
        assert deployments.options == {"batching": False}

    def test_values_may_be_made_by_the_cell(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """A name that the cell defines is looked up after it ran."""
        serve(
            shell,
            "adder --example body --checkpoint model.weights",
            f"body = 1\nclass model: weights = 2\n{PREDICT}",
        )
        assert deployments.options == {"example": 1, "checkpoint": 2}

    def test_variables_are_expanded(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """IPython's {name} works on the line."""
        shell.user_ns["n"] = 7
        serve(shell, "adder --max-batch-size {n}")
        assert deployments.options == {"max_batch_size": 7}

    @pytest.mark.parametrize(
        ("value", "meant"),
        [
            ("pandas_read_json", http_adapters.pandas_read_json),
            ("http_adapters.pandas_read_json", http_adapters.pandas_read_json),
            ("package.module:adapter", "package.module:adapter"),
        ],
    )
    def test_own_adapters_need_no_import(
        self, shell: InteractiveShell, deployments: Deployments, value: str, meant: Any
    ) -> None:
        """The package's adapters go by name, others by import string too."""
        serve(shell, f"adder --http-adapter {value}")
        assert deployments.options == {"http_adapter": meant}

    def test_checkpoint_may_be_a_uri(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """A URI is no name of the notebook and needs none."""
        serve(shell, "adder --checkpoint s3://bucket/model")
        assert deployments.options == {"checkpoint": "s3://bucket/model"}

    def test_running_again_replaces(self, shell: InteractiveShell) -> None:
        """The name is bound to the newest service."""
        assert serve(shell, "adder") is not serve(shell, "adder")
        assert isinstance(shell.user_ns["adder"], FakeService)

    def test_two_cells_are_two_services(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """What tells services apart is their name, not their cell."""
        serve(shell, "one")
        serve(shell, "two")
        assert sorted(deployments.running) == ["one", "two"]

    @pytest.mark.parametrize(("cell", "shown"), [(PREDICT, 1), (PREDICT + "\nNone;", 0)])
    def test_semicolon_hides_the_display(
        self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str], cell: str, shown: int
    ) -> None:
        """As after any expression."""
        assert shell.run_cell(f"%%serve adder\n{cell}").success
        assert capsys.readouterr().out.count("FakeService") == shown

    def test_help(
        self, shell: InteractiveShell, deployments: Deployments, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """--help shows every option and does nothing."""
        assert serve(shell, "--help") is None
        out = capsys.readouterr().out
        assert "%%serve NAME [--checkpoint NAME]" in out
        function = magics.AirServeMagics.serve_cell
        assert all(option in out for option in option_names(function))
        assert {"--batch-wait-timeout-s", "--share", "--no-overlap"} < set(option_names(function))
        assert not deployments.calls
        assert "predict" not in shell.user_ns

    def test_question_mark(self, shell: InteractiveShell) -> None:
        """%%serve? finds the same text."""
        assert "--batch-wait-timeout-s" in shell.object_inspect("%%serve")["docstring"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("", "needs a name for the service, as in %%serve adder"),
            ("my-model", "'my-model' can't name a service"),
            ("modèle", "can't name a service"),
            ("class", "can't name a service"),
            ("_x", "IPython keeps such names"),
            ("print", "Python has a builtin of that name"),
            ("predict", "The cell itself defines 'predict'"),
            ("np", "The cell itself defines 'np'"),
            ("taken", "'taken' is a int of this notebook"),
            ("adder --max-batchsize 4", r"no option --max-batchsize \(did you mean --max-batch-size\?\)"),
            ("adder --max_batch_size 4", r"did you mean --max-batch-size\?"),
            ("adder --max-batch 4", r"no option --max-batch "),
            ("adder --frobnicate", "no option --frobnicate; see %%serve --help"),
            ("adder --max-batch-size", "expected one argument; see"),
            ("adder --max-batch-size 0", "'0' is not a whole number of at least 1"),
            ("adder --max-batch-size ten", "'ten' is not a whole number"),
            ("adder --batch-wait-timeout-s -1", "'-1' is not a number of seconds|expected one argument"),
            ("adder --batch-wait-timeout-s=nan", "'nan' is not a number of seconds"),
            ("adder --port 70000", "'70000' is not a port from 1 to 65535"),
            ("adder --route-prefix add", "'add' doesn't begin with a slash"),
            ("adder --engine rey", r"'rey' is not one of ray, local \(did you mean ray\?\)"),
            ("adder --ingress nginx", "'nginx' is not one of auto, haproxy, python; see"),
            ("--share adder", "needs a name before its options: %%serve adder --share"),
            ("adder subtractor", "can't use 'subtractor'"),
            ("adder --example takn", r"no name 'takn' \(did you mean taken\?\)"),
            ("adder --example taken.reel", r"taken has no attribute 'reel' \(did you mean real\?\)"),
            ("adder --example 3", "'3' is not a name of the notebook: assign"),
            ("adder --http-adapter no_such", "no name 'no_such'"),
            ("adder --max-batch-size {n_}", "'{n_}' could not be expanded"),
            ("adder --example {'a':1}", "could not be expanded|is not a name of the notebook"),
            ("adder --example 'open", "can't read its line"),
            ("adder --no-batching --max-batch-size 3", "--no-batching goes with neither"),
        ],
    )
    def test_before_the_cell_runs(
        self, shell: InteractiveShell, deployments: Deployments, line: str, words: str
    ) -> None:
        """A bad line is one UsageError, of that very class, and nothing has run."""
        shell.user_ns["taken"] = 3
        with pytest.raises(UsageError, match=words) as caught:
            serve(shell, line)
        assert caught.type is UsageError
        assert "predict" not in shell.user_ns
        assert not deployments.calls

    def test_empty_body(self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        """IPython refuses it and points to the line magic."""
        assert not shell.run_cell("%%serve adder\n").success
        assert "cell body is empty" in capsys.readouterr().err

    def test_usage_error_is_one_line(
        self, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No traceback, and the cell counts as failed."""
        assert not shell.run_cell(f"%%serve adder --bogus\n{PREDICT}").success
        out, err = capsys.readouterr()
        assert (out, err) == ("", "UsageError: %%serve has no option --bogus; see %%serve --help.\n")

    @pytest.mark.parametrize(
        ("cell", "line"),
        [
            ("1 / 0", "Not deployed: the cell above raised ZeroDivisionError."),
            ("x = 1", "CellError: The cell defines no predictor"),
        ],
    )
    def test_failing_cell_stops_run_all(
        self,
        shell: InteractiveShell,
        deployments: Deployments,
        capsys: pytest.CaptureFixture[str],
        cell: str,
        line: str,
    ) -> None:
        """The outer cell fails too, in one line beside the user's own traceback."""
        result = shell.run_cell(f"%%serve adder\n{cell}")
        assert isinstance(result.error_in_exec, CellError)
        assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith(line)
        assert not deployments.calls
        assert "adder" not in shell.user_ns

    def test_failed_deployment_is_one_sentence(
        self, shell: InteractiveShell, deployments: Deployments, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The frames of the magic are not shown, and NAME stays unbound."""
        deployments.error = DeployError("No port is free.")
        assert not shell.run_cell(f"%%serve adder\n{PREDICT}").success
        assert capsys.readouterr().out == "Starting …\nDeployError: No port is free.\n"
        assert "adder" not in shell.user_ns

    def test_inside_another_magic(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """%%time above it, or a cell that is run by code, changes nothing: it is served, and a failure passes on."""
        assert shell.run_cell(f"%%time\n%%serve timed\n{PREDICT}").success
        outer = f"get_ipython().run_cell({f'%%serve nested{chr(10)}{PREDICT}'!r}).raise_error()"
        assert shell.run_cell(outer).success
        assert sorted(deployments.running) == ["nested", "timed"]
        assert not shell.run_cell("%%time\n%%serve broken\n1 / 0").success

    def test_an_old_class_is_never_taken_for_the_new_one(
        self, shell: InteractiveShell, deployments: Deployments
    ) -> None:
        """Python gives a new object the id of one that is gone: each run serves what that run has made."""
        for run in range(20):
            serve(shell, "adder", f"{PREDICT}\npredict.run = {run}")
            assert deployments.calls.pop()[0].run == run
        with pytest.raises(CellError, match="defines no predictor"):
            serve(shell, "adder", "predict = predict")

    def test_interrupt_passes_through(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """An interrupt during the deployment is not swallowed."""
        deployments.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            serve(shell, "adder")

    def test_interrupt_says_what_serves(
        self, shell: InteractiveShell, deployments: Deployments, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What was found out about it is the one line that is shown, not a note below Ray's frames."""
        deployments.error = KeyboardInterrupt()
        deployments.error.add_note("adder v1 goes on serving.")
        assert not shell.run_cell(f"%%serve adder\n{PREDICT}").success
        shown = capsys.readouterr().out
        assert shown.splitlines()[-1] == "KeyboardInterrupt: adder v1 goes on serving."
        assert "magic_serve.py" not in shown


TWO = """
from airserve_nb import Predictor

class One(Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint): return cls()
    def predict(self, data): return data

class Two(One):
    pass
"""


class TestFurtherOptions:
    def test_class_picks_one(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """Of several predictors --class names the one to serve; without it, or with another name, a sentence."""
        with pytest.raises(CellError, match="defines 2 predictors, One and Two: choose one with --class"):
            serve(shell, "adder", TWO)
        with pytest.raises(CellError, match="no predictor called 'Three', only One and Two"):
            serve(shell, "adder --class Three", TWO)
        serve(shell, "adder --class Two", TWO)
        assert deployments.calls[0][0] is shell.user_ns["Two"]
        assert deployments.options == {}

    def test_arguments_of_the_predictor(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """Dicts of the notebook go to predict and from_checkpoint, CPUs to Ray."""
        shell.run_cell("mine = {'a': 1}; yours = {'b': 2}")
        serve(shell, "adder --predict-kwargs mine --checkpoint-kwargs yours --num-cpus 0.5")
        assert deployments.options == {
            "predict_kwargs": {"a": 1},
            "checkpoint_kwargs": {"b": 2},
            "num_cpus": 0.5,
        }
        with pytest.raises(UsageError, match="'many' is not a number of CPUs"):
            serve(shell, "adder --num-cpus many")

    @pytest.mark.parametrize(
        ("line", "options"),
        [
            ("adder --address auto", {"address": "auto"}),
            ("adder --address ray://head:10001", {"address": "ray://head:10001"}),
            ("adder --share", {"share": True}),
            ("adder --share --port 8123", {"share": True, "port": 8123}),
            ("adder --share 127.0.0.2", {"share": "127.0.0.2"}),
            ("adder --no-overlap", {"overlap": False}),
            ("adder --ingress python", {"ingress": "python"}),
        ],
    )
    def test_where_and_for_whom(
        self, shell: InteractiveShell, deployments: Deployments, line: str, options: dict[str, Any]
    ) -> None:
        """A cluster, a room of others and a small memory are asked for in a word, and passed only then."""
        serve(shell, line)
        assert deployments.options == options

    def test_how_to_join_is_shown_once(
        self, shell: InteractiveShell, deployments: Deployments, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The notice that holds the token is displayed by the cell that shares, and by no other."""

        class Notice:
            def __repr__(self) -> str:
                return "token: only now"

        deployments.sharing = Notice()
        for line, shown in (("--share", 1), ("--share --quiet", 1), ("", 0)):
            serve(shell, f"adder {line}")
            assert capsys.readouterr().out.count("token: only now") == shown

    def test_quiet(self, shell: InteractiveShell, deployments: Deployments) -> None:
        """--quiet binds the name and shows nothing."""
        assert serve(shell, "adder --quiet") is None
        assert isinstance(shell.user_ns["adder"], FakeService)

    def test_a_failure_in_a_replica_shows_the_users_frames(
        self, shell: InteractiveShell, deployments: Deployments
    ) -> None:
        """Within ten lines: the last frames of the user's code, and the sentence."""
        error = DeployError("adder could not start: KeyError: 'weights'.")
        error.frames = "\n".join(f"frame {i}" for i in range(30))
        deployments.error = error
        with pytest.raises(DeployError) as raised:
            serve(shell, "adder")
        lines = raised.value._render_traceback_()  # type: ignore[attr-defined]
        assert lines[-2:] == ["frame 29", "DeployError: adder could not start: KeyError: 'weights'."]
        assert len(lines) <= 10


class TestManaging:
    """On the local engine, for real."""

    @pytest.fixture
    def real(self, no_leftovers: None) -> Iterator[InteractiveShell]:
        config = Config()
        config.HistoryManager.enabled = False
        shell = InteractiveShell(config=config, colors="nocolor")
        magic_loading.load(shell)
        shell.run_cell_magic("serve", "adder --engine local --quiet", PREDICT)
        yield shell
        deploying.stop()
        shell.reset(new_session=False)

    def test_code(self, real: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        """%serve_code prints the live cell; a service that no cell made has none."""
        real.run_line_magic("serve_code", "adder")
        assert capsys.readouterr().out.strip() == f"%%serve adder --engine local --quiet\n{PREDICT}".strip()
        deploying.deploy(real.user_ns["predict"], name="other", engine="local")
        with pytest.raises(UsageError, match="other was not made by a cell"):
            real.run_line_magic("serve_code", "other")

    def test_logs(self, real: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        """%serve_logs prints the last entries, as many as asked for."""
        cell = "import numpy as np\ndef predict(batch: np.ndarray): raise KeyError('weights')"
        real.run_cell_magic("serve", "adder --engine local --quiet", cell)
        for _ in range(3):
            assert real.user_ns["adder"].request({"array": [1]}).status_code == 500
        capsys.readouterr()
        real.run_line_magic("serve_logs", "adder -n 1")
        assert capsys.readouterr().out.count("predict raised KeyError") == 1

    def test_stop(self, real: InteractiveShell) -> None:
        """%serve_stop ends one, or all."""
        real.run_cell_magic("serve", "second --engine local --quiet", PREDICT)
        real.run_line_magic("serve_stop", "adder")
        assert set(deploying.services()) == {"second"}
        real.run_line_magic("serve_stop", "--all")
        assert deploying.services() == {}

    @pytest.mark.parametrize(
        ("magic", "line", "words"),
        [
            ("serve_stop", "", "needs either a name"),
            ("serve_stop", "adder --all", "needs either a name"),
            ("serve_stop", "addr", r"No service is called 'addr' \(did you mean adder\?\)"),
            ("serve_logs", "", "%serve_logs needs the name of a service"),
            ("serve_logs", "adder -n many", "'many' is not a whole number"),
            ("serve_code", "nobody", "No service is called 'nobody'; %serve shows"),
        ],
    )
    def test_refusals(self, real: InteractiveShell, magic: str, line: str, words: str) -> None:
        """A wrong line is one sentence, and ends nothing."""
        with pytest.raises(UsageError, match=words):
            real.run_line_magic(magic, line)
        assert set(deploying.services()) == {"adder"}


class TestOthers:
    def test_serve_line_lists_services(self, shell: InteractiveShell) -> None:
        """%serve shows what runs, in a text that is the same on every run."""
        assert "No services" in repr(shell.run_line_magic("serve", ""))
        serve(shell, "adder")
        assert repr(shell.run_line_magic("serve", "")) == "adder  running, engine local"

    def test_warm_starts_ray_in_the_background(
        self, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """%serve --warm calls the function of that name with what %config says, and shows nothing."""
        calls: list[dict[str, Any]] = []
        monkeypatch.setattr(airserve_nb, "warm_up", lambda **options: calls.append(options), raising=False)
        assert shell.run_line_magic("serve", "--warm") is None
        shell.run_line_magic("config", "AirServeMagics.port = 8123")
        shell.run_line_magic("config", "AirServeMagics.ingress = 'python'")
        assert shell.run_line_magic("serve", "--warm") is None
        nothing_said = {"engine": None, "port": None, "ingress": "auto"}
        assert calls == [nothing_said, {**nothing_said, "port": 8123, "ingress": "python"}]

    def test_serve_line_takes_no_name(self, shell: InteractiveShell) -> None:
        """Who meant the cell magic is told."""
        with pytest.raises(
            UsageError, match="%serve can't use 'adder'; to serve a cell, begin it with %%serve adder"
        ):
            shell.run_line_magic("serve", "adder")

    @pytest.mark.parametrize("how", ["bound", "only running", "url"])
    def test_probe(self, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        """%probe takes a variable, a service's name or a URL, and returns the result."""
        seen: dict[str, Any] = {}

        def probe(target: Any, **options: Any) -> str:
            seen.update(options, target=target)
            return "result"

        monkeypatch.setattr(airserve_nb, "probe", probe)
        deployed = serve(shell, "adder")
        if how == "only running":
            del shell.user_ns["adder"]
        target = "http://127.0.0.1:8000/x" if how == "url" else deployed
        line = f"{target if how == 'url' else 'adder'} --requests 20 --concurrency 5"
        assert shell.run_line_magic("probe", line) == "result"
        assert seen == {"target": target, "requests": 20, "concurrency": 5}

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("", "needs the name of a service or a URL"),
            ("addr", r"No service is called 'addr' \(did you mean adder\?\)"),
            ("x", "'x' is a int, and %probe needs a service"),
            ("adder --requests 0", "whole number of at least 1"),
            ("adder --request 3", r"did you mean --requests\?"),
        ],
    )
    def test_probe_refusals(self, shell: InteractiveShell, line: str, words: str) -> None:
        """A bad line of %probe is one UsageError."""
        serve(shell, "adder")
        shell.user_ns["x"] = 1
        with pytest.raises(UsageError, match=words):
            shell.run_line_magic("probe", line)


class TestLoading:
    def test_unload_restores_what_was_there(self) -> None:
        """A magic of the same name comes back, and the other tables are as before."""
        config = Config()
        config.HistoryManager.enabled = False
        shell = InteractiveShell(config=config)
        shell.register_magic_function(lambda line: "theirs", "line", "probe")
        tables = {kind: dict(table) for kind, table in shell.magics_manager.magics.items()}
        magic_loading.load(shell)
        magic_loading.load(shell)
        assert shell.find_cell_magic("serve") is not None
        magic_loading.unload(shell)
        magic_loading.unload(shell)
        assert shell.magics_manager.magics == tables
        assert shell.run_line_magic("probe", "") == "theirs"

    def test_unload_restores_completion_and_configuration(self) -> None:
        """Matchers, hooks and configurable objects are as they were, those that came after ours too."""
        config = Config()
        config.HistoryManager.enabled = False
        shell = InteractiveShell(config=config)
        theirs = [object(), object()]
        before = dict(shell.strdispatchers["complete_command"].strs)
        configurables = list(shell.configurables)
        magic_loading.load(shell)
        assert len(shell.Completer.custom_matchers) == 1
        shell.Completer.custom_matchers = [theirs[0], *shell.Completer.custom_matchers, theirs[1]]
        shell.configurables.append(theirs[0])
        magic_loading.unload(shell)
        assert shell.Completer.custom_matchers == theirs
        assert shell.configurables == [*configurables, theirs[0]]
        assert shell.strdispatchers["complete_command"].strs == before
        assert "AirServeMagics" not in shell.magics_manager.registry

    def test_reload_keeps_deployments(self, no_leftovers: None) -> None:
        """What serves goes on over %reload_ext, and the reloaded magics know it."""
        config = Config()
        config.HistoryManager.enabled = False
        shell = InteractiveShell(config=config)
        shell.run_line_magic("load_ext", "airserve_nb")
        try:
            service = shell.run_cell_magic("serve", "kept --engine local", PREDICT)
            shell.run_line_magic("reload_ext", "airserve_nb")
            assert deploying.services()["kept"] is service
            assert service.request({"array": [1]}).json() == [1.0]
            shell.run_line_magic("serve_stop", "kept")
            assert deploying.services() == {}
        finally:
            deploying.stop()

    def test_unload_leaves_a_later_magic(self, shell: InteractiveShell) -> None:
        """What someone registered over ours is theirs."""
        shell.register_magic_function(lambda line: "later", "line", "serve")
        magic_loading.unload(shell)
        assert shell.run_line_magic("serve", "") == "later"
        assert shell.find_cell_magic("serve") is None

    def test_extension(self, shell: InteractiveShell) -> None:
        """%load_ext, %reload_ext and %unload_ext work."""
        magic_loading.unload(shell)
        for command in ("load_ext", "reload_ext", "unload_ext"):
            assert shell.run_cell(f"%{command} airserve_nb").success
        assert shell.find_cell_magic("serve") is None

    def test_loading_imports_nothing_heavy(self) -> None:
        """%load_ext costs a bare import."""
        code = (
            "import sys\nfrom IPython.core.interactiveshell import InteractiveShell\n"
            "import airserve_nb\nbefore = set(sys.modules)\n"
            "airserve_nb.load_ipython_extension(InteractiveShell())\n"
            "heavy = {'ray', 'numpy', 'pandas', 'matplotlib', 'xgboost', 'fastapi', 'jinja2', 'pydantic', 'requests'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        done = subprocess.run(  # noqa: S603 - our own code
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout.strip() == "[]", done.stderr
