"""The public face: what is promised is there, named once, and documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import airserve_nb

# The names that users write; they do not change.
PROMISED = {
    "Checkpoint", "Predictor", "PredictorDeployment", "XGBoostCheckpoint", "XGBoostPredictor", "XGBoostTrainer",
    "Service", "ProbeResult", "http_adapters", "deploy", "probe", "services", "stop",
    "diagnose", "Diagnosis", "simulate", "Simulation", "plan_capacity", "CapacityPlan", "fit_service_time", "ServiceTime",
    "overview", "warm_up", "sweep", "SweepResult",
}  # fmt: skip
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(airserve_nb.__path__, "airserve_nb.")
    if not any(part.startswith("_") for part in module.name.split("."))
)


def by_kind(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions: the order that ruff checks."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_promised_names_are_there() -> None:
    """Every promised name, and every error, can be imported from the package."""
    assert set(airserve_nb.__all__) >= PROMISED
    for name in airserve_nb.__all__:
        assert getattr(airserve_nb, name) is not None
    errors = load("airserve_nb.errors").__all__
    assert set(errors) <= set(airserve_nb.__all__)


def test_dir_shows_every_public_name() -> None:
    """Completion in a notebook offers the names before they are loaded."""
    done = subprocess.run(
        [sys.executable, "-c", "import airserve_nb; print(*dir(airserve_nb))"],
        capture_output=True, text=True, timeout=60, check=True, cwd=Path(airserve_nb.__file__).parent.parent,
    )  # fmt: skip
    assert set(airserve_nb.__all__) <= set(done.stdout.split())


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="Chekpoint"):
        airserve_nb.Chekpoint  # noqa: B018 - that it is missing is the test
    with pytest.raises(ImportError):
        exec("from airserve_nb import Chekpoint", {})  # noqa: S102 - as a user would write it


def test_star_import_gives_exactly_the_public_names() -> None:
    """``from airserve_nb import *`` works and brings nothing else."""
    namespace: dict[str, object] = {}
    exec("from airserve_nb import *", namespace)  # noqa: S102 - a star import is only allowed at module level
    assert set(namespace) - {"__builtins__"} == set(airserve_nb.__all__)


def test_no_public_name_is_a_submodule() -> None:
    """``from airserve_nb import probe`` must never give a module, whatever was imported before."""
    submodules = {module.name for module in pkgutil.iter_modules(airserve_nb.__path__)}
    assert submodules & set(airserve_nb.__all__) == {"http_adapters"}
    for name in MODULES:
        load(name)
    for name in PROMISED - {"http_adapters"}:
        assert not inspect.ismodule(getattr(airserve_nb, name)), name


@pytest.mark.parametrize("name", ["airserve_nb", *MODULES])
def test_all_is_sorted_and_true(name: str) -> None:
    """Every public module lists its names, sorted, and has each."""
    module = load(name)
    listed = module.__all__
    assert listed == sorted(listed, key=by_kind)
    assert len(set(listed)) == len(listed)
    for public in listed:
        assert hasattr(module, public), public


@pytest.mark.parametrize("name", MODULES)
def test_all_is_complete(name: str) -> None:
    """A class or function defined in a public module under a public name is listed."""
    module = load(name)
    defined = {
        attribute
        for attribute, value in vars(module).items()
        if not attribute.startswith("_")
        # pydantic leaves the classes that it makes of generic ones in the module.
        and attribute.isidentifier()
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    assert defined <= set(module.__all__)


@pytest.mark.parametrize("name", ["airserve_nb", *MODULES])
def test_everything_public_is_documented(name: str) -> None:
    """Modules, classes, functions and their public methods say what they do."""
    module = load(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        if not (inspect.isclass(value) or inspect.isfunction(value)) or not value.__module__.startswith(
            "airserve_nb"
        ):
            continue
        assert value.__doc__, public
        members = vars(value).items() if inspect.isclass(value) else ()
        for member, function in members:
            if not member.startswith("_") and inspect.isfunction(function):
                assert inspect.getdoc(getattr(value, member)), f"{public}.{member}"


def test_public_names_say_where_they_live() -> None:
    """A class's ``__module__`` can be imported and has it: reprs, pickles and help() depend on it."""
    for name in airserve_nb.__all__:
        value = getattr(airserve_nb, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert getattr(load(value.__module__), value.__name__) is value


def test_the_types_travel() -> None:
    """The package says that it is typed."""
    assert (Path(airserve_nb.__file__).parent / "py.typed").exists()
