"""The HTTP interface: every route in one table, from which routing, access and /openapi.json follow."""

import asyncio
import json
from functools import cache

from aiohttp import web

from semipd import __version__
from semipd.core.state.daemon import DrainState, Status
from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloAnswer
from semipd.core.state.requests import CancelAnswer, RequestDetails, RequestList
from semipd.daemon.openai.answer_types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    DetokenizeAnswer,
    ModelCard,
    ModelList,
    TokenizeAnswer,
)
from semipd.daemon.openai.bodies import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from semipd.daemon.openai.chat import create_chat_completion
from semipd.daemon.openai.completions import create_completion
from semipd.daemon.openai.models import list_models, retrieve_model
from semipd.daemon.openai.tokenize import detokenize, tokenize, tokenizer_info
from semipd.daemon.operators import drain, partition, requests, status
from semipd.daemon.operators.actions import OperatorAction
from semipd.daemon.operators.events import follow_events
from semipd.daemon.state.services import Services
from semipd.daemon.web.openapi import OpenApi, document
from semipd.daemon.web.routes import Route


async def show_document(_services: Services, _request: web.Request) -> web.Response:
    return web.Response(body=await asyncio.to_thread(_document), content_type="application/json")


@cache
def _document() -> bytes:
    return json.dumps(document(ROUTES, __version__)).encode()


ROUTES: tuple[Route[Services], ...] = (
    Route(
        "POST",
        "/v1/completions",
        "createCompletion",
        "Continue one or more prompts.",
        "inference",
        create_completion,
        Completion,
        CompletionRequest,
        chunk=Completion,
        generates=True,
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a conversation.",
        "inference",
        create_chat_completion,
        ChatCompletion,
        ChatCompletionRequest,
        chunk=ChatChunk,
        generates=True,
    ),
    Route(
        "GET", "/v1/models", "listModels", "The model that is served.", "inference", list_models, ModelList
    ),
    Route(
        "GET",
        "/v1/models/{model}",
        "retrieveModel",
        "The same, by name.",
        "inference",
        retrieve_model,
        ModelCard,
    ),
    Route(
        "POST",
        "/tokenize",
        "tokenize",
        "Token ids of a text.",
        "inference",
        tokenize,
        TokenizeAnswer,
        TokenizeRequest,
    ),
    Route(
        "POST",
        "/detokenize",
        "detokenize",
        "Text of token ids.",
        "inference",
        detokenize,
        DetokenizeAnswer,
        DetokenizeRequest,
    ),
    Route(
        "GET",
        "/tokenizer_info",
        "tokenizerInfo",
        "The tokenizer's configuration.",
        "inference",
        tokenizer_info,
        dict[str, object],
    ),
    Route("GET", "/health", "health", "The process lives.", "probe", status.health, status.HealthAnswer),
    Route(
        "GET",
        "/ready",
        "ready",
        "The engine answers; 503 until it does.",
        "probe",
        status.ready,
        status.HealthAnswer,
    ),
    Route("GET", "/ping", "ping", "The process lives.", "probe", status.ping),
    Route("POST", "/ping", "postPing", "The same.", "probe", status.ping),
    Route(
        "GET", "/version", "version", "The daemon's version.", "public", status.version, status.VersionAnswer
    ),
    Route(
        "GET",
        "/load",
        "load",
        "How many requests are being served.",
        "public",
        status.load,
        status.LoadAnswer,
    ),
    Route("GET", "/v1/status", "status", "Numbers of daemon and engine.", "operator", status.status, Status),
    Route(
        "GET",
        "/v1/requests",
        "listRequests",
        "Live and recent requests.",
        "client",
        requests.list_requests,
        RequestList,
    ),
    Route(
        "GET",
        "/v1/requests/{id}",
        "retrieveRequest",
        "One request and its events.",
        "client",
        requests.retrieve_request,
        RequestDetails,
    ),
    Route(
        "DELETE",
        "/v1/requests/{id}",
        "cancelRequest",
        "End a request.",
        "client",
        requests.cancel_request,
        CancelAnswer,
    ),
    Route(
        "GET",
        "/v1/partition",
        "retrievePartition",
        "How the device is divided, and why.",
        "operator",
        partition.get_partition,
        PartitionDocument,
    ),
    Route(
        "PUT",
        "/v1/partition",
        "setPartition",
        "Override the split.",
        "operator",
        partition.put_partition,
        ChangeAnswer,
        partition.PartitionOverride,
    ),
    Route(
        "DELETE",
        "/v1/partition",
        "clearPartition",
        "End an override: the policy decides again.",
        "operator",
        partition.delete_partition,
        ChangeAnswer,
        OperatorAction,
        needs_body=False,
    ),
    Route(
        "GET",
        "/v1/slo",
        "retrieveSlo",
        "Service level targets, and what is observed.",
        "operator",
        partition.get_slo,
        SloAnswer,
    ),
    Route(
        "PATCH",
        "/v1/slo",
        "setSlo",
        "Change service level targets.",
        "operator",
        partition.patch_slo,
        SloAnswer,
        partition.SloUpdate,
    ),
    Route(
        "GET",
        "/v1/drain",
        "retrieveDrain",
        "Whether the daemon drains, and what is awaited.",
        "operator",
        drain.get_drain,
        DrainState,
    ),
    Route(
        "POST",
        "/v1/drain",
        "drain",
        "Refuse new requests and let those under way finish.",
        "operator",
        drain.post_drain,
        DrainState,
        drain.DrainOptions,
        needs_body=False,
    ),
    Route(
        "DELETE",
        "/v1/drain",
        "undrain",
        "Serve again.",
        "operator",
        drain.delete_drain,
        DrainState,
        OperatorAction,
        needs_body=False,
    ),
    Route(
        "GET",
        "/v1/events",
        "events",
        "Events as they happen.",
        "operator",
        follow_events,
        str,
        media="text/event-stream",
    ),
    Route(
        "GET",
        "/metrics",
        "metrics",
        "Prometheus metrics.",
        "operator",
        status.metrics,
        str,
        media="text/plain",
    ),
    Route("GET", "/openapi.json", "openapi", "This document.", "public", show_document, OpenApi),
)
