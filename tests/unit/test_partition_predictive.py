"""The policy `predictive` against brute force in a one-step world, and its hysteresis under moving load."""

import math
import random
from collections import deque
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
from support.partition import SLO, SPLITS, KnownTimes, prompts, snapshot, streams
from support.seeds import each_seed

from semipd.core.split import Split
from semipd.partition.interface import Line, Observed, Snapshot, Streams, WaitingPrompt
from semipd.partition.policies.forecast import EXACT_STEPS, merged_outlook, prefill_steps, split_outlook
from semipd.partition.policies.predictive import PredictivePolicy, merge_sizes

POLICY = PredictivePolicy()


# ---- the stupid oracle -----------------------------------------------------------------------------------


def first_tokens(s: Snapshot, line: Line, chunk_tokens: int) -> list[float]:
    """Walk the queue one token at a time; prompts end with the step that holds their last token."""
    queue = deque((i, k) for i, p in enumerate(s.prompts) for k in range(p.new_tokens))
    now_ms, times_ms = s.busy_prefill_ms, [math.nan] * len(s.prompts)
    while queue:
        step = [queue.popleft() for _ in range(min(chunk_tokens, len(queue)))]
        attended = sum(s.prompts[i].prior_tokens + k + 1 for i, k in step)
        now_ms += line.constant_ms + line.per_token_ms * len(step) + line.per_context_ms * attended
        for i, k in step:
            if k == s.prompts[i].new_tokens - 1:
                times_ms[i] = now_ms
    return times_ms


def late_by_hand(s: Snapshot, times_ms: list[float]) -> int:
    """A prompt that is late already cannot be lost any more."""
    return sum(0 < p.due_ms < time_ms for p, time_ms in zip(s.prompts, times_ms, strict=True))


def broken_by_hand(s: Snapshot, step_ms: float, times_ms: list[float]) -> int:
    """Each stream lives until the queue is computed and for 100 tokens more, all in steps of `step_ms`."""
    queue_ms = max([step_ms, s.busy_prefill_ms, *times_ms])
    solo_ms = step_by_hand(s, s.table.solo_decode)
    broken = 0
    for group in s.streams:
        assert group.tpot_ms is not None
        for slack_ms in group.slacks_ms:
            tokens, elapsed_ms = queue_ms / step_ms + 100, queue_ms + 100 * step_ms
            could_be = slack_ms + 100 * (group.tpot_ms - min(solo_ms, 0.9 * group.tpot_ms)) >= 0
            broken += could_be and slack_ms + tokens * group.tpot_ms - elapsed_ms < -1e-9
    return broken


def loss_by_hand(s: Snapshot, split: Split) -> tuple[int, int]:
    """(requests lost, late prompts)."""
    times_ms = first_tokens(s, s.times.prefill(split.prefill_units), s.chunk_tokens)
    late = late_by_hand(s, times_ms)
    return late + broken_by_hand(s, step_by_hand(s, split), times_ms), late


def merged_loss_by_hand(s: Snapshot, budget: int) -> tuple[int, int]:
    """The same for merged steps: each computes what decode leaves of the budget."""
    line = s.times.merged(s.num_decodes, s.context_tokens)
    times_ms = first_tokens(s, line, budget - s.num_decodes)
    late = late_by_hand(s, times_ms)
    return late + broken_by_hand(s, longest_by_hand(s, budget), times_ms), late


def longest_by_hand(s: Snapshot, budget: int) -> float:
    """The longest merged step: the first is as full as any."""
    line = s.times.merged(s.num_decodes, s.context_tokens)
    return line.ms(min(budget - s.num_decodes, sum(p.new_tokens for p in s.prompts)), 0)


def step_by_hand(s: Snapshot, split: Split) -> float:
    line = s.times.decode(split.decode_units)
    return line.constant_ms + line.per_token_ms * s.num_decodes + line.per_context_ms * s.context_tokens


def random_world(seed: int) -> Snapshot:
    rng = random.Random(seed)
    times = KnownTimes(
        prefill_us=rng.choice([50.0, 300.0, 1500.0]),
        decode_fixed_ms=rng.uniform(1, 18),
        decode_shared_ms=rng.uniform(1, 200),
        per_sequence_ms=rng.uniform(0, 2),
    )
    waiting = tuple(
        WaitingPrompt(rng.choice([1, 30, 100, 250, 600]), rng.choice([0, 500]), age_ms, 500.0 - age_ms)
        for age_ms in [rng.uniform(0, 700) for _ in range(rng.randint(0, 8))]
    )
    num_decodes = rng.randint(1, 40)
    slacks_ms = sorted(rng.choice([0.0, rng.uniform(-500, 500)]) for _ in range(num_decodes))
    return snapshot(
        times=times,
        prompts=waiting,
        num_decodes=num_decodes,
        streams=(Streams(SLO.tpot_ms, None, tuple(slacks_ms)),),
        context_tokens=rng.randint(0, 5000),
        current=rng.choice(SPLITS),
        busy_prefill_ms=rng.choice([0.0, 40.0]),
    )


