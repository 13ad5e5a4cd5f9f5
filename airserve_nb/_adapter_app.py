"""The FastAPI application around one adapter: its routes, its schema, its refusals.

FastAPI resolves the adapter's parameters and describes them. What it would answer by itself (lists of
validation errors, "Internal Server Error") becomes one sentence each.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from airserve_nb._adapter_errors import refusal_for
from airserve_nb._adapter_example import example_from_openapi
from airserve_nb._adapter_read import (
    check_form_content_type,
    check_json_content_type,
    check_query_names,
    parse_json,
)
from airserve_nb._docs_page import docs_page
from airserve_nb.errors import OptionError, RequestError

if TYPE_CHECKING:
    from airserve_nb._adapter_compile import Answer, CompiledAdapter, Refuse

__all__ = ["ErrorAnswer", "build_app"]

_NOT_FOUND = 404
_METHOD_NOT_ALLOWED = 405
_METHODS = ("POST", "GET")

_Headers = Sequence[tuple[bytes, bytes]]
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ErrorAnswer(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: Annotated[str, Field(description="One sentence: what happened, the value, what to do.")]
    request_id: Annotated[str, Field(description="The request's id in the server's log.")]


class _AnswerError(Exception):
    """Carries what ``answer`` raised past the handling of the adapter's own exceptions."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _JsonRequest(Request):
    """A request whose JSON is read as the built-in adapters read it."""

    example = ""

    async def json(self) -> Any:
        """Return the parsed body; BadInputError when it is not JSON."""
        if not hasattr(self, "_parsed"):
            self._parsed = parse_json(await self.body(), self.example)
        return self._parsed


def build_app(compiled: CompiledAdapter, answer: Answer, refuse: Refuse, *, title: str) -> FastAPI:
    """Return the application that ``CompiledAdapter.fastapi_app`` describes."""
    options: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False}
    if "strict_content_type" in inspect.signature(FastAPI.__init__).parameters:
        # Newer FastAPI takes a body without a Content-Type for bytes; a plain socket sends such.
        options["strict_content_type"] = False
    app = FastAPI(title=title, description=_description(compiled), **options)
    app.router.route_class = _guarded_route(app, compiled, refuse)
    _add_routes(app, compiled, answer)
    app.add_route("/docs", _docs_endpoint(app, title), include_in_schema=False)
    app.add_exception_handler(HTTPException, functools.partial(_refuse_elsewhere, refuse=refuse))
    return app


def _description(compiled: CompiledAdapter) -> str:
    return inspect.cleandoc(compiled.function.__doc__ or "").split("\n\n", 1)[0].replace("``", "`")


def _add_routes(app: FastAPI, compiled: CompiledAdapter, answer: Answer) -> None:
    """Add GET and POST, with the slash and without.

    Without it, a redirect would cost a round trip and turn the POST of some clients into a GET.
    """
    from airserve_nb.http_adapters import OPENAPI_EXTRA

    extra = OPENAPI_EXTRA.get(compiled.function)

    async def predict(request: Request, value: Any) -> Response:
        try:
            return await answer(value, request)
        except Exception as error:
            raise _AnswerError(error) from error

    # Written out, because FastAPI would look for the name `compiled` among this module's globals.
    predict.__annotations__ = {"request": Request, "value": Annotated[Any, Depends(compiled.function)]}
    has_body = False
    for path in ("/", ""):
        for method in _METHODS:
            app.add_api_route(
                path,
                predict,
                methods=[method],
                name=compiled.name,
                summary="Predict",
                operation_id=f"predict_{method.lower()}{'' if path else '_bare'}",
                response_model=None,
                response_class=Response,
                responses=_responses(),
                openapi_extra=extra,
                # A GET can carry a body, but no client that reads a schema should be told to send one.
                include_in_schema=bool(path) and not (method == "GET" and has_body),
            )
            route = app.router.routes[-1]
            has_body = has_body or bool(extra) or getattr(route, "body_field", None) is not None


