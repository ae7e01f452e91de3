"""Token ids that end inside a character: echo and generated text join to what all ids mean."""

from itertools import pairwise
from typing import Any

import pytest
from support.daemon import Running
from support.tiny_tokenizers import byte_level, metaspace

from semipd.daemon.model.tokenizer import Tokenizer


def ids_of(data: bytes) -> list[int]:
    """One token for each byte."""
    texts = Tokenizer(byte_level())
    by_byte = {texts.token_bytes(token_id): token_id for token_id in reversed(range(400))}
    return [by_byte[bytes([value])] for value in data]


PROMPTS = [
    b"caf\xc3",
    b"x\xe2",
    b"x\xe2\x82",
    b"\xf0\x9f\x98",
    b"a\xff",
    b"a\xff\xe2",
    b"abc",
    b"\xc3\xa9\xc3",
]


async def choice_of(daemon: Running, asked: dict[str, Any]) -> dict[str, Any]:
    [choice] = (await daemon.complete(**asked))["choices"]
    return dict(choice)


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_echo_and_text_are_what_all_ids_mean(daemon: Running, prompt: bytes) -> None:
    for following in (b"\xa9", b"\x82\xac", b"!"):
        await check(daemon, ids_of(prompt), ids_of(following))
    await check_special(daemon, ids_of(prompt))


async def check(daemon: Running, prompt: list[int], allowed: list[int]) -> None:
    asked: dict[str, Any] = {"prompt": prompt, "allowed_token_ids": allowed, "seed": 3, "ignore_eos": True}
    asked |= {"return_token_ids": True, "logprobs": 0, "max_tokens": 2}
    choice = await choice_of(daemon, asked | {"echo": True})
    whole = (await daemon.complete("/detokenize", tokens=prompt + choice["token_ids"]))["prompt"]
    assert choice["text"] == whole
    offsets = choice["logprobs"]["text_offset"]
    assert all(first <= second for first, second in pairwise([*offsets, len(whole)]))
    events = [event["choices"][0] for event in await daemon.stream(**asked, echo=True)]
    assert "".join(event["text"] for event in events) == whole
    assert [one for event in events for one in event["logprobs"]["text_offset"]] == offsets
    plain = await choice_of(daemon, asked)
    assert whole.endswith(plain["text"])
    alone = await choice_of(daemon, asked | {"echo": True, "max_tokens": 0})
    assert alone["text"] == (await daemon.complete("/detokenize", tokens=prompt))["prompt"]


async def check_special(daemon: Running, prompt: list[int]) -> None:
    """A special token ends the character that was begun before it."""
    ids = [*prompt, 0]
    asked: dict[str, Any] = {"prompt": ids, "echo": True, "seed": 3, "ignore_eos": True}
    asked |= {"return_token_ids": True, "max_tokens": 2, "allowed_token_ids": ids_of(b"\xa9")}
    choice = await choice_of(daemon, asked)
    whole = (await daemon.complete("/detokenize", tokens=ids + choice["token_ids"]))["prompt"]
    assert choice["text"] == whole


@pytest.mark.parametrize("kind", [byte_level, metaspace])
def test_primed_tells_what_is_held_back(kind: Any) -> None:
    tokenizer = Tokenizer(kind())
    ids = tokenizer.encode("ab 日本", add_special_tokens=False) + tokenizer.encode(
        "☃", add_special_tokens=False
    )
    for end in range(len(ids) + 1):
        decoder = tokenizer.stream_decoder()
        held = decoder.prime(ids[:end])
        text = "".join([*map(decoder.step, ids[end:]), decoder.flush()])
        assert tokenizer.decode(ids[: end - held]) + text == tokenizer.decode(ids)
