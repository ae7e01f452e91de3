"""Short random simulations over every scheduler, policy, order and model, and what came of them as text:
equal code gives equal text, to the last bit."""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from semipd.core.settings import OrderName
from semipd.devices.sim.models import MODELS
from semipd.sim.cases import Case, run_case

NUM_TRACES = 8
TRACE_BLOCK_TOKENS = 64

POLICIES = ("prefill-first", "chunked:256", "chunked:1024", "fixed:40", "paper", "predictive", "1p1d")
SMALL_KV_FRAC = 0.004
"""Of the free memory: some thousand tokens, so that requests are preempted and prefixes are evicted."""


def write_traces(folder: Path) -> None:
    """Requests of all lengths, some of which continue the prompts of others."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(NUM_TRACES):
        rows = "\n".join(map(json.dumps, _rows(random.Random(seed))))
        (folder / f"{seed}.jsonl").write_text(rows + "\n")


def random_case(seed: int, folder: Path) -> Case:
    """`folder`: see write_traces."""
    rng = random.Random(seed)
    order = rng.choice(get_args(OrderName))
    policy = rng.choice(POLICIES)
    return Case(
        trace=str(folder / f"{rng.randrange(NUM_TRACES)}.jsonl"),
        form="mooncake-raw",
        policy=policy if order == "fcfs" or policy == "1p1d" else f"{policy}+{order}",
        rate=rng.choice([1, 5, 20, 60]),
        ttft_ms=rng.choice([50, 300, 2000]),
        tpot_ms=rng.choice([8, 25, 100]),
        itl_ms=rng.choice([None, 30]),
        window_s=rng.uniform(0.5, 3),
        seed=seed,
        model=rng.choice([name for name in MODELS if "70b" not in name or "w8" in name]),
        max_num_seqs=rng.choice([4, 32, 256]),
        prefill_chunk_tokens=rng.choice([128, 512, 2048]),
        kv_frac=rng.choice([SMALL_KV_FRAC, 0.02, 0.9]),
        stop_below=rng.choice([0.0, 0.5]),
    )


def outcomes(seeds: range, folder: Path) -> Iterator[str]:
    """A line for each case: what it was, and all that its run gave except how long that took."""
    for seed in seeds:
        case = random_case(seed, folder)
        result = run_case(case).to_json()
        del result["wall_s"], result["cpu_s"]
        yield json.dumps([asdict(case), result], sort_keys=True)


def _rows(rng: random.Random) -> Iterator[dict[str, object]]:
    longest = rng.choice([300, 2000, 6000])
    known: list[list[int]] = [[]]
    at_ms = 0.0
    for idx in range(300):
        prompt_tokens = max(int(longest ** rng.uniform(0.3, 1)), 1)
        num_blocks = -(-prompt_tokens // TRACE_BLOCK_TOKENS)
        shared = rng.choice(known)[: rng.randint(0, num_blocks)]
        blocks = shared + [1000 * (idx + 1) + k for k in range(num_blocks - len(shared))]
        known.append(blocks)
        at_ms += rng.expovariate(0.1)
        output_tokens = max(int(rng.choice([3, 40, 400]) * rng.random()), 1)
        yield {
            "timestamp": at_ms,
            "input_length": prompt_tokens,
            "output_length": output_tokens,
            "hash_ids": blocks,
        }
