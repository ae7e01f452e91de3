"""Whatever an error holds, somebody is told: within a bound, in text that every peer can be sent."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.byte_model import ByteModel
from support.daemon import Running, running

from semipd.client import AsyncClient
from semipd.core.errors import MAX_SAID_CHARS, SemipdError
from semipd.daemon.model.chat_template import ChatTemplate
from semipd.daemon.prompts.prompt import Prompts
from semipd.daemon.web.errors import error_body
from semipd.wire.client_protocol import error_frame, error_from_wire
from semipd.wire.frames import encode_frame

HUGE, LONE = "x" * 5_000_000, "a\ud800b"


@pytest.mark.parametrize("text", [HUGE, LONE, LONE * 10_000, "語" * 9000])
def test_an_error_can_be_sent_to_everybody(text: str) -> None:
    error = SemipdError("invalid_value", text, text, param=text)
    for shown in (error_body(error), error_frame(1, error)):
        assert len(encode_frame(shown)) < 20_000
        json.dumps(shown, ensure_ascii=False).encode()
    assert max(map(len, (error.message, error.hint, error.param or ""))) <= MAX_SAID_CHARS


def test_a_peers_error_may_hold_anything() -> None:
    error = error_from_wire({"code": "x", "message": HUGE, "hint": [1], "param": 5})
    assert (error.code, error.hint, error.param) == ("x", "", None)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception(text) }}",
        "{{ raise_exception(text * 2) }}",
        "{{ raise_exception([text]) }}",
        "{{ raise_exception(nothing) }}",
        "{{ ('%(' ~ text ~ ')s') % {'a': 1} }}",
        "{{ {}[text].attribute }}",
        "{{ text | int(base=text) }}{{ text | attr(text) + 1 }}",
        "{% set ns = namespace(a=1) %}{% set ns._b = text %}{{ text.format.__globals__[text] }}",
        "{{ text | round }}",
    ],
)
@pytest.mark.parametrize("text", [HUGE, LONE])
def test_what_a_template_says_of_messages_is_bounded(source: str, text: str) -> None:
    with pytest.raises(SemipdError) as refused:
        ChatTemplate(source, {}).render([{"role": "user"}], text=text)
    assert len(str(refused.value)) < 700
    str(refused.value).encode()


SAYING = "{{ raise_exception(messages[0].content * 5000000 if messages|length > 1 else '\ud800') }}"


async def answers(daemon: Running, client: AsyncClient, messages: list[dict[str, str]]) -> list[Any]:
    """The error of both doors."""
    with pytest.raises(SemipdError) as refused:
        await anext(client.generate(messages=messages, max_tokens=1))
    _, answer, _ = await daemon.post({"messages": messages, "max_tokens": 1}, "/v1/chat/completions")
    return [(refused.value.code, str(refused.value)), (answer["error"]["code"], answer["error"]["message"])]


async def test_a_template_that_says_too_much_is_answered_over_both(tmp_path: Path) -> None:
    model = ByteModel(chat_template=ChatTemplate(SAYING, {}))
    message = {"role": "user", "content": "ab"}
    async with (
        running(tmp_path, model) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        for messages in ([message], [message, message]):
            for code, text in await answers(daemon, client, messages):
                assert (code, len(text) < 700) == ("invalid_messages", True)
        assert (await client.status())["state"] == "ready"


@pytest.mark.parametrize("text", [HUGE, LONE])
async def test_an_error_that_cannot_be_sent_is_answered_with_a_short_one(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_args: Any, **_kwargs: Any) -> None:
        error = SemipdError("invalid_messages", "short")
        error.message = text
        raise error

    monkeypatch.setattr(Prompts, "of", fails)
    async with (
        running(tmp_path) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        for _ in range(2):
            with pytest.raises(SemipdError) as refused:
                await anext(client.generate("x", max_tokens=1))
            assert refused.value.code == "internal_error"
            assert "could not be sent" in caplog.text
    assert [record for record in caplog.records if record.name == "asyncio"] == []
