"""The demo's operator answers and refuses as a daemon does, and what is asked for happens."""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from semipd_top.sources.contract import Operator
from semipd_top.sources.demo import DemoSource
from support.by_kind import by_kind
from support.daemon import running
from support.known import known

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError

BEGAN_S = 1_790_000_000.0


def world() -> DemoSource:
    return DemoSource(paced=False, began_s=BEGAN_S)


WISHES: list[dict[str, Any]] = [
    {"prefill_units": 7, "dry_run": True},
    {"decode_units": 7, "expires_s": 100.0, "reason": "x"},
    {"mode": "off", "expires_s": 5.0},
    {"mode": "auto", "dry_run": True},
    {"prefill_units": 0},
    {"prefill_units": 1, "decode_units": 2},
    {},
    {"mode": "auto", "prefill_units": 4},
    {"mode": "auto", "expires_s": 3.0},
    {"mode": "nope"},
    {"prefill_units": 4, "expires_s": -1.0},
    {"prefill_units": 4, "expires_s": 1e9},
    {"prefill_units": 4, "reason": "x" * 300},
    {"prefill_units": 4.5},
    {"prefill_units": "4"},
    {"foo": 1},
]
TARGETS: list[dict[str, Any]] = [
    {"ttft_ms": 400.0, "reason": "x"},
    {},
    {"ttft_ms": 0.0},
    {"percentile": 120.0},
    {"tpot_ms": "a"},
    {"window_s": 0.5},
    {"foo": 1.0},
]
LISTINGS: list[dict[str, Any]] = [
    {"state": "asleep"},
    {"limit": 0},
    {"limit": 5000},
    {"state": "live", "limit": 3},
    {"request_id": "nobody"},
]


async def answers(operator: Operator) -> list[Any]:
    """To every wish: the keys of the answer, or code and field of the refusal."""
    asked: list[Awaitable[Any]] = [operator.set_partition(**wish) for wish in WISHES]
    asked += [operator.set_slo(**wish) for wish in TARGETS]
    told: list[Any] = []
    for answer in asked:
        try:
            told.append(sorted(await answer))
        except SemipdError as error:
            told.append((error.code, error.param))
    for listing in LISTINGS:
        try:
            told.append(type(await operator.requests(**listing)))
        except SemipdError as error:
            told.append((error.code, error.param))
    told.append(await operator.cancel_request("nobody"))
    return told


async def test_the_operator_answers_and_refuses_as_a_daemon_does(tmp_path: Path) -> None:
    demo = world()
    demo.advance(30.0)
    async with (
        running(tmp_path, fake=default_engine_settings(device="fake")) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        real_answers = await answers(client)
    asked = [*WISHES, *TARGETS, *LISTINGS, "cancel"]
    for wish, made_up, told in zip(asked, await answers(demo.operator), real_answers, strict=True):
        assert made_up == told, wish


async def test_an_override_is_previewed_rounded_followed_and_expires() -> None:
    demo = world()
    demo.advance(46.0)
    preview = await demo.operator.set_partition(prefill_units=50, dry_run=True)
    assert preview["granted"] == [52, 80]
    assert "52+80" in preview["rounding"]
    assert known(known(preview["forecast"])["tpot_ms"]) > 0
    assert known(demo.advance(0.0).frame.state["partition"])["mode"] == "auto"
    given = await demo.operator.set_partition(prefill_units=50, expires_s=20.0, actor="me", reason="a test")
    assert given["expires_at_s"] == pytest.approx(demo.world.at_s + 20.0)
    seen = demo.advance(10.0)
    assert known(seen.frame.state["partition"])["mode"] == "fixed"
    assert known(seen.frame.state["partition"])["shared"]["split"] == [52, 80]
    assert known(known(seen.frame.state["partition"])["change"]["effective_at_s"]) >= known(given["at_s"])
    [changed] = by_kind(seen.frame.events)["partition_changed"]
    assert (changed["data"]["actor"], changed["data"]["granted"]) == ("me", [52, 80])
    seen = demo.advance(11.0)
    assert known(seen.frame.state["partition"])["mode"] == "auto"
    history = (await demo.operator.partition())["history"]
    assert [change["actor"] for change in history[-3:]] == ["configuration", "me", "expiry"]


async def test_what_was_changed_holds_when_the_engine_has_died() -> None:
    demo = world()
    demo.advance(135.0)
    await demo.operator.set_partition(prefill_units=52, reason="a test")
    await demo.operator.set_slo(ttft_ms=900.0)
    assert demo.advance(5.0).frame.state["state"] == "restarting"
    after = demo.advance(20.0).frame
    assert known(after.state["partition"])["mode"] == "fixed"
    assert known(after.state["partition"])["change"]["reason"].startswith("a test; repeated")
    assert after.state["slo"]["targets"]["ttft_ms"] == 900.0
    assert by_kind(after.events)["request_resumed"]


async def test_targets_change_what_is_judged_and_decided() -> None:
    demo = world()
    before = demo.advance(60.0).frame.state["slo"]
    answer = await demo.operator.set_slo(tpot_ms=1.0, reason="too much to ask")
    assert answer["targets"] == before["targets"] | {"tpot_ms": 1.0}
    after = demo.advance(1.0).frame
    assert known(before["attainment"]) > 0.5 > known(after.state["slo"]["attainment"])
    assert by_kind(after.events)["slo_changed"][0]["data"]["tpot_ms"] == 1.0


async def test_targets_of_a_class_change_what_is_judged() -> None:
    demo = world()
    demo.advance(100.0)
    answer = await demo.operator.set_slo(service_class="documents", ttft_ms=0.001, ttft_ms_per_1k_tokens=0.0)
    assert answer["classes"]["documents"]["targets"]["ttft_ms"] == 0.001
    after = demo.advance(1.0).frame
    levels = after.state["slo"]["classes"]["documents"]
    assert (levels["requests"] > 0, levels["attainment"]) == (True, 0.0)
    assert by_kind(after.events)["slo_changed"][0]["data"]["service_class"] == "documents"


async def test_cancelling() -> None:
    demo = world()
    demo.advance(60.0)
    live = await demo.operator.requests(state="decoding")
    used = known(demo.advance(0.0).frame.state["kv"])["used_blocks"]
    assert await demo.operator.cancel_request(live[0]["id"]) == "cancelled"
    assert await demo.operator.cancel_request(live[0]["id"]) == "already_finished"
    assert known(demo.advance(0.1).frame.state["kv"])["used_blocks"] < used
    [row] = await demo.operator.requests(request_id=live[0]["id"])
    assert (row["state"], row["finish_reason"], row["error_code"]) == (
        "finished",
        "cancelled",
        "request_cancelled",
    )
    data: Any = row["events"][-1]["data"]
    assert data["code"] == "request_cancelled"
    assert row["events"][-1]["id"]


async def test_without_an_engine_nothing_can_be_changed() -> None:
    demo = world()
    demo.advance(1.0)
    for asked in (demo.operator.partition(), demo.operator.set_slo(ttft_ms=1.0)):
        with pytest.raises(SemipdError) as refused:
            await asked
        assert refused.value.code == "engine_not_ready"
