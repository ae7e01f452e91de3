"""Errors in OpenAI's shape, and the middleware that gives every answer that shape and a request id."""

import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from semipd.core.errors import SemipdError
from semipd.daemon.access.callers import Caller
from semipd.daemon.host.process_limits import exhausted
from semipd.daemon.web.error_types import Partial
from semipd.daemon.web.passing import PASSING
from semipd.daemon.web.status_codes import status_of

log = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
ARRIVAL_NS = web.RequestKey("arrival_ns", int)
"""CLOCK_MONOTONIC when the request's head had been read."""

CALLER = web.RequestKey("caller", Caller)

SERVICE_CLASS = web.RequestKey("service_class", str)
"""As far as it is known: of the caller and the header, then of the body too."""

_CODE_OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
_CLIENT_REQUEST_ID = re.compile(r"[!-~]{1,128}")

REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error_body(error: SemipdError) -> dict[str, Any]:
    kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def error_headers(error: SemipdError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(math.ceil(error.retry_after_s), 1))
    if error.code == "invalid_api_key":
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def error_response(
    error: SemipdError,
    headers: Mapping[str, str] | None = None,
    partial: Partial | None = None,
) -> web.Response:
    """`partial`: what had been generated before the failure."""
    body = error_body(error) | ({} if partial is None else {"partial": partial})
    all_headers = error_headers(error) | dict(headers or {})
    return web.json_response(body, status=status_of(error), headers=all_headers)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: names the request, and turns what goes wrong before the first byte into an answer."""
    request[ARRIVAL_NS] = time.monotonic_ns()
    given = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = given if _CLIENT_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    try:
        return await handler(request)
    except SemipdError as error:
        return error_response(error)
    except web.HTTPException as error:
        return _from_aiohttp(request, error)
    except PASSING:
        raise
    except BaseException as error:
        if (refused := exhausted(error, "The request cannot be worked on now")) is not None:
            return error_response(refused)
        log.exception("request_id=%s failed", request[REQUEST_ID])
        return error_response(internal_error(request[REQUEST_ID]))


def internal_error(request_id: str) -> SemipdError:
    return SemipdError("internal_error", f"The daemon failed; its log names request_id={request_id}.")


def _from_aiohttp(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if error.status < 400:
        raise error
    code = _CODE_OF_STATUS.get(error.status)
    if code is None:
        log.warning("request_id=%s: %s", request[REQUEST_ID], error)
        return error_response(internal_error(request[REQUEST_ID]))
    allow = error.headers.get("Allow")
    message = f"{request.method} {request.path:.200}: {error.text or error.reason}."
    return error_response(SemipdError(code, message), {"Allow": allow} if allow else None)


async def add_request_id(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Signal `on_response_prepare`: streams too."""
    response.headers["X-Request-ID"] = request.get(REQUEST_ID) or uuid.uuid4().hex
