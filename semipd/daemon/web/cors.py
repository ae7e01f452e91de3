"""Web pages of other origins: which may use this server (CORS), and which of its routes.

Open to them are requests for tokens and everything that is only looked at; what changes the daemon's state
never is. Browsers are told so: other clients never ask.
"""

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from semipd.core.errors import SemipdError
from semipd.daemon.access.hosts import Hosts, host_name
from semipd.daemon.web.errors import Handler
from semipd.daemon.web.routes import Route, route_of

MAX_AGE_S = 600
"""Browsers may remember an answer to a preflight for so long."""

_ANY = "*"
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#@\s]+)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,1024}")
_READ_METHODS = frozenset({"GET", "HEAD"})
_EXPOSED = "X-Request-ID, Retry-After"
_USUAL_HEADERS = "Authorization, Content-Type, X-Request-ID"


class Cors:
    """`origins`: server.cors_origins. Raises SemipdError(`invalid_config`)."""

    def __init__(self, origins: str, hosts: Hosts) -> None:
        self._origins = parse_origins(origins)
        self._hosts = hosts

    def install(self, app: web.Application) -> None:
        if self._origins:
            app.on_response_prepare.append(self._mark)

    def middleware(self) -> Middleware:
        @web.middleware
        async def answer_preflights(request: web.Request, handler: Handler) -> web.StreamResponse:
            method = request.headers.get("Access-Control-Request-Method")
            if not self._origins or request.method != "OPTIONS" or method is None:
                return await handler(request)
            return await self._preflight(request, method) or await handler(request)

        return answer_preflights

    async def _preflight(self, request: web.Request, method: str) -> web.Response | None:
        """None: there is no such route. Raises SemipdError: `host_not_allowed`, `origin_not_allowed`."""
        matched = await request.app.router.resolve(request.clone(method=method))
        route = route_of(request, matched.route)
        if route is None:
            return None
        self._hosts.check(request)
        origin = self._shown(request)
        if origin is None:
            message = f"The origin {request.headers.get('Origin', '')!r:.200} is not allowed."
            raise SemipdError("origin_not_allowed", message, "Add it to server.cors_origins.")
        if not _is_open(route, method):
            message = f"{method} {route.path} is not open to web pages."
            raise SemipdError("origin_not_allowed", message, "Use the command line or the Unix socket.")
        return web.Response(status=204, headers=_preflight_headers(origin, method, request))

    async def _mark(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Signal `on_response_prepare`: errors and streams too."""
        if not isinstance(request, web.Request) or (origin := self._shown(request)) is None:
            return
        route = route_of(request)
        if route is not None and _is_open(route, request.method):
            response.headers.update(_headers(origin))
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _shown(self, request: web.Request) -> str | None:
        """What an answer may show as the allowed origin; None: the request has no origin that is allowed."""
        given = request.headers.getall("Origin", [])
        if len(given) != 1:
            return None
        return _ANY if _ANY in self._origins else given[0] if given[0] in self._origins else None


def parse_origins(text: str) -> frozenset[str]:
    """As browsers write them. Raises SemipdError(`invalid_config`)."""
    return frozenset(_parse(given.strip()) for given in text.split(",") if given.strip())


def _parse(text: str) -> str:
    match = _ORIGIN.fullmatch(text)
    name = host_name(match["authority"]) if match else None
    if text == _ANY:
        return _ANY
    if match is None or name is None or not text.isascii():
        raise SemipdError(
            "invalid_config",
            f"{text!r:.200} in server.cors_origins is no origin.",
            "Write scheme and name, and the port if it is not the usual one, without a path: "
            'server.cors_origins = "https://chat.example, http://localhost:3000"; or *.',
            param="server.cors_origins",
        )
    scheme = match["scheme"].lower()
    authority = match["authority"].lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))
    return f"{scheme}://{authority}"


def _is_open(route: Route[Any], method: str) -> bool:
    return method in _READ_METHODS or (method == "POST" and route.access == "inference")


def _headers(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _preflight_headers(origin: str, method: str, request: web.Request) -> Mapping[str, str]:
    """Headers that the page wants to send are allowed, whichever they are: the one that counts is the key."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    return _headers(origin) | {
        "Access-Control-Allow-Methods": method,
        "Access-Control-Allow-Headers": wanted if _HEADER_NAMES.fullmatch(wanted) else _USUAL_HEADERS,
        "Access-Control-Max-Age": str(MAX_AGE_S),
    }