@each_seed(range(150), soak=range(150, 400))
def test_against_brute_force_over_all_splits(seed: int) -> None:
    s = random_world(seed)
    decision = POLICY.decide(s, SLO)
    losses = {split: loss_by_hand(s, split)[0] for split in SPLITS}
    assert losses[decision.split] == min(losses.values())
    assert decision.predicted_tpot_ms == pytest.approx(step_by_hand(s, decision.split))


def test_both_kinds_of_world_were_tried() -> None:
    solvable = sum(
        any(not loss_by_hand(s, split)[0] for split in SPLITS) for s in map(random_world, range(60))
    )
    assert 12 < solvable < 48


@each_seed(range(100))
def test_the_walk_equals_token_by_token(seed: int) -> None:
    s = random_world(seed)
    for split in SPLITS[::5]:
        found = split_outlook(s, SLO, split, prefill_steps(s.prompts, s.chunk_tokens))
        times_ms = first_tokens(s, s.times.prefill(split.prefill_units), s.chunk_tokens)
        expected = [p.age_ms + ms for ms, p in zip(times_ms, s.prompts, strict=True) if p.due_ms > 0]
        assert (found.num_late + found.num_broken, found.num_late) == loss_by_hand(s, split)
        if not expected:
            assert found.ttft_ms is None
            continue
        rank = max(math.ceil(SLO.percentile / 100 * len(expected)), 1) - 1
        assert found.ttft_ms == pytest.approx(sorted(expected)[rank])
        assert found.watched is not None


def test_behind_the_first_steps_prompts_are_taken_whole() -> None:
    steps = prefill_steps(prompts(*[1050] * 20), 100)
    assert sum(step.new_tokens for step in steps) == 20 * 1050
    assert sum(step.attended_tokens for step in steps) == 20 * 1050 * 1051 / 2
    assert [idx for step in steps for idx in step.ends] == list(range(20))
    assert len(steps) < EXACT_STEPS + 20
    assert steps[-1].num_steps == 11


# ---- single rules ----------------------------------------------------------------------------------------


def test_until_step_times_are_known_the_configured_split_holds() -> None:
    decision = POLICY.decide(snapshot(times=KnownTimes(confident=False), start=Split(12, 4)), SLO)
    assert decision.split == Split(12, 4)
    assert decision.predicted_tpot_ms is None
    assert "not known yet" in decision.reason


def test_prompts_beyond_help_do_not_count() -> None:
    slow = KnownTimes(decode_shared_ms=150.0, prefill_us=3000.0)
    late = prompts(*[40] * 30, age_ms=600.0)
    decision = POLICY.decide(snapshot(times=slow, num_decodes=2, prompts=late), SLO)
    assert step_by_hand(snapshot(times=slow, num_decodes=2), decision.split) <= SLO.tpot_ms


def test_prompts_of_the_background_do_not_count() -> None:
    """Without a due time nobody is lost, however long they take: all units that decode can use are its."""
    slow = KnownTimes(decode_shared_ms=150.0, prefill_us=3000.0)
    waiting = tuple(prompt._replace(due_ms=math.inf) for prompt in prompts(*[40] * 30))
    decision = POLICY.decide(snapshot(times=slow, num_decodes=2, prompts=waiting), SLO)
    assert step_by_hand(snapshot(times=slow, num_decodes=2), decision.split) <= SLO.tpot_ms
    assert decision.watched is None


def test_when_nothing_fits_the_fewest_requests_are_lost() -> None:
    """Ten requests decode, one prompt waits: TPOT is kept. Turn it around, and TTFT is."""
    slow = KnownTimes(decode_shared_ms=150.0, prefill_us=3000.0)
    decode_wins = POLICY.decide(snapshot(times=slow, num_decodes=10, prompts=prompts(1200)), SLO)
    assert step_by_hand(snapshot(times=slow), decode_wins.split) <= SLO.tpot_ms
    assert "loses 1 of 11 requests" in decode_wins.reason
    many = prompts(*[40] * 30)
    prefill_wins = POLICY.decide(snapshot(times=slow, num_decodes=2, prompts=many), SLO)
    assert step_by_hand(snapshot(times=slow, num_decodes=2), prefill_wins.split) > SLO.tpot_ms
    assert prefill_wins.split.prefill_units > decode_wins.split.prefill_units


