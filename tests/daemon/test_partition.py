"""Operators override the split of a running daemon over HTTP, the socket and the command line.

One real daemon and engine process on the fake device, under load the whole time; every answer is compared
with an undisturbed run, so a token that a switch lost, repeated or changed would show.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support import tiny_tokenizers
from support.known import known
from support.patience import Patience

from semipd.client import AsyncClient, Client
from semipd.commands.operators import parse_duration
from semipd.config.sections import SloConfig
from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.core.slo import Slo
from semipd.devices.fake import expected_tokens

VOCAB, CONTEXT = 400, 1024
LIMIT_S = 60.0


class Daemon:
    def __init__(self, folder: Path) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
        config = {"vocab_size": VOCAB, "eos_token_id": 1, "max_position_embeddings": CONTEXT}
        (folder / "config.json").write_text(json.dumps(config))
        self.socket, self.log = folder / "s.sock", folder / "log"
        settings = [
            "partition.mode=fixed",
            "engine.prefill_chunk_tokens=64",
            f"partition.state_dir={folder}/state",
        ]
        command = [*cli("start", "--model", str(folder), "--device", "fake", "--port", "0")]
        command += ["--socket", str(self.socket), *(word for s in settings for word in ("--set", s))]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
            )
        assert self.process.stdout is not None
        printed = [self.process.stdout.readline() for _ in range(3)]
        assert printed[2].startswith("try: "), self.log.read_text()
        self.url = printed[0].split()[-1]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("partition"))
    yield daemon
    daemon.close()


def cli(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "semipd.commands.daemon", *arguments]


async def run_cli(*arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run, cli(*arguments), capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@asynccontextmanager
async def load(daemon: Daemon) -> AsyncIterator[list[int]]:
    """Keeps both lanes busy and checks every answer. Yields how many there were, in a list of one number."""
    done, stop = [0], asyncio.Event()

    async def one(client: AsyncClient, number: int) -> None:
        prompt = [(number * 31 + k * 7) % VOCAB for k in range(300)]
        items = client.generate(prompt, max_tokens=60, seed=number, ignore_eos=True)
        tokens = [token async for item in items for token in item.token_ids]
        params = SamplingParams(max_tokens=60, seed=number)
        assert tokens == expected_tokens(prompt, params, CONTEXT, VOCAB), f"request {number} was disturbed"
        done[0] += 1

    async def worker(client: AsyncClient, first: int) -> None:
        number = first
        while not stop.is_set():
            await one(client, number)
            number += 8

    async with await AsyncClient.connect(daemon.socket) as client:
        workers = [asyncio.create_task(worker(client, first)) for first in range(8)]
        try:
            yield done
        finally:
            stop.set()
            await asyncio.gather(*workers)


async def until(ask: Callable[[], Any], holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    patience = Patience(LIMIT_S)
    document: dict[str, Any]
    while not holds(document := await ask()):
        assert not patience.is_over(), document
        await asyncio.sleep(0.02)
    return document


class Http:
    """The routes, without a client's comfort."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        sent = {} if method == "GET" else {"json": body}
        async with self._session.request(method, self._url + path, **sent) as response:
            return response.status, await response.json()

    async def partition(self) -> dict[str, Any]:
        return (await self.call("GET", "/v1/partition"))[1]


@pytest.fixture
async def http(daemon: Daemon) -> AsyncIterator[Http]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield Http(session, daemon.url)


def in_force(split: list[int]) -> Callable[[dict[str, Any]], bool]:
    """A step has run under this override."""
    return lambda d: d["change"]["granted"] == split and d["change"]["effective_at_s"] is not None


async def test_http_override_under_load_takes_effect_and_expires_by_itself(
    daemon: Daemon, http: Http
) -> None:
    async with load(daemon) as done:
        body = {"prefill_units": 13, "expires_s": 1.0, "reason": "drill", "actor": "ann"}
        status, answer = await http.call("PUT", "/v1/partition", body)
        assert status == 200
        assert (answer["granted"], answer["requested"]) == ([13, 3], {"prefill_units": 13})
        assert abs(answer["expires_at_s"] - answer["at_s"] - 1.0) < 1e-3
        assert abs(answer["at_s"] - time.time()) < 30
        held = await until(http.partition, in_force([13, 3]))
        assert (held["mode"], held["shared"]["split"], held["shared"]["rule"]) == ("fixed", [13, 3], "ann")
        assert held["change"]["effective_at_s"] >= held["change"]["at_s"]
        ended = await until(http.partition, lambda d: d["mode"] == "auto")
        assert [c["actor"] for c in ended["history"]][-2:] == ["ann", "expiry"]
        before = done[0]
        await until(http.partition, lambda _: done[0] > before)
    assert ended["switch_ms"]["count"] > 0
    assert ended["prediction"]["steps"]["decode"]["steps"] > 0


