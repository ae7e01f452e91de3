"""HTTP for operators: /metrics, /v1/requests, /v1/events."""

import asyncio
import json
import re
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from semipd.core.errors import SemipdError
from semipd.daemon.history.journal import Entry, Journal
from semipd.daemon.history.records import MAX_RECENT, STATES
from semipd.daemon.state.services import Services
from semipd.daemon.web.errors import ARRIVAL_NS, CALLER, REQUEST_ID, Handler, error_body

GENERATING_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
DEFAULT_LISTED = 100
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
EVENTS_PER_WRITE = 256
HEARTBEAT_S = 15.0
"""Without an event for so long, a comment keeps proxies from closing the stream."""

WRITE_LIMIT_S = 60.0
"""A reader that takes nothing for so long is dropped without a word: it would not read one."""


def add_routes(app: web.Application, services: Services) -> None:
    operations = _Operations(services)
    app.router.add_get("/metrics", operations.metrics)
    app.router.add_get("/v1/requests", operations.requests)
    app.router.add_get("/v1/requests/{id:.+}", operations.request)
    app.router.add_delete("/v1/requests/{id:.+}", operations.cancel)
    app.router.add_get("/v1/events", operations.events)


def refusal_recorder(services: Services) -> Middleware:
    """Middleware: requests for tokens are counted while they are served, and by code if they never reach the
    engine."""

    @web.middleware
    async def record_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST" or request.path not in GENERATING_PATHS:
            return await handler(request)
        try:
            with services.serving():
                return await handler(request)
        except SemipdError as error:
            services.history.answered_with_error(error.code, request[REQUEST_ID], request[ARRIVAL_NS])
            raise

    return record_refusals


class _Operations:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def metrics(self, request: web.Request) -> web.Response:
        text, content_type = await self._services.exposition(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def requests(self, request: web.Request) -> web.Response:
        """Query: `state`, one of STATES; `limit`."""
        state = request.query.get("state")
        if state is not None and state not in STATES:
            message = f"state={state!r:.80} is none of {', '.join(STATES)}."
            raise SemipdError("invalid_value", message, param="state")
        history = self._services.history
        records = history.records(state, _limit(request), request[CALLER])
        parts = await self._services.listings.written(
            records, lambda some: json.dumps(history.all_to_wire(some))[1:-1]
        )
        text = f'{{"object": "list", "data": [{", ".join(parts)}]}}'
        return web.json_response(text=text)

    async def request(self, request: web.Request) -> web.Response:
        """One request, each of its sequences with its events."""
        request_id, history = request.match_info["id"], self._services.history
        records = history.named(request_id, request[CALLER])
        if not records:
            raise _unknown_request(request_id)
        shown = [history.to_wire(record, timeline=True) for record in records]
        return web.json_response({"id": request_id, "sequences": shown})

    async def cancel(self, request: web.Request) -> web.Response:
        request_id = request.match_info["id"]
        result = self._services.cancel_named(request_id, request[CALLER])
        answer: dict[str, Any] = {"id": request_id, "result": result}
        if result == "not_found":
            return web.json_response(answer | error_body(_unknown_request(request_id)), status=404)
        return web.json_response(answer)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events. `Last-Event-ID` or `?after=` replays what the ring still holds."""
        journal = self._services.history.journal
        after = _cursor(request, journal)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        try:
            await response.prepare(request)
            await _follow(response, journal, after)
            await response.write_eof()
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        return response


async def _follow(response: web.StreamResponse, journal: Journal, after: int) -> None:
    """Until the journal closes or the reader falls behind the ring, which ends the stream with `overflow`:
    its client connects again with the last id it has seen."""
    await _write(response, b": semipd events\n\n")
    has_read = False
    while True:
        entries, lost, cursor = journal.read(after, EVENTS_PER_WRITE)
        if lost:
            oldest = journal.to_wire(entries[0])["id"] if entries else None
            await _write(response, _event("overflow", {"lost": lost, "oldest": oldest}))
            if has_read:
                return
        if entries:
            await _write(response, b"".join(_entry(journal, entry) for entry in entries))
            after = cursor
        elif journal.closed:
            return
        else:
            await _wait_or_beat(response, journal, after)
        has_read = True


async def _wait_or_beat(response: web.StreamResponse, journal: Journal, after: int) -> None:
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            await journal.changed(after)
    except TimeoutError:
        await _write(response, b": still here\n\n")


def _entry(journal: Journal, entry: Entry) -> bytes:
    shown = journal.to_wire(entry)
    return f"id: {shown['id']}\n".encode() + _event(entry.kind, shown)


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_LIMIT_S):
        await response.write(data)


def _cursor(request: web.Request, journal: Journal) -> int:
    """The header wins: a browser that reconnects repeats the address, `?after=` included."""
    given = request.headers.get("Last-Event-ID") or request.query.get("after")
    if given is None:
        return journal.last
    after = journal.cursor(given)
    if after is None:
        message = f"{given!r:.80} is no event id."
        raise SemipdError("invalid_value", message, "Send the id of an event, or none.", param="after")
    return after


def _limit(request: web.Request) -> int:
    given = request.query.get("limit", str(DEFAULT_LISTED))
    if not (_NUMBER.fullmatch(given) and 1 <= int(given) <= MAX_RECENT):
        raise SemipdError("invalid_value", f"limit={given!r:.80} is not 1 to {MAX_RECENT}.", param="limit")
    return int(given)


def _unknown_request(request_id: str) -> SemipdError:
    return SemipdError(
        "not_found",
        f"There is no request {request_id!r:.140}.",
        f"Live requests and the last {MAX_RECENT} finished ones are known.",
    )
