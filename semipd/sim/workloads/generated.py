"""Workloads of which there is no public trace, drawn from stated distributions with a seed."""

import math
import random
from collections.abc import Callable

from semipd.sim.workloads.traces import Row, Trace

BLOCK_TOKENS = 64
"""Behind one id of a generated prompt's blocks."""

NUM_ROWS = 5000

SYSTEM_PROMPTS = 8
SYSTEM_TOKENS = 4096
MEAN_TURNS = 10.0
MEAN_TURN_GAP_S = 10.0
LONGEST_SESSION_TOKENS = 64_000
NUM_SESSIONS = 1500


def agents(seed: int) -> Trace:
    """Sessions of agents with tools. A session begins with one of 8 system prompts of 4,096 tokens; each turn
    sends everything so far and what is new: lognormal tokens, median 400, sigma 1, within 32 to 8,000.
    Answers: median 150, sigma 0.8, within 8 to 1,500. Geometric number of turns, mean 10; the next turn comes
    exponentially 10 s later on average, whether the answer is there or not; a session ends before 64,000
    tokens."""
    chance = random.Random(f"agents {seed}")
    rows: list[Row] = []
    starts = []
    for session in range(NUM_SESSIONS):
        starts.append(len(rows))
        rows += _session(chance, session)
    return Trace("agents", tuple(rows), BLOCK_TOKENS, timed=False, session_starts=tuple(starts))


def _session(chance: random.Random, number: int) -> list[Row]:
    system, per_system = chance.randrange(SYSTEM_PROMPTS), SYSTEM_TOKENS // BLOCK_TOKENS
    blocks = [system * per_system + idx for idx in range(per_system)]
    own = SYSTEM_PROMPTS * per_system + number * LONGEST_SESSION_TOKENS // BLOCK_TOKENS
    rows: list[Row] = []
    at_s, length = 0.0, SYSTEM_TOKENS
    while not rows or chance.random() > 1.0 / MEAN_TURNS:
        length += lognormal(chance, 400.0, 1.0, 32, 8_000)
        output = lognormal(chance, 150.0, 0.8, 8, 1_500)
        if length + output > LONGEST_SESSION_TOKENS:
            return rows
        blocks += [own + idx for idx in range(len(blocks) - per_system, length // BLOCK_TOKENS - per_system)]
        rows.append(Row(at_s, length, output, tuple(blocks)))
        length += output
        at_s += chance.expovariate(1.0 / MEAN_TURN_GAP_S)
    return rows


def reasoning(seed: int) -> Trace:
    """Short questions with long thoughts: prompts lognormal, median 250, sigma 1, within 16 to 4,000 tokens;
    outputs median 6,700, sigma 0.6, within 500 to 32,000, which is 8,000 on average. Poisson arrivals."""
    chance = random.Random(f"reasoning {seed}")
    rows = [
        Row(
            0.0,
            lognormal(chance, 250.0, 1.0, 16, 4_000),
            lognormal(chance, 6_700.0, 0.6, 500, 32_000),
        )
        for _ in range(NUM_ROWS)
    ]
    return Trace("reasoning", tuple(rows), timed=False)


GENERATORS: dict[str, Callable[[int], Trace]] = {"agents": agents, "reasoning": reasoning}


def lognormal(chance: random.Random, median: float, sigma: float, least: int, most: int) -> int:
    """A whole number within the limits."""
    return min(max(round(chance.lognormvariate(math.log(median), sigma)), least), most)
