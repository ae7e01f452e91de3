"""Requests over HTTP: the listing, one of them, and its end."""

import json
import re

from aiohttp import web

from semipd.core.errors import SemipdError
from semipd.core.state.requests import CancelAnswer, RequestDetails
from semipd.daemon.history.records import MAX_RECENT, STATES
from semipd.daemon.state.services import Services
from semipd.daemon.web.errors import CALLER, error_body

DEFAULT_LISTED = 100
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


async def list_requests(services: Services, request: web.Request) -> web.Response:
    """Query: `state`, one of STATES; `limit`."""
    state = request.query.get("state")
    if state is not None and state not in STATES:
        message = f"state={state!r:.80} is none of {', '.join(STATES)}."
        raise SemipdError("invalid_value", message, param="state")
    history = services.history
    records = history.records(state, _limit(request), request[CALLER])
    parts = await services.listings.written(records, lambda some: json.dumps(history.all_to_wire(some))[1:-1])
    return web.json_response(text=f'{{"object": "list", "data": [{", ".join(parts)}]}}')


async def retrieve_request(services: Services, request: web.Request) -> RequestDetails:
    """One request, each of its sequences with its events."""
    request_id, history = request.match_info["id"], services.history
    records = history.named(request_id, request[CALLER])
    if not records:
        raise _unknown_request(request_id)
    return {"id": request_id, "sequences": [history.to_wire(record, timeline=True) for record in records]}


async def cancel_request(services: Services, request: web.Request) -> web.Response:
    request_id = request.match_info["id"]
    result = services.cancel_named(request_id, request[CALLER])
    answer: CancelAnswer = {"id": request_id, "result": result}
    if result == "not_found":
        return web.json_response({**answer, **error_body(_unknown_request(request_id))}, status=404)
    return web.json_response(answer)


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
