"""Chat templates are programs: they run in children, within bounds, and say what they said in the daemon."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support.byte_model import ByteModel
from support.daemon import Running, running, until

from semipd.client import AsyncClient
from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.daemon.model.chat_template import ChatTemplate
from semipd.daemon.prompts import rendering
from semipd.daemon.prompts.conversation import Conversation, written
from semipd.daemon.prompts.rendering import MAX_CHILDREN, SAFE_DEPTH, RenderPool

USER = {"role": "user", "content": "Hi"}
LOOP = (
    "{% if messages[0].content == 'loop' %}{% for i in range(30000) %}{% for j in range(30000) %}"
    "{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}"
)
GROWING = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
MIB = 2**20


def children() -> list[int]:
    """Renderers of this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"render_child" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


@asynccontextmanager
async def pool_of(source: str, **limits: Any) -> AsyncIterator[RenderPool]:
    pool = RenderPool(ChatTemplate(source, {"bos_token": "<s>"}), LimitsConfig(**limits))
    try:
        yield pool
    finally:
        await pool.close()
        assert children() == []


async def refusal(pool: RenderPool, conversation: Conversation) -> SemipdError:
    with pytest.raises(SemipdError) as refused:
        await pool.render(conversation)
    return refused.value


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message | tojson }}|{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}{{ flag }}"
    "{% if messages|length > 8 %}{{ raise_exception('many') }}{% endif %}"
)
CALL = {"function": {"name": "f", "arguments": '{"a": [1, 2.5, null, "\\ud83d\\ude00"]}'}}
CONVERSATIONS = [
    Conversation([USER]),
    Conversation([USER], add_generation_prompt=False, extra={"flag": True}),
    Conversation([USER, {"role": "assistant", "content": " Hello, "}], continue_final=True),
    Conversation([USER, {"role": "assistant", "content": "  "}], continue_final=True),
    Conversation([{"role": "assistant", "content": "", "tool_calls": [CALL]}]),
    Conversation(
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "[" * 100_000}}]}]
    ),
    Conversation([{"role": "user", "content": "\ud800", "number": 2**200, "float": 1e300}]),
    Conversation([USER] * 9),
    Conversation([{"role": "user", "content": "語" * 100_000}]),
    Conversation([USER], extra={"flag": b"bytes"}),
]


async def test_a_child_says_what_the_template_says() -> None:
    template = ChatTemplate(TEMPLATE, {"bos_token": "<s>"})
    async with pool_of(TEMPLATE) as pool:
        for conversation in CONVERSATIONS:
            try:
                expected: object = written(conversation, template)
            except SemipdError as error:
                expected = (error.code, error.message, error.hint, error.param)
            try:
                said: object = await pool.render(conversation)
            except SemipdError as error:
                said = (error.code, error.message, error.hint, error.param)
            assert said == expected
        assert len(children()) == 1, "one is enough for one after the other, and it stays"


async def test_a_template_that_loops_is_stopped_and_others_go_on() -> None:
    async with pool_of(LOOP, template_ms=400) as pool:
        await pool.render(Conversation([USER]))
        looping = [asyncio.create_task(refusal(pool, Conversation([{"role": "user", "content": "loop"}])))]
        assert await pool.render(Conversation([USER])) == "Hi"
        assert not looping[0].done(), "it did not have to wait for the one that loops"
        error = await looping[0]
        assert (error.code, error.param) == ("chat_template_limit", "messages")
        assert "limits.template_ms=400" in error.message
        assert await pool.render(Conversation([USER])) == "Hi"


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        ("{{ 'a' * 10**10 }}", "limits.template_memory_bytes"),
        (GROWING, "limits."),
        ("{% for i in range(9000) %}{{ 'a' * 1000 }}{% endfor %}", "limits.template_chars=1048576"),
        ("{{ (messages | length * 10) ** (10 ** 9) }}", "limits.template_ms=400"),
        ("{{ 'a' | center(10 ** 11) }}", "limits.template_memory_bytes"),
    ],
)
async def test_what_a_template_may_take_is_bounded(source: str, setting: str) -> None:
    limits = {"template_ms": 400, "template_chars": MIB, "template_memory_bytes": 96 * MIB}
    async with pool_of(source, **limits) as pool:
        error = await refusal(pool, Conversation([USER]))
        assert error.code == "chat_template_limit"
        assert setting in error.message
        found = await pool.trial()
        assert found is not None
        assert found.code == "chat_template_limit"


async def test_a_killed_child_costs_nobody_an_answer() -> None:
    async with pool_of(LOOP, template_ms=60_000) as pool:
        await pool.render(Conversation([USER]))
        [first] = children()
        os.kill(first, signal.SIGKILL)
        assert await pool.render(Conversation([USER])) == "Hi"
        [second] = children()
        busy = asyncio.create_task(pool.render(Conversation([{"role": "user", "content": "loop"}])))
        await asyncio.sleep(0)
        os.kill(second, signal.SIGKILL)
        await until(lambda: children() not in ([], [second]))
        [third] = children()
        os.kill(third, signal.SIGKILL)
        with pytest.raises(SemipdError) as failed:
            await busy
        assert failed.value.code == "renderer_failed"
        assert await pool.render(Conversation([USER])) == "Hi"


