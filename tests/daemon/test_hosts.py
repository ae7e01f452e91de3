"""Under which names the daemon answers, and whom: web pages that rebind a name of theirs get nothing."""

import asyncio
from pathlib import Path

import pytest
from support.daemon import Running, running
from support.loops import on_uvloop
from support.raw_http import send

from semipd.config.sections import ServerConfig
from semipd.core.errors import SemipdError
from semipd.daemon.access.hosts import Hosts, host_name

ROUTES = ["/v1/models", "/v1/status", "/metrics", "/v1/requests", "/v1/events", "/v1/partition", "/version"]


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8808", "localhost"),
        ("localhost.", "localhost"),
        ("localhost.:80", "localhost"),
        ("localhost:", "localhost"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[0:0:0:0:0:0:0:1]:8808", "::1"),
        ("[FE80::1%25eth0]:8808", "fe80::1"),
        ("[fe80::1%eth0]", "fe80::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("a_b.example", "a_b.example"),
        ("", None),
        (".", None),
        ("::1", None),
        ("localhost:80:80", None),
        ("localhost:x", None),
        ("evil@localhost", None),
        ("localhost evil", None),
        ("localhost,evil", None),
        ("localhost/evil", None),
        ("[localhost]", None),
        ("[::1", None),
        ("[::1]x", None),
        ("lоcalhost", None),  # its first o is Cyrillic
    ],
)
def test_names(authority: str, name: str | None) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize("given", ["http://models.example", "models.example/v1", "a b", "[::1"])
def test_names_in_the_configuration_that_are_none(given: str) -> None:
    with pytest.raises(SemipdError) as refused:
        Hosts(ServerConfig(allowed_hosts=f"good.example, {given}"))
    assert refused.value.code == "invalid_config"
    assert "models.example" in str(refused.value)


@on_uvloop
async def test_get_and_head_too(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"server.allowed_hosts": "api.example:443, fd00::7"}) as daemon:
        for route in ROUTES:
            for method in ("GET", "HEAD"):
                refused = await send_for(daemon, "evil.example", route, method)
                assert refused == 403, (method, route)
        for host in ("localhost", "API.example.:99", "[fd00::7]", "127.0.0.1:5"):
            assert await send_for(daemon, host, "/v1/models") == 200
        answer = await send(daemon, "GET /v1/models HTTP/1.1\nHost: evil.example")
        assert answer.code == "host_not_allowed"
        assert "server.allowed_hosts" in answer.body["error"]["message"]


async def send_for(daemon: Running, host: str, route: str, method: str = "GET") -> int:
    head = f"{method} {route} HTTP/1.1\nHost: {host}\nConnection: close"
    if method == "HEAD":  # its Content-Length is that of a body which does not come
        port = int(daemon.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        async with asyncio.timeout(30):
            line = await reader.readline()
        writer.close()
        return int(line.split()[1])
    return (await send(daemon, head)).status


@on_uvloop
async def test_probes_come_under_any_name(tmp_path: Path) -> None:
    """Kubernetes asks by the pod's address, a load balancer by its own name, HTTP/1.0 by none."""
    async with running(tmp_path) as daemon:
        for route in ("/health", "/ready", "/ping"):
            for head in ("HTTP/1.1\nHost: balancer.example", "HTTP/1.0", "HTTP/1.0\nHost: 10.1.2.3"):
                assert (await send(daemon, f"GET {route} {head}")).status == 200, (route, head)


@on_uvloop
async def test_odd_requests(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for head, status in (
            ("GET /v1/models HTTP/1.1", 400),
            ("GET /v1/models HTTP/1.0", 403),
            ("GET /v1/models HTTP/1.1\nHost:", 403),
            ("GET /v1/models HTTP/1.1\nHost: localhost\nHost: evil.example", 400),
            ("GET /v1/models HTTP/1.1\nHost: localhost\nHost: localhost", 400),
            ("GET http://evil.example/v1/models HTTP/1.1\nHost: localhost", 403),
            ("GET http://localhost@evil.example/v1/models HTTP/1.1\nHost: localhost", 403),
            ("GET http://localhost/v1/models HTTP/1.1\nHost: evil.example", 403),
            ("GET http://localhost:8808/v1/models HTTP/1.1\nHost: localhost:8808", 200),
            ("GET http://127.0.0.1/v1/models HTTP/1.1\nHost: LOCALHOST.", 200),
        ):
            assert (await send(daemon, head)).status == status, head


@on_uvloop
async def test_any_name_if_configured(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"server.allowed_hosts": "*"}) as daemon:
        assert await send_for(daemon, "whatever.example", "/v1/status") == 200