def test_predictions_are_believed_one_granule_beyond_what_was_tried() -> None:
    easy = KnownTimes(decode_shared_ms=1.0, tried=8)
    queue = prompts(*[1000] * 30)
    s = snapshot(times=easy, current=Split(8, 8), prompts=queue)
    assert POLICY.decide(s, SLO).split == Split(9, 7)
    assert POLICY.decide(replace(s, times=replace(easy, tried=7), current=Split(9, 7)), SLO).split == Split(
        10, 6
    )


# ---- merged steps ----------------------------------------------------------------------------------------


def test_no_split_while_merged_steps_keep_the_gaps() -> None:
    s = snapshot(times=KnownTimes(merged_ms=15.0), merge_tokens=512, prompts=prompts(300))
    decision = POLICY.decide(s, SLO)
    assert decision.merged_tokens == 512
    assert decision.reason == (
        "merged steps of 512 tokens take 15.0 ms: streams use 75% of their time, prompts 6%, "
        "TTFT 15 of 500 ms: no split needed"
    )
    assert not POLICY.decide(replace(s, merge_tokens=0), SLO).merged_tokens, "not allowed"
    assert not POLICY.decide(replace(s, merge_tokens=10), SLO).merged_tokens, "no room beside ten sequences"
    nearly = replace(s, times=KnownTimes(merged_ms=17.0, decode_shared_ms=1.0))
    assert not POLICY.decide(nearly, SLO).merged_tokens, "entering needs twice the margin"
    assert POLICY.decide(replace(nearly, merged_tokens=512), SLO).merged_tokens, "staying does not"


def test_sizes_of_merged_steps() -> None:
    s = snapshot(merge_tokens=2048)
    assert merge_sizes(s) == [64, 128, 256, 512, 1024, 2048]
    assert merge_sizes(replace(s, merge_tokens=700)) == [64, 128, 256, 512, 700]
    assert merge_sizes(replace(s, num_decodes=600)) == [1024, 2048]
    assert merge_sizes(replace(s, merge_tokens=0)) == []


def test_merged_steps_are_large_when_only_prompts_are_at_stake() -> None:
    """4 ms and 0.01 ms a token, so 64 ms of a target of 150 for the largest: the fewer times the 4 ms are
    paid, the less whoever comes next waits. With a target of 20 ms the streams decide."""
    times = KnownTimes(merged_ms=4.0, merged_token_ms=0.01)
    queue = prompts(*[1000] * 6)
    loose = tuple(group._replace(tpot_ms=150.0) for group in streams(10))
    s = snapshot(times=times, merge_tokens=8192, prompts=queue, streams=loose)
    assert POLICY.decide(s, SLO).merged_tokens >= 2048
    assert POLICY.decide(replace(s, streams=streams(10)), SLO).merged_tokens == 256


def test_budgets_below_256_only_where_256_breaks_gaps() -> None:
    s = snapshot(times=KnownTimes(merged_ms=5.0, merged_token_ms=0.02), merge_tokens=512, prompts=prompts(50))
    assert POLICY.decide(s, SLO).merged_tokens >= 256
    # a budget of 256 takes 5 + 246 x 0.1 = 29.6 ms, one of 64 takes 10.4
    steep = replace(s, times=KnownTimes(merged_ms=5.0, merged_token_ms=0.1), prompts=prompts(1000))
    decision = POLICY.decide(steep, SLO)
    assert decision.merged_tokens == 64


LARGE_MODEL = KnownTimes(
    merged_ms=6.0, merged_token_ms=0.15, prefill_us=2000.0, decode_fixed_ms=8.0, decode_shared_ms=10.0
)
"""Like 70 billion parameters: a merged step of 256 tokens takes 43 ms, and one of 64 computes a prompt at 3.8
tokens per millisecond; a lane of 12 units computes 6."""


def large_model(*lengths: int, **fields: Any) -> Snapshot:
    """Ten streams of 20 ms, of which merged steps of 64 tokens take 14."""
    fields = {"chunk_tokens": 2048, "merge_tokens": 8192, "prefill_duty": 1.0} | fields
    return snapshot(times=LARGE_MODEL, prompts=prompts(*lengths), **fields)


def test_a_large_model_is_divided_when_merged_steps_would_break_the_gaps() -> None:
    decision = POLICY.decide(large_model(1200, 1000), SLO)
    assert not decision.merged_tokens
    assert decision.reason.startswith("larger merged steps would break the gaps: ")
    assert "ms and loses 0, merged steps of 64 tokens" in decision.reason
    assert decision.predicted_tpot_ms is not None
    assert decision.predicted_tpot_ms <= SLO.tpot_ms


