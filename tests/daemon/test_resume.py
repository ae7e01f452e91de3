"""Engines die under 16 streams, over HTTP and the socket: no token is repeated, missing or changed.

On the fake device the oracle is the same request without a crash, answered before by the same daemon, and for
plain streams what the device must produce.
"""

import asyncio
import itertools
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.eventually import eventually
from support.fake_answers import FakeAnswers
from support.fake_model import fake_model, fake_settings
from support.known import known
from support.poison_engine import KILLS_IN_PREFILL, KILLS_LATER, spawn_poisoned
from support.scripted_engine import scripted

from semipd.client import AsyncClient

CHAT = "/v1/chat/completions"
Answer = Any
"""What a client has seen, without what differs from call to call."""


@asynccontextmanager
async def fake_daemon(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Running, FakeAnswers]]:
    model = fake_model(tmp_path)
    async with running(tmp_path, model, fake=fake_settings(model), **options) as daemon:
        yield daemon, FakeAnswers(model)


def in_flight(daemon: Running) -> int:
    return sum(record.output_tokens >= 3 for record in daemon.services.history.records("live"))


async def kill(daemon: Running) -> None:
    """SIGKILL, and wait until the next engine is ready."""
    before = daemon.services.supervisor.num_restarts
    daemon.services.supervisor.kill()
    await eventually(lambda: daemon.services.supervisor.num_restarts > before, "a new engine")


async def all_resumed(daemon: Running) -> None:
    await eventually(lambda: not daemon.services.table.num_suspects, "every suspect is cleared")


