"""Log-probabilities, echo and token ids of /v1/completions. The fake device makes log-probabilities up:
a token's own is -0.5, and its neighbours follow at -1.5, -2.5, ..."""

import json
import math
import threading
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.daemon import Running
from support.fake_answers import FakeAnswers
from support.tiny_tokenizers import byte_level, metaspace

from semipd.core.plan import TokenLogprobs
from semipd.daemon.model.token_texts import TokenTexts
from semipd.daemon.model.tokenizer import Tokenizer
from semipd.daemon.openai.logprobs import (
    INLINE_LOGPROBS,
    LOWEST,
    CompletionWriter,
    chat_logprobs,
    prompt_logprobs,
)

PROMPT = "Whan that Aprille"


@pytest.fixture
def expected(daemon: Running) -> FakeAnswers:
    return FakeAnswers(daemon.services.generation.model)  # type: ignore[arg-type]


@pytest.fixture
def token_texts(expected: FakeAnswers) -> TokenTexts:
    return TokenTexts(expected.model.tokenizer)


def only(answer: dict[str, Any]) -> dict[str, Any]:
    [choice] = answer["choices"]
    return dict(choice)


def joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The choice that a stream of one choice adds up to."""
    whole: dict[str, Any] = {"text": "", "logprobs": {}}
    for event in events:
        [choice] = event["choices"]
        whole["text"] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            whole["logprobs"].setdefault(name, []).extend(values)
        for name in ("token_ids", "prompt_token_ids", "prompt_logprobs"):
            if name in choice:
                whole.setdefault(name, []).extend(choice[name])
    return whole


async def test_one_entry_per_token(daemon: Running, expected: FakeAnswers, token_texts: TokenTexts) -> None:
    tokens = expected.tokens(PROMPT, 3, 12, ignore_eos=True)
    body = {"prompt": PROMPT, "seed": 3, "max_tokens": 12, "logprobs": 2, "ignore_eos": True}
    whole = only(await daemon.complete(**body))
    logprobs = whole["logprobs"]
    assert logprobs["tokens"] == [token_texts.text(token) for token in tokens]
    assert logprobs["token_logprobs"] == [-0.5] * 12
    assert logprobs["top_logprobs"][0] == {
        token_texts.text(tokens[0]): -0.5,
        token_texts.text(tokens[0] + 1): -1.5,
    }
    assert joined(await daemon.stream(**body))["logprobs"] == logprobs


async def test_the_stop_token_has_its_entry_but_no_text(daemon: Running, expected: FakeAnswers) -> None:
    tokens = expected.tokens(PROMPT, 3, 5)
    body = {"prompt": PROMPT, "seed": 3, "max_tokens": 5, "logprobs": 0, "stop_token_ids": [tokens[0]]}
    choice = only(await daemon.complete(**body))
    assert choice["text"] == ""
    assert len(choice["logprobs"]["tokens"]) == 1
    assert list(choice["logprobs"]["top_logprobs"][0].values()) == [-0.5]


@pytest.mark.parametrize("prompt", [PROMPT, [381, 376, 347, 387], [5]])
async def test_echo_with_logprobs(
    daemon: Running, expected: FakeAnswers, token_texts: TokenTexts, prompt: str | list[int]
) -> None:
    ids = expected.ids(prompt)
    body = {"prompt": prompt, "seed": 1, "max_tokens": 3, "logprobs": 1, "echo": True, "ignore_eos": True}
    whole = only(await daemon.complete(**body))
    shown = prompt if isinstance(prompt, str) else expected.model.tokenizer.decode(ids)
    assert whole["text"] == shown + expected.text(prompt, 1, 3)
    logprobs = whole["logprobs"]
    assert logprobs["tokens"][: len(ids)] == [token_texts.text(token) for token in ids]
    assert logprobs["token_logprobs"] == [None, *[-0.5] * (len(ids) + 2)]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1:] == [{text: -0.5} for text in logprobs["tokens"][1:]]
    assert joined(await daemon.stream(**body)) == {"text": whole["text"], "logprobs": logprobs}


async def test_offsets_point_into_the_text(daemon: Running) -> None:
    for seed in range(20):
        body = {"prompt": PROMPT, "seed": seed, "max_tokens": 12, "logprobs": 0, "echo": seed % 2 == 0}
        choice = only(await daemon.complete(**body, ignore_eos=True))
        text, logprobs = choice["text"], choice["logprobs"]
        offsets = logprobs["text_offset"]
        assert offsets == sorted(offsets)
        before = ""
        for token, offset in zip(logprobs["tokens"], offsets, strict=True):
            if not token.startswith(("bytes:", "<")):
                # a character that was given up is shown with the token after it
                rest = text[offset:]
                assert token in rest if before.startswith("bytes:") else rest.startswith(token)
            before = token


async def test_echo_without_logprobs_may_use_the_prefix_cache(daemon: Running) -> None:
    long = PROMPT * 12
    await daemon.complete(prompt=long, max_tokens=1)
    plain = await daemon.complete(prompt=long, max_tokens=1, echo=True)
    scored = await daemon.complete(prompt=long, max_tokens=1, echo=True, logprobs=1)
    assert plain["choices"][0]["text"].startswith(long)
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert scored["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert None not in scored["choices"][0]["logprobs"]["token_logprobs"][1:]


async def test_echo_of_nothing_but_the_prompt(daemon: Running, expected: FakeAnswers) -> None:
    body: dict[str, Any] = {
        "prompt": [PROMPT, "x"],
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
        "return_token_ids": True,
    }
    answer = await daemon.complete(**body)
    for choice, prompt in zip(answer["choices"], body["prompt"], strict=True):
        assert (choice["text"], choice["finish_reason"], choice["token_ids"]) == (prompt, "length", [])
        assert len(choice["logprobs"]["tokens"]) == len(expected.ids(str(prompt)))
    assert answer["usage"]["completion_tokens"] == 0
    events = await daemon.stream(**body)
    assert sorted(event["choices"][0]["text"] for event in events) == sorted([PROMPT, "x"])
    assert (await daemon.complete(prompt="x", max_tokens=0, echo=True))["choices"][0]["logprobs"] is None


async def test_every_choice_has_the_prompts_logprobs(daemon: Running) -> None:
    answer = await daemon.complete(prompt=[PROMPT, "x"], n=3, max_tokens=2, echo=True, logprobs=1)
    lengths = [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]]
    heads = [choice["logprobs"]["token_logprobs"][:2] for choice in answer["choices"]]
    assert lengths[0] == lengths[1] == lengths[2] > lengths[3] == lengths[4] == lengths[5]
    assert heads == [[None, -0.5]] * 6


async def test_token_ids_and_prompt_logprobs(daemon: Running, expected: FakeAnswers) -> None:
    ids, tokens = expected.ids(PROMPT), expected.tokens(PROMPT, 1, 3, ignore_eos=True)
    body = {"prompt": PROMPT, "seed": 1, "max_tokens": 3, "return_token_ids": True, "prompt_logprobs": 2}
    choice = only(await daemon.complete(**body, ignore_eos=True))
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (ids, tokens)
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    assert [set(entry) for entry in rest] == [{str(token), str(token + 1)} for token in ids[1:]]
    assert rest[0][str(ids[1])] == {"logprob": -0.5, "rank": 1, "decoded_token": "Whan"}
    stream = joined(await daemon.stream(**body, ignore_eos=True))
    assert {name: stream[name] for name in ("prompt_token_ids", "token_ids", "prompt_logprobs")} == {
        name: choice[name] for name in ("prompt_token_ids", "token_ids", "prompt_logprobs")
    }


async def test_tokens_spelled_as_ids(daemon: Running, expected: FakeAnswers) -> None:
    tokens = expected.tokens(PROMPT, 1, 2, ignore_eos=True)
    choice = only(
        await daemon.complete(
            prompt=PROMPT, seed=1, max_tokens=2, logprobs=1, return_tokens_as_token_ids=True, ignore_eos=True
        )
    )
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in tokens]
    assert list(choice["logprobs"]["top_logprobs"][0]) == [f"token_id:{tokens[0]}"]


@pytest.mark.parametrize("stream", [False, True])
async def test_long_logprobs_are_written_beside_the_loop(
    daemon: Running, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    threads: list[int] = []
    prompt_method = CompletionWriter.prompt

    def noting(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return prompt_method(*args, **options)

    monkeypatch.setattr(CompletionWriter, "prompt", noting)
    ask = daemon.stream if stream else daemon.complete
    short = {"prompt": [5] * 10, "max_tokens": 1, "echo": True, "logprobs": 20}
    await ask(**short)
    await ask(**short | {"prompt": [5] * (INLINE_LOGPROBS // 20)})
    assert threads[0] == threading.get_ident() != threads[1]


def entry(token: int, logprob: float, *top: tuple[int, float], rank: int = 1) -> TokenLogprobs:
    return TokenLogprobs(token, logprob, top, rank)


def test_numbers_that_json_cannot_hold() -> None:
    texts = TokenTexts(Tokenizer(byte_level()))
    for unlikely in (-math.inf, math.nan, -1e300):
        writer = CompletionWriter(texts, texts.tokenizer.stream_decoder(), 1, as_ids=False)
        shown = writer.tokens([entry(70, unlikely, (80, unlikely))])
        assert shown["token_logprobs"] == [LOWEST]
        assert set((shown["top_logprobs"][0] or {}).values()) == {LOWEST}


def test_every_shape_is_json_whatever_the_numbers() -> None:
    """Masked tokens are impossible; nothing is likelier than certain."""
    texts = TokenTexts(Tokenizer(byte_level()))
    writer = CompletionWriter(texts, texts.tokenizer.stream_decoder(), 4, as_ids=True)
    top = ((1, math.inf), (2, -0.5), (3, -math.inf), (4, math.nan))
    entries = [entry(70, number, *top) for number in (math.inf, -0.25, -math.inf, math.nan)]
    chat = chat_logprobs(entries, texts, as_ids=True)["content"]
    prompt = prompt_logprobs(entries, 4, texts)[1:]
    assert writer.tokens(entries)["token_logprobs"] == [0.0, -0.25, LOWEST, LOWEST]
    assert [shown["logprob"] for shown in chat] == [0.0, -0.25, LOWEST, LOWEST]
    assert [shown["logprob"] for shown in chat[0]["top_logprobs"]] == [0.0, -0.5, LOWEST, LOWEST]
    assert [by_id and by_id["3"]["logprob"] for by_id in prompt] == [LOWEST] * 4
    for answer in (
        chat,
        prompt,
        writer.tokens(entries),
        writer.prompt([5, *range(4)], entries, "", is_given=False),
    ):
        json.dumps(answer, allow_nan=False)


def test_the_sampled_token_is_among_the_alternatives() -> None:
    texts = TokenTexts(Tokenizer(byte_level()))
    writer = CompletionWriter(texts, texts.tokenizer.stream_decoder(), 2, as_ids=True)
    shown = writer.tokens([entry(7, -9.0, (1, -0.1), (2, -0.2), (3, -0.3))])
    assert shown["top_logprobs"] == [{"token_id:1": -0.1, "token_id:2": -0.2, "token_id:7": -9.0}]
    [by_id] = prompt_logprobs([entry(7, -9.0, (1, -0.1), (2, -0.2), rank=41)], 1, texts)[1:]
    assert by_id is not None
    assert {token: shown["rank"] for token, shown in by_id.items()} == {"7": 41, "1": 1}


def test_chat_shows_bytes_of_half_characters() -> None:
    texts = TokenTexts(Tokenizer(byte_level()))
    half = texts.tokenizer.encode("\u00f0", add_special_tokens=False)
    assert len(half) == 2
    [token] = chat_logprobs([entry(half[0], -1.0, (half[0], -1.0))], texts, as_ids=False)["content"]
    assert token["bytes"] == [0xC3]
    assert token["token"] == "\ufffd"
    assert token["top_logprobs"] == [{"token": "\ufffd", "logprob": -1.0, "bytes": [0xC3]}]


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from([byte_level, metaspace]))
@example("\u2581", metaspace)
def test_bytes_of_the_tokens_are_the_text(text: str, kind: Any) -> None:
    tokenizer = Tokenizer(kind())
    ids = tokenizer.encode(text, add_special_tokens=False)
    data = b"".join(tokenizer.token_bytes(token) for token in ids)
    if kind is metaspace:  # it prepends a space to every text, and takes its own sign of a space for one
        text = text.replace("\u2581", " ")
        assert data.decode() in (f" {text}", text) or "<unk>" in data.decode()
    else:
        assert data.decode() == text