def test_a_large_model_merges_while_small_steps_are_soon_enough() -> None:
    assert POLICY.decide(large_model(300), SLO).merged_tokens == 64


def test_a_division_that_is_not_clearly_faster_is_none() -> None:
    """The lane computes hardly more than merged steps: the prompt it would save is not worth what decode and
    those to come lose. One that runs already stays while it is faster at all."""
    s = replace(large_model(1950, busy_prefill_ms=0.0), times=replace(LARGE_MODEL, prefill_us=3600.0))
    dividing = POLICY.decide(s, SLO)
    assert not dividing.merged_tokens
    merging = POLICY.decide(replace(s, merged_tokens=64), SLO)
    assert merging.merged_tokens == 64
    assert "1 prompts late" in merging.reason


def test_streams_ahead_of_their_due_time_allow_long_steps() -> None:
    """All the gaps of the time to come would be too long, but not too long on the whole: the slack pays."""
    assert not POLICY.decide(large_model(1200, 1000), SLO).merged_tokens
    ahead = large_model(1200, 1000, streams=streams(10, slack_ms=8000.0))
    decision = POLICY.decide(ahead, SLO)
    assert decision.merged_tokens >= 256
    assert decision.predicted_tpot_ms is not None
    assert decision.predicted_tpot_ms > SLO.tpot_ms


def test_gaps_of_their_own_bound_every_step_whatever_the_slack() -> None:
    found = POLICY.decide(large_model(1200, 1000, streams=streams(10, 8000.0, itl_ms=30.0)), SLO)
    assert found.predicted_tpot_ms is not None
    assert found.predicted_tpot_ms <= 30.0


def test_streams_that_cannot_be_in_time_decide_nothing() -> None:
    """Ten behind by more than their lives allow would ask for the smallest steps; they are lost anyway."""
    lost = large_model(1200, 1000, streams=streams(10, slack_ms=-5000.0))
    assert POLICY.decide(lost, SLO).merged_tokens >= 256
    few = replace(lost, streams=(Streams(SLO.tpot_ms, None, (-5000.0,) * 5 + (0.0,) * 5),))
    assert not POLICY.decide(few, SLO).merged_tokens


def test_a_newcomer_is_not_made_to_wait_for_a_step_as_long_as_its_target() -> None:
    """The background's prompts are computed fastest in one step of 8,192 tokens, which takes 410 ms: who
    comes then would be late with a short prompt of its own. A quarter of its target is what it can spare."""
    times = KnownTimes(merged_ms=0.5, merged_token_ms=0.05)
    loose = tuple(group._replace(tpot_ms=10_000.0) for group in streams(10))
    background = tuple(prompt._replace(due_ms=math.inf) for prompt in prompts(*[800] * 10))
    s = snapshot(times=times, merge_tokens=8192, prompts=background, streams=loose)
    assert POLICY.decide(s, SLO).merged_tokens == 1024


def test_a_queue_that_is_late_still_counts_for_those_who_come_behind_it() -> None:
    """Nobody in it can be in time; small steps would keep it, and the next ones, waiting longer."""
    times = KnownTimes(merged_ms=4.0, merged_token_ms=0.01)
    s = snapshot(times=times, merge_tokens=8192, prompts=prompts(*[1000] * 30, age_ms=600.0))
    hopeless = POLICY.decide(s, SLO)
    none = POLICY.decide(replace(s, prompts=prompts(1, age_ms=600.0)), SLO)
    assert none.predicted_tpot_ms is not None
    assert hopeless.predicted_tpot_ms is not None
    assert hopeless.merged_tokens >= 512
    assert hopeless.predicted_tpot_ms > none.predicted_tpot_ms


