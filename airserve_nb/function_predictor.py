"""A plain function as a predictor.

``predict(batch) -> batch`` is all that many models need. :func:`as_predictor` wraps such a function in a
:class:`~airserve_nb.predictor.Predictor` class made for it, and reads from the annotation of its first
parameter which HTTP adapter gives it what it expects::

    np.ndarray                     json_to_ndarray
    dict, dict[str, np.ndarray]    json_to_multi_ndarray
    pd.DataFrame                   pandas_read_json

The class is made at run time, so no process can import it: cloudpickle sends it by value, with the
function, and the function by value too when it is defined in the notebook.
"""

from __future__ import annotations

import inspect
import typing
from abc import ABCMeta
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Annotated, Any, ClassVar, Self, cast, get_args, get_origin

import numpy as np

from airserve_nb.checkpoint import Checkpoint
from airserve_nb.errors import OptionError, PredictorError
from airserve_nb.predictor import Predictor

__all__ = ["AsyncFunctionPredictor", "FunctionPredictor", "as_predictor"]

_ANNOTATIONS = "np.ndarray, dict[str, np.ndarray] or pd.DataFrame"


class FunctionPredictor(Predictor):
    """Calls one function for every batch; :func:`as_predictor` makes a subclass for each function."""

    function: ClassVar[Callable[..., Any]]
    """A batch and ``predict_kwargs`` in, a batch out."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, **kwargs: Any) -> Self:
        """Make the predictor.

        Raises
        ------
        PredictorError
            When there is something in the checkpoint, or a keyword argument: a function has no place for
            either, and leaving them out without a word would serve another model than was meant.
        """
        name = cls.function.__name__
        if kwargs:
            given = ", ".join(sorted(kwargs))
            raise PredictorError(
                f"The function {name} can't take the checkpoint's keyword arguments ({given}): "
                "pass them as predict_kwargs, or write a Predictor class."
            )
        if _holds_something(checkpoint):
            raise PredictorError(
                f"The function {name} can't take a checkpoint: let it use a model of the notebook, "
                "or write a Predictor class whose from_checkpoint loads the model."
            )
        return cls()

    def predict(self, data: Any, **kwargs: Any) -> Any:
        """Return ``function(data, **kwargs)``."""
        return type(self).function(data, **kwargs)


class AsyncFunctionPredictor(FunctionPredictor):
    """The same for an ``async def`` function."""

    async def predict(self, data: Any, **kwargs: Any) -> Any:
        """Await ``function(data, **kwargs)``."""
        return await type(self).function(data, **kwargs)


def as_predictor(obj: Any, *, http_adapter: Any = None) -> tuple[type[Predictor], Any]:
    """Return a Predictor class for a class or a function, and the HTTP adapter that suits it.

    Parameters
    ----------
    obj
        A :class:`Predictor` subclass, which is returned as it is, or a function that takes a batch as
        its only required positional parameter. It may be ``async``; its further parameters are
        set by ``predict_kwargs``.
    http_adapter
        The adapter that the caller chose. It is returned as it is, and the annotation isn't read.

    Returns
    -------
    tuple
        The class, and the adapter: the given one; for a function else the one that its annotation asks
        for; for a class else None, which leaves the choice to the deployment.

    Raises
    ------
    PredictorError
        When ``obj`` can't be made a predictor: an instance, another class, a callable that is no
        function, a function with other parameters.
    OptionError
        When no adapter is given and the annotation names none.

    Examples
    --------
    >>> import numpy as np
    >>> def double(batch: np.ndarray) -> np.ndarray:
    ...     return 2 * batch
    >>> predictor_cls, adapter = as_predictor(double)
    >>> predictor_cls.__name__, adapter.__name__
    ('double', 'json_to_ndarray')
    """
    if isinstance(obj, type):
        _check_class(obj)
        return obj, http_adapter
    if not isinstance(obj, FunctionType):
        raise PredictorError(_not_a_function(obj))
    parameter = _batch_parameter(obj)
    adapter = http_adapter if http_adapter is not None else _adapter_for(obj, parameter)
    return _make_class(obj), adapter


def _make_class(function: FunctionType) -> type[Predictor]:
    base = AsyncFunctionPredictor if inspect.iscoroutinefunction(function) else FunctionPredictor
    members = {
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "function": staticmethod(function),
    }
    return cast("type[Predictor]", ABCMeta(function.__name__, (base,), members))


def _holds_something(checkpoint: Checkpoint) -> bool:
    # A directory or a URI holds something by being named; only a dict can be empty without reading it.
    return checkpoint.uri is not None or checkpoint.path is not None or bool(checkpoint.to_dict())


def _check_class(cls: type) -> None:
    if not issubclass(cls, Predictor):
        advice = (
            f"write class {cls.__name__}(Predictor)"
            if callable(getattr(cls, "predict", None))
            else "give a Predictor subclass, or a function that takes a batch and returns one"
        )
        raise PredictorError(f"The class {cls.__name__} is no Predictor: {advice}.")
    if inspect.isabstract(cls):
        missing = " and ".join(sorted(cls.__abstractmethods__))
        raise PredictorError(f"The class {cls.__name__} doesn't define {missing}: add it to the class.")


def _not_a_function(obj: Any) -> str:
    kind = type(obj).__name__
    if isinstance(obj, Predictor):
        return (
            f"A {kind} instance was given: give the class {kind} and its checkpoint, "
            "so that every replica can make its own."
        )
    if inspect.ismethod(obj):
        return (
            f"The method {obj.__qualname__} was given: wrap it, as in "
            f"def predict(batch: np.ndarray): return model.{obj.__name__}(batch)."
        )
    if callable(getattr(obj, "predict", None)):
        return (
            f"A {kind} instance was given: wrap its predict, as in "
            "def predict(batch: np.ndarray): return model.predict(batch)."
        )
    if callable(obj):
        return f"A {kind} was given: wrap it in a function, as in def predict(batch: np.ndarray): ..."
    return f"A {kind} was given: give a Predictor class, or a function that takes a batch and returns one."


def _batch_parameter(function: FunctionType) -> inspect.Parameter:
    """Return the parameter that takes the batch."""
    name = function.__name__
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise PredictorError(f"The function {name} yields: collect the results and return them as one batch.")
    positional = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if not positional:
        raise PredictorError(
            f"The function {name} has no parameter for the batch: write def {_as_name(name)}(batch: np.ndarray)."
        )
    required = [parameter.name for parameter in positional if parameter.default is parameter.empty]
    if len(required) > 1:
        raise PredictorError(
            f"The function {name} asks for {len(required)} arguments ({', '.join(required)}) but is called "
            "with the batch alone: give the others a default and set them by predict_kwargs."
        )
    return positional[0]


def _as_name(name: str) -> str:
    return name if name.isidentifier() else "predict"


def _adapter_for(function: FunctionType, parameter: inspect.Parameter) -> Any:
    """Return the adapter that makes what the parameter's annotation promises."""
    import pandas as pd

    from airserve_nb import http_adapters

    annotation = _annotation(function, parameter)
    origin = get_origin(annotation) or annotation
    if isinstance(origin, type):
        if issubclass(origin, np.ndarray):
            return http_adapters.json_to_ndarray
        if issubclass(origin, pd.DataFrame):
            return http_adapters.pandas_read_json
        if issubclass(origin, dict) or origin is Mapping:
            return http_adapters.json_to_multi_ndarray
    shown = getattr(annotation, "__name__", None) or str(annotation)
    raise OptionError(
        f"No HTTP adapter makes a {shown}, which {function.__name__} takes as {parameter.name!r}: "
        f"annotate it as {_ANNOTATIONS}, or give an http_adapter."
    )


def _annotation(function: FunctionType, parameter: inspect.Parameter) -> Any:
    """Return the annotation with ``from __future__ import annotations`` and ``Annotated`` undone."""
    name = function.__name__
    if parameter.annotation is parameter.empty:
        advice = (
            "a lambda can't be annotated, so write it with def or give an http_adapter"
            if name == "<lambda>"
            else f"annotate it as {_ANNOTATIONS}, or give an http_adapter"
        )
        raise OptionError(f"The parameter {parameter.name!r} of {name} has no annotation: {advice}.")
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = _evaluate(function, parameter)
        except Exception as error:
            raise OptionError(
                f"The annotation {parameter.annotation!r} of {parameter.name!r} in {name} can't be read "
                f"({type(error).__name__}: {error}): import what it names."
            ) from error
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _evaluate(function: FunctionType, parameter: inspect.Parameter) -> Any:
    # Of this parameter alone: what the other annotations name need not exist at run time.
    def probe() -> None: ...

    probe.__annotations__ = {parameter.name: parameter.annotation}
    return typing.get_type_hints(probe, globalns=function.__globals__)[parameter.name]
