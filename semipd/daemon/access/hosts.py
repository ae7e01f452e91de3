"""Which names a request may call this server by.

A web page in the operator's browser can reach us under a name of its own, which it has pointed at our address
(DNS rebinding); but not under a name that is ours, nor under the bare address.
"""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from semipd.config.sections import ServerConfig
from semipd.core.errors import SemipdError

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_ANY = "*"
_AUTHORITY = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]+)(?:%[a-z0-9%._~-]+)?\]|(?P<name>[a-z0-9_.-]+))(?::[0-9]*)?", re.IGNORECASE
)


def host_name(authority: str) -> str | None:
    """The name in "name:port": in lower case, without a final dot; an IPv6 address without brackets and
    zone, in its shortest form. None: it is no such thing."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    if match["v6"] is None:
        return match["name"].lower().removesuffix(".") or None
    try:
        return _shortest(match["v6"])
    except ValueError:
        return None


class Hosts:
    """Raises SemipdError(`invalid_config`) for a name in server.allowed_hosts that is none."""

    def __init__(self, config: ServerConfig) -> None:
        self._names = frozenset({*_LOCAL_NAMES, *_configured(config)})

    def check(self, request: web.Request) -> None:
        """Raises SemipdError: `host_not_allowed`; `malformed_http` for more than one Host."""
        given = request.headers.getall("Host", [])
        if len(given) > 1:
            raise SemipdError("malformed_http", f"The request has {len(given)} Host headers.", "Send one.")
        authorities = [*given, *_absolute(request.raw_path)]
        for authority in authorities or [""]:
            self._check(authority, request)

    def _check(self, authority: str, request: web.Request) -> None:
        name = host_name(authority)
        if _ANY in self._names or (name is not None and (name in self._names or name == _own(request))):
            return
        raise SemipdError(
            "host_not_allowed",
            f"The Host header {authority!r:.200} is not allowed.",
            f"Use one of: {', '.join(sorted(self._names))}; or add the name to server.allowed_hosts.",
        )


def _absolute(target: str) -> list[str]:
    """The authority of a request target that is a whole URL, as proxies are sent."""
    if target.startswith("/") or target == "*":
        return []
    try:
        return [urlsplit(target).netloc]
    except ValueError:
        return [""]


def _own(request: web.Request) -> str | None:
    """The address at our end of the connection."""
    transport = request.transport
    name = transport.get_extra_info("sockname") if transport is not None else None
    return _shortest(name[0].partition("%")[0]) if isinstance(name, tuple) else None


def _shortest(address: str) -> str:
    """Raises ValueError."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def _configured(config: ServerConfig) -> Iterable[str]:
    """Whether server.host is an address is found out when it is bound."""
    yield _name_of(config.host) or ""
    for given in filter(None, map(str.strip, config.allowed_hosts.split(","))):
        name = _ANY if given == _ANY else _name_of(given)
        if name is None:
            message = f"{given!r:.200} in server.allowed_hosts is no name of a server."
            hint = "Write names without http:// and path, such as models.example."
            raise SemipdError("invalid_config", message, hint, param="server.allowed_hosts")
        yield name


def _name_of(text: str) -> str | None:
    """An IPv6 address may come without its brackets."""
    return host_name(text) or host_name(f"[{text}]")