@each_seed(range(100), soak=range(100, 300))
def test_of_the_merged_steps_that_keep_the_gaps_none_loses_fewer_requests(seed: int) -> None:
    """A division is chosen only if it loses fewer than those, and with none that does, no way at all loses
    fewer than the one chosen."""
    rng = random.Random(seed)
    s = random_world(seed)
    times = replace(
        cast(KnownTimes, s.times), merged_ms=rng.uniform(2, 19), merged_token_ms=rng.uniform(0.005, 0.1)
    )
    s = replace(s, times=times, merge_tokens=512, merged_tokens=rng.choice([0, 0, 256, 512]))
    exact_tokens = EXACT_STEPS * ((merge_sizes(s) or [512])[0] - s.num_decodes)
    while sum(p.new_tokens for p in s.prompts) > exact_tokens:
        s = replace(s, prompts=s.prompts[:-1])
    decision = POLICY.decide(s, SLO)
    merged = {size: merged_loss_by_hand(s, size) for size in merge_sizes(s)}
    margin = 0.1 if s.merged_tokens else 0.2
    keeping = [
        way.merged_tokens
        for way in (merged_outlook(s, SLO, size) for size in merge_sizes(s))
        if way.gap_pressure <= 1 - margin
    ]
    keeping = [size for size in keeping if size >= 256] or keeping
    if keeping:
        fewest = min(merged[size][1] for size in keeping)
        if decision.merged_tokens:
            assert merged[decision.merged_tokens][1] == fewest
        else:
            assert loss_by_hand(s, decision.split)[0] < min(merged[size][0] for size in keeping)
        return
    ways = {(split, 0): loss_by_hand(s, split)[0] for split in SPLITS}
    ways |= {(s.current, size): lost for size, (lost, _) in merged.items()}
    assert ways[decision.split, decision.merged_tokens] == min(ways.values())


def test_a_queue_longer_than_a_request_lives_leaves_no_pauses() -> None:
    """Merged steps too slow for TPOT: fine between pauses, unless the prompts at hand fill all of a life."""
    times = KnownTimes(merged_ms=4.0, merged_token_ms=0.02, decode_fixed_ms=4.0)
    seen = Observed(ttft_ms=100.0, tpot_ms=6.0, mean_tpot_ms=5.5, mean_output_tokens=200.0)
    queue = prompts(*[1000] * 20)  # 20 merged steps of 1,024 tokens, 24 ms each
    s = snapshot(times=times, merge_tokens=1024, prompts=queue, prefill_duty=0.1, observed=seen)
    assert POLICY.decide(s, SLO).merged_tokens == 1024
    short_lives = POLICY.decide(replace(s, observed=seen._replace(mean_output_tokens=20.0)), SLO)
    assert short_lives.merged_tokens < 1024


def test_pauses_of_prefill_count_when_a_target_is_at_stake() -> None:
    """Shared steps too slow for TPOT are worth it when prefill works a tenth of the time only."""
    times = KnownTimes(decode_shared_ms=150.0, prefill_us=2000.0)
    base = snapshot(times=times, num_decodes=10, prompts=prompts(2000), current=Split(8, 8))
    strict = POLICY.decide(base, SLO)
    assert step_by_hand(base, strict.split) <= SLO.tpot_ms
    seen = Observed(ttft_ms=100.0, tpot_ms=15.0, mean_tpot_ms=14.0, mean_output_tokens=500.0)
    relaxed = POLICY.decide(replace(base, prefill_duty=0.1, observed=seen), SLO)
    assert step_by_hand(base, relaxed.split) > SLO.tpot_ms
    line = base.times.prefill(relaxed.split.prefill_units)
    assert first_tokens(base, line, base.chunk_tokens)[0] <= SLO.ttft_ms


# ---- stability -------------------------------------------------------------------------------------------


def reversals(shares: list[int]) -> int:
    moves = [b - a for a, b in pairwise(shares) if a != b]
    return sum(a * b < 0 for a, b in pairwise(moves))


@each_seed(range(1), soak=range(1, 5))
def test_a_sine_load_with_noisy_predictions_does_not_oscillate(seed: int) -> None:
    """Four periods of a decode batch between 4 and 60: the share rises and falls once a period."""
    rng, current = random.Random(seed), Split(8, 8)
    shares, without_hysteresis = list[int](), list[int]()
    queue = prompts(*[400] * 4)
    for moment in range(4 * 100):
        batch = round(32 + 28 * math.sin(2 * math.pi * moment / 100))
        shared_ms = 30 * rng.uniform(0.85, 1.15)
        times = KnownTimes(prefill_us=1500.0, decode_shared_ms=shared_ms, per_sequence_ms=1.5)
        s = snapshot(times=times, num_decodes=batch, current=current, prompts=queue, chunk_tokens=2048)
        current = POLICY.decide(s, SLO).split
        shares.append(current.decode_units)
        ways = [split_outlook(s, SLO, split, prefill_steps(queue, 2048)) for split in SPLITS]
        without_hysteresis.append(min(ways, key=lambda way: (way.loss, way.pressure)).split.decode_units)
    assert max(shares) - min(shares) >= 3, "the load moved nothing"
    assert reversals(without_hysteresis) > 25, "the noise was no temptation"
    assert reversals(shares) <= 18


def test_equal_snapshots_give_equal_decisions() -> None:
    for seed in range(50):
        assert POLICY.decide(random_world(seed), SLO) == POLICY.decide(random_world(seed), SLO)
