"""A route of the HTTP server: one row from which routing, access checks and /openapi.json follow."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from aiohttp import web

from semipd.daemon.access.auth import Access

Answer = web.StreamResponse | Mapping[str, Any]
"""A mapping is sent as JSON."""

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Route(Generic[S]):
    """`name` and `summary`: of the operation in /openapi.json. `handler(services, request)` may raise
    SemipdError. `answer`: its type; None: it has no body. `body`: the model that reads the request's;
    `needs_body`: without one the request is refused. `chunk`: type of a stream's events, for a route that can
    stream. `media`: of the answer. `generates`: a request for tokens, which waits in the queue."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    name: str
    summary: str
    access: Access
    handler: Callable[[S, web.Request], Awaitable[Answer]]
    answer: Any = None
    body: Any = None
    needs_body: bool = True
    chunk: Any = None
    media: str = "application/json"
    generates: bool = False

    @property
    def parameters(self) -> list[str]:
        """Names in the path; each takes all that is left of it, slashes too."""
        return re.findall(r"\{(\w+)\}", self.path)


_ROUTES = web.AppKey("routes", dict[web.AbstractRoute, Route[Any]])


def add_routes(app: web.Application, routes: Iterable[Route[S]], services: S) -> None:
    """GET routes answer HEAD, too."""
    app[_ROUTES] = {}
    for route in routes:
        path = re.sub(r"\{(\w+)\}", r"{\1:.+}", route.path)
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            added = app.router.add_route(method, path, partial(_answer, route.handler, services))
            app[_ROUTES][added] = route


def route_of(request: web.Request, found: web.AbstractRoute | None = None) -> Route[Any] | None:
    """What the request asks for, or `found`, another route of the same application; None: there is no such
    path, or it has not this method."""
    return request.app[_ROUTES].get(found or request.match_info.route)


async def _answer(
    handler: Callable[[S, web.Request], Awaitable[Answer]], services: S, request: web.Request
) -> web.StreamResponse:
    answer = await handler(services, request)
    return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)
