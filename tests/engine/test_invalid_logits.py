"""A sequence without valid logits ends alone: its batch, its lane, its blocks' next owners go on as if it had
never been. On the fake device, where a leaked KV slot changes tokens."""

import random
from dataclasses import replace

import pytest
from support.fake_engine import Run, random_request, request, submit
from support.seeds import each_seed

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, Finished, PromptLogprobs, StepTokens, Submit
from semipd.core.plan import INVALID_LOGITS, StepPlan, StepResult
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.devices.fake import POISON, FakeDevice, FakeLane

POLICIES = ("semipd", "chunked", "prefill-first")
BAD = 7


def settings(policy: str = "semipd", **changes: int) -> EngineSettings:
    return default_engine_settings(device="fake", scheduler=policy, **changes)


def poisoned_run(policy: str = "semipd", depth: int = 1, **options: int) -> Run:
    """Small chunks; token 7 is poison, in prompts and when it is sampled."""
    num_blocks = options.pop("num_blocks", 400)
    device = FakeDevice(
        num_blocks=num_blocks,
        vocab_size=50,
        decode_depth=depth,
        prefill_depth=depth,
        poison_token_ids=[BAD],
    )
    return Run(device, settings(policy, prefill_chunk_tokens=12, step_token_budget=12, **options))


def told(run: Run, sent: Request) -> Finished:
    """What the client of `sent` must see: its own tokens up to the first poison, then the error."""
    expected, finished = run.expected(sent), run.finished[sent.seq]
    poisoned = [idx for idx, token in enumerate(expected[:-1]) if token == BAD]
    if BAD in sent.prompt:
        expected, poisoned = [], [0]
    elif poisoned:
        expected = expected[: poisoned[0] + 1]
    assert run.tokens.get(sent.seq, []) == expected
    assert (finished.reason, finished.code) == (("error", INVALID_LOGITS) if poisoned else ("length", ""))
    return finished


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_poisoned_prompt_ends_its_request_alone(policy: str, depth: int) -> None:
    run = poisoned_run(policy, depth)
    good = [request(i, [i % 5, 1, 2] * i, max_tokens=20) for i in range(1, 7)]
    bad = [request(20, [1, 2, BAD]), request(21, [*range(8, 40), BAD, *range(8, 40)], prompt_logprobs=1)]
    run.tick([Submit(r) for r in (*good[:3], *bad, *good[3:])])
    run.drain()
    for sent in (*good, *bad):
        told(run, sent)
    assert {r.seq for r in bad} == {seq for seq, end in run.finished.items() if end.reason == "error"} - {
        r.seq for r in good
    }
    entries = [m for m in run.messages if isinstance(m, PromptLogprobs)]
    assert sum(len(m.entries) for m in entries) <= 32, "of chunks before the bad one only"
    assert run.coordinator.scheduler.memory.pool.num_free == run.device.info.num_blocks - 1


@each_seed(range(12))
def test_what_a_mixed_load_is_told(seed: int) -> None:
    """Shared prefixes, preemption, cancels, both depths and every scheduler; integrity at each turn."""
    rng = random.Random(seed)
    run = poisoned_run(POLICIES[seed % 3], 1 + seed % 2, num_blocks=26)
    sent: dict[SeqId, Request] = {}
    gone: set[SeqId] = set()
    for seq in range(1, 60):
        r = replace(random_request(rng, seq, run.now_ns))
        prompt = [BAD if rng.random() < 0.01 else token for token in r.prompt]
        sent[r.seq] = replace(r, prompt=prompt, params=replace(r.params, stop_token_ids=(), min_tokens=0))
        run.tick([Submit(sent[r.seq])])
        if rng.random() < 0.1:
            gone.add(SeqId(rng.randrange(1, seq + 1)))
            run.tick([Cancel(seq) for seq in gone])
        for _ in range(rng.randrange(12)):
            run.tick()
    run.drain()
    for seq in sent.keys() - gone:
        told(run, sent[seq])
    codes = [run.finished[seq].code for seq in sent]
    assert codes.count(INVALID_LOGITS) > 3
    assert run.coordinator.scheduler.memory.pool.num_free == run.device.info.num_blocks - 1