async def streamed(daemon: Running, path: str = "/v1/completions", **body: Any) -> Answer:
    """Everything a streaming HTTP client gets, joined per choice."""
    choices: dict[int, dict[str, Any]] = defaultdict(lambda: {"text": "", "logprobs": [], "reasons": []})
    events = await daemon.stream(path, stream_options={"include_usage": True}, **body)
    for choice in itertools.chain.from_iterable(event["choices"] for event in events):
        seen = choices[choice["index"]]
        seen["text"] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        if choice.get("logprobs"):
            seen["logprobs"] += choice["logprobs"].get("token_logprobs") or choice["logprobs"]["content"]
        seen["reasons"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    return dict(choices), _steady(events[-1]["usage"])


async def whole(daemon: Running, **body: Any) -> Answer:
    answer = await daemon.complete(**body)
    return answer["choices"], _steady(answer["usage"])


async def over_socket(client: AsyncClient, prompt: list[int], **options: Any) -> Answer:
    items = [item async for item in client.generate(prompt, **options)]
    tokens = [token for item in items for token in item.token_ids]
    usage = items[-1].usage
    assert usage is not None
    return "".join(item.text for item in items), tokens, items[-1].finish_reason, _steady(usage)


def _steady(usage: dict[str, Any]) -> dict[str, Any]:
    """The second of two equal prompts finds the first one's blocks: that alone may differ."""
    return {name: value for name, value in usage.items() if name != "prompt_tokens_details"}


def sixteen(daemon: Running, client: AsyncClient) -> list[Callable[[], Coroutine[Any, Any, Answer]]]:
    """Thirteen calls, sixteen sequences, of every kind."""
    long: dict[str, Any] = {"max_tokens": 700, "ignore_eos": True}
    prompt = [7, 8, 9] * 20
    plain = [partial(streamed, daemon, prompt=[n] * (10 + 17 * n), seed=n, **long) for n in range(1, 6)]
    sockets = [partial(over_socket, client, [n] * (5 + 31 * n), seed=n, **long) for n in range(6, 10)]
    return [
        *plain,
        *sockets,
        lambda: streamed(daemon, prompt="Whan that Aprille", seed=3, n=3, logprobs=2, **long),
        lambda: streamed(daemon, CHAT, messages=[{"role": "user", "content": "hm"}], seed=5, n=2,
                         logprobs=True, top_logprobs=2, temperature=0.9, **long),
        lambda: whole(daemon, prompt=prompt, seed=6, echo=True, logprobs=1, **long),
        lambda: streamed(daemon, prompt=prompt, seed=11, stop=["never to be found"], **long),
    ]  # fmt: skip


async def test_killed_three_times_under_sixteen_streams(tmp_path: Path) -> None:
    async with (
        fake_daemon(tmp_path) as (daemon, answers),
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        calls = sixteen(daemon, client)
        undisturbed = await asyncio.gather(*(call() for call in calls))
        streams = [asyncio.create_task(call()) for call in calls]
        await eventually(lambda: in_flight(daemon) == 16, "every stream has tokens")
        for _ in range(3):
            assert in_flight(daemon)
            await kill(daemon)
            await all_resumed(daemon)
        assert await asyncio.gather(*streams) == undisturbed
        history = daemon.services.history
        assert undisturbed[5][1] == answers.tokens([6] * 191, 6, 700, ignore_eos=True)
        assert (history.engine_deaths, history.resumptions >= 16) == (3, True)
        assert len(daemon.services.table) == 0
        status = await daemon.engine_says(lambda engine: engine["kv"]["used_blocks"] == 0)
        assert status["requests"]["decoding"] == 0


async def test_a_stopped_engine_is_replaced(tmp_path: Path) -> None:
    limits = {"supervision.answer_limit_s": 1.0, "supervision.interval_s": 0.1}
    async with fake_daemon(tmp_path, settings=limits) as (daemon, answers):
        streams = [
            asyncio.create_task(whole(daemon, prompt=[n] * 20, seed=n, max_tokens=300, ignore_eos=True))
            for n in range(1, 5)
        ]
        await eventually(lambda: in_flight(daemon) == 4, "every stream has tokens")
        run = daemon.services.supervisor._run
        assert run is not None
        os.kill(run.pid, signal.SIGSTOP)
        finished = await asyncio.gather(*streams)
        [death] = [entry for entry in events(daemon) if entry["kind"] == "engine_died"]
    for n, (choices, usage) in enumerate(finished, 1):
        tokens = answers.tokens([n] * 20, n, 300, ignore_eos=True)
        assert choices[0]["text"] == answers.continued([n] * 20, tokens)
        assert usage["completion_tokens"] == 300
    assert "did not answer within supervision.answer_limit_s=1 s" in death["data"]["why"]
    assert death["data"]["in_flight"] == 4


def events(daemon: Running) -> list[Any]:
    journal = daemon.services.history.journal
    return [journal.to_wire(entry) for entry in journal.read(0, 10_000).entries]


@pytest.mark.parametrize("poison", [KILLS_IN_PREFILL, KILLS_LATER])
async def test_a_poisonous_request_fails_and_its_neighbours_finish(tmp_path: Path, poison: int) -> None:
    body: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True}
    async with fake_daemon(tmp_path, spawn=spawn_poisoned) as (daemon, answers):
        neighbours = [
            asyncio.create_task(whole(daemon, prompt=[n] * 20, seed=n, **body)) for n in range(1, 9)
        ]
        await eventually(lambda: in_flight(daemon) == 8, "every stream has tokens")
        bad = asyncio.create_task(
            daemon.post({"prompt": [poison] * 20, **body}, **{"X-Request-ID": "the-poison"})
        )
        late = asyncio.create_task(whole(daemon, prompt=[9] * 20, seed=9, **body))
        status, answer, _ = await bad
        finished = [*(await asyncio.gather(*neighbours)), await late]
        history = daemon.services.history
    assert (status, answer["error"]["code"]) == (500, "engine_crashed")
    assert "the-poison" in answer["error"]["message"]
    assert history.engine_deaths in (2, 3)
    for n, (choices, _) in enumerate(finished, 1):
        tokens = answers.tokens([n] * 20, n, 120, ignore_eos=True)
        assert choices[0]["text"] == answers.continued([n] * 20, tokens)


async def test_requests_arrive_and_are_cancelled_while_no_engine_is_there(tmp_path: Path) -> None:
    """They keep their first arrival, and say in their history what happened to them."""
    slow = {"supervision.backoff_s": 1.0}
    async with (
        fake_daemon(tmp_path, settings=slow) as (daemon, answers),
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        history, supervisor = daemon.services.history, daemon.services.supervisor
        body: dict[str, Any] = {"max_tokens": 500, "ignore_eos": True}
        going, doomed = [client.generate([n] * 9, seed=n, request_id=f"r{n}", **body) for n in (1, 2)]
        await eventually(lambda: in_flight(daemon) == 2, "every stream has tokens")
        [arrival_ns] = {record.arrival_ns for record in history.named("r1")}
        supervisor.kill()
        await eventually(lambda: supervisor.state == "restarting", "the death is noticed")
        newcomer = asyncio.create_task(whole(daemon, prompt=[3] * 9, seed=3, **body))
        refusal = await daemon.http.get(daemon.url + "/ready")
        assert refusal.status == 503
        assert "restarted in" in (await refusal.json())["error"]["message"]
        report = (await client.status())["engine"]
        assert (report["state"], report["attempt"]) == ("restarting", 1)
        assert "SIGKILL" in known(report["why"])
        assert await client.cancel_request("r2") == "cancelled"
        with pytest.raises(Exception, match="cancelled the request"):
            [item async for item in doomed]
        tokens = [token async for item in going for token in item.token_ids]
        assert tokens == answers.tokens([1] * 9, 1, 500, ignore_eos=True)
        choices, _ = await newcomer
        assert choices[0]["text"] == answers.continued(
            [3] * 9, answers.tokens([3] * 9, 3, 500, ignore_eos=True)
        )
        [record] = history.named("r1")
    assert record.arrival_ns == arrival_ns
    kinds = [entry.kind for entry in record.timeline]
    assert [kinds.count(kind) for kind in ("request_resumed", "first_token", "first_byte")] == [1, 1, 1]
    assert "request_resumed" not in [entry.kind for entry in history.named("r2")[0].timeline]
    assert history.resumptions == 1
    outages = [event["data"]["outage_s"] for event in events(daemon) if event["kind"] == "engine_restarted"]
    assert len(outages) == 1 < outages[0] + 0.5


async def test_a_stop_string_across_a_crash(tmp_path: Path) -> None:
    """Its first half comes from the engine that dies, its second half from the next."""
    async with running(tmp_path, max_steps=4, step_ms=5) as daemon:
        text = "abcdefgh"
        stream = asyncio.create_task(daemon.stream(prompt=list(text.encode()), stop=["def"], max_tokens=50))
        await eventually(lambda: in_flight(daemon), "four tokens are there")
        await asyncio.sleep(0.1)
        await kill_and_lift_the_bound(daemon)
        events = await stream
    assert "".join(event["choices"][0]["text"] for event in events) == "abc"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


async def kill_and_lift_the_bound(daemon: Running) -> None:
    daemon.services.supervisor._spawn = scripted()
    await kill(daemon)


async def test_crash_loop_ends_in_a_clear_failure(tmp_path: Path) -> None:
    """An engine that served dies, and its successors die while they start."""
    first = scripted(max_steps=2)
    engines = itertools.chain([first], itertools.repeat(scripted(phases=[["loading weights", 9, 0]], exit=7)))
    few = {"supervision.max_deaths": 3}
    async with running(tmp_path, settings=few, spawn=lambda: next(engines)()) as daemon:
        streaming = asyncio.create_task(daemon.post({"prompt": "ab", "max_tokens": 40, "stream": True}))
        await eventually(lambda: daemon.services.history.output_tokens == 2, "two tokens")
        daemon.services.supervisor.kill()
        await eventually(lambda: daemon.services.supervisor.state == "restarting", "the death is noticed")
        waiting = asyncio.create_task(daemon.post({"prompt": "a"}))
        error = await daemon.services.supervisor.failed()
        daemon.services.table.close(error)
        status, answer, _ = await waiting
        assert (status, answer["error"]["code"]) == (503, "engine_failed")
        assert "died 3 times in a row" in answer["error"]["message"]
        assert "exit code 7 in the phase: loading weights" in answer["error"]["message"]
        streaming.cancel()
        async with daemon.http.get(daemon.url + "/ready") as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "engine_failed"
        assert (await daemon.services.status())["engine"]["state"] == "failed"
        status, answer, _ = await daemon.post({"prompt": "a"})
        assert (status, answer["error"]["code"]) == (503, "engine_failed")


async def test_an_engine_that_dies_without_requests_is_given_up_too(tmp_path: Path) -> None:
    few = {"supervision.max_deaths": 3}
    async with running(tmp_path, settings=few, dies_when_asked=True) as daemon:
        error = await daemon.services.supervisor.failed()
        assert daemon.services.history.engine_deaths == 3
    assert "with exit code 3" in error.message


async def test_no_death_between_tokens_ends_the_daemon(tmp_path: Path) -> None:
    """As long as there is progress, an engine is replaced however often it dies."""
    often = {"supervision.max_deaths": 2}
    async with fake_daemon(tmp_path, settings=often) as (daemon, answers):
        history = daemon.services.history
        stream = asyncio.create_task(whole(daemon, prompt=[1], seed=1, max_tokens=800, ignore_eos=True))
        for _ in range(4):
            seen = history.output_tokens
            await eventually(partial(lambda seen: history.output_tokens > seen, seen), "a token more")
            await kill(daemon)
        choices, _ = await stream
    tokens = answers.tokens([1], 1, 800, ignore_eos=True)
    assert choices[0]["text"] == answers.continued([1], tokens)


async def test_a_pool_under_pressure(tmp_path: Path) -> None:
    """Preempted, waiting and running requests alike go on."""
    model = fake_model(tmp_path)
    tight = replace(fake_settings(model), max_num_blocks=70, max_num_seqs=4)
    answers = FakeAnswers(model)
    async with running(tmp_path, model, fake=tight) as daemon:
        streams = [
            asyncio.create_task(whole(daemon, prompt=[n] * 100, seed=n, max_tokens=300, ignore_eos=True))
            for n in range(1, 11)
        ]
        await eventually(lambda: in_flight(daemon) >= 2, "streams have tokens")
        for _ in "ab":
            await kill(daemon)
            await all_resumed(daemon)
        finished = await asyncio.gather(*streams)
    for n, (choices, _) in enumerate(finished, 1):
        tokens = answers.tokens([n] * 100, n, 300, ignore_eos=True)
        assert choices[0]["text"] == answers.continued([n] * 100, tokens)


async def test_overrides_and_targets_survive(tmp_path: Path) -> None:
    async with (
        fake_daemon(tmp_path) as (daemon, _answers),
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        await client.set_partition(mode="fixed", prefill_units=5, expires_s=600, reason="night")
        await client.set_slo(ttft_ms=123.0)
        before = await client.partition()
        await kill(daemon)
        after, slo = await client.partition(), await client.slo()
    assert after["change"]["granted"] == before["change"]["granted"] == [5, 11]
    assert (after["mode"], after["change"]["actor"]) == ("fixed", before["change"]["actor"])
    assert after["change"]["reason"].startswith("night; repeated")
    assert abs(known(after["change"]["expires_at_s"]) - known(before["change"]["expires_at_s"])) < 5
    assert slo["targets"]["ttft_ms"] == 123.0
