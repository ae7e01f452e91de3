"""The door over HTTP and the socket: keys, guests, whose requests are whose, what the log says of them."""

import asyncio
import json
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running, until
from support.daemon_process import scripted_process
from support.keys import ANN, BOB, OPS, key_settings, write_keys

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.daemon.access import peers
from semipd.daemon.access.addresses import claim_http, claim_socket
from semipd.daemon.access.peers import Peer, group_id, peer_of


async def complete(daemon: Running, key: str, **body: Any) -> dict[str, Any]:
    status, answer, _ = await daemon.post(body, Authorization=f"Bearer {key}")
    assert status == 200, answer
    return answer


async def test_keys_over_http(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path)) as daemon:
        for path in ("/health", "/ready", "/openapi.json"):
            assert (await daemon.ask("GET", path))[0] == 200
        for path in ("/v1/models", "/v1/requests", "/metrics", "/v1/status", "/v1/events", "/v1/partition"):
            status, answer, headers = await daemon.ask("GET", path)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), path
            assert headers["WWW-Authenticate"] == "Bearer"
        assert (await daemon.ask("POST", "/v1/completions"))[0] == 401
        assert (await daemon.ask("GET", "/v1/models", ANN))[0] == 200
        assert (await daemon.ask("GET", "/v1/models", "wrong-key-0123456789"))[0] == 401
        for path in ("/metrics", "/v1/status", "/v1/drain"):
            status, answer, _ = await daemon.ask("GET", path, ANN)
            assert (status, answer["error"]["code"]) == (403, "operator_required"), path
            assert (await daemon.ask("GET", path, OPS))[0] == 200
        assert (await daemon.ask("POST", "/v1/drain", ANN))[0] == 403
        assert (await daemon.ask("POST", "/v1/drain", OPS))[1]["actor"] == "http operator:eve"
        assert (await daemon.ask("GET", "/no/such/path"))[0] == 404


async def test_a_key_sees_and_cancels_only_its_own_requests(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path), max_steps=3) as daemon:
        tasks = [
            asyncio.create_task(
                daemon.post(
                    {"prompt": [97], "max_tokens": 50},
                    **{"Authorization": f"Bearer {key}", "X-Request-ID": name},
                )
            )
            for key, name in ((ANN, "ann-1"), (BOB, "bob-1"), (ANN, "same"), (BOB, "same"))
        ]
        await until(lambda: len(daemon.services.table) == 4)

        async def seen(key: str) -> list[tuple[str, str]]:
            listed = (await daemon.ask("GET", "/v1/requests", key))[1]["data"]
            return sorted((record["id"], record["key"]) for record in listed)

        assert await seen(ANN) == [("ann-1", "ann"), ("same", "ann")]
        assert await seen(BOB) == [("bob-1", "bob"), ("same", "bob")]
        assert len(await seen(OPS)) == 4
        assert (await daemon.ask("GET", "/v1/requests/bob-1", ANN))[0] == 404
        status, answer, _ = await daemon.ask("DELETE", "/v1/requests/bob-1", ANN)
        assert (status, answer["result"]) == (404, "not_found")
        assert (await daemon.ask("DELETE", "/v1/requests/same", BOB))[1]["result"] == "cancelled"
        assert (await tasks[3])[1]["error"][
            "message"
        ] == "Another call with the same key cancelled the request."
        assert not tasks[2].done(), "of the same name, but another key's"
        for name in ("bob-1", "same", "ann-1"):
            assert (await daemon.ask("DELETE", f"/v1/requests/{name}", OPS))[1]["result"] == "cancelled"
        assert [task[0] for task in await asyncio.gather(*tasks)] == [499] * 4
        everything = json.dumps((await daemon.ask("GET", "/v1/requests", OPS))[1])
        assert "prompt_tokens" in everything
        assert '"text"' not in everything


