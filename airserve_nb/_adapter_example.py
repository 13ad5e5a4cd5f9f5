"""The simplest request that an OpenAPI schema takes: what a probe sends when it is given no payload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airserve_nb.errors import OptionError

__all__ = ["example_for", "example_from_openapi"]

Schema = Mapping[str, Any]

# Deeper than any schema written by hand; a model whose required field is of its own type has no example.
_DEEPEST = 20

_NOTHING = object()

_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "email": "name@example.com",
    "uri": "http://example.com/",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
}


def example_for(compiled: Any) -> dict[str, Any]:
    """Return the arguments of the simplest request that a ``CompiledAdapter`` takes.

    See :func:`example_from_openapi` for the form.
    """

    async def answer(_value: Any, _request: Any) -> Any:
        raise NotImplementedError

    def refuse(_error: Any, _request: Any) -> Any:
        raise NotImplementedError

    return example_from_openapi(compiled.fastapi_app(answer, refuse, title=compiled.name).openapi())


def example_from_openapi(openapi: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"json": ..., "params": {...}}`` for the route ``/``; what is not needed is left out.

    ``headers`` and ``cookies`` stand there too when the schema requires some.

    Raises
    ------
    OptionError
        The body is not JSON (a file, a form), or the schema describes no route ``/``.
    """
    methods = openapi.get("paths", {}).get("/", {})
    operation = methods.get("post") or methods.get("get")
    if operation is None:
        raise OptionError(
            "The schema describes no route '/', so there is no example request; give a payload."
        )
    arguments: dict[str, Any] = {}
    names = {"query": "params", "header": "headers", "cookie": "cookies"}
    for parameter in operation.get("parameters", []):
        if parameter.get("required") and parameter["in"] in names:
            value = parameter.get("example", _simplest(parameter.get("schema", {}), openapi, 0))
            if parameter["in"] != "query":
                value = str(value)
            arguments.setdefault(names[parameter["in"]], {})[parameter["name"]] = value
    body = operation.get("requestBody")
    if body is not None:
        content = body.get("content", {})
        if "application/json" in content:
            media = content["application/json"]
            arguments["json"] = _given(media, _simplest(media.get("schema", {}), openapi, 0))
        elif body.get("required"):
            kinds = ", ".join(content) or "nothing known"
            raise OptionError(
                f"The adapter takes {kinds}, not JSON, so there is no example request; give a payload."
            )
    return arguments


def _given(holder: Schema, otherwise: Any) -> Any:
    """Return the value that the schema's author wrote down, if any."""
    examples = holder.get("examples")
    if isinstance(examples, list) and examples:
        return examples[0]
    if isinstance(examples, dict) and examples:
        return next(iter(examples.values())).get("value", otherwise)
    for word in ("example", "default", "const"):
        if holder.get(word) is not None:
            return holder[word]
    return holder["enum"][0] if holder.get("enum") else otherwise


def _simplest(schema: Schema, root: Schema, depth: int) -> Any:
    """Return a small value that ``schema`` allows."""
    if depth > _DEEPEST:
        raise OptionError(
            "The schema contains itself in a required field, so it has no example; give a payload."
        )
    inner = _referred(schema, root)
    if inner is not None:
        return _simplest(inner, root, depth + 1)
    written = _given(schema, _NOTHING)
    if written is not _NOTHING:
        return written
    return _of_type(schema, root, depth)


def _referred(schema: Schema, root: Schema) -> Schema | None:
    """Return the schema that this one only points to or chooses from, if it does."""
    if "$ref" in schema:
        return _follow(schema["$ref"], root)
    if "example" in schema or "examples" in schema:
        return None
    for word in ("anyOf", "oneOf"):
        if schema.get(word) and schema.get("default") is None:
            branches = [branch for branch in schema[word] if branch.get("type") != "null"]
            return branches[0] if branches else {"type": "null"}
    if "allOf" in schema:
        merged: dict[str, Any] = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            merged |= _follow(part["$ref"], root) if "$ref" in part else part
        return merged
    return None


def _follow(reference: str, root: Schema) -> Schema:
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target[part.replace("~1", "/").replace("~0", "~")]
    found: Schema = target
    return found


def _of_type(schema: Schema, root: Schema, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind in {"integer", "number"}:
        return _number(schema, integer=kind == "integer")
    if kind == "string":
        text = _FORMATS.get(schema.get("format", ""), "")
        return text.ljust(schema.get("minLength", 0), "a")
    if kind == "array":
        prefix = [_simplest(item, root, depth + 1) for item in schema.get("prefixItems", [])]
        missing = max(0, schema.get("minItems", 0) - len(prefix))
        return prefix + [_simplest(schema.get("items", {}), root, depth + 1) for _ in range(missing)]
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties", {})
        return {
            name: _simplest(properties.get(name, {}), root, depth + 1) for name in schema.get("required", [])
        }
    return {"boolean": False, "null": None}.get(str(kind), 0)


def _number(schema: Schema, *, integer: bool) -> int | float:
    """Return the allowed number next to 0, in half the range where both ends are open."""
    step = 1 if integer else 0.5
    low = schema.get("minimum")
    high = schema.get("maximum")
    if "exclusiveMinimum" in schema:
        low = schema["exclusiveMinimum"] + step
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - step
    if low is not None and high is not None and low > high:
        low = high = (schema.get("exclusiveMinimum", low) + schema.get("exclusiveMaximum", high)) / 2
    value = 0 if low is None else max(0, low)
    value = value if high is None else min(value, high)
    multiple = schema.get("multipleOf")
    if multiple:
        value = -(-value // multiple) * multiple
    return int(value) if integer else float(value)
