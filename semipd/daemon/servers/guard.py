"""What every HTTP request passes before its handler."""

from aiohttp import web
from aiohttp.typedefs import Middleware

from semipd.core.errors import SemipdError
from semipd.core.slo import DEFAULT_CLASS
from semipd.daemon.access.auth import Access
from semipd.daemon.access.callers import Caller
from semipd.daemon.access.classes import CLASS_HEADER
from semipd.daemon.state.services import Services
from semipd.daemon.web.body_cost import check_cost
from semipd.daemon.web.connections import HttpConnection
from semipd.daemon.web.errors import ARRIVAL_NS, CALLER, REQUEST_ID, SERVICE_CLASS, Handler
from semipd.daemon.web.expectations import ask_for_body, check_expectation
from semipd.daemon.web.routes import Route, route_of
from semipd.wire.own_time import OwnTime

MAX_ARRIVING_BYTES = 256 * 2**20
"""Of all bodies that are being read; without it each connection could hold server.max_body_bytes."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def refusal_recorder(services: Services) -> Middleware:
    """Middleware: requests for tokens are counted while they are served, and by code if they never reach the
    engine."""

    @web.middleware
    async def record_refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        if route is None or not route.generates:
            return await handler(request)
        try:
            with services.serving():
                return await handler(request)
        except SemipdError as error:
            service_class = request.get(SERVICE_CLASS, DEFAULT_CLASS)
            services.history.answered_with_error(
                error.code, request[REQUEST_ID], request[ARRIVAL_NS], service_class
            )
            raise

    return record_refusals


class Guard:
    """In order: who is it, may they, do they come from where they should, is there room, and the body."""

    def __init__(self, services: Services) -> None:
        config = services.config
        self._services = services
        self._max_body_bytes = config.server.max_body_bytes
        self._body_limit_s = config.limits.body_limit_s
        self._max_body_values = config.limits.max_body_values
        self._arriving_bytes = 0

    def middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if isinstance(request.protocol, HttpConnection):
                request.protocol.head_has_come()
            route = route_of(request)
            if route is not None:
                await self._check(request, route)
            try:
                return await handler(request)
            finally:
                unsaid = self._max_body_bytes if request.body_exists else 0
                self._services.generation.prompts.heap.note(request.content_length or unsaid)

        return guard

    async def _check(self, request: web.Request, route: Route[Services]) -> None:
        request[CALLER] = caller = self._caller(request, route.access)
        self._services.auth.check(caller, route.access, request.method, route.path)
        if route.access != "probe":
            self._services.hosts.check(request)
        check_expectation(request)
        if request.method in _SAFE_METHODS or route.access == "probe":
            return
        _check_content_type(request)
        if route.generates:
            header = request.headers.get(CLASS_HEADER)
            request[SERVICE_CLASS] = self._services.classes.of_caller(caller, header)
            self._services.check_open()
        await self._read_body(request)

    def _caller(self, request: web.Request, access: Access) -> Caller:
        """Raises SemipdError: `invalid_api_key`, `rate_limited`. Wrong keys count against the address."""
        if access in ("probe", "public"):
            return Caller(is_operator=True)
        address = f"address {request.remote}"
        try:
            caller = self._services.auth.caller(request.headers.get("Authorization"))
        except SemipdError:
            self._services.limiter.take(address)
            raise
        if not (caller.is_operator and caller.name):
            self._services.limiter.take(caller.name or address)
        return caller

    async def _read_body(self, request: web.Request) -> None:
        """The body is then kept by the request: `request.read()` gives it again."""
        too_large = SemipdError(
            "body_too_large",
            f"The body is larger than server.max_body_bytes={self._max_body_bytes}.",
            "Send a shorter prompt, or raise server.max_body_bytes.",
        )
        expected_bytes = self._max_body_bytes if request.content_length is None else request.content_length
        if expected_bytes > self._max_body_bytes:
            raise too_large
        if self._arriving_bytes and self._arriving_bytes + expected_bytes > MAX_ARRIVING_BYTES:
            message = (
                f"Bodies of {self._arriving_bytes} bytes are being read; the limit is {MAX_ARRIVING_BYTES}."
            )
            raise SemipdError("overloaded", message, "Send the request again later.", retry_after_s=1)
        self._arriving_bytes += expected_bytes
        try:
            async with OwnTime(self._body_limit_s):
                await ask_for_body(request)
                await request.read()
        except TimeoutError as error:
            message = f"The body did not arrive within limits.body_limit_s={self._body_limit_s:g} s."
            raise SemipdError("request_timeout", message) from error
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large from error
        except web.RequestPayloadError as error:
            raise SemipdError("malformed_http", f"The body cannot be read: {error!s:.200}.") from error
        finally:
            self._arriving_bytes -= expected_bytes
        await check_cost(await request.read(), self._max_body_values)


def _check_content_type(request: web.Request) -> None:
    """Browsers send other types across sites without asking (CSRF)."""
    if request.content_type != "application/json":
        raise SemipdError(
            "unsupported_media_type",
            f"The Content-Type is {request.headers.get('Content-Type', 'missing')!r:.200}.",
            "Send Content-Type: application/json.",
        )
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        message = f"The Content-Encoding is {encoding!r:.200}."
        raise SemipdError("unsupported_media_type", message, "Send the body as it is.")