async def test_tenants_share_no_prefix_and_see_none_of_each_others_hits(tmp_path: Path) -> None:
    async with running(
        tmp_path, settings=key_settings(tmp_path), fake=default_engine_settings(device="fake")
    ) as daemon:
        prompt = list(range(5, 165))

        async def hit(key: str, **more: Any) -> int:
            usage = (await complete(daemon, key, prompt=prompt, max_tokens=1, **more))["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        assert await hit(ANN, cache_salt="s") == 0
        assert await hit(ANN, cache_salt="s") == 144
        assert await hit(BOB, cache_salt="s") == 0, "the salt of another key is another salt"
        assert await hit(BOB) == 0
        for guess in ("ann", "ann\0s", "\0ann\0s", "bytes\0ann\0s"):
            assert await hit(BOB, cache_salt=guess) == 0
        listed = (await daemon.ask("GET", "/v1/requests", BOB))[1]["data"]
        assert sum(record["cached_tokens"] for record in listed) == 0
        assert (await daemon.ask("GET", "/metrics", BOB))[0] == 403
        assert "prefix_cache_hits_total" in (await daemon.ask("GET", "/metrics", OPS))[1]


async def test_guests_of_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest is known by the kernel; here the kernel is told what to say."""
    group = 4321
    async with running(tmp_path, max_steps=3) as daemon:
        daemon.services.auth.guests_gid = group
        own = await AsyncClient.connect(daemon.socket_path)
        stream = own.generate([97], max_tokens=50, request_id="mine")
        await anext(stream)
        monkeypatch.setattr(peers, "peer_of", lambda _: Peer(7, os.getuid() + 5, frozenset({group})))
        async with await AsyncClient.connect(daemon.socket_path) as guest:
            other = guest.generate([98], max_tokens=50, request_id="guests")
            await anext(other)
            assert [record["id"] for record in await guest.requests()] == ["guests"]
            assert await guest.cancel_request("mine") == "not_found"
            for forbidden in (
                guest.status(),
                guest.drain(),
                guest.shutdown(),
                guest.set_partition(mode="auto"),
            ):
                with pytest.raises(SemipdError) as refused:
                    await forbidden
                assert refused.value.code == "operator_required"
            with pytest.raises(SemipdError) as refused:
                await anext(guest.subscribe())
            assert refused.value.code == "operator_required"
            assert [record["key"] for record in await own.requests()] == [f"uid:{os.getuid() + 5}", None]
            assert await own.cancel_request("guests") == "cancelled"
        seen = await daemon.engine()
        assert len({submitted["namespace"] for submitted in seen["submitted"]}) == 2
        monkeypatch.setattr(peers, "peer_of", lambda _: Peer(7, os.getuid() + 5, frozenset({group + 1})))
        with pytest.raises(SemipdError) as refused:
            await AsyncClient.connect(daemon.socket_path)
        assert refused.value.code == "peer_not_allowed"
        await own.close()


async def test_guests_leave_connections_to_the_daemons_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Peer(7, os.getuid() + 5, frozenset({4321}))
    async with running(tmp_path, settings={"limits.max_connections": 8}) as daemon:
        daemon.services.auth.guests_gid = 4321
        with monkeypatch.context() as patched:
            patched.setattr(peers, "peer_of", lambda _: guest)
            clients = [await AsyncClient.connect(daemon.socket_path) for _ in range(7)]
            with pytest.raises(SemipdError) as refused:
                await AsyncClient.connect(daemon.socket_path)
        assert refused.value.code == "too_many_connections"
        async with await AsyncClient.connect(daemon.socket_path) as own:
            assert (await own.status())["state"] == "ready"
        for client in clients:
            await client.close()


def test_the_kernel_knows_the_peer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert peer.groups == {os.getgid(), *os.getgroups()}


def test_a_socket_for_a_group(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    with claim_socket(folder / "s", group=os.getgid()):
        found = (folder / "s").stat()
        assert (found.st_mode & 0o777, found.st_gid) == (0o660, os.getgid())
    folder.chmod(0o700)
    with pytest.raises(SemipdError) as refused, claim_socket(folder / "s", group=os.getgid()):
        pass
    assert refused.value.code == "socket_out_of_reach"
    with pytest.raises(SemipdError) as refused:
        group_id("no-such-group-here")
    assert refused.value.code == "unknown_group"


def test_an_open_address_needs_keys() -> None:
    with pytest.raises(SemipdError) as refused:
        claim_http("0.0.0.0", 0)
    assert refused.value.code == "key_required"
    for listener in claim_http("0.0.0.0", 0, needs_key=True):
        listener.close()


def test_a_daemon_with_keys_reads_them_again_on_sighup(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys", f"ann:{ANN}\n")
    with scripted_process(tmp_path, settings={"auth.keys_file": file, "server.host": "0.0.0.0"}) as daemon:
        write_keys(tmp_path / "keys", f"bob:{BOB}\n")
        daemon.process.send_signal(signal.SIGHUP)
        log = tmp_path / "stderr"
        asyncio.run(until(lambda: "key files reloaded: 1 API keys" in log.read_text()))
    assert ANN not in log.read_text() + BOB


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_no_secret_and_no_prompt_in_the_log_unless_asked(
    tmp_path: Path, log_prompts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = key_settings(tmp_path) | {"server.log_prompts": log_prompts}
    async with running(tmp_path, settings=settings) as daemon:
        await complete(daemon, ANN, prompt="the secret of the sphinx\nforged line", max_tokens=2)
        await daemon.post({"prompt": "x", "stop": [1], "zzz": "riddle"}, Authorization=f"Bearer {ANN}")
        await daemon.ask("GET", "/v1/models", "wrong-key-0123456789")
        async with await AsyncClient.connect(daemon.socket_path) as client:
            async for _item in client.generate("another sphinx", max_tokens=1):
                pass
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    for secret in (ANN, BOB, OPS, "wrong-key", "riddle"):
        assert secret not in logged
    assert ("sphinx" in logged) == log_prompts
    if log_prompts:
        shown = [vars(record)["prompt"] for record in caplog.records if "prompt" in vars(record)]
        assert shown == ["'the secret of the sphinx\\nforged line'", "'another sphinx'"]
