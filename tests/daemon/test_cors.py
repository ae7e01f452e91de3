"""Which web pages may use the daemon, and what of it."""

from pathlib import Path

import aiohttp
import pytest
from support.daemon import Running, running
from support.keys import ANN, key_settings

from semipd.config.config import Override, load_config
from semipd.core.errors import SemipdError
from semipd.daemon.web.cors import parse_origins

PAGE = "https://chat.example"
BOTH = f"{PAGE}, http://localhost:3000"
CLOSED = [
    ("PUT", "/v1/partition"),
    ("DELETE", "/v1/partition"),
    ("PATCH", "/v1/slo"),
    ("POST", "/v1/drain"),
    ("DELETE", "/v1/drain"),
    ("DELETE", "/v1/requests/x"),
]


async def preflight(
    daemon: Running, origin: str, path: str, method: str = "POST", **more: str
) -> tuple[int, dict[str, str]]:
    headers = {"Origin": origin, "Access-Control-Request-Method": method} | more
    async with daemon.http.options(daemon.url + path, headers=headers) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}


def cors_headers(headers: dict[str, str]) -> list[str]:
    return [name for name in headers if name.startswith("access-control")]


async def test_preflights(tmp_path: Path) -> None:
    """Without authentication, which browsers never send with them."""
    settings = key_settings(tmp_path) | {"server.cors_origins": BOTH}
    async with running(tmp_path, settings=settings) as daemon:
        wanted = "authorization,content-type,x-stainless-os"
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            status, headers = await preflight(
                daemon, PAGE, path, **{"Access-Control-Request-Headers": wanted}
            )
            assert status == 204
            assert headers["access-control-allow-origin"] == PAGE
            assert headers["access-control-allow-methods"] == "POST"
            assert headers["access-control-allow-headers"] == wanted
            assert int(headers["access-control-max-age"]) > 0
            assert headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in headers
        for path in ("/v1/models", "/v1/models/x", "/v1/status", "/metrics", "/v1/requests", "/v1/events"):
            assert (await preflight(daemon, "http://localhost:3000", path, "GET"))[0] == 204, path
        _, headers = await preflight(
            daemon, PAGE, "/v1/models", "GET", **{"Access-Control-Request-Headers": "a\u00e9"}
        )
        assert "Authorization" in headers["access-control-allow-headers"]


@pytest.mark.parametrize("origins", [BOTH, "*"])
async def test_what_changes_the_daemon_is_closed(tmp_path: Path, origins: str) -> None:
    async with running(tmp_path, settings={"server.cors_origins": origins}) as daemon:
        for method, path in CLOSED:
            status, headers = await preflight(daemon, PAGE, path, method)
            assert (status, cors_headers(headers)) == (403, []), (method, path)
        for path in ("/v1/drain", "/v1/requests/x"):
            _, _, answer = await daemon.ask("DELETE", path, Origin=PAGE)
            assert not cors_headers({name.lower(): value for name, value in answer.items()}), path


async def test_who_is_not_allowed(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"server.cors_origins": BOTH}) as daemon:
        for origin in (
            "http://chat.example",
            f"{PAGE}:8443",
            "https://evil.example",
            "null",
            "https://x.chat.example",
        ):
            status, headers = await preflight(daemon, origin, "/v1/completions")
            assert (status, cors_headers(headers)) == (403, []), origin
            status, _, answer = await daemon.ask("GET", "/v1/models", Origin=origin)
            assert status == 200
            assert "Access-Control-Allow-Origin" not in answer
        assert (await preflight(daemon, PAGE, "/v1/completions", Host="evil.example"))[0] == 403
        assert (await preflight(daemon, PAGE, "/v1/nothing"))[0] in (404, 405)
        status, _, _ = await daemon.ask("OPTIONS", "/v1/completions", Origin=PAGE)
        assert status == 405, "no preflight"


async def test_answers_errors_and_streams(tmp_path: Path) -> None:
    settings = key_settings(tmp_path) | {"server.cors_origins": BOTH}
    async with running(tmp_path, settings=settings) as daemon:
        for body, key, status in (
            ({"prompt": "a", "max_tokens": 1}, ANN, 200),
            ({"prompt": "a", "max_tokens": 3, "stream": True}, ANN, 200),
            ({"prompt": 7.5}, ANN, 400),
            ({"prompt": "a"}, "wrong-key-0123456789", 401),
            ({"prompt": "a" * 200_000}, ANN, 413),
        ):
            headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
            async with daemon.http.post(daemon.url + "/v1/completions", json=body, headers=headers) as answer:
                await answer.read()
                check_answer(answer, status)


def check_answer(answer: aiohttp.ClientResponse, status: int) -> None:
    assert answer.status == status
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Vary"] == "Origin"
    assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_any_origin(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"server.cors_origins": "*"}) as daemon:
        status, headers = await preflight(daemon, "null", "/v1/completions")
        assert (status, headers["access-control-allow-origin"]) == (204, "*")
        _, _, answer = await daemon.ask("GET", "/v1/models", Origin="https://any.example")
        assert answer["Access-Control-Allow-Origin"] == "*"
        _, _, answer = await daemon.ask("GET", "/v1/models")
        assert "Access-Control-Allow-Origin" not in answer, "no page asked"


def test_origins_are_compared_as_browsers_write_them() -> None:
    found = parse_origins(
        " HTTPS://Chat.Example:443 ,http://localhost:80,http://[::1]:3000,app://obsidian.md,"
    )
    assert found == {PAGE, "http://localhost", "http://[::1]:3000", "app://obsidian.md"}
    assert parse_origins("") == frozenset()


@pytest.mark.parametrize(
    "given",
    [
        "chat.example",
        "https://",
        "https://chat.example/",
        "https://*.example",
        "null",
        "https://a b",
        f"{PAGE};*",
    ],
)
def test_what_is_no_origin(given: str) -> None:
    with pytest.raises(SemipdError) as refused:
        parse_origins(f"{PAGE}, {given}")
    assert refused.value.code == "invalid_config"
    assert "https://chat.example" in refused.value.hint


async def test_what_is_no_origin_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SemipdError) as refused:
        async with running(tmp_path, settings={"server.cors_origins": "chat.example"}):
            pass
    assert refused.value.param == "server.cors_origins"


def test_off_by_default() -> None:
    assert load_config().server.cors_origins == ""
    given = load_config(overrides=[Override("server.cors_origins", PAGE, "test")])
    assert given.server.cors_origins == PAGE
