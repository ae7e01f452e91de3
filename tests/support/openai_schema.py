"""Validates answers against OpenAI's own schema and against our document.

OpenAI's document calls itself 3.1 but writes `nullable: true`, which 3.1 does not know; it is read here as
it is meant. Where OpenAI's service itself departs from the schema, and we do as the service does:

* a completion's chunks have a null finish_reason until the last one, and with include_usage a null usage;
* with echo, token_logprobs and top_logprobs begin with null: nothing predicts the first token.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from semipd import __version__
from semipd.daemon.servers.routes import ROUTES
from semipd.daemon.web.answer_schemas import AnswerSchemas
from semipd.daemon.web.openapi import OpenApi, document

_OPENAI_FILE = Path(__file__).parents[1] / "data" / "openai" / "openai_min_openapi.json"
_WITH_FIRST_NULL = ("token_logprobs", "top_logprobs")


def check_openai(name: str, answer: Any, *, is_chunk: bool = False) -> None:
    """`name`: a schema of OpenAI's, such as CreateCompletionResponse. Raises jsonschema.ValidationError."""
    if name == "CreateCompletionResponse":
        answer = _as_the_service_means(answer, is_chunk=is_chunk)
    _openai(name).validate(answer)


def check_ours(name: str, answer: Any) -> None:
    """`name`: a schema of our document; fields it does not list are errors."""
    _ours(name).validate(answer)


def check_type(kind: Any, value: Any) -> None:
    """`value`, as JSON, against the type of an answer; names that it does not list are errors."""
    schemas = AnswerSchemas("#/$defs/{name}")
    schema = schemas.of(kind)
    Draft202012Validator(_closed({**schema, "$defs": schemas.definitions})).validate(_json(value))


def check_answer(method: str, path: str, answer: Any) -> None:
    """`answer`: of a route of ours, with status 200."""
    shown = _document()
    operation: Any = shown["paths"][path][method]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    Draft202012Validator({**schema, "components": _closed(shown["components"])}).validate(answer)


@cache
def _document() -> OpenApi:
    return document(ROUTES, __version__)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _as_the_service_means(answer: dict[str, Any], *, is_chunk: bool) -> dict[str, Any]:
    answer = copy.deepcopy(answer)
    if is_chunk and answer.get("usage", 0) is None:
        del answer["usage"]
    for choice in answer["choices"]:
        if is_chunk and choice["finish_reason"] is None:
            choice["finish_reason"] = "length"
        for name in _WITH_FIRST_NULL if choice["logprobs"] else ():
            values = choice["logprobs"][name]
            choice["logprobs"][name] = values[1:] if values[:1] == [None] else values
    return answer


@cache
def _openai(name: str) -> Draft202012Validator:
    components = _with_null(json.loads(_OPENAI_FILE.read_text())["components"])
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


@cache
def _ours(name: str) -> Draft202012Validator:
    components = _closed(_document()["components"])
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})


def _with_null(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_null(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _with_null(value) for key, value in schema.items()}
    return {"anyOf": [changed, {"type": "null"}]} if schema.get("nullable") is True else changed


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _closed(value) for key, value in schema.items()}
    return changed | {"additionalProperties": False} if "properties" in schema else changed
