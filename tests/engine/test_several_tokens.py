"""A lane that gives a sequence several tokens in one decode step, as drafted decode does: exact equality with
an undisturbed run, wherever in such a run of tokens the sequence ends, and whatever happens meanwhile."""

import random
from collections import Counter
from typing import Any

import pytest
from support.fake_engine import RANDOM_VOCAB, Run, random_request, request, submit

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, Inbound, StepTokens, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.devices.fake import FakeDevice

MOST = 5


def drafting(rng: random.Random, **facts: Any) -> FakeDevice:
    """Each decode step gives between one token and MOST."""
    return FakeDevice(max_decode_tokens=MOST, run_length=lambda _seq, _length: rng.randint(1, MOST), **facts)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["semipd", "chunked", "prefill-first"])
def test_random_requests_get_the_tokens_of_an_undisturbed_run(policy: str, depth: int) -> None:
    num_preemptions = num_runs = 0
    for seed in range(5):
        rng = random.Random(seed)
        device = drafting(
            rng,
            num_blocks=rng.choice([14, 20, 60]),
            vocab_size=RANDOM_VOCAB,
            decode_depth=depth,
            prefill_depth=depth,
        )
        run = Run(
            device,
            default_engine_settings(
                device="fake",
                scheduler=policy,
                max_num_seqs=rng.choice([3, 8, 32]),
                prefill_chunk_tokens=rng.choice([5, 32, 128]),
                step_token_budget=rng.choice([40, 128]),
            ),
        )
        requests: dict[SeqId, Request] = {}
        while len(requests) < 60 or not run.coordinator.scheduler.idle:
            inbox: list[Inbound] = []
            if len(requests) < 60 and rng.random() < 0.5:
                made = random_request(rng, len(requests) + 1, run.now_ns)
                requests[made.seq] = made
                inbox.append(Submit(made))
            if run.coordinator.scheduler.sequences and rng.random() < 0.02:
                inbox.append(Cancel(rng.choice(list(run.coordinator.scheduler.sequences))))
            run.tick(inbox)
        for seq, made in requests.items():
            expected, got, end = run.expected(made), run.tokens.get(seq, []), run.finished[seq]
            assert got == (expected[: len(got)] if end.reason == "cancelled" else expected)
            stops = bool(got) and got[-1] in made.params.stop_token_ids and len(got) >= made.params.min_tokens
            assert end.reason in ("cancelled", "stop" if stops else "length")
        assert run.coordinator.scheduler.memory.pool.num_free == device.info.num_blocks - 1
        num_preemptions += run.coordinator.scheduler.num_preemptions
        steps = [message for message in run.messages if isinstance(message, StepTokens)]
        num_runs += sum(count > 1 for step in steps for count in Counter(step.seqs).values())
    assert num_preemptions > 5, "the load was too easy"
    assert num_runs > 100


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("max_tokens", range(1, 2 * MOST + 3))
def test_the_end_may_lie_anywhere_in_a_run_of_tokens(max_tokens: int, depth: int) -> None:
    """By length, and by a stop token as the last of these tokens; log-probabilities end as well."""
    probe = Run(FakeDevice(), default_engine_settings(device="fake"))
    output = probe.expected(request(1, [1, 2, 3], max_tokens=40))
    for stops in ((), (output[max_tokens - 1],)):
        run = Run(
            FakeDevice(max_decode_tokens=MOST, run_length=lambda *_: MOST, decode_depth=depth), settings()
        )
        length = 40 if stops else max_tokens
        run.tick([submit(1, [1, 2, 3], max_tokens=length, stop_token_ids=stops, logprobs=1)])
        run.drain()
        first_end = output.index(stops[0]) + 1 if stops else max_tokens
        assert run.tokens[SeqId(1)] == output[:first_end]
        assert run.finished[SeqId(1)].reason == ("stop" if stops else "length")
        steps = [message for message in run.messages if isinstance(message, StepTokens)]
        for step in steps:
            assert step.logprobs is not None
            assert [entry and entry.token_id for entry in step.logprobs] == step.tokens


def settings() -> EngineSettings:
    return default_engine_settings(device="fake")


def test_a_request_at_the_limit_of_the_pool_is_refused_or_runs() -> None:
    """A step may write the KV of drafted tokens behind the end: their slots count."""
    for max_tokens in range(20, 40):
        run = Run(FakeDevice(num_blocks=4, max_decode_tokens=MOST, run_length=lambda *_: MOST), settings())
        sent = request(1, [7] * 12, max_tokens=max_tokens)
        run.tick([Submit(sent)])
        run.drain()
        fits = 12 + max_tokens + MOST - 1 <= 48
        assert run.finished[sent.seq].reason == ("length" if fits else "error")
        assert run.tokens.get(sent.seq, []) == (run.expected(sent) if fits else [])


def test_tokens_and_context_are_counted_not_steps() -> None:
    run = Run(FakeDevice(max_decode_tokens=MOST, run_length=lambda *_: MOST), settings())
    run.tick([submit(seq, [seq, 2], max_tokens=26) for seq in (1, 2)])
    run.drain()
    decode = run.coordinator.decode
    assert (decode.num_steps, decode.num_decode_tokens) == (5, 50)
    assert decode.step_sizes.to_wire()["sum_tokens"] == 50