async def test_socket_override_under_load(daemon: Daemon) -> None:
    async with load(daemon), await AsyncClient.connect(daemon.socket) as client:
        answer = await client.set_partition(mode="fixed", decode_units=13, reason="socket")
        assert answer["granted"] == [3, 13]
        assert "(pid " in answer["actor"]
        await until(client.partition, in_force([3, 13]))
        off = await client.set_partition(mode="off", expires_s=30.0)
        assert off["takes_effect"] == "with the next step"
        await until(
            client.partition, lambda d: d["mode"] == "off" and d["change"]["effective_at_s"] is not None
        )
        cleared = await client.clear_partition(actor="bob", reason="done")
        assert (cleared["mode"], cleared["actor"], cleared["reason"]) == ("auto", "bob", "done")
        status = await client.status()
        assert "partition" in status
        assert status["partition"]["mode"] == "auto"


async def test_command_line_override_under_load(daemon: Daemon, http: Http) -> None:
    where = ("--socket", str(daemon.socket))
    async with load(daemon):
        dry = await run_cli("partition", "set", "--prefill", "10", "--dry-run", *where)
        assert dry[0] == 0
        assert dry[1].startswith("would be: fixed 10+6 by ")
        assert (await http.partition())["change"]["granted"] != [10, 6]
        code, out, err = await run_cli(
            "partition", "set", "--prefill", "5", "--for", "5m", "--reason", "cli", *where
        )
        assert code == 0, err
        assert out.startswith("now: fixed 5+11 by ")
        assert "takes effect" in out
        await until(http.partition, in_force([5, 11]))
        code, out, _ = await run_cli("partition", "show", *where)
        assert code == 0
        assert "fixed 5+11" in out.splitlines()[0]
        assert "5+11 units (prefill+decode) while both lanes work" in out
        code, out, _ = await run_cli("partition", "auto", "--json", *where)
        assert json.loads(out)["mode"] == "auto"
    code, out, err = await run_cli("partition", "set", "--prefill", "16", *where)
    assert (code, out) == (1, "")
    assert "error [impossible_split]" in err
    assert "15+1, 14+2" in err


async def test_concurrent_overrides_the_last_wins_and_both_are_in_the_history(
    daemon: Daemon, http: Http
) -> None:
    wishes = [{"prefill_units": n, "actor": f"op-{n}"} for n in range(1, 16)]
    answers = await asyncio.gather(*(http.call("PUT", "/v1/partition", wish) for wish in wishes))
    assert all(status == 200 for status, _ in answers)
    document = await http.partition()
    actors = [change["actor"] for change in document["history"]]
    assert {f"op-{n}" for n in range(1, 16)} <= set(actors)
    assert document["change"]["actor"] == actors[-1]
    assert document["shared"]["split"] == document["history"][-1]["granted"]
    status, cleared = await http.call("DELETE", "/v1/partition", {"reason": "over"})
    assert (status, cleared["mode"], cleared["reason"]) == (200, "auto", "over")


async def test_a_dry_run_changes_nothing(http: Http) -> None:
    before = await http.partition()
    status, answer = await http.call("PUT", "/v1/partition", {"prefill_units": 2, "dry_run": True})
    assert (status, answer["dry_run"], answer["granted"]) == (200, True, [2, 14])
    after = await http.partition()
    assert after["history"] == before["history"]
    assert after["mode"] == before["mode"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prefill_units": 16}, "impossible_split"),
        ({"prefill_units": 4, "decode_units": 4}, "impossible_split"),
        ({}, "impossible_split"),
        ({"mode": "auto", "prefill_units": 4}, "invalid_value"),
        ({"prefill_units": 4, "expires_s": -1}, "invalid_value"),
        ({"prefill_units": "4"}, "invalid_value"),
        ({"prefill_units": -4}, "invalid_value"),
        ({"mode": "manual"}, "invalid_value"),
        ({"prefil_units": 4}, "unknown_field"),
        ({"prefill_units": 4, "reason": "x" * 201}, "invalid_value"),
    ],
)
async def test_refused_overrides_change_nothing(http: Http, body: dict[str, Any], code: str) -> None:
    before = (await http.partition())["history"]
    status, answer = await http.call("PUT", "/v1/partition", body)
    assert (status, answer["error"]["code"]) == (400, code)
    if code == "impossible_split":
        assert "15+1, 14+2, 13+3" in answer["error"]["message"]
    assert (await http.partition())["history"] == before


async def test_changes_need_json_so_that_no_page_can_send_them(daemon: Daemon) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{daemon.url}/v1/partition", data=b'{"prefill_units": 3}') as response:
            assert response.status == 415
        headers = {"Content-Type": "application/json", "Host": "evil.example"}
        async with session.delete(f"{daemon.url}/v1/partition", headers=headers) as response:
            assert response.status == 403


