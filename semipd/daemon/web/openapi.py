"""Our OpenAPI 3.1 document, made from the models that read the requests and the types of the answers."""

from collections.abc import Iterable
from typing import Any, TypedDict

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from semipd.daemon.access.classes import CLASS_HEADER
from semipd.daemon.web.answer_schemas import AnswerSchemas, Schema
from semipd.daemon.web.error_types import ErrorAnswer
from semipd.daemon.web.routes import Route

_SCHEMAS = "#/components/schemas/"
_RETRY_AFTER = {
    "description": "Seconds after which the same request may succeed; with 429 and 503.",
    "schema": {"type": "integer", "minimum": 1},
}


class OpenApi(TypedDict):
    """This document."""

    openapi: str
    info: dict[str, str]
    paths: dict[str, dict[str, object]]
    security: list[dict[str, list[str]]]
    components: dict[str, dict[str, object]]


def document(routes: Iterable[Route[Any]], version: str) -> OpenApi:
    routes = list(routes)
    answers = AnswerSchemas(_SCHEMAS + "{name}")
    bodies: list[type[BaseModel]] = [route.body for route in routes if route.body is not None]
    read, definitions = models_json_schema(
        [(body, "validation") for body in dict.fromkeys(bodies)], ref_template=_SCHEMAS + "{model}"
    )
    paths: dict[str, dict[str, object]] = {}
    for route in routes:
        body = None if route.body is None else read[route.body, "validation"]
        paths.setdefault(route.path, {})[route.method.lower()] = _describe(route, answers, body)
    schemas = definitions["$defs"]
    assert not schemas.keys() & answers.definitions.keys(), "a body and an answer have the same name"
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
            "schemas": schemas | answers.definitions,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_CLASS: Schema = {
    "name": CLASS_HEADER,
    "in": "header",
    "description": "Service class of the request; slo.class in the body counts before it.",
    "schema": {"type": "string"},
}


def _describe(route: Route[Any], answers: AnswerSchemas, body: Schema | None) -> Schema:
    content: Schema = {}
    if route.answer is not None:
        content[route.media] = {"schema": answers.of(route.answer)}
    if route.chunk is not None:
        content["text/event-stream"] = {"schema": _event(answers.of(route.chunk))}
    failed = {"application/json": {"schema": answers.of(ErrorAnswer)}}
    shown: Schema = {
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
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.parameters
    ]
    if route.generates:
        parameters.append(_CLASS)
    if parameters:
        shown["parameters"] = parameters
    if body is not None:
        content = {"application/json": {"schema": body}}
        shown["requestBody"] = {"required": route.needs_body, "content": content}
    return shown


def _event(chunk: Schema) -> Schema:
    """One event of a stream: its data is JSON text, that of the last one a word."""
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": chunk}
    return {
        "type": "object",
        "description": "With stream=true: an event per chunk, then [DONE].",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, text]}},
        "required": ["data"],
    }
