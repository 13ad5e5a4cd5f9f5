"""Who may import whom: what keeps the parts apart, and ``%load_ext`` quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import airserve_nb

PACKAGE = Path(airserve_nb.__file__).parent
FILES = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}

NOTEBOOK = {"IPython", "ipywidgets", "anywidget", "traitlets"}
# The pure and the server's side: neither Ray nor the notebook.
SERVING = (
    "checkpoint.py", "_checkpoint_", "predictor.py", "predictors/", "function_predictor.py", "http_adapters.py",
    "_adapter_", "_data.py", "encoding.py", "batching/", "telemetry.py", "logbook.py", "asgi.py", "exchange.py", "endpoint.py", "version.py",
    "truth.py", "follower.py", "history.py", "diagnosis.py", "_diagnosis_", "simulation.py", "_virtual_clock.py",
    "capacity.py", "_capacity_search.py", "service_time.py", "_model_figures.py",
    "figures.py", "_figure_base.py", "_timeline.py", "_batch_strips.py", "_occupancy.py", "_latency_curve.py",
    "_time_parts.py", "_throughput_curve.py", "_sweep_figures.py", "_comparison_figure.py", "loadgen/", "errors.py", "links.py", "output.py", "engines/base.py", "engines/local.py",
    "engines/ports.py", "engines/memory.py", "sharing/",
)  # fmt: skip
MAY_IMPORT_RAY = {
    "deployment.py", "replica.py", "engines/ray.py", "engines/ray_attach.py", "engines/ray_calls.py", "engines/ray_cluster.py", "engines/ray_host.py",
    "engines/ray_lean.py", "engines/ray_placement.py", "engines/ray_token.py", "engines/ray_travel.py", "engines/ray_truth.py", "trainers.py",
}  # fmt: skip
MAY_IMPORT_NOTEBOOK = {"magics.py", "magic_", "cell.py", "cell_names.py", "display.py", "progress.py"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level packages that a module imports, anywhere in it, except for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]
        yield from imported(node)


def packages(name: str) -> set[str]:
    return set(imported(ast.parse(FILES[name].read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(SERVING)])
def test_the_serving_side_knows_neither_ray_nor_the_notebook(name: str) -> None:
    """What serves can be used, and tested, without Ray and without a notebook."""
    # One function asks whether a value is a ray.train.Checkpoint, and does not import ray for it.
    assert not packages(name) & {*NOTEBOOK, "ray"}


@pytest.mark.parametrize("name", FILES)
def test_ray_is_imported_by_few(name: str) -> None:
    """Only the deployment, the Ray engine and the trainers import ray."""
    assert name in MAY_IMPORT_RAY or "ray" not in packages(name)


@pytest.mark.parametrize("name", FILES)
def test_the_notebook_is_imported_by_few(name: str) -> None:
    """Only the magics and what they show import IPython or widgets."""
    allowed = name.startswith((*MAY_IMPORT_NOTEBOOK, "panel/"))
    assert allowed or not packages(name) & NOTEBOOK


@pytest.mark.parametrize("name", FILES)
def test_nothing_outside_is_written_relative(name: str) -> None:
    """Imports are absolute: a reader sees where a name comes from."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def run(code: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = "print(sorted({m.partition('.')[0] for m in sys.modules} & {%s}))"
HEAVY = LOADED % "'ray', 'pandas', 'matplotlib', 'xgboost', 'sklearn', 'fastapi', 'numpy'"


def test_importing_the_package_loads_nothing_heavy() -> None:
    """``import airserve_nb`` costs next to nothing."""
    assert run(f"import sys, airserve_nb; {HEAVY}") == "[]"


def test_loading_the_extension_loads_nothing_heavy() -> None:
    """``%load_ext airserve_nb`` loads none of ray, pandas, matplotlib and xgboost."""
    code = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell; shell = InteractiveShell.instance(); "
        "before = set(sys.modules); shell.run_line_magic('load_ext', 'airserve_nb'); "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new & {'ray', 'pandas', 'matplotlib', 'xgboost'}))"
    )
    assert run(code).splitlines()[-1] == "[]"


def test_the_local_engine_serves_without_ray() -> None:
    """A deployment on the local engine answers, and ray was never imported."""
    code = """
import sys
import airserve_nb
class Adder(airserve_nb.Predictor):
    @classmethod
    def from_checkpoint(cls, checkpoint): return cls()
    def predict(self, x): return x + 2
service = airserve_nb.deploy(Adder, engine="local")
print(service.request({"array": [40]}).json(), repr(service), service._repr_html_() != "")
service.requests(), service.batches(), service.statistics(), service.logs(), service.stop()
print(sorted({m.partition(".")[0] for m in sys.modules} & {"ray", "xgboost"}))
"""
    lines = run(code).splitlines()
    assert lines[0].startswith("[42.0] ")
    assert lines[-1] == "[]"


def test_the_probe_and_the_checkpoint_need_no_ray() -> None:
    """The other public names that have nothing to do with Ray do not load it."""
    names = (
        "Checkpoint, Predictor, XGBoostCheckpoint, ProbeResult, Service, http_adapters, probe, services, stop"
    )
    assert run(f"import sys; from airserve_nb import {names}; {LOADED % repr('ray')}") == "[]"
