"""StepRunner against an oracle that generates each request alone, one token at a time."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.sampled import checked_tokens
from support.seeds import each_seed
from support.step_tokens import one_each
from support.toy_decoder import BLOCK_SIZE, ToyDecoder

from semipd.core.plan import Join, Segment, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split
from semipd.sampling.batch import SamplingBatch, SamplingRow
from semipd.sampling.logprobs import token_logprobs
from semipd.steps import runner as runner_module
from semipd.steps.decode_batch import DecodeBatch
from semipd.steps.residents import Resident
from semipd.steps.runner import StepRunner

CPU = torch.device("cpu")
VOCAB = 53
SPLIT = Split(1, 1)


def oracle_tokens(decoder: ToyDecoder, prompt: list[int], params: SamplingParams) -> list[int]:
    tokens = list(prompt)
    for _ in range(params.max_tokens):
        row = SamplingRow(params, tokens, len(prompt))
        tokens += checked_tokens(SamplingBatch([row], VOCAB, CPU).sample(decoder.logits_after(tokens)[None]))
    return tokens[len(prompt) :]


def oracle_logprobs(decoder: ToyDecoder, tokens: list[int], num_top: int) -> TokenLogprobs:
    """Of the last of `tokens`, given those before it."""
    return token_logprobs(decoder.logits_after(tokens[:-1])[None], torch.tensor(tokens[-1:]), [num_top])[0]


def same_logprobs(a: TokenLogprobs, b: TokenLogprobs) -> bool:
    """log_softmax may differ in the last bit with the number of rows."""
    return (
        a.token_id == b.token_id
        and abs(a.rank - b.rank) <= 1
        and a.logprob == pytest.approx(b.logprob, abs=1e-5)
        and len(a.top) == len(b.top)
    )


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randrange(1, 30),
        seed=rng.getrandbits(64),
        temperature=rng.choice([0.0, 0.7, 1.3]),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.8]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.4]),
        stop_token_ids=(3, 4),
        min_tokens=1,
        logprobs=rng.choice([None, None, 0, 3]),
        prompt_logprobs=rng.choice([None, 2]),
    )


def join_of_resident(resident: Resident) -> Join:
    """The state that `rebuild` would take."""
    return Join(
        resident.seq,
        list(resident.token_ids),
        resident.num_prompt_tokens,
        resident.params,
        list(resident.block_table),
    )


@dataclass
class Sequence:
    """The coordinator's view of one request in these tests."""

    seq: SeqId
    prompt: list[int]
    params: SamplingParams
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    resident: bool = False
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.tokens) - len(self.prompt) == self.params.max_tokens

    @property
    def decoding(self) -> bool:
        return self.resident and not self.done and self.computed == len(self.tokens) - 1


