"""The order of prompts: against every possible order, and its bounds on waiting."""

import math
import random
from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd.core.request import SeqId
from semipd.core.settings import OrderName
from semipd.sched.order import (
    BACKGROUND_EVERY,
    LAMBDA_INVERSE,
    NO_TARGET_DELAY_NS,
    Pace,
    Prompt,
    forecast,
    left_out,
)
from semipd.sched.queue import MAX_PLANNED, MAX_REFUSED_TURNS, PLAN_PAUSE_NS, PromptQueue

TOKEN_NS = 1_000_000
PACE = Pace(TOKEN_NS, 0.0, 0.0)
ORDERS: tuple[OrderName, ...] = ("fcfs", "cost", "deadline")


def prompt(seq: int, tokens: int, *, arrival_ns: int = 0, due_ms: float | None = math.inf) -> Prompt:
    """`due_ms`: on the clock, not after arrival."""
    due_ns = None if due_ms is None else int(min(due_ms, 1e12) * 1e6)
    return Prompt(SeqId(seq), arrival_ns, due_ns, tokens, 0, PACE.cost_ns(tokens, 0))


def queue_of(order: OrderName, prompts: Sequence[Prompt], now_ns: int = 0) -> PromptQueue:
    queue = PromptQueue(order)
    for one in prompts:
        queue.add(one)
    queue.plan(now_ns, PACE, 0.0)
    queue.check_integrity()
    return queue


def served(queue: PromptQueue) -> list[int]:
    return [one.seq for one in queue.in_order()]


def most_in_time(jobs: Sequence[tuple[int, int]]) -> int:
    """By trying every order."""
    best = 0
    for order in permutations(jobs):
        now, in_time = 0, 0
        for due, cost in order:
            now += cost
            in_time += now <= due
        best = max(best, in_time)
    return best


def test_leaving_out_the_longest_keeps_as_many_in_time_as_any_order() -> None:
    dropped = 0
    for seed in range(220):
        rng = random.Random(seed)
        most = 8 if seed < 8 else 6
        jobs = sorted((rng.randint(1, 30), rng.randint(1, 12)) for _ in range(rng.randint(1, most)))
        out = left_out(jobs, 0)
        end = 0
        for idx, (due, cost) in enumerate(jobs):
            if idx not in out:
                end += cost
                assert end <= due, f"{jobs}: {idx} is kept, and late"
        assert len(jobs) - len(out) == most_in_time(jobs), jobs
        dropped += len(out)
    assert dropped > 100


def test_the_queue_decides_as_the_algorithm_does_and_the_rest_waits_by_age() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        prompts = [prompt(i, rng.randint(1, 40), due_ms=rng.randint(1, 200)) for i in range(1, 13)]
        rng.shuffle(prompts)
        queue = queue_of("deadline", prompts)
        by_due = sorted(prompts, key=lambda one: (one.due_ns, one.arrival_ns, one.seq))
        out = left_out([(one.due_ns or 0, one.cost_ns) for one in by_due], 0)
        late = sorted(by_due[idx].seq for idx in out)
        assert served(queue) == [one.seq for one in by_due if one.seq not in late] + late


def test_first_come_first_served_and_least_cost() -> None:
    prompts = [prompt(1, 400), prompt(2, 10, arrival_ns=1), prompt(3, 50, arrival_ns=2)]
    assert served(queue_of("fcfs", prompts)) == [1, 2, 3]
    assert served(queue_of("cost", prompts)) == [2, 3, 1]


arrivals = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=30)


