"""Our OpenAPI 3.1 document, made from the models that read the requests and the types of the answers."""

from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from semipd.daemon.web.error_types import ErrorAnswer
from semipd.daemon.web.routes import Route

_REF = "#/components/schemas/{model}"
_RETRY_AFTER = {
    "description": "Seconds after which the same request may succeed; with 429 and 503.",
    "schema": {"type": "integer", "minimum": 1},
}


def document(routes: Iterable[Route[Any]], version: str) -> dict[str, Any]:
    routes = list(routes)
    inputs = {(id(kind), mode): (kind, mode) for route in routes for kind, mode in _types(route)}
    inputs[id(ErrorAnswer), "serialization"] = (ErrorAnswer, "serialization")
    keyed = [(key, mode, TypeAdapter(kind)) for key, (kind, mode) in inputs.items()]
    schemas, definitions = TypeAdapter.json_schemas(keyed, ref_template=_REF)
    shown = {key: schemas[key, mode] for key, mode, _ in keyed}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _describe(route, shown)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "semipd",
            "version": version,
            "description": "OpenAI's completions and chat completions, and what stands beside them. Fields "
            "that are not listed are ignored and counted; OpenAI's and vLLM's that would change the "
            "answer are refused with the code unsupported_value.",
        },
        "paths": paths,
        "security": [{}, {"key": []}],
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types(route: Route[Any]) -> list[tuple[Any, JsonSchemaMode]]:
    read: list[tuple[Any, JsonSchemaMode]] = [(route.body, "validation")]
    written: list[tuple[Any, JsonSchemaMode]] = [
        (route.answer, "serialization"),
        (route.chunk, "serialization"),
    ]
    return [(kind, mode) for kind, mode in read + written if kind is not None]


def _describe(route: Route[Any], schemas: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer is not None:
        content[route.media] = {"schema": schemas[id(route.answer), "serialization"]}
    if route.chunk is not None:
        chunk = schemas[id(route.chunk), "serialization"]
        content["text/event-stream"] = {"schema": _event(chunk)}
    failed = {"application/json": {"schema": schemas[id(ErrorAnswer), "serialization"]}}
    shown: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "responses": {
            "200": {"description": "The answer."} | ({"content": content} if content else {}),
            "default": {
                "description": "A refusal or a failure, with its code.",
                "headers": {"Retry-After": _RETRY_AFTER},
                "content": failed,
            },
        },
    }
    if route.parameters:
        shown["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.parameters
        ]
    if route.body is not None:
        body = schemas[id(route.body), "validation"]
        content = {"application/json": {"schema": body}}
        shown["requestBody"] = {"required": route.needs_body, "content": content}
    return shown


def _event(chunk: dict[str, Any]) -> dict[str, Any]:
    """One event of a stream: its data is JSON text, that of the last one a word."""
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": chunk}
    return {
        "type": "object",
        "description": "With stream=true: an event per chunk, then [DONE].",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, text]}},
        "required": ["data"],
    }
