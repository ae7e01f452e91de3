"""`Expect: 100-continue`: a client that sends its body only when it has been asked to.

aiohttp asks for it before anything has been checked. Here that waits until the body is wanted.
"""

from typing import Any

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict, CIMultiDictProxy

from semipd.core.errors import SemipdError

_EXPECTED = web.RequestKey("expected", str)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def hold_expectations(server: web.Server) -> None:
    """Requests have no Expect header from now on; `check_expectation` and `ask_for_body` know it."""
    make = server.request_factory

    def make_request(message: Any, *others: Any) -> web.BaseRequest:
        if "Expect" not in message.headers or message.version < HttpVersion11:
            return make(message, *others)
        expected = message.headers.getall("Expect")
        headers = CIMultiDict(message.headers)
        headers.popall("Expect")
        request = make(message._replace(headers=CIMultiDictProxy(headers)), *others)
        request[_EXPECTED] = ", ".join(expected)
        return request

    server.request_factory = make_request


def check_expectation(request: web.Request) -> None:
    """Raises SemipdError(`expectation_failed`)."""
    expected = request.get(_EXPECTED, "100-continue")
    if expected.lower() != "100-continue":
        message = f"The Expect header {expected!r:.200} cannot be met."
        raise SemipdError("expectation_failed", message, "Send 100-continue, or none.")


async def ask_for_body(request: web.Request) -> None:
    """If the client waits for that, and has not sent its body without."""
    if _EXPECTED in request and not request.content.is_eof():
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0  # the answer has not begun
