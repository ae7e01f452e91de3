"""Our OpenAPI 3.1 document, made from the models that read the requests and the types of the answers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from semipd.daemon.web.error_types import ErrorAnswer

_REF = "#/components/schemas/{model}"
_RETRY_AFTER = {
    "description": "Seconds after which the same request may succeed; with 429 and 503.",
    "schema": {"type": "integer", "minimum": 1},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `answer`: its type; None: it has no body. `chunk`: type of a stream's events, for a route
    that can stream. `media`: of its answer. `needs_body`: without one the request is refused."""

    method: Literal["get", "post", "put", "patch", "delete"]
    path: str
    name: str
    summary: str
    answer: Any
    body: Any = None
    chunk: Any = None
    media: str = "application/json"
    needs_body: bool = True

    @property
    def types(self) -> list[tuple[Any, JsonSchemaMode]]:
        answers: list[tuple[Any, JsonSchemaMode]] = []
        if self.answer is not None:
            answers.append((self.answer, "serialization"))
        if self.chunk is not None:
            answers.append((self.chunk, "serialization"))
        return answers if self.body is None else [(self.body, "validation"), *answers]


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    operations = list(operations)
    inputs = {(id(kind), mode): (kind, mode) for operation in operations for kind, mode in operation.types}
    inputs[id(ErrorAnswer), "serialization"] = (ErrorAnswer, "serialization")
    keyed = [(key, mode, TypeAdapter(kind)) for key, (kind, mode) in inputs.items()]
    schemas, definitions = TypeAdapter.json_schemas(keyed, ref_template=_REF)
    shown = {key: schemas[key, mode] for key, mode, _ in keyed}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, shown)
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


def _describe(operation: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer is not None:
        content[operation.media] = {"schema": schemas[id(operation.answer), "serialization"]}
    if operation.chunk is not None:
        chunk = schemas[id(operation.chunk), "serialization"]
        content["text/event-stream"] = {"schema": _event(chunk)}
    failed = {"application/json": {"schema": schemas[id(ErrorAnswer), "serialization"]}}
    shown: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer."} | ({"content": content} if content else {}),
            "default": {
                "description": "A refusal or a failure, with its code.",
                "headers": {"Retry-After": _RETRY_AFTER},
                "content": failed,
            },
        },
    }
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    if names:
        shown["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        body = schemas[id(operation.body), "validation"]
        content = {"application/json": {"schema": body}}
        shown["requestBody"] = {"required": operation.needs_body, "content": content}
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