async def test_targets_over_all_three_ways(daemon: Daemon, http: Http) -> None:
    status, answer = await http.call("PATCH", "/v1/slo", {"ttft_ms": 321, "reason": "tighter"})
    assert (status, answer["targets"]["ttft_ms"]) == (200, 321)
    async with await AsyncClient.connect(daemon.socket) as client:
        assert (await client.set_slo(tpot_ms=17.5))["targets"]["tpot_ms"] == 17.5
        assert (await client.slo())["targets"]["ttft_ms"] == 321
        with pytest.raises(SemipdError) as refused:
            await client.set_slo(percentile=0.0)
        assert refused.value.code == "invalid_value"
    code, out, err = await run_cli(
        "slo", "--percentile", "95", "--window-s", "20", "--socket", str(daemon.socket)
    )
    assert code == 0, err
    first, *levels = out.strip().splitlines()
    assert first.endswith("(95 % of requests, last 20 s)")
    assert [line.partition(":")[0] for line in levels[1:]] == ["default", "batch"]
    _, document = await http.call("GET", "/v1/slo")
    changed = {"ttft_ms": 321, "tpot_ms": 17.5, "percentile": 95, "window_s": 20}
    assert document["targets"] == Slo(**asdict(SloConfig()) | changed).to_wire()
    history = (await http.partition())["history"]
    assert [change["slo"]["percentile"] for change in history[-3:]] == [90, 90, 95]
    assert history[-3]["reason"] == "tighter"


async def test_what_the_daemon_measures_follows_the_targets(daemon: Daemon, http: Http) -> None:
    async with await AsyncClient.connect(daemon.socket) as client:
        for ttft_ms in (1e9, 0.001):
            answer = await client.set_slo(ttft_ms=ttft_ms, tpot_ms=1e9)
            tokens = [t async for i in client.generate([1, 2, 3], max_tokens=4) for t in i.token_ids]
            assert tokens
            async with client.subscribe(interval_ms=100) as frames:
                frame = await anext(frames)
            assert frame.state["slo"]["targets"] == answer["targets"]
            assert frame.state["slo"]["attainment"] == (1.0 if ttft_ms > 1 else 0.0), "judged anew"
            async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as response:
                target = re.search(
                    r'^semipd:slo_target_seconds\{service_class="default",slo="ttft"\} (.+)$',
                    await response.text(),
                    re.M,
                )
            assert target is not None
            assert float(target[1]) == pytest.approx(ttft_ms / 1e3)
    await http.call("PATCH", "/v1/slo", {"ttft_ms": 500, "tpot_ms": 50})


async def test_state_frames_and_metrics_show_partition_control(daemon: Daemon) -> None:
    async with load(daemon), await AsyncClient.connect(daemon.socket) as client:
        await client.set_partition(prefill_units=7, actor="eve", reason="seen")
        await until(client.partition, in_force([7, 9]))
        async with asyncio.timeout(LIMIT_S), client.subscribe(interval_ms=100) as frames:
            async for frame in frames:  # the first may hold an answer that is older than the change
                shown = known(frame.state["partition"])
                if shown["change"]["actor"] == "eve":
                    break
        assert (shown["mode"], shown["shared"]["rule"], shown["shared"]["reason"]) == ("fixed", "eve", "seen")
        assert shown["shared"]["split"] == [7, 9]
        assert "at_s" in shown["change"]
        async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/metrics") as response:
            text = await response.text()
        document = await client.clear_partition()
        switches = (await client.partition())["switch_ms"]
    assert document["mode"] == "auto"
    for mode in ("auto", "fixed", "off"):
        assert f'semipd:partition_mode{{mode="{mode}"}} {float(mode == "fixed")}\n' in text
    counted = re.search(r"^semipd:split_switch_seconds_count (.+)$", text, re.M)
    assert counted is not None
    assert 0 < float(counted[1]) <= switches["count"]


async def test_both_clients_offer_the_same(daemon: Daemon) -> None:
    names = ("partition", "set_partition", "clear_partition", "slo", "set_slo")
    assert {name for name in names if not hasattr(AsyncClient, name)} == set()

    def ask() -> None:
        with Client.connect(daemon.socket) as client:
            assert client.set_partition(decode_units=4, dry_run=True)["granted"] == [12, 4]
            assert client.set_partition(decode_units=5, reason="blocking")["granted"] == [11, 5]
            assert client.partition()["change"]["reason"] == "blocking"
            assert client.clear_partition(actor="bob")["actor"] == "bob"
            assert client.set_slo(ttft_ms=444.0)["targets"]["ttft_ms"] == 444
            assert client.slo()["targets"]["ttft_ms"] == 444
            with pytest.raises(SemipdError) as refused:
                client.set_partition(prefill_units=16)
            assert refused.value.code == "impossible_split"

    await asyncio.to_thread(ask)


async def test_socket_refuses_unknown_fields(daemon: Daemon) -> None:
    async with await AsyncClient.connect(daemon.socket) as client:
        with pytest.raises(SemipdError) as refused:
            await client.set_partition(mode="fixed", colour=3)
        assert refused.value.code == "unknown_field"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "10 m", "5w", "1e3"])
def test_no_durations(text: str) -> None:
    with pytest.raises(SemipdError):
        parse_duration(text)
