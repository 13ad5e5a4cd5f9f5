"""From what a user gives as ``http_adapter`` to what the endpoint runs.

Compiling is done twice: where the deployment is made, so that a bad adapter is refused there and then, and
again in every replica. In between the adapter travels by value, and a function's text annotations do not
travel with the names they mention; so the first compilation replaces them by the types themselves.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.params import Depends as DependsMarker
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from airserve_nb._adapter_read import RawRequest, suggestion
from airserve_nb.errors import OptionError, RequestError

__all__ = ["CompiledAdapter", "RawRequest", "compile_adapter"]

Answer = Callable[[Any, Request], Awaitable[Response]]
Refuse = Callable[[RequestError, Request], Response]

_OLD_MODULES = ("ray.serve.http_adapters",)


@dataclass(frozen=True)
class CompiledAdapter:
    """An adapter that has been found fit to serve."""

    name: str
    """What messages call it, such as ``json_to_ndarray``."""
    function: Callable[..., Any]
    """What FastAPI sees: its signature makes the OpenAPI."""
    read: Callable[[RawRequest], Any] | None
    """The built-in short way from a raw request to the model's input, which raises BadInputError.

    None: the request must go through :meth:`fastapi_app`.
    """

    def fastapi_app(self, answer: Answer, refuse: Refuse, *, title: str) -> FastAPI:
        """Return an application with one route, ``/`` (GET and POST), its schema and its ``/docs``.

        Parameters
        ----------
        answer
            Gets the model's input and the request, and returns the response, which is passed on as it is.
            What it raises is not touched either.
        refuse
            Makes the response to a request that the adapter refuses. The original exception, where there is
            one, is the error's ``__cause__``.
        title
            Heads the documentation.
        """
        from airserve_nb._adapter_app import build_app

        return build_app(self, answer, refuse, title=title)


def compile_adapter(adapter: object) -> CompiledAdapter:
    """Check ``adapter`` and make it ready to serve.

    Parameters
    ----------
    adapter
        A function with annotated parameters (plain or async), any other callable with them, a pydantic
        class, the import string of one of these, or None for ``starlette_request``.

        Text annotations of functions (``from __future__ import annotations``) are replaced, in place, by the
        types they name: the function can then be sent to another process.

    Raises
    ------
    OptionError
        With a sentence that names the parameter to mend.
    """
    from airserve_nb import http_adapters

    if adapter is None:
        adapter = http_adapters.starlette_request
    if isinstance(adapter, str):
        adapter = _import(adapter)
    if adapter is http_adapters.image_to_ndarray:
        _require_pillow()
    name = _name_of(adapter)
    function = _as_function(adapter, name)
    _resolve_annotations(function, name, seen=set())
    _check_parameters(function, name)
    compiled = CompiledAdapter(name=name, function=function, read=http_adapters.READERS.get(function))
    _try_route(compiled)
    return compiled


def _import(path: str) -> object:
    """Return what ``"package.module:attribute"`` or ``"package.module.attribute"`` names."""
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if module_name in _OLD_MODULES:
        module_name = "airserve_nb.http_adapters"
    if not module_name or not attribute or ":" in attribute:
        raise OptionError(f"The HTTP adapter {path!r} is not an import string; write 'package.module:name'.")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        raise OptionError(
            f"The HTTP adapter {path!r} can't be imported: {module_name} raised {type(error).__name__}: {error}."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = suggestion(part, [known for known in dir(found) if not known.startswith("_")])
            # A module's whole list of names would not help.
            hint = hint if "did you mean" in hint else "; check the spelling."
            raise OptionError(
                f"The HTTP adapter {path!r} can't be imported: {module_name} has no {part!r}{hint}"
            )
        found = getattr(found, part)
    return found


def _name_of(adapter: object) -> str:
    if isinstance(adapter, partial):
        return f"partial({_name_of(adapter.func)})"
    return getattr(adapter, "__name__", None) or type(adapter).__name__


def _as_function(adapter: object, name: str) -> Callable[..., Any]:
    if isinstance(adapter, type):
        if issubclass(adapter, BaseModel):
            return _model_adapter(adapter)
        raise OptionError(
            f"The HTTP adapter {name} is a class but not a pydantic model; give a callable function or pydantic model"
            " class."
        )
    if not callable(adapter):
        raise OptionError(
            f"The HTTP adapter {adapter!r} can't be called; give a callable function or pydantic model class."
        )
    try:
        hash(adapter)
    except TypeError:
        raise OptionError(
            f"The HTTP adapter {name} can't be hashed, as FastAPI needs; wrap it in a function."
        ) from None
    return adapter


def _model_adapter(model: type[BaseModel]) -> Callable[..., Any]:
    """Return an adapter that takes the model as the request's body and passes it on."""

    def adapter(payload: BaseModel) -> BaseModel:
        return payload

    adapter.__name__ = adapter.__qualname__ = model.__name__
    adapter.__annotations__ = {"payload": model, "return": model}
    return adapter