def _responses() -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": "The model's answer.", "content": {"application/json": {"schema": {}}}},
        "4XX": {"description": "The request is refused; one sentence says why.", "model": ErrorAnswer},
        "5XX": {"description": "The model failed; one sentence says how.", "model": ErrorAnswer},
    }


def _guarded_route(app: FastAPI, compiled: CompiledAdapter, refuse: Refuse) -> type[APIRoute]:
    """Return a route class that checks a request first, and refuses in our words."""

    @functools.lru_cache(maxsize=1)
    def example() -> str:
        from airserve_nb.http_adapters import EXAMPLES

        known = EXAMPLES.get(compiled.function)
        body = _example(app).get("json") if known is None else None
        return known or ("" if body is None else json.dumps(body))

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> _Handler:
            inner = super().get_route_handler()
            known = _query_names(self.dependant)
            check_content_type = _content_type_check(self)

            async def handle(request: Request) -> Response:
                request = _JsonRequest(request.scope, request.receive)
                request.example = example()
                try:
                    if known is not None:
                        check_query_names(request.scope["query_string"], known)
                    check_content_type(request.scope["headers"])
                    return await inner(request)
                except _AnswerError as error:
                    raise error.error from error.error.__cause__
                except Exception as error:  # noqa: BLE001 - an adapter may raise anything
                    return _refused(error, request)

            return handle

    def _refused(error: Exception, request: _JsonRequest) -> Response:
        refusal = refusal_for(error, adapter=compiled.name, example=request.example)
        response = refuse(refusal, request)
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    return GuardedRoute


def _content_type_check(route: APIRoute) -> Callable[[_Headers], None]:
    """Return what refuses the content types that the route's body can't have."""
    body = None if route.body_field is None else route.body_field.field_info
    if body is not None and not isinstance(body, Form):
        return check_json_content_type
    if body is not None and body.is_required():
        return check_form_content_type
    return lambda _headers: None


def _example(app: FastAPI) -> dict[str, Any]:
    """Return the simplest request, or nothing where there is none."""
    try:
        return example_from_openapi(app.openapi())
    except OptionError:
        return {}


def _query_names(dependant: Dependant) -> frozenset[str] | None:
    """Return the query parameters that anything reads; None when something may read all of them."""
    names: set[str] = set()
    for part in _tree(dependant):
        takes_request = part.request_param_name or part.http_connection_param_name
        if takes_request and part is not dependant and not _reads_no_query(part.call):
            return None
        for field in part.query_params:
            model = field.field_info.annotation
            if isinstance(model, type) and issubclass(model, BaseModel):
                if model.model_config.get("extra") == "allow":
                    return None
                names.update(info.alias or name for name, info in model.model_fields.items())
            else:
                names.add(field.alias)
    return frozenset(names)


def _reads_no_query(function: object) -> bool:
    """Whether it is one of ours that takes the request for its body alone."""
    from airserve_nb.http_adapters import BODY_READERS

    return function in BODY_READERS


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for below in dependant.dependencies:
        yield from _tree(below)


def _docs_endpoint(app: FastAPI, title: str) -> Callable[[Request], Response]:
    def docs(_request: Request) -> Response:
        return HTMLResponse(docs_page(title, _example(app)))

    return docs


async def _refuse_elsewhere(request: Request, error: Exception, *, refuse: Refuse) -> Response:
    """Answer for paths and methods that the application does not have."""
    status = getattr(error, "status_code", 500)
    path = request.scope["path"]
    if status == _NOT_FOUND:
        message = f"There is nothing at {path!r}; the deployment answers at its root, and describes itself at /docs."
    elif status == _METHOD_NOT_ALLOWED:
        message = f"The method {request.method} is not taken at {path!r}; use POST or GET."
    else:
        message = str(getattr(error, "detail", error))
    response = refuse(RequestError(message, status=status), request)
    response.headers.update(getattr(error, "headers", None) or {})
    if status == _METHOD_NOT_ALLOWED and not path.endswith(("/docs", "/openapi.json")):
        response.headers["allow"] = "GET, POST"
    return response
