"""Times of single steps with made-up contexts, and what follows from them for the simulator's profile."""

import statistics
import time
from collections.abc import Iterable
from typing import Any

from gpulib.models import num_parameters
from semipd.checkpoints.layout import plan_weights
from semipd.core.plan import Join, Segment, StepPlan, StepResult, blocks_for
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split
from semipd.devices.contract import Device, Lane
from semipd.network.config import ITEM_BYTES, ModelConfig
from semipd.network.kv_layout import KvLayout

STEPS = 12
SKIPPED = 3
"""First steps of a series: the batch is uploaded, caches are cold."""

STEP_LIMIT_S = 30.0
ATTENTION_BATCH, ATTENTION_TOKENS = 32, 4096
PREFILL_TOKENS = 2048

_GREEDY = SamplingParams(max_tokens=10**6, seed=1, temperature=0.0)


class StepTimer:
    """Runs plans of its own on an idle device. Contexts hold what the pool holds: zeros, or old tokens."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._step_id = 1

    def decode_ms(self, split: Split, batch: int, context_tokens: int, steps: int = STEPS) -> float:
        """Median device time of a step of `batch` sequences with about so much context each."""
        lane, length = self._device.decode, context_tokens
        width = blocks_for(length + steps + 1, self._device.info.block_size)
        have = self._device.info.num_blocks - 1
        assert batch * width <= have, f"{batch} x {width} blocks are more than the pool's {have}"
        joins = [
            Join(SeqId(i + 1), [2] * length, length, _GREEDY, list(range(1 + i * width, 1 + (i + 1) * width)))
            for i in range(batch)
        ]
        lane.rebuild(joins)
        seqs = tuple(join.seq for join in joins)
        results = self._run(lane, [StepPlan(0, split, decode=seqs) for _ in range(steps)])
        lane.rebuild([])
        return statistics.median(result.busy_ns for result in results[SKIPPED:]) / 1e6

    def prefill_ms(self, split: Split, num_tokens: int, steps: int = 5) -> float:
        """Median device time of one chunk at the start of a context."""
        lane = self._device.prefill
        join = Join(
            SeqId(1),
            [2] * num_tokens,
            num_tokens,
            _GREEDY,
            list(range(1, 1 + blocks_for(num_tokens, self._device.info.block_size))),
        )
        lane.rebuild([join])
        segment = Segment(SeqId(1), 0, num_tokens, False)
        results = self._run(lane, [StepPlan(0, split, segments=(segment,)) for _ in range(steps)])
        lane.rebuild([])
        return statistics.median(result.busy_ns for result in results[1:]) / 1e6

    def _run(self, lane: Lane, plans: Iterable[StepPlan]) -> list[StepResult]:
        results: list[StepResult] = []
        num_launched = 0
        for plan in plans:
            self._collect(lane, results, lambda: lane.capacity() > 0)
            numbered = StepPlan(self._step_id, plan.split, plan.decode, plan.segments)
            lane.launch(numbered, time.monotonic_ns())
            self._step_id += 1
            num_launched += 1
        self._collect(lane, results, lambda: len(results) == num_launched)
        return results

    @staticmethod
    def _collect(lane: Lane, results: list[StepResult], enough: Any) -> None:
        end_s = time.monotonic() + STEP_LIMIT_S
        while not enough():
            results += lane.poll(time.monotonic_ns())
            if time.monotonic() > end_s:
                raise TimeoutError(f"the {lane.name} lane has not answered for {STEP_LIMIT_S} s")
            time.sleep(50e-6)


def lane_splits(device: Device, lane: str) -> list[tuple[int, Split]]:
    """(SMs of the lane, split), by rising SMs, the whole device last."""
    info = device.info
    if lane == "decode":
        pairs = [(split.decode_units, split) for split in info.splits]
        return [*sorted(pairs), (info.num_units, info.solo_decode)]
    pairs = [(split.prefill_units, split) for split in info.splits]
    return [*sorted(pairs), (info.num_units, info.solo_prefill)]


def step_table(timer: StepTimer, device: Device) -> list[dict[str, float]]:
    """Per lane size: decode of one short context, of many long ones, and a prompt's chunk."""
    chunks = {sms: timer.prefill_ms(split, PREFILL_TOKENS) for sms, split in lane_splits(device, "prefill")}
    rows: dict[int, dict[str, float]] = {
        sms: {"sms": sms, "prefill_ms": round(ms, 4)} for sms, ms in chunks.items()
    }
    for sms, split in lane_splits(device, "decode"):
        row = rows.setdefault(sms, {"sms": sms})
        row["decode_1_ms"] = timer.decode_ms(split, 1, 16)
        row["decode_short_ms"] = timer.decode_ms(split, ATTENTION_BATCH, 16)
        row["decode_long_ms"] = timer.decode_ms(split, ATTENTION_BATCH, ATTENTION_TOKENS)
    return [rows[sms] for sms in sorted(rows)]


def measured_profile(
    rows: list[dict[str, float]], config: ModelConfig
) -> dict[str, dict[str, list[list[float]]]]:
    """For `engine.sim_profile`, in the form of docs/policies.md: curves by SM count. A point is left out when
    its difference of times is lost in their noise."""
    weights = weights_read_bytes(config)
    kv = ATTENTION_BATCH * KvLayout.of(config, ATTENTION_TOKENS).block_bytes(config.dtype)
    flops = 2 * num_parameters(config) * PREFILL_TOKENS
    curves: dict[str, list[list[float]]] = {
        "weight_bytes_per_s": [],
        "attention_bytes_per_s": [],
        "gemm_flops": [],
    }
    for row in rows:
        sms = int(row["sms"])
        if "decode_1_ms" in row:
            curves["weight_bytes_per_s"].append([sms, weights / row["decode_1_ms"] * 1e3])
            added_ms = row["decode_long_ms"] - row["decode_short_ms"]
            if added_ms > 0.05 * row["decode_long_ms"]:
                curves["attention_bytes_per_s"].append([sms, kv / added_ms * 1e3])
        if "prefill_ms" in row:
            curves["gemm_flops"].append([sms, flops / row["prefill_ms"] * 1e3])
    return {"curves": {name: points for name, points in curves.items() if points}}


def weights_read_bytes(config: ModelConfig) -> int:
    """Of a step: all weights, once; of an embedding table that is not the head's too, only rows."""
    total = plan_weights(config, config.dtype).total_bytes
    table = config.vocab_size * config.hidden_size * ITEM_BYTES[config.dtype]
    return total if config.tie_word_embeddings else total - table


def decode_read_bytes(config: ModelConfig, batch: int, context_tokens: int) -> int:
    """The least that a decode step reads: weights and KV, once."""
    kv = batch * KvLayout.of(config, context_tokens).block_bytes(config.dtype)
    return weights_read_bytes(config) + kv


def bandwidth_share(
    step_ms: float, batch: int, context_tokens: int, config: ModelConfig, copy_bytes_per_s: float
) -> float:
    """Share of the measured copy bandwidth that a decode step reaches, at the least it must read."""
    return decode_read_bytes(config, batch, context_tokens) / (step_ms / 1e3) / copy_bytes_per_s