def _resolve_annotations(function: object, name: str, *, seen: set[int]) -> None:
    """Replace text annotations by types in ``function`` and in every dependency below it."""
    target = _annotated(function)
    if target is None or id(target) in seen:
        return
    seen.add(id(target))
    if any(isinstance(annotation, str) for annotation in target.__annotations__.values()):
        target.__annotations__ = _evaluated(target, name)
    for dependency in _dependencies(target):
        _resolve_annotations(dependency, name, seen=seen)


def _annotated(function: object) -> Any:
    """Return the plain function whose annotations count: below partials, methods and ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, type):
        function = function.__init__ if not issubclass(function, BaseModel) else None
    elif not inspect.isroutine(function):
        function = getattr(type(function), "__call__", None)  # noqa: B004 - the method itself is wanted
    function = getattr(function, "__func__", function)
    unwrapped = inspect.unwrap(function) if callable(function) else None
    return unwrapped if inspect.isfunction(unwrapped) else None


def _evaluated(function: Any, name: str) -> dict[str, Any]:
    closure = inspect.getclosurevars(function).nonlocals
    evaluated = {}
    for parameter, annotation in function.__annotations__.items():
        try:
            holder = type("Holder", (), {"__annotations__": {parameter: annotation}})
            hints = typing.get_type_hints(
                holder, globalns=function.__globals__, localns=closure, include_extras=True
            )
            evaluated[parameter] = hints[parameter]
        except Exception as error:  # an annotation is code: it may raise anything
            if parameter == "return":  # nobody reads it
                continue
            raise OptionError(
                f"The HTTP adapter {name}: the annotation {annotation!r} of the parameter {parameter!r} can't be"
                f" resolved ({error}); define or import its name at the top level of the module or notebook."
            ) from error
    return evaluated


def _dependencies(function: Any) -> Iterator[object]:
    """Yield the functions that the parameters of ``function`` depend on."""
    for parameter in inspect.signature(function).parameters.values():
        markers = [parameter.default, *getattr(parameter.annotation, "__metadata__", ())]
        for marker in markers:
            if isinstance(marker, DependsMarker):
                annotation = parameter.annotation
                yield marker.dependency or getattr(annotation, "__origin__", annotation)


def _check_parameters(function: Callable[..., Any], name: str) -> None:
    """Refuse parameters that nothing could fill."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise OptionError(
            f"The HTTP adapter {name} does not tell its parameters; wrap it in a type annotated function."
        ) from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise OptionError(
                f"The HTTP adapter {name} takes {str(parameter).split(':')[0]!r}, which a request can't fill;"
                " name its parameters."
            )
        if parameter.annotation is parameter.empty and not _is_filled(parameter):
            raise OptionError(
                f"The HTTP adapter {name} must be type annotated, but its parameter {parameter.name!r} is not;"
                f" write for example 'def adapter({parameter.name}: float): ...'."
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise OptionError(
                f"The HTTP adapter {name}: the parameter {parameter.name!r} is positional-only, but parameters are"
                " given by name; remove the '/'."
            )


def _is_filled(parameter: inspect.Parameter) -> bool:
    """Whether a default tells FastAPI all about the parameter: ``x=Depends(function)``."""
    return isinstance(parameter.default, DependsMarker)


def _try_route(compiled: CompiledAdapter) -> None:
    """Build the route and its schema once, so that FastAPI's objections come now."""

    async def answer(_value: Any, _request: Request) -> Response:  # pragma: no cover - never called
        return Response()

    def refuse(_error: RequestError, _request: Request) -> Response:  # pragma: no cover - never called
        return Response()

    try:
        compiled.fastapi_app(answer, refuse, title=compiled.name).openapi()
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(
            f"The HTTP adapter {compiled.name} can't be used by FastAPI: {_first_sentence(error)}; annotate its"
            " parameters with plain types, pydantic models or Annotated[..., Depends(...)]."
        ) from error


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ", 1)[0].rstrip(".!")


def _require_pillow() -> None:
    """Raise OptionError where Pillow is missing, when the deployment is made and not at the first image."""
    try:
        import PIL.Image  # noqa: F401 - only whether it is there
    except ImportError:
        raise OptionError(
            "image_to_ndarray needs the package Pillow; install it with 'pip install pillow'."
        ) from None
