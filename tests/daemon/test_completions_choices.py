"""n, batches and seeds of /v1/completions, on the fake device, whose output a test can compute."""

import json
from collections import Counter
from typing import Any

import pytest
from support.daemon import Running
from support.fake_answers import FakeAnswers

LONG = "Whan that Aprille with his shoures soote " * 8


@pytest.fixture
def expected(daemon: Running) -> FakeAnswers:
    return FakeAnswers(daemon.services.generation.model)  # type: ignore[arg-type]


def texts(answer: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return [choice["text"] for choice in answer["choices"]]


def streamed_texts(events: list[dict[str, Any]], count: int) -> list[str]:
    joined = [""] * count
    for event in events:
        for choice in event["choices"]:
            joined[choice["index"]] += choice["text"]
    return joined


async def test_choices_are_prompt_major_with_consecutive_seeds(
    daemon: Running, expected: FakeAnswers
) -> None:
    prompts = ["Whan that Aprille", "x", LONG]
    body = {"prompt": prompts, "n": 3, "seed": 2**64 - 2, "max_tokens": 9}
    answer = await daemon.complete(**body)
    seeds = [2**64 - 2, 2**64 - 1, 0]
    wanted = [expected.text(prompt, seed, 9) for prompt in prompts for seed in seeds]
    assert texts(answer) == wanted
    assert len(set(wanted)) == 9
    assert streamed_texts(await daemon.stream(**body), 9) == wanted


async def test_prompts_of_every_kind(daemon: Running, expected: FakeAnswers) -> None:
    ids = [5, 6, 7]
    wanted = expected.text(ids, 1)
    for prompt in (ids, [ids]):
        assert texts(await daemon.complete(prompt=prompt, seed=1)) == [wanted]
    answer = await daemon.complete(prompt=[ids, [8]], seed=1)
    assert texts(answer) == [wanted, expected.text([8], 1)]
    assert texts(await daemon.complete(prompt=["x"], seed=1)) == [expected.text("x", 1)]
    assert texts(await daemon.complete(prompt="x", seed=1.0, max_tokens=3.0)) == [expected.text("x", 1, 3)]


async def test_seeds_reproduce_and_differ_without(daemon: Running) -> None:
    first = await daemon.complete(prompt="x", n=2, seed=7)
    assert texts(first) == texts(await daemon.complete(prompt="x", n=2, seed=7))
    drawn = [text for _ in range(3) for text in texts(await daemon.complete(prompt=["x", "x"]))]
    assert len(set(drawn)) == 6


async def test_later_choices_hit_the_first_ones_prefix(daemon: Running) -> None:
    answer = await daemon.complete(prompt=f"New. {LONG}", n=4, seed=0, max_tokens=4)
    records = daemon.services.history.named(answer["id"].removeprefix("cmpl-"))
    by_arrival = sorted(records, key=lambda record: record.seq)
    num_prompt = answer["usage"]["prompt_tokens"]
    full_blocks = (num_prompt - 1) // 16 * 16
    assert [record.cached_tokens for record in by_arrival] == [0, full_blocks, full_blocks, full_blocks]
    assert answer["usage"]["completion_tokens"] == sum(record.output_tokens for record in records)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_usage_counts_each_prompt_once(daemon: Running, expected: FakeAnswers) -> None:
    answer = await daemon.complete(prompt=["x", LONG], n=2, max_tokens=5, ignore_eos=True)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(expected.ids("x")) + len(expected.ids(LONG))
    assert usage["completion_tokens"] == 4 * 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 20


async def test_streams_interleave_and_end_each_choice_once(daemon: Running, expected: FakeAnswers) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await daemon.stream(
        prompt=["x", "y"], n=2, max_tokens=30, seed=3, ignore_eos=True, stream_options=options
    )
    order = [choice["index"] for event in events for choice in event["choices"]]
    ends = Counter(c["index"] for e in events for c in e["choices"] if c["finish_reason"] is not None)
    assert ends == {0: 1, 1: 1, 2: 1, 3: 1}
    assert order != sorted(order), "one choice after the other"
    assert all(len(event["choices"]) == 1 for event in events[:-1])
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert events[-1]["choices"] == []
    assert counts[-1] == 4 * 30


async def test_stop_strings_end_their_own_choice_only(daemon: Running, expected: FakeAnswers) -> None:
    wholes = [expected.text("x", seed, 40) for seed in range(4)]
    stop = next(character for character in wholes[0] if sum(character in text for text in wholes) < 4)
    answer = await daemon.complete(prompt="x", n=4, seed=0, max_tokens=40, stop=stop)
    for choice, whole in zip(answer["choices"], wholes, strict=True):
        cut, found, _ = whole.partition(stop)
        assert choice["text"] == cut
        assert choice["stop_reason"] == (stop if found else None)
        if found:
            assert choice["finish_reason"] == "stop"
    kept = await daemon.complete(
        prompt="x", n=4, seed=0, max_tokens=40, stop=[stop], include_stop_str_in_output=True
    )
    assert [text.partition(stop)[0] + stop * (stop in text) for text in wholes] == texts(kept)


async def test_stop_tokens_name_themselves(daemon: Running, expected: FakeAnswers) -> None:
    tokens = expected.tokens("x", 1, 8, ignore_eos=True)
    answer = await daemon.complete(prompt="x", seed=1, stop_token_ids=[tokens[3]], return_token_ids=True)
    [choice] = answer["choices"]
    end = tokens.index(tokens[3]) + 1
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", tokens[3])
    assert choice["token_ids"] == tokens[:end]
    assert choice["text"] == expected.continued("x", tokens[: end - 1])
    kept = await daemon.complete(
        prompt="x", seed=1, stop_token_ids=[tokens[3]], include_stop_str_in_output=True
    )
    assert texts(kept) == [expected.continued("x", tokens[:end])]


async def test_nothing_is_admitted_when_one_prompt_is_bad(daemon: Running) -> None:
    before = daemon.services.table.totals.copy()
    status, answer, _ = await daemon.post({"prompt": [[5], [400]], "stream": True})
    assert (status, answer["error"]["param"]) == (400, "prompt")
    assert daemon.services.table.totals["admitted"] == before["admitted"]


async def test_a_client_that_goes_away_frees_every_choice(daemon: Running) -> None:
    body = {"prompt": ["x", "y"], "n": 3, "max_tokens": 900, "stream": True, "ignore_eos": True}
    async with daemon.http.post(f"{daemon.url}/v1/completions", json=body) as response:
        seen: set[int] = set()
        async for line in response.content:
            if line.startswith(b"data: "):
                seen |= {choice["index"] for choice in json.loads(line[6:])["choices"]}
            if len(seen) == 6:
                break
        assert len(daemon.services.table) == 6
        response.close()
    await daemon.engine_says(
        lambda status: not any(status["requests"][kind] for kind in ("waiting", "decoding"))
    )
    assert len(daemon.services.table) == 0
    assert daemon.services.table.totals["cancelled"] == 6


async def test_best_of_may_repeat_n(daemon: Running) -> None:
    assert len(texts(await daemon.complete(prompt="x", n=2, best_of=2))) == 2
    assert len(texts(await daemon.complete(prompt="x", n=2, best_of=1))) == 2