class Driver:
    """Makes random legal plans: any chunking, merged steps, late blocks, leaving and coming back."""

    def __init__(self, rng: random.Random, num_requests: int) -> None:
        self.rng = rng
        self.num_blocks = 400
        self.decoder = ToyDecoder(VOCAB, self.num_blocks)
        self.runner = StepRunner(self.decoder, VOCAB, CPU)
        self.free = list(range(1, self.num_blocks))
        self.sequences = [self._request(i) for i in range(num_requests)]
        self.step_id = 0
        self._joins: list[Join] = []
        self._leaves: list[SeqId] = []
        self._new_blocks: list[tuple[SeqId, tuple[int, ...]]] = []

    def _request(self, number: int) -> Sequence:
        prompt = [self.rng.randrange(VOCAB) for _ in range(self.rng.randrange(1, 60))]
        return Sequence(SeqId(number * 7 + 1), prompt, random_params(self.rng), list(prompt))

    def run(self) -> None:
        while not all(sequence.done for sequence in self.sequences):
            if self.rng.random() < 0.15:
                self.runner.rebuild([join_of_resident(resident) for resident in self.runner.residents])
            plan = self._plan()
            self._settle(plan, self.runner.execute(plan))

    def _plan(self) -> StepPlan:
        self._joins, self._leaves, self._new_blocks = [], [], []
        for sequence in self.sequences:
            if sequence.resident and (sequence.done or self.rng.random() < 0.05):
                self._leave(sequence)
            # May come back in the very plan in which it leaves.
            if not sequence.done and not sequence.resident and self.rng.random() < 0.5:
                self._join(sequence)
        decode = [s for s in self.sequences if s.decoding and self.rng.random() < 0.97]
        for sequence in decode:
            self._ensure_blocks(sequence, len(sequence.tokens))
        segments = self._segments()
        self.step_id += 1
        return StepPlan(
            self.step_id,
            SPLIT,
            tuple(s.seq for s in decode),
            segments,
            tuple(self._joins),
            tuple(self._leaves),
            tuple(self._new_blocks),
        )

    def _leave(self, sequence: Sequence) -> None:
        self._leaves.append(sequence.seq)
        sequence.resident = False
        self.free += sequence.blocks
        sequence.blocks, sequence.computed, sequence.prompt_logprobs = [], 0, []

    def _join(self, sequence: Sequence) -> None:
        self.rng.shuffle(self.free)
        sequence.blocks = [self.free.pop() for _ in range(self.rng.randrange(1, 3))]
        sequence.resident = True
        join = Join(
            sequence.seq, list(sequence.tokens), len(sequence.prompt), sequence.params, list(sequence.blocks)
        )
        self._joins.append(join)

    def _ensure_blocks(self, sequence: Sequence, num_tokens: int) -> None:
        missing = -(-num_tokens // BLOCK_SIZE) - len(sequence.blocks)
        if missing > 0:
            blocks = tuple(self.free.pop() for _ in range(missing + self.rng.randrange(2)))
            sequence.blocks += blocks
            self._new_blocks.append((sequence.seq, blocks))

    def _segments(self) -> tuple[Segment, ...]:
        segments = []
        for sequence in self.sequences:
            if sequence.resident and not sequence.done and not sequence.decoding and self.rng.random() < 0.7:
                left = len(sequence.tokens) - sequence.computed
                length = self.rng.randrange(1, left + 1)
                self._ensure_blocks(sequence, sequence.computed + length)
                segments.append(
                    Segment(
                        sequence.seq,
                        sequence.computed,
                        length,
                        length == left,
                        sequence.params.prompt_logprobs,
                    )
                )
        return tuple(segments)

    def _settle(self, plan: StepPlan, result: StepResult) -> None:
        by_seq = {sequence.seq: sequence for sequence in self.sequences}
        for segment in plan.segments:
            by_seq[segment.seq].computed += segment.length
            if segment.prompt_logprobs is not None:
                assert result.prompt_logprobs is not None
                by_seq[segment.seq].prompt_logprobs += result.prompt_logprobs[segment.seq]
        for seq in plan.decode:
            by_seq[seq].computed += 1
        sampled = [*plan.decode, *(segment.seq for segment in plan.segments if segment.sample)]
        entries = result.logprobs or [None] * len(sampled)
        for seq, tokens, logprobs in zip(sampled, result.tokens, entries, strict=True):
            by_seq[seq].tokens += tokens
            by_seq[seq].logprobs += logprobs or [None]


@each_seed(range(5), soak=range(5, 15))
def test_any_course_of_plans_gives_each_request_its_own_tokens(seed: int) -> None:
    driver = Driver(random.Random(seed), num_requests=6)
    driver.run()
    for sequence in driver.sequences:
        output = sequence.tokens[len(sequence.prompt) :]
        assert output == oracle_tokens(driver.decoder, sequence.prompt, sequence.params)
        check_logprobs(driver.decoder, sequence)


def check_logprobs(decoder: ToyDecoder, sequence: Sequence) -> None:
    num_prompt, wanted = len(sequence.prompt), sequence.params.logprobs
    for index, entry in enumerate(sequence.logprobs):
        if wanted is None:
            assert entry is None
        else:
            assert entry is not None
            assert same_logprobs(
                entry, oracle_logprobs(decoder, sequence.tokens[: num_prompt + index + 1], wanted)
            )
    if sequence.params.prompt_logprobs is not None and sequence.computed >= num_prompt:
        assert len(sequence.prompt_logprobs) == num_prompt - 1
        for index, entry in enumerate(sequence.prompt_logprobs):
            assert same_logprobs(entry, oracle_logprobs(decoder, sequence.prompt[: index + 2], 2))


def greedy(max_tokens: int = 100, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=1, temperature=0.0, **fields)


def join_of(seq: int, tokens: list[int], blocks: list[int], params: SamplingParams | None = None) -> Join:
    return Join(SeqId(seq), tokens, len(tokens), params or greedy(), blocks)


def test_prefill_on_one_runner_continues_on_another_with_the_same_pool() -> None:
    first = ToyDecoder(VOCAB, 20)
    second = ToyDecoder(VOCAB, 20, first.pool)
    prefill, decode = StepRunner(first, VOCAB, CPU), StepRunner(second, VOCAB, CPU)
    prompt = list(range(40))
    seq = SeqId(5)
    join = join_of(5, prompt, [7, 3, 9])
    [(token,)] = prefill.execute(
        StepPlan(1, SPLIT, segments=(Segment(seq, 0, 40, True),), joins=(join,))
    ).tokens
    output = [token]
    moved = Join(seq, [*prompt, token], 40, join.params, [7, 3, 9])
    output += one_each(decode.execute(StepPlan(1, SPLIT, decode=(seq,), joins=(moved,))).tokens)
    while len(output) < 8:
        output += one_each(decode.execute(StepPlan(2, SPLIT, decode=(seq,))).tokens)
    assert output == oracle_tokens(first, prompt, greedy(8))


def test_an_unchanged_batch_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def counting(*args: Any) -> DecodeBatch:
        built.append(args)
        return DecodeBatch(*args)

    monkeypatch.setattr(runner_module, "DecodeBatch", counting)
    runner = StepRunner(ToyDecoder(VOCAB, 30), VOCAB, CPU)
    joins = tuple(join_of(i, [i, 1, 2], [i]) for i in (1, 2, 3))
    batch = (SeqId(1), SeqId(2), SeqId(3))
    runner.execute(StepPlan(0, SPLIT, decode=batch, joins=joins))
    for step_id in range(1, 25):
        extra: tuple[tuple[SeqId, tuple[int, ...]], ...]
        extra = ((SeqId(2), (10 + step_id,)),) if step_id in (13, 14) else ()
        extra += ((SeqId(1), (4,)), (SeqId(3), (6,))) if step_id == 13 else ()
        runner.execute(StepPlan(step_id, SPLIT, decode=batch, new_blocks=extra))
    assert len(built) == 1
    runner.execute(StepPlan(31, SPLIT, decode=batch[:2], leaves=(SeqId(3),)))
    assert len(built) == 2


def test_a_resting_decode_batch_notices_what_happens_to_its_members() -> None:
    """Between two steps of the same batch, a member advances by a chunk, another leaves and comes back."""
    decoder = ToyDecoder(VOCAB, 9)
    runner = StepRunner(decoder, VOCAB, CPU)
    prompts = {SeqId(1): [4, 5], SeqId(2): [6, 7, 8]}
    joins = tuple(join_of(seq, prompt, [seq]) for seq, prompt in prompts.items())
    batch = tuple(prompts)
    prefill = tuple(Segment(seq, 0, len(prompt), True) for seq, prompt in prompts.items())
    steps = [one_each(runner.execute(StepPlan(0, SPLIT, segments=prefill, joins=joins)).tokens)]
    steps += [one_each(runner.execute(StepPlan(1, SPLIT, decode=batch)).tokens)]
    [(between,)] = runner.execute(StepPlan(2, SPLIT, segments=(Segment(SeqId(1), 3, 1, True),))).tokens
    steps += [one_each(runner.execute(StepPlan(3, SPLIT, decode=batch)).tokens)]
    first, second = (list(tokens) for tokens in zip(*steps, strict=True))
    first.insert(2, between)
    back = Join(SeqId(2), prompts[SeqId(2)] + second, 3, greedy(), [5])
    again = (Segment(SeqId(2), 0, 5, False),)
    runner.execute(StepPlan(4, SPLIT, segments=again, joins=(back,), leaves=(SeqId(2),)))
    for seq, tokens in zip(batch, runner.execute(StepPlan(5, SPLIT, decode=batch)).tokens, strict=True):
        (first if seq == 1 else second).extend(tokens)
    assert first == oracle_tokens(decoder, prompts[SeqId(1)], greedy(5))
    assert second == oracle_tokens(decoder, prompts[SeqId(2)], greedy(4))


def test_an_empty_plan_only_changes_residents() -> None:
    runner = StepRunner(ToyDecoder(VOCAB, 4), VOCAB, CPU)
    result = runner.execute(StepPlan(1, SPLIT, joins=(join_of(1, [5], [1]),)))
    assert (result.tokens, result.logprobs, result.prompt_logprobs) == ([], None, None)
    runner.execute(StepPlan(2, SPLIT, new_blocks=((SeqId(1), (2, 3)),)))
    assert [join_of_resident(resident) for resident in runner.residents] == [join_of(1, [5], [1, 2, 3])]
    runner.execute(StepPlan(3, SPLIT, leaves=(SeqId(1),)))
    assert len(runner.residents) == 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StepPlan(7, SPLIT, leaves=(SeqId(9),)), "sequence 9 leaves but is not resident"),
        (StepPlan(7, SPLIT, joins=(join_of(1, [1], [2]),)), "sequence 1 joins twice"),
        (StepPlan(7, SPLIT, segments=(Segment(SeqId(1), 10, 11, False),)), "does not fit 20 tokens"),
        (StepPlan(7, SPLIT, segments=(Segment(SeqId(1), 0, 19, True),)), "before the newest of 20"),
        (StepPlan(7, SPLIT, segments=(Segment(SeqId(1), 0, 20, True),)), "20 tokens, 16 slots"),
        (StepPlan(7, SPLIT, decode=(SeqId(1),)), "20 tokens, 16 slots"),
    ],
)
def test_illegal_plans_are_our_bugs(plan: StepPlan, message: str) -> None:
    runner = StepRunner(ToyDecoder(VOCAB, 4), VOCAB, CPU)
    runner.execute(StepPlan(1, SPLIT, joins=(join_of(1, list(range(20)), [2]),)))
    with pytest.raises(AssertionError, match=message):
        runner.execute(plan)


def test_logits_that_are_not_numbers_end_their_sequence() -> None:
    decoder = ToyDecoder(VOCAB, 4)
    decoder.table.fill_(float("nan"))
    runner = StepRunner(decoder, VOCAB, CPU)
    plan = StepPlan(1, SPLIT, segments=(Segment(SeqId(1), 0, 2, True),), joins=(join_of(1, [1, 2], [1]),))
    result = runner.execute(plan)
    assert (len(result.tokens), result.failed) == (1, {SeqId(1): "invalid_logits"})
    assert [join_of_resident(resident) for resident in runner.residents] == [join_of(1, [1, 2], [1])]