@pytest.mark.parametrize("policy", POLICIES)
def test_prefixes_before_the_poison_are_kept_and_none_behind_it(policy: str) -> None:
    """The prompt's first chunk settled before the bad one: others may read it, and nothing else."""
    run = poisoned_run(policy)
    prefix = list(range(8, 44))
    run.tick([submit(1, [*prefix, BAD, *prefix], max_tokens=4)])
    run.drain()
    index, pool = run.coordinator.scheduler.memory.index, run.device.pool
    indexed = [block for block in range(run.device.info.num_blocks) if index.knows(block)]
    assert len(indexed) == 2, "36 of the prompt's tokens fill two blocks of 16"
    assert not any(POISON in pool[block * 16 : block * 16 + 16] for block in indexed)
    again = request(2, [*prefix, 9, 9], max_tokens=30)
    run.tick([Submit(again)])
    run.drain()
    assert run.finished[again.seq].cached_tokens == 32
    told(run, again)


def test_blocks_that_held_poison_serve_the_next_request() -> None:
    run = poisoned_run(num_blocks=8)
    for seq in range(1, 12, 2):
        run.tick([submit(seq, [9] * 20 + [BAD] * 60, max_tokens=4)])
        run.drain()
        assert run.finished[SeqId(seq)].code == INVALID_LOGITS
        good = request(seq + 1, [seq % 3 + 10] * 90, max_tokens=15)
        run.tick([Submit(good)])
        run.drain()
        assert run.finished[good.seq].reason in ("length", "error")
        told(run, good)


class OnceInvalid(FakeLane):
    """No token of one step, as when a row's parameters leave none: its KV is fine, and what the lane makes of
    the next step is a valid token."""

    victim = SeqId(2)
    at_length = 9

    def _execute(self, plan: StepPlan, busy_ns: int) -> StepResult:
        result = super()._execute(plan, busy_ns)
        if self.victim not in plan.decode or len(self.residents[self.victim].tokens) != self.at_length:
            return result
        pairs = zip(plan.decode, result.tokens, strict=False)
        tokens = [(-1,) if seq == self.victim else run for seq, run in pairs]
        return result._replace(tokens=tokens, failed={self.victim: INVALID_LOGITS})


def test_the_step_behind_is_dropped_when_it_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """At depth 2 the next step has been launched on whatever stands for the missing token."""
    device = FakeDevice(decode_depth=2)
    device.decode = OnceInvalid("decode", device, 2, device.decode.latency)
    run = Run(device, settings())
    sent = [request(i, [i, 2, 3], max_tokens=16, logprobs=1) for i in (1, 2, 3)]
    run.tick([Submit(r) for r in sent])
    run.drain()
    victim = sent[1]
    assert run.tokens[victim.seq] == run.expected(victim)[:5]
    assert run.finished[victim.seq].code == INVALID_LOGITS
    for r in (sent[0], sent[2]):
        assert (run.tokens[r.seq], run.finished[r.seq].reason) == (run.expected(r), "length")
    for message in run.messages:
        if isinstance(message, StepTokens) and message.logprobs is not None:
            assert all(token >= 0 for token in message.tokens)
            assert all(entry is not None for entry in message.logprobs)


def test_a_failed_step_still_teaches() -> None:
    run = poisoned_run()
    run.tick([submit(1, [BAD] * 11)])
    run.drain()
    assert (run.coordinator.prefill.num_steps, run.coordinator.prefill.num_prefill_tokens) == (1, 11)
    assert run.coordinator.prefill.busy_ns > 0


def test_the_answer_names_what_to_look_at() -> None:
    run = poisoned_run()
    run.tick([submit(1, [1, BAD])])
    run.tick([submit(2, [1, BAD], repetition_penalty=1e-3, logit_bias=((1, 2.0), (2, 3.0)))])
    run.drain()
    plain, tuned = run.finished[SeqId(1)], run.finished[SeqId(2)]
    assert "2 prompt and 0 output tokens" in plain.message
    assert plain.hint.startswith("Look at the checkpoint and engine.dtype (float16")
    assert tuned.hint.startswith("Look at repetition_penalty 0.001, logit_bias (2 tokens), then at the check")
    events = [(e.kind, e.data.get("reason")) for e in run.events if e.seq == 1]
    waits = ("to_background", "no_target")
    assert events == [("queued", None), waits, ("admitted", None), ("finished", "error")]


def test_allowed_tokens_are_all_that_is_chosen() -> None:
    run = Run(FakeDevice(decode_depth=2), settings())
    sent = request(1, [1, 2, 3], max_tokens=40, allowed_token_ids=(5, 900, 12))
    run.tick([Submit(sent), submit(2, [1, 2, 3], max_tokens=40)])
    run.drain()
    assert set(run.tokens[sent.seq]) == {5, 12, 900}
    assert run.tokens[sent.seq] == run.expected(sent)
