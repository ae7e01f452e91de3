"""What an operation costs the host: Python from the call to Triton's launcher, which here does nothing.

    python scripts/bench_launch.py [--op rms_norm ...] [--rows 64] [--json FILE]

Microseconds of processor time of one operation, the best of several runs, on shapes of Llama-3-8B in bf16.
*Ordinary* is Triton's own way, `kernel[grid](...)`, behind the operation's checks; *repeated* is the way of
`semipd_kernels.launches`. Both in one process, in turns. Needs no GPU, and compiles nothing.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from gpulib.models import LLAMA_3_8B
from kernellib.bench_ops import Inputs, Prepared, prepare
from kernellib.noop_triton import NoopDriver, noop_triton
from kernellib.workloads import BLOCK_SIZE
from semipd_kernels import launches
from semipd_kernels.decode_attention import decode_attention, decode_workspace
from torch import Tensor

from semipd.checkpoints.layout import plan_weights
from semipd.checkpoints.weights import weight_views
from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.network.activations import Activations
from semipd.network.kv_layout import KvLayout
from semipd.network.network import Network
from semipd.network.rows import ChunkRows, StepRows

HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}
NUM_SMS = 64
REPEATS = 200
RUNS = 9


def shapes(rows: int) -> dict[str, dict[str, int]]:
    """By operation. Contexts and vocabulary are small: they cost the device, not the host."""
    return {
        "embedding": {"rows": rows, "width": 4096, "vocab_size": 256},
        "rms_norm": {"rows": rows, "width": 4096},
        "rope_write": {"rows": rows, **HEADS},
        "silu_mul": {"rows": rows, "width": 14336},
        "prefill_attention": {"seqs": 1, "query_len": rows, "context": rows, **HEADS},
        "decode_attention": {},
        "sampling": {"rows": rows, "vocab_size": 4096},
        "prefill_layer": {},
    }


class Cost(NamedTuple):
    """`launches`: of one call."""

    op: str
    launches: int
    ordinary_us: float
    repeated_us: float


def measure(op: str, rows: int, driver: NoopDriver) -> Cost:
    inputs = Inputs("cpu", "cpu", 1, num_sms=NUM_SMS)
    build = {"decode_attention": decode, "prefill_layer": prefill_layer}.get(op)
    prepared = build(inputs, rows) if build else prepare(op, shapes(rows)[op], inputs)
    prepared.run()
    driver.launched.clear()
    prepared.run()
    num_launches, driver.records = len(driver.launched), False
    ordinary, repeated = float("inf"), float("inf")
    for _ in range(RUNS):
        with patch.object(launches, "KNOWN_TRITON", ()):
            launches.forget_launches()
            ordinary = min(ordinary, _run_us(prepared))
        launches.forget_launches()
        repeated = min(repeated, _run_us(prepared))
    driver.records = True
    return Cost(op, num_launches, ordinary, repeated)


def decode(inputs: Inputs, rows: int) -> Prepared:
    """With a workspace, as a lane has one."""
    num_splits, context = 4, 256
    pool, tables = inputs.paged(rows, context, HEADS["kv_heads"], HEADS["head_dim"])
    q = inputs.floats(rows, HEADS["heads"], HEADS["head_dim"])
    lens, out = torch.full((rows,), context, dtype=torch.int32), torch.empty_like(q)
    heads = (HEADS["heads"], HEADS["kv_heads"], HEADS["head_dim"])
    work = decode_workspace(rows, *heads, rows * num_splits, q.device)

    def run() -> tuple[Tensor, ...]:
        attended = decode_attention(
            q, pool, tables, lens, num_sms=NUM_SMS, num_splits=num_splits, out=out, workspace=work
        )
        return (attended,)

    return Prepared(run)


TINY = replace(
    LLAMA_3_8B,
    vocab_size=64,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=64,
    max_position_embeddings=64,
    dtype="float32",
)


def prefill_layer(inputs: Inputs, rows: int) -> Prepared:
    """The network's middle layer over one chunk, its four matrix products included: on the CPU, and so tiny
    that they cost about as much as handing them to cuBLAS."""
    rows = min(rows, 8)
    layout = plan_weights(TINY, "float32")
    weights = weight_views(layout, torch.zeros(layout.total_bytes, dtype=torch.uint8))
    pool = torch.zeros(KvLayout.of(TINY, BLOCK_SIZE).pool_shape(4))
    network = Network(TINY, weights, pool, KernelOps(torch.float32, 90))
    plan, ints = network.plan_chunks([rows], [rows], NUM_SMS), torch.zeros(rows, dtype=torch.int32)
    starts, lens, work = torch.tensor([0, rows]), torch.tensor([rows]), torch.from_numpy(plan.work)
    tables = torch.zeros(1, 4, dtype=torch.int32)
    chunks = ChunkRows(tables, starts.int(), lens.int(), work, plan, [rows], [rows])
    step = StepRows(ints, ints, ints.long(), None, chunks)
    memory = Activations.reserve(TINY, rows, torch.empty(0))

    def run() -> tuple[Tensor, ...]:
        network.layers(step, memory, (1,), NUM_SMS)
        return (memory.branch,)

    return Prepared(run)


def _run_us(prepared: Prepared) -> float:
    prepared.run()
    start = time.process_time()
    for _ in range(REPEATS):
        prepared.run()
    return (time.process_time() - start) / REPEATS * 1e6


def table(costs: Sequence[Cost]) -> str:
    lines = [
        "| operation | launches | ordinary (us) | repeated (us) | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for cost in costs:
        ratio = cost.ordinary_us / cost.repeated_us
        numbers = f"{cost.ordinary_us:.1f} | {cost.repeated_us:.1f} | {ratio:.1f}"
        lines.append(f"| {cost.op} | {cost.launches} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    with torch.inference_mode(), noop_triton() as driver:
        costs = [measure(op, options.rows, driver) for op in options.op or shapes(options.rows)]
    print(table(costs))
    if options.json:
        options.json.write_text(json.dumps([cost._asdict() for cost in costs], indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", action="append", choices=tuple(shapes(1)), help="default: all")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
