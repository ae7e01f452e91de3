"""Which service class a request is of, at every door, and what operators and clients are told of classes."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.keys import ANN, BOB, OPS, key_settings

from semipd.client import AsyncClient
from semipd.commands import client as client_command
from semipd.config.config import Override, default_engine_settings, load_config
from semipd.core.errors import SemipdError
from semipd.core.slo import NO_TARGETS, Targets
from semipd.daemon.access.callers import OPERATOR, Caller
from semipd.daemon.access.classes import Service, ServiceClasses
from semipd.daemon.requests.schema import SamplingOptions
from semipd.daemon.servers.routes import ROUTES
from semipd.daemon.web.openapi import document

CHAT = {"classes.chat.ttft_ms": 300, "classes.chat.itl_ms": 40}
CHAT_TARGETS = Targets(300, 0.0, None, 40)
BOTH = ("/v1/completions", "/v1/chat/completions")


def classes(**more: Any) -> ServiceClasses:
    given = CHAT | {"slo.itl_ms": 70, "slo.ttft_ms_per_1k_tokens": 9, "auth.keys_file": "keys"}
    given |= {f"classes.{key.replace('__', '.')}": value for key, value in more.items()}
    return ServiceClasses(load_config(overrides=[Override(k, str(v), "test") for k, v in given.items()]))


@pytest.mark.parametrize(
    ("body", "header", "wanted"),
    [
        ({}, None, Service("default", Targets(500, 9, 50, 70))),
        ({}, "chat", Service("chat", CHAT_TARGETS)),
        ({"slo": {"class": "chat"}}, None, Service("chat", CHAT_TARGETS)),
        ({"slo": {"class": "batch"}}, "chat", Service("batch", NO_TARGETS)),
        ({"priority": "batch"}, "chat", Service("batch", NO_TARGETS)),
        ({"priority": "batch", "slo": {"class": "batch"}}, None, Service("batch", NO_TARGETS)),
        ({"priority": 0}, "chat", Service("chat", CHAT_TARGETS)),
        ({"slo": {"tpot_ms": 8}}, "chat", Service("chat", Targets(300, 0.0, 8, 40))),
        ({"slo": {"itl_ms": 0, "ttft_ms": 9}}, "chat", Service("chat", Targets(9))),
        ({"accept_late": True}, "batch", Service("batch", NO_TARGETS, accept_late=True)),
    ],
)
def test_the_body_counts_before_the_header(body: dict[str, Any], header: str | None, wanted: Service) -> None:
    found = classes()
    of_caller = found.of_caller(OPERATOR, header)
    assert found.service(OPERATOR, SamplingOptions.model_validate(body), of_caller) == wanted


def test_a_key_has_a_class_by_default_and_may_be_kept_from_others() -> None:
    found = classes(chat__default_keys="ann", gold__allowed_keys="eve", gold__default_keys="carl")
    plain = SamplingOptions()
    assert found.of_caller(Caller("ann"), None) == "chat"
    assert found.service(Caller("ann"), plain).service_class == "chat"
    assert found.service(Caller("bob"), plain).service_class == "default"
    for allowed in (Caller("eve"), Caller("carl"), OPERATOR):
        assert found.of_caller(allowed, "gold") == "gold"
    for door in (
        lambda: found.of_caller(Caller("ann"), "gold"),
        lambda: found.service(Caller("ann"), SamplingOptions.model_validate({"slo": {"class": "gold"}})),
    ):
        with pytest.raises(SemipdError, match="the key 'ann' may not use the class gold") as refused:
            door()
        assert (refused.value.code, "classes.gold.allowed_keys" in refused.value.hint) == (
            "class_not_allowed",
            True,
        )


def shown(daemon: Running) -> list[tuple[str, Targets, bool]]:
    """Newest first."""
    services = [record.service for record in daemon.services.history.records()]
    return [(one.service_class, one.targets, one.accept_late) for one in services]


async def test_every_door_takes_them_and_the_engine_hears(tmp_path: Path) -> None:
    async with running(tmp_path, settings=CHAT) as daemon:
        slo = {"class": "chat", "tpot_ms": 33.5}
        await daemon.complete(prompt=[97], max_tokens=1, slo=slo, accept_late=True)
        await daemon.chat(messages=[{"role": "user", "content": "a"}], max_tokens=1, slo=slo)
        async with await AsyncClient.connect(daemon.socket_path) as client:
            items = [item async for item in client.generate([97], max_tokens=1, slo=slo)]
        assert items
        headers = {"X-Semipd-Class": "batch"}
        body = {"prompt": [97], "max_tokens": 1}
        async with daemon.http.post(daemon.url + BOTH[0], json=body, headers=headers) as response:
            assert response.status == 200
        own = Targets(300, 0.0, 33.5, 40)
        assert shown(daemon) == [
            ("batch", NO_TARGETS, False),
            ("chat", own, False),
            ("chat", own, False),
            ("chat", own, True),
        ]
        sent = (await daemon.engine())["submitted"]
        rows = daemon.services.history.all_to_wire(daemon.services.history.records())
        metrics, _ = await daemon.services.exposition("")
    assert [request["service_class"] for request in sent] == ["chat", "chat", "chat", "batch"]
    assert sent[0]["targets"] == [300, 0.0, 33.5, 40]
    assert (sent[0]["accept_late"], sent[1]["accept_late"]) == (True, False)
    assert [row["service_class"] for row in rows] == ["batch", "chat", "chat", "chat"]
    assert rows[1]["targets"] == {"ttft_ms": 300, "ttft_ms_per_1k_tokens": 0, "tpot_ms": 33.5, "itl_ms": 40}
    judged = dict(
        re.findall(r'^semipd:slo_requests_total\{service_class="(\w+)"\} (\S+)$', metrics.decode(), re.M)
    )
    assert judged == {"default": "0.0", "batch": "1.0", "chat": "3.0"}, "a series for each class, no more"
    targets = re.findall(
        r'^semipd:slo_target_seconds\{service_class="(\w+)",slo="(\w+)"\}', metrics.decode(), re.M
    )
    assert targets == [("default", "ttft"), ("default", "tpot"), ("chat", "ttft"), ("chat", "itl")]


def test_the_header_is_published_where_tokens_are_generated() -> None:
    paths: dict[str, Any] = document(ROUTES, "0")["paths"]
    for path, methods in paths.items():
        for shown in methods.values():
            names = [one["name"] for one in shown.get("parameters", ()) if one["in"] == "header"]
            assert names == (["X-Semipd-Class"] if path in BOTH else []), path


@pytest.mark.parametrize(
    ("slo", "param", "said"),
    [
        ({"class": "gold"}, "slo.class", "no service class 'gold'; there are default, batch, chat"),
        ({"ttft_ms": -1}, "slo", "slo.ttft_ms: Input should be greater than or equal to 0; got -1"),
        ({"tpot_ms": "fast"}, "slo", "slo.tpot_ms: Input should be a valid number; got 'fast'"),
        ({"itl_ms": 2e9}, "slo", "slo.itl_ms"),
        ({"ttft": 5}, "slo", "There is no field slo.ttft"),
        (7, "slo", "slo: Input should be"),
    ],
)
async def test_bad_values_get_one_clear_error(tmp_path: Path, slo: object, param: str, said: str) -> None:
    async with running(tmp_path, settings=CHAT) as daemon:
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        for path, body in zip(BOTH, ({"prompt": [97], "max_tokens": 1}, chat), strict=True):
            status, answer, _ = await daemon.post(body | {"slo": slo}, path)
            assert (status, answer["error"]["param"]) == (400, param)
            assert said in answer["error"]["message"]
        async with await AsyncClient.connect(daemon.socket_path) as client:
            with pytest.raises(SemipdError) as refused:
                _ = [item async for item in client.generate([97], max_tokens=1, slo=slo)]
            assert said in refused.value.message
        assert shown(daemon) == []


async def test_headers_and_keys_are_checked_before_the_body(tmp_path: Path) -> None:
    settings = CHAT | key_settings(tmp_path) | {"classes.gold.allowed_keys": "bob"}
    async with running(tmp_path, settings=settings | {"classes.chat.default_keys": "ann"}) as daemon:

        async def status_of(key: str, named: str | None) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {key}"} | ({"X-Semipd-Class": named} if named else {})
            body = {"prompt": [97], "max_tokens": 1}
            async with daemon.http.post(daemon.url + BOTH[0], json=body, headers=headers) as response:
                answer = await response.json()
                return response.status, answer.get("error", {}).get("code")

        assert await status_of(ANN, "gold") == (403, "class_not_allowed")
        assert await status_of(ANN, "silver") == (400, "unknown_class")
        assert [await status_of(key, None) for key in (ANN, BOB)] == [(200, None), (200, None)]
        assert await status_of(BOB, "gold") == (200, None)
        assert await status_of(OPS, "gold") == (200, None)
        assert [name for name, _, _ in shown(daemon)] == ["gold", "gold", "default", "chat"]
        assert daemon.services.history.refused == {"class_not_allowed": 1, "unknown_class": 1}


async def test_refusals_are_misses_of_the_class_they_were_meant_for(tmp_path: Path) -> None:
    """When the queue is full, only header and key are known; what the body names, when it was read."""
    settings = CHAT | {"admission.max_waiting_requests": 8, "admission.batch_share": 0.25}
    async with running(tmp_path, settings=settings) as daemon:
        services, body = daemon.services, {"prompt": [97], "max_tokens": 1}

        async def refused(named: str | None, **more: Any) -> None:
            headers = {"X-Semipd-Class": named} if named else {}
            url = daemon.url + BOTH[0]
            async with daemon.http.post(url, json=body | more, headers=headers) as response:
                assert response.status == 503

        with services.enter(Service("batch"), 1), services.enter(Service("batch"), 1):
            await refused(None, slo={"class": "batch"})
            with services.enter(Service(), 4), services.enter(Service(), 2):
                await refused("chat")
                await refused(None, slo={"class": "chat"})
        state = services.slo.snapshot(services.classes.targets)
    judged = {name: levels["requests"] for name, levels in state["classes"].items()}
    assert judged == {"default": 1, "batch": 1, "chat": 1}
    assert (state["requests"], state["attainment"]) == (3, 0.0)


async def test_the_command_says_what_the_body_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path, fake=default_engine_settings(device="fake"), settings=CHAT) as daemon:

        async def run(*arguments: str) -> str:
            argv = [*arguments, "--socket", str(daemon.socket_path)]
            assert await asyncio.to_thread(client_command.main, argv) == 0
            return capsys.readouterr().out

        one = ("generate", "a", "--max-tokens", "1")
        await run(*one)
        await run(*one, "--class", "chat", "--ttft-ms", "9", "--itl-ms", "0", "--accept-late")
        levels = (await run("slo")).splitlines()
        assert shown(daemon) == [("chat", Targets(9), True), ("default", Targets(500, tpot_ms=50), False)]
    assert [re.sub(r"[\d.]+%", "-", line).partition(" met")[0] for line in levels[1:]] == [
        "default: - of 1",
        "batch: - of 0",
        "chat: - of 1",
    ]


async def test_operators_change_a_class_while_it_serves(tmp_path: Path) -> None:
    fake = default_engine_settings(device="fake", max_num_seqs=1)
    async with (
        running(tmp_path, fake=fake, settings=CHAT) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        body: dict[str, Any] = {"prompt": [5], "max_tokens": 1500, "ignore_eos": True}
        follows = client.generate(**body, slo={"class": "chat"})
        brings = client.generate(**body, slo={"class": "chat", "ttft_ms": 7})
        await daemon.engine_says(lambda seen: sum(map(seen["requests"].get, ("waiting", "decoding"))) == 2)
        answer = await client.set_slo(service_class="chat", ttft_ms=250, itl_ms=0, reason="evening")
        assert answer["classes"]["chat"]["targets"]["ttft_ms"] == 250
        assert answer["classes"]["chat"]["targets"]["itl_ms"] == 0
        assert answer["targets"]["ttft_ms"] == 500, "another class's"
        assert [one[1].ttft_ms for one in shown(daemon)] == [7, 250]
        live = [live.request.targets.ttft_ms for live in daemon.services.table._live.values()]
        assert sorted(map(str, live)) == ["250.0", "7.0"], "what a new engine would be told"
        for stream in (follows, brings):
            await stream.cancel()
        await daemon.complete(prompt=[97], max_tokens=1, slo={"class": "chat"})
        assert shown(daemon)[0] == ("chat", Targets(250), False)
        events = daemon.services.history.journal.read(0, 1000, ["slo_changed"]).entries
        assert [(e.data["service_class"], e.data["ttft_ms"], e.data["reason"]) for e in events] == [
            ("chat", 250, "evening")
        ]
        for asked, said in (
            ({"service_class": "gold", "ttft_ms": 5}, "no service class 'gold'"),
            ({"service_class": "chat", "percentile": 50}, "percentile is one for all classes"),
            ({"service_class": "chat", "ttft_ms": -5}, "greater than or equal to 0"),
            ({"ttft_ms": 0}, "ttft_ms of the class default must be 0.001 to 1e+09; got 0"),
        ):
            with pytest.raises(SemipdError) as refused:
                await client.set_slo(**asked)
            assert said in refused.value.message