@given(arrivals, st.integers(1, 60))
def test_a_prompt_is_begun_before_all_that_come_later_than_its_cost_over_lambda(
    gaps_and_tokens: list[tuple[int, int]], step_tokens: int
) -> None:
    """Prompts come while others are computed, one at a time, whenever there is time."""
    queue, coming, now_ms, begun = PromptQueue("cost"), list[Prompt](), 0, list[Prompt]()
    at_ms = 0
    for seq, (gap_ms, tokens) in enumerate(gaps_and_tokens, 1):
        at_ms += gap_ms
        coming.append(prompt(seq, tokens, arrival_ns=at_ms * 1_000_000))
    while coming or len(queue):
        now_ms = max(now_ms, coming[0].arrival_ns // 1_000_000) if not len(queue) else now_ms
        while coming and coming[0].arrival_ns <= now_ms * 1_000_000:
            queue.add(coming.pop(0))
        first = next(queue.in_order())
        queue.remove(first)
        begun.append(first)
        now_ms += step_tokens
        queue.check_integrity()
    for place, one in enumerate(begun):
        latest_ns = one.arrival_ns + LAMBDA_INVERSE * one.cost_ns
        assert all(other.arrival_ns <= latest_ns for other in begun[:place])


@given(arrivals, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_a_prompt_of_the_background_is_done_within_its_share_of_the_steps(
    gaps_and_tokens: list[tuple[int, int]], newcomers: list[int]
) -> None:
    """A step takes one token; the foreground never runs dry."""
    background = [
        prompt(seq, t, arrival_ns=seq, due_ms=None) for seq, (_, t) in enumerate(gaps_and_tokens, 1)
    ]
    queue = queue_of("deadline", background)
    next_seq, step, done_at = 1000, 0, dict[int, int]()
    while len(done_at) < len(background):
        while queue.num_waiting - queue.num_background < 1 + newcomers[step % len(newcomers)]:
            next_seq += 1
            queue.add(prompt(next_seq, 1))
        first = next(queue.in_order())
        first.new_tokens -= 1
        if not first.new_tokens:
            queue.remove(first)
            if first.in_background:
                done_at[first.seq] = step + 1
        queue.took_step(served_background=first.in_background)
        step += 1
    needed = 0
    for seq, (_, tokens) in enumerate(gaps_and_tokens, 1):
        needed += tokens
        assert done_at[seq] <= BACKGROUND_EVERY * needed, f"{seq} needs {needed} steps with those before it"


def test_a_background_that_finds_no_room_holds_up_the_others_after_so_many_turns() -> None:
    queue = queue_of("deadline", [prompt(1, 5, due_ms=None), prompt(2, 5)])
    turns = []
    for _ in range(BACKGROUND_EVERY * (MAX_REFUSED_TURNS + 2)):
        turns.append(queue.is_backgrounds_turn)
        queue.took_step(served_background=False)
    assert turns[: BACKGROUND_EVERY * MAX_REFUSED_TURNS].count(True) == MAX_REFUSED_TURNS
    assert all(turns[BACKGROUND_EVERY * (MAX_REFUSED_TURNS + 1) :])
    queue.took_step(served_background=True)
    assert not queue.is_backgrounds_turn


def test_a_prompt_comes_back_when_there_is_room_again_but_not_once_it_is_late() -> None:
    prompts = [prompt(1, 30, due_ms=100), prompt(2, 90, due_ms=200), prompt(3, 90, due_ms=200)]
    queue = queue_of("deadline", prompts)
    assert served(queue) == [1, 2, 3]
    assert prompts[2].in_background
    queue.remove(prompts[1])
    assert queue.plan(PLAN_PAUSE_NS, PACE, 0.0) == [prompts[2]]
    assert not prompts[2].in_background
    assert queue.plan(201_000_000, PACE, 0.0) == [prompts[0], prompts[2]]
    queue.remove(prompts[0])
    queue.check_integrity()
    assert queue.plan(1, Pace(1.0, 0.0, 0.0), 0.0) == [], "what is late stays late"


def test_in_the_background_who_is_late_goes_before_who_has_no_target_and_is_not_much_older() -> None:
    late = prompt(1, 500, arrival_ns=NO_TARGET_DELAY_NS, due_ms=1)
    patient = [
        prompt(seq, 5, arrival_ns=arrival_ns, due_ms=None) for seq, arrival_ns in ((2, -1), (3, 1), (4, 2))
    ]
    patient[2].is_answering = True
    assert served(queue_of("deadline", [late, *patient], 2_000_000)) == [4, 2, 1, 3]


@pytest.mark.parametrize(("tokens", "comes_back"), [(80, True), (85, False)])
def test_who_is_in_the_background_needs_some_room_to_spare_to_come_back(
    tokens: int, comes_back: bool
) -> None:
    first, other = prompt(1, 100, due_ms=100), prompt(2, tokens, due_ms=101)
    queue = queue_of("deadline", [first, other])
    assert not other.in_background
    assert first.in_background
    queue.remove(other)
    first.new_tokens = tokens
    queue.plan(0, PACE, 0.0)
    assert first.in_background != comes_back


def test_nobody_is_given_up_by_step_times_that_are_not_known() -> None:
    late = prompt(1, 500, due_ms=100)
    queue = queue_of("deadline", [])
    queue.add(late)
    queue.plan(0, PACE._replace(is_known=False), 0.0)
    assert not late.in_background
    queue.plan(100_000_000, PACE._replace(is_known=False), 0.0)
    assert late.in_background, "a due time that has passed is known"


@pytest.mark.parametrize("order", ORDERS)
def test_who_was_answering_comes_first_and_who_has_no_target_last(order: OrderName) -> None:
    resumed = prompt(3, 90, arrival_ns=7, due_ms=1)
    resumed.is_answering = True
    behind = prompt(4, 90, arrival_ns=8)
    behind.is_answering = behind.stays_behind = True
    queue = queue_of(order, [prompt(1, 5, due_ms=None), prompt(2, 5, arrival_ns=9), resumed, behind])
    assert served(queue) == [3, 2, 4, 1]


@pytest.mark.parametrize("order", ORDERS)
def test_whatever_happens_the_queue_stays_sound(order: OrderName) -> None:
    """Against a slow model of who is in it; integrity asserts orders and bounds."""
    for seed in range(30):
        rng = random.Random(seed)
        queue, living, now_ns = PromptQueue(order), dict[int, Prompt](), 0
        for seq in range(1, 80):
            now_ns += rng.choice([0, 1_000_000, 30_000_000])
            due_ms = rng.choice([None, now_ns / 1e6 + rng.randint(1, 300)])
            living[seq] = prompt(seq, rng.randint(1, 60), arrival_ns=now_ns, due_ms=due_ms)
            living[seq].is_answering = rng.random() < 0.1
            queue.add(living[seq])
            for one in rng.sample(list(living.values()), k=rng.randint(0, min(3, len(living)))):
                action = rng.random()
                if action < 0.4:
                    queue.remove(living.pop(one.seq))
                elif action < 0.6 and not one.is_begun:
                    queue.begin(one, rng.randint(0, one.new_tokens - 1), one.due_ns)
                elif one.due_ns is not None:
                    due_ns = one.due_ns + rng.randint(-50, 50) * 1_000_000
                    queue.renew(one, rng.randint(0, one.new_tokens + one.prior_tokens - 1), due_ns,
                                rng.randint(0, 10**8))  # fmt: skip
            if queue.plan_is_due(now_ns):
                queue.plan(now_ns, PACE, rng.choice([0.0, 1e7]))
            queue.took_step(served_background=rng.random() < 0.5)
            queue.check_integrity()
            assert sorted(served(queue)) == sorted(living)
            assert sorted(one.seq for one in queue.lookups()) == sorted(
                one.seq for one in living.values() if not one.is_begun
            )
            waiting = [one.arrival_ns for one in living.values() if not one.is_begun]
            assert queue.oldest_arrival_ns() == min(waiting, default=None)


def test_plans_become_rarer_the_more_prompts_wait_and_look_only_so_far() -> None:
    queue = queue_of("deadline", [prompt(seq, 1, due_ms=10**6 + seq) for seq in range(1, 1001)])
    assert not queue.plan_is_due(4 * PLAN_PAUSE_NS)
    assert queue.plan_is_due(5 * PLAN_PAUSE_NS)
    hopeless = prompt(2000, 10**7, due_ms=10**6)
    behind = prompt(2001, 10**7, due_ms=10**6 + MAX_PLANNED + 1)
    queue.add(hopeless)
    queue.add(behind)
    queue.plan(5 * PLAN_PAUSE_NS, PACE, 0.0)
    assert (hopeless.in_background, behind.in_background) == (True, False)


def forecast_ms(foreground: Sequence[Prompt], background: Sequence[Prompt]) -> list[int]:
    """Milliseconds until each has its first token."""
    assert not forecast(foreground, background, PACE, 0.0)
    return [(one.expected_start_ns + one.cost_ns) // TOKEN_NS for one in (*foreground, *background)]


def test_the_background_ends_with_its_share_or_when_the_foreground_is_through() -> None:
    background = [prompt(seq, tokens, due_ms=None) for seq, tokens in ((1, 10), (2, 5), (3, 1000))]
    for one in background:
        one.in_background = True
    assert forecast_ms([prompt(9, 270)], background) == [300, 100, 150, 1285]
    assert forecast_ms([prompt(9, 270)], []) == [270]


def test_who_would_wait_too_long_is_shed_and_takes_no_time_from_those_behind() -> None:
    waiting = [prompt(1, 100), prompt(2, 50), prompt(3, 30), prompt(4, 60)]
    for one, latest_ms in zip(waiting, (None, 120, 130, 150), strict=True):
        one.latest_ns = None if latest_ms is None else latest_ms * TOKEN_NS
    shed = forecast(waiting, [], PACE, 0.0)
    assert [(one.seq, at_ns // TOKEN_NS) for one, at_ns in shed] == [(2, 150), (4, 240)]
    assert waiting[2].expected_start_ns == 100 * TOKEN_NS, "3 does not wait for 2"
    waiting[1].is_begun = True
    assert [one.seq for one, _ in forecast(waiting, [], PACE, 0.0)] == [3, 4], "what is begun stays"
    unknown = PACE._replace(is_known=False)
    assert not forecast(waiting, [], unknown, 120.0 * TOKEN_NS)
    assert [one.seq for one, _ in forecast(waiting, [], unknown, 140.0 * TOKEN_NS)] == [3]
