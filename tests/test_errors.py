"""The error tree: drawn as it is, and able to travel between processes whole."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from ray import cloudpickle

from airserve_nb import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_ours(cls: type[Exception]) -> None:
    """One ``except AirServeError`` catches all that is raised on purpose, and each says what it means."""
    assert issubclass(cls, errors.AirServeError)
    assert inspect.getdoc(cls)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not errors.AirServeError])
def test_the_drawing_is_true(cls: type[Exception]) -> None:
    """The tree at the top of the module shows each class with the built-in error that it also is."""
    drawn = re.search(rf"{cls.__name__}\s+(?:\((\w+)\))?", errors.__doc__ or "")
    assert drawn
    built_in = [base.__name__ for base in cls.__bases__ if base.__module__ == "builtins"]
    assert ([drawn[1]] if drawn[1] else []) == built_in


@pytest.mark.parametrize("dump", [pickle, cloudpickle])
@pytest.mark.parametrize(
    "error",
    [
        errors.AirServeError("a.", deployment="adder"),
        errors.BadInputError("a.", status=413, deployment="adder"),
        errors.QueueFullError("a.", retry_after_s=2.5),
        errors.PredictFailedError("a.", error_type="ValueError", error_message="m", isolated=False),
        errors.BadOutputError("a."),
        errors.DeployError("a.", deployment="x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_whole(error: errors.AirServeError, dump: object) -> None:
    """An error raised in a replica arrives with its message and all it knows."""
    back = dump.loads(dump.dumps(error))  # type: ignore[attr-defined]  # pickle and cloudpickle have both
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert getattr(back, "status", None) == getattr(error, "status", None)


def test_statuses() -> None:
    """Each request error has the HTTP status that fits, and another one can be given."""
    assert errors.RequestError("a.").status == errors.PredictFailedError("a.").status == 500
    assert errors.BadOutputError("a.").status == 500
    assert errors.BadInputError("a.").status == 422
    assert errors.QueueFullError("a.").status == 503
    assert errors.BadInputError("a.", status=413).status == 413
    assert errors.BadInputError.status == 422


def test_what_users_may_catch_instead() -> None:
    """Whoever does not know our names catches the usual ones."""
    with pytest.raises(ValueError, match="a"):
        raise errors.OptionError("a.")
    with pytest.raises(RuntimeError, match="a"):
        raise errors.DeployError("a.")
    with pytest.raises(TypeError, match="a"):
        raise errors.BadOutputError("a.")