async def test_who_goes_away_leaves_no_pile_of_children() -> None:
    async with pool_of(LOOP, template_ms=300) as pool:
        for _ in range(20):
            job = asyncio.create_task(pool.render(Conversation([{"role": "user", "content": "loop"}])))
            await asyncio.sleep(0.01)
            job.cancel()
            with suppress(asyncio.CancelledError):
                await job
            assert len(children()) <= MAX_CHILDREN


LOOPING = Conversation([{"role": "user", "content": "loop"}])


@asynccontextmanager
async def busy(pool: RenderPool) -> AsyncIterator[None]:
    """No child is free."""
    jobs = [asyncio.create_task(pool.render(LOOPING)) for _ in range(MAX_CHILDREN)]
    await until(lambda: pool.to_wire()["rendering"] == MAX_CHILDREN)
    try:
        yield
    finally:
        await ended(jobs)


async def ended(jobs: list[asyncio.Task[str]]) -> None:
    for job in jobs:
        job.cancel()
    await asyncio.wait(jobs)


async def test_who_leaves_while_waiting_leaves_nothing_to_do() -> None:
    async with pool_of(LOOP, template_ms=60_000) as pool, busy(pool):
        waiting = [asyncio.create_task(pool.render(LOOPING)) for _ in range(20)]
        await until(lambda: pool.to_wire()["waiting"] == 20)
        await ended(waiting)
        assert pool.to_wire() == {
            "rendering": MAX_CHILDREN,
            "waiting": 0,
            "max_rendering": MAX_CHILDREN,
            "max_waiting": rendering.MAX_WAITING_RENDERS,
        }


async def test_who_left_does_not_keep_others_waiting() -> None:
    async with pool_of(LOOP, template_ms=300) as pool:
        async with busy(pool):
            await ended([asyncio.create_task(pool.render(LOOPING)) for _ in range(20)])
        async with asyncio.timeout(20):
            assert await pool.render(Conversation([USER])) == "Hi"
        await until(lambda: pool.to_wire()["rendering"] == 0)


async def test_so_many_may_wait_and_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_WAITING_RENDERS", 3)
    async with pool_of(LOOP, template_ms=60_000) as pool, busy(pool):
        waiting = [asyncio.create_task(pool.render(LOOPING)) for _ in range(3)]
        await until(lambda: pool.to_wire()["waiting"] == 3)
        error = await refusal(pool, LOOPING)
        assert (error.code, error.retry_after_s) == ("overloaded", 60)
        assert "3 conversations wait" in error.message
        assert "at most 3 may wait" in error.message
        await ended(waiting)
        monkeypatch.setattr(rendering, "WAIT_LIMIT_S", 0.1)
        error = await refusal(pool, LOOPING)
        assert error.code == "overloaded"
        assert "has waited 0.1 s" in error.message
        assert pool.to_wire()["waiting"] == 0


@asynccontextmanager
async def looping_daemon(tmp_path: Path, **settings: Any) -> AsyncIterator[Running]:
    model = ByteModel(chat_template=ChatTemplate(LOOP, {}))
    given = {"limits.template_ms": 60_000, **settings}
    async with running(tmp_path, model, settings=given) as daemon:
        yield daemon


@pytest.mark.parametrize("by_setting", [False, True])
async def test_a_deadline_holds_while_a_conversation_is_rendered_or_waits(
    tmp_path: Path, by_setting: bool
) -> None:
    settings, field = ({"admission.timeout_ms": 300}, {}) if by_setting else ({}, {"timeout_ms": 300})
    body: dict[str, Any] = {"messages": LOOPING.messages, "max_tokens": 1, **field}
    async with looping_daemon(tmp_path, **settings) as daemon:
        asked = [
            asyncio.create_task(daemon.post(body, "/v1/chat/completions")) for _ in range(MAX_CHILDREN + 2)
        ]
        async with await AsyncClient.connect(daemon.socket_path) as client:
            with pytest.raises(SemipdError) as late:
                await anext(client.generate(**body))
        assert late.value.code == "deadline_exceeded"
        answers = [await task for task in asked]
        assert {(status, answer["error"]["code"]) for status, answer, _ in answers} == {
            (504, "deadline_exceeded")
        }
        shown = (await daemon.services.status())["chat_template"]
        assert (shown["rendering"], shown["waiting"]) == (MAX_CHILDREN, 0)


def nested(depth: int) -> Conversation:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return Conversation([USER | {"more": value}])


async def test_too_deep_a_message_is_refused_with_a_number() -> None:
    async with pool_of("{{ messages[0].content }}") as pool:
        assert await pool.render(nested(SAFE_DEPTH)) == "Hi"
        error = await refusal(pool, nested(5000))
        assert error.code == "invalid_messages"
        assert f"{SAFE_DEPTH} levels" in error.message
        assert error.hint


async def test_a_template_that_does_not_compile_stops_the_trial() -> None:
    async with pool_of("{{ 1 | no_such_filter }}") as pool:
        with pytest.raises(SemipdError) as refused:
            await pool.trial()
        assert refused.value.code == "invalid_chat_template"
    async with pool_of("{{ messages[0].content }}") as pool:
        assert await pool.trial() is None
        assert children() == [], "a child is started again when somebody chats"
