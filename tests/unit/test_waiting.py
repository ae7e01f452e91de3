"""The prefill queue: order, prefix hits, and the bound on being overtaken."""

import random

from support.fake_engine import request

from semipd.sched.sequence import Sequence
from semipd.sched.waiting import MAX_OVERTAKEN, WaitingQueue


def waiting(seq: int, num_tokens: int, arrival_ns: int | None = None) -> Sequence:
    return Sequence.of(request(seq, [1] * num_tokens, arrival_ns=arrival_ns or seq), 10_000)


def test_first_come_first_served_without_hits() -> None:
    queue = WaitingQueue()
    for seq in (3, 1, 2):
        queue.add(waiting(seq, 10 * seq))
    order = []
    while queue:
        picked = queue.pick(lambda s: 0)
        queue.take(picked)
        order.append(picked.seq)
    assert order == [1, 2, 3]


def test_a_mostly_cached_request_goes_ahead_but_a_short_one_does_not() -> None:
    queue = WaitingQueue()
    for sequence in (waiting(1, 400), waiting(2, 10), waiting(3, 200)):
        queue.add(sequence)
    cached = {3: 192}
    assert queue.pick(lambda s: cached.get(s.seq, 0)).seq == 3
    assert queue.pick(lambda s: 0).seq == 1


def test_nobody_is_overtaken_more_often_than_the_bound() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        queue, next_seq = WaitingQueue(), 0
        passed: dict[int, int] = {}
        cached: dict[int, int] = {}

        def cached_tokens(sequence: Sequence, cached: dict[int, int] = cached) -> int:
            return min(cached[sequence.seq], len(sequence.tokens) - 1)

        for _ in range(300):
            for _ in range(rng.randint(0, 2)):
                next_seq += 1
                queue.add(waiting(next_seq, rng.choice([20, 1000])))
                cached[next_seq] = rng.choice([0, 0, 16, 900])
            if queue:
                picked = queue.pick(cached_tokens)
                for other in queue:
                    if other.age_key < picked.age_key:
                        passed[other.seq] = passed.get(other.seq, 0) + 1
                queue.take(picked)
                queue.check_integrity()
        assert max(passed.values(), default=0) <= MAX_OVERTAKEN
        assert passed, "the scenario never overtook anybody"
