"""Echoed prompts: their text has what their tokens have."""

from typing import Any

import pytest
from support.daemon import Running
from support.fake_answers import FakeAnswers
from support.tiny_tokenizers import byte_level, metaspace

from semipd.daemon.model.token_texts import TokenTexts
from semipd.daemon.model.tokenizer import Tokenizer
from semipd.daemon.openai.logprobs import CompletionWriter

BOS, EOS, IM_START = 0, 1, 2
SPECIAL_PROMPTS = [[BOS], [BOS, 381, 376], [381, IM_START, 376, EOS], [EOS, EOS, BOS]]


async def detokenized(daemon: Running, tokens: list[int]) -> str:
    return str((await daemon.complete("/detokenize", tokens=tokens))["prompt"])


def texts_at_offsets(text: str, logprobs: dict[str, Any], count: int) -> list[str]:
    offsets = [*logprobs["text_offset"], len(text)]
    return [text[offsets[idx] : offsets[idx + 1]] for idx in range(count)]


async def test_ids_are_echoed_with_their_special_tokens(daemon: Running) -> None:
    for prompt in SPECIAL_PROMPTS:
        for skip_special_tokens in (None, True, False):
            await check_echo(daemon, prompt, skip_special_tokens)


async def check_echo(daemon: Running, prompt: list[int], skip_special_tokens: bool | None) -> None:
    asked = {"prompt": prompt, "max_tokens": 4, "echo": True, "logprobs": 0, "ignore_eos": True, "seed": 2}
    asked |= {"skip_special_tokens": skip_special_tokens}
    [choice] = (await daemon.complete(**asked))["choices"]
    tokens = choice["logprobs"]["tokens"]
    echoed = await detokenized(daemon, prompt)
    assert echoed == "".join(tokens[: len(prompt)])
    assert choice["text"].startswith(echoed)
    assert texts_at_offsets(choice["text"], choice["logprobs"], len(prompt)) == tokens[: len(prompt)]
    events = [event["choices"][0] for event in await daemon.stream(**asked)]
    assert "".join(event["text"] for event in events) == choice["text"]
    for name, values in choice["logprobs"].items():
        assert [value for event in events for value in event["logprobs"][name]] == values
    plain = await daemon.complete(**asked | {"logprobs": None})
    assert plain["choices"][0]["text"] == choice["text"]
    alone = await daemon.complete(**asked | {"max_tokens": 0})
    assert alone["choices"][0]["text"] == echoed


async def test_generated_special_tokens_follow_the_option(daemon: Running) -> None:
    answers = FakeAnswers(daemon.services.generation.model)  # type: ignore[arg-type]
    seeds = (seed for seed in range(2000) if answers.tokens([381], seed, 1, ignore_eos=True)[0] <= IM_START)
    asked = {"prompt": [381], "max_tokens": 1, "echo": True, "logprobs": 0, "ignore_eos": True}
    asked |= {"seed": next(seeds)}
    [choice] = (await daemon.complete(**asked))["choices"]
    [shown] = (await daemon.complete(**asked, skip_special_tokens=False))["choices"]
    first, special = shown["logprobs"]["tokens"]
    assert choice["logprobs"]["tokens"] == [first, special]
    assert (choice["text"], shown["text"]) == (first, first + special)
    assert choice["logprobs"]["text_offset"] == shown["logprobs"]["text_offset"] == [0, len(first)]


async def test_texts_are_echoed_as_they_were_sent(daemon: Running) -> None:
    """The BOS that was added has no text, and those in the text have theirs."""
    for prompt in ("Whan that", "<s>Whan</s> that", "<|im_start|>", "a<|im_end|> b", "a<s>"):
        await check_text(daemon, prompt)


async def check_text(daemon: Running, prompt: str) -> None:
    asked = {"prompt": prompt, "max_tokens": 2, "echo": True, "logprobs": 0, "return_token_ids": True}
    [choice] = (await daemon.complete(**asked, ignore_eos=True))["choices"]
    tokens, count = choice["logprobs"]["tokens"], len(choice["prompt_token_ids"])
    assert tokens[0] == "<s>"
    assert choice["text"].startswith(prompt)
    shown = texts_at_offsets(choice["text"], choice["logprobs"], count)
    added = 0 if prompt.startswith("<s>") else 1
    assert shown == [""] * added + tokens[added:count]


@pytest.mark.parametrize("kind", [byte_level, metaspace])
def test_offsets_of_both_kinds_of_tokenizers(kind: Any) -> None:
    texts = TokenTexts(Tokenizer(kind()))
    tokenizer = texts.tokenizer
    for text in ("Whan that", "Whan </s>that</s>", "日本語のテスト </s>x"):
        ids = tokenizer.encode(text)
        writer = CompletionWriter(texts, tokenizer.stream_decoder(), 0, as_ids=False)
        offsets = writer.prompt(ids, [], text, is_given=True)["text_offset"]
        assert offsets[:2] == [0, 0]
        assert offsets == sorted(offsets)
        places = [offset for offset, token in zip(offsets, ids, strict=True) if texts.text(token) == "</s>"]
        assert len(places) == text.count("</s>")
        assert all(text.startswith("</s>", place) for place in places)
