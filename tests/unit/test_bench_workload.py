"""Traces, arrivals and prompts of the load generator."""

import math
import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from benchlib.load.prompts import PromptMaker
from benchlib.load.traces import infer_block_tokens, read_trace
from benchlib.load.workload import (
    PlannedRequest,
    TokenRange,
    closed_loop,
    cut,
    made_up,
    poisson,
    without_long,
)
from support.seeds import each_seed

from semipd.core.errors import SemipdError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.9799600,4808,10
2023-11-17 00:00:00.0319600,3180,8
2023-11-17 00:01:00.0000000,110,27
"""
MOONCAKE = """{"timestamp": 0, "input_length": 62, "output_length": 12, "hash_ids": [7, 8]}
{"timestamp": 3052, "input_length": 65, "output_length": 1, "hash_ids": [7, 9, 10]}
"""
SHAREGPT = """num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
74,918,992,0.0806100217864923
290,905,1195,0.3204419889502762
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace"
    path.write_text(text)
    return path


def test_azure(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, AZURE))
    assert trace.kind == "azure"
    assert [(r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(4808, 10), (3180, 8), (110, 27)]
    times = [request.due_s for request in cut(trace.requests, None, 1.0)]
    assert times == pytest.approx([0, 0.052, 60.02004], abs=1e-6)


def test_mooncake(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, MOONCAKE))
    assert (trace.kind, trace.block_tokens) == ("mooncake", 32)
    assert trace.requests == [
        PlannedRequest(62, 12, 0.0, (7, 8)),
        PlannedRequest(65, 1, 3.052, (7, 9, 10)),
    ]


def test_sharegpt_has_no_times(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, SHAREGPT))
    assert trace.kind == "sharegpt"
    assert trace.requests == [PlannedRequest(74, 918), PlannedRequest(290, 905)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "first line"),
        ("a,b\n1,2\n", "first line 'a,b'"),
        (AZURE.splitlines()[0], "no request"),
        (AZURE + "2023-11-17 00:01:00,,5\n", "line 5"),
        (AZURE + "yesterday,5,5\n", "line 5"),
        (AZURE + "2023-11-17 00:01:00,0,5\n", "line 5"),
        (MOONCAKE + "{", "line 3"),
        (MOONCAKE + '{"timestamp": 1}', "line 3"),
        (MOONCAKE.replace("[7, 8]", "[]"), "line 1"),
        (MOONCAKE.replace("[7, 8]", "[7]"), "fit no block size"),
        (MOONCAKE.splitlines()[0].replace("[7, 8]", "[7]"), "--block-tokens"),
        ("\ufffd\0", "first line"),
    ],
)
def test_an_unusable_trace(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SemipdError, match=says) as caught:
        read_trace(write(tmp_path, text))
    assert caught.value.code == "trace_unreadable"


def test_no_trace_at_all(tmp_path: Path) -> None:
    with pytest.raises(SemipdError, match="No such file"):
        read_trace(tmp_path / "nowhere")


def test_block_size_from_the_command_line(tmp_path: Path) -> None:
    line = '{"timestamp": 0, "input_length": 2000, "output_length": 1, "hash_ids": [7, 8]}'
    assert read_trace(write(tmp_path, line), 1024).block_tokens == 1024
    with pytest.raises(SemipdError, match="blocks of 512 tokens do not fit"):
        read_trace(write(tmp_path, line), 512)


@each_seed(range(20))
def test_block_sizes_that_fit(seed: int) -> None:
    rng = random.Random(seed)
    block_tokens = rng.randint(1, 40)
    lengths = [rng.randint(1, 200) for _ in range(rng.randint(1, 6))]
    requests = [
        PlannedRequest(length, 1, 0.0, tuple(range(math.ceil(length / block_tokens)))) for length in lengths
    ]

    def fits(size: int) -> bool:
        return all(math.ceil(r.prompt_tokens / size) == len(r.block_hashes) for r in requests)

    low, high = infer_block_tokens(requests)
    assert all(fits(size) == (low <= size <= high) for size in range(1, 500))


def test_window_and_speed() -> None:
    requests = [PlannedRequest(1, 1, float(second)) for second in (5, 10, 15, 20)]
    assert [r.due_s for r in cut(requests, (10, 20), 2.0)] == [0.0, 2.5]
    assert [r.due_s for r in cut(requests, (8, 99), 1.0)] == [2.0, 7.0, 12.0]
    assert [r.due_s for r in cut(requests, None, 1.0)] == [0.0, 5.0, 10.0, 15.0]
    with pytest.raises(SemipdError, match="the trace has 5 to 20 s"):
        cut(requests, (30, 40), 1.0)


def test_long_requests_are_left_out() -> None:
    requests = [PlannedRequest(8, 2), PlannedRequest(9, 2), PlannedRequest(1, 1)]
    assert without_long(requests, 10) == [requests[0], requests[2]]
    with pytest.raises(SemipdError, match="All 3 requests"):
        without_long(requests, 1)


def test_poisson_arrivals_follow_the_seed() -> None:
    requests = made_up(4000, TokenRange(1, 9), TokenRange(3, 3), seed=1)
    timed = poisson(requests, 5.0, seed=1)
    assert timed == poisson(made_up(4000, TokenRange(1, 9), TokenRange(3, 3), seed=1), 5.0, seed=1)
    assert timed != poisson(requests, 5.0, seed=2)
    assert [(r.prompt_tokens, r.output_tokens) for r in timed] == [
        (r.prompt_tokens, r.output_tokens) for r in requests
    ]
    times = [request.due_s or 0.0 for request in timed]
    gaps = [later - earlier for earlier, later in pairwise([0.0, *times])]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    # of a memoryless process the deviation equals the mean
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.08)
    assert {request.prompt_tokens for request in timed} == set(range(1, 10))


def test_a_closed_loop_has_no_times() -> None:
    assert closed_loop([PlannedRequest(1, 2, 3.0, (4,))]) == [PlannedRequest(1, 2, None, (4,))]


@pytest.mark.parametrize("text", ["0", "-3", "5-4", "a", "1-", "1-2-3"])
def test_wrong_token_ranges(text: str) -> None:
    with pytest.raises(ValueError, match=r"positive|invalid literal"):
        TokenRange.parse(text)


def test_prompts_follow_the_seed() -> None:
    request = PlannedRequest(300, 1)
    prompt = PromptMaker(50, seed=1).prompt(3, request)
    assert len(prompt) == 300
    assert set(prompt) <= set(range(50))
    assert prompt == PromptMaker(50, seed=1).prompt(3, request)
    others = [PromptMaker(50, seed=2).prompt(3, request), PromptMaker(50, seed=1).prompt(4, request)]
    assert all(prompt[:16] != other[:16] for other in others)


def test_prompts_share_what_their_hashes_share() -> None:
    maker = PromptMaker(1000, seed=0, block_tokens=8)
    first = maker.prompt(0, PlannedRequest(20, 1, 0.0, (1, 2, 3)))
    second = maker.prompt(1, PlannedRequest(23, 1, 0.0, (1, 2, 4)))
    shorter = maker.prompt(2, PlannedRequest(11, 1, 0.0, (1, 2)))
    assert (len(first), len(second)) == (20, 23)
    assert first[:16] == second[:16]
    assert first[16:] != second[16:20]
    assert shorter == first[:11]
