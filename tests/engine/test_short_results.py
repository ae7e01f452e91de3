"""A lane that leaves out results of a step is noticed at once: nobody waits for ever."""

import pytest

from semipd.core.plan import StepPlan, StepResult
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split
from semipd.sched.flight import Flight
from semipd.sched.sequence import Sequence
from semipd.sched.settle import settle


def flight_of_two() -> Flight:
    plan = StepPlan(1, Split(1, 1), (SeqId(1), SeqId(2)))
    return Flight(plan, [decoding(1), decoding(2)], [], context_tokens=6, other_units=0, launched_at_ns=0)


def decoding(seq: int) -> Sequence:
    request = Request(SeqId(seq), str(seq), [1, 2, 3], SamplingParams(max_tokens=9, seed=1), seq)
    sequence = Sequence.of(request, 100)
    sequence.phase, sequence.num_inflight, sequence.num_scheduled, sequence.num_computed = "decoding", 1, 3, 2
    return sequence


@pytest.mark.parametrize("tokens", [[(7,)], [(7,), (7,), (7,)], []])
def test_one_result_for_each_sequence(tokens: list[tuple[int, ...]]) -> None:
    with pytest.raises(AssertionError, match="of 2 sequences"):
        settle(flight_of_two(), StepResult(1, tokens, 5), 16, 1)


def test_a_sequence_may_get_nothing() -> None:
    settled = settle(flight_of_two(), StepResult(1, [(), (7,)], 5), 16, 1)
    assert settled.tokens is not None
    assert (settled.tokens.seqs, settled.tokens.tokens) == ((2,), [7])
