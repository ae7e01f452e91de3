"""Every route that the daemon serves over HTTP, as /openapi.json describes them."""

from typing import Any

from aiohttp import web

from semipd import __version__
from semipd.daemon.openai.answer_types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    DetokenizeAnswer,
    HealthAnswer,
    LoadAnswer,
    ModelCard,
    ModelList,
    TokenizeAnswer,
    VersionAnswer,
)
from semipd.daemon.openai.bodies import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from semipd.daemon.operators.drain import DrainWish
from semipd.daemon.operators.partition import PartitionAct, PartitionWish, SloWish
from semipd.daemon.web.openapi import Operation, document

_Map = dict[str, Any]

OPERATIONS = (
    Operation(
        "post",
        "/v1/completions",
        "createCompletion",
        "Continue one or more prompts.",
        Completion,
        CompletionRequest,
        Completion,
    ),
    Operation(
        "post",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a conversation.",
        ChatCompletion,
        ChatCompletionRequest,
        ChatChunk,
    ),
    Operation("get", "/v1/models", "listModels", "The model that is served.", ModelList),
    Operation("get", "/v1/models/{model}", "retrieveModel", "The same, by name.", ModelCard),
    Operation("post", "/tokenize", "tokenize", "Token ids of a text.", TokenizeAnswer, TokenizeRequest),
    Operation("post", "/detokenize", "detokenize", "Text of token ids.", DetokenizeAnswer, DetokenizeRequest),
    Operation("get", "/tokenizer_info", "tokenizerInfo", "The tokenizer's configuration.", _Map),
    Operation("get", "/health", "health", "The process lives.", HealthAnswer),
    Operation("get", "/ready", "ready", "The engine answers; 503 until it does.", HealthAnswer),
    Operation("get", "/ping", "ping", "The process lives.", None),
    Operation("post", "/ping", "postPing", "The same.", None),
    Operation("get", "/version", "version", "The daemon's version.", VersionAnswer),
    Operation("get", "/load", "load", "How many requests are being served.", LoadAnswer),
    Operation("get", "/v1/status", "status", "Numbers of daemon and engine.", _Map),
    Operation("get", "/v1/requests", "listRequests", "Live and recent requests.", _Map),
    Operation("get", "/v1/requests/{id}", "retrieveRequest", "One request and its events.", _Map),
    Operation("delete", "/v1/requests/{id}", "cancelRequest", "End a request.", _Map),
    Operation("get", "/v1/partition", "retrievePartition", "How the device is divided, and why.", _Map),
    Operation("put", "/v1/partition", "setPartition", "Override the split.", _Map, PartitionWish),
    Operation(
        "delete",
        "/v1/partition",
        "clearPartition",
        "End an override: the policy decides again.",
        _Map,
        PartitionAct,
        needs_body=False,
    ),
    Operation("get", "/v1/slo", "retrieveSlo", "Service level targets, and what is observed.", _Map),
    Operation("patch", "/v1/slo", "setSlo", "Change service level targets.", _Map, SloWish),
    Operation("get", "/v1/drain", "retrieveDrain", "Whether the daemon drains, and what is awaited.", _Map),
    Operation(
        "post",
        "/v1/drain",
        "drain",
        "Refuse new requests and let those under way finish.",
        _Map,
        DrainWish,
        needs_body=False,
    ),
    Operation("delete", "/v1/drain", "undrain", "Serve again.", _Map, PartitionAct, needs_body=False),
    Operation("get", "/v1/events", "events", "Events as they happen.", str, media="text/event-stream"),
    Operation("get", "/metrics", "metrics", "Prometheus metrics.", str, media="text/plain"),
    Operation("get", "/openapi.json", "openapi", "This document.", _Map),
)


def add_document(app: web.Application) -> None:
    shown = document(OPERATIONS, __version__)

    async def show(_request: web.Request) -> web.Response:
        return web.json_response(shown)

    app.router.add_get("/openapi.json", show)
