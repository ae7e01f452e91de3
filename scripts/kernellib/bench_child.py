"""The measuring half of bench_kernels: runs in a child process, on the GPU. Imports torch."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from kernellib import gpu
from kernellib.bench_ops import CHECK_LIMIT, Inputs, Prepared, prepare, relative_error, worst_error
from kernellib.budget import Budget
from kernellib.lanes import Lane
from kernellib.supervise import Reporter, work_through
from kernellib.timing import Timed, measure
from kernellib.torch_attention import Run
from kernellib.workloads import WORKLOADS, Workload, matmul_work

DEVICE = "cuda"
COPY_BYTES = 1 << 30
MATMUL_SIZE = 8192
FULL_SIZE_LIMIT = 2 * CHECK_LIMIT
"""Against torch in bfloat16 too: both round."""

Piece = tuple[str, Callable[[], Mapping[str, Any]]]


def run(report: Reporter) -> int:
    """`report.job`: `sms` to measure on, 0 meaning the whole device, and `ops`."""
    if why := gpu.refusal():
        report("refused", error=why)
        return 0
    budget = Budget(report.job["left_s"], time.monotonic)
    device = gpu.describe()
    report("device", **device)
    sizes = [size or device["num_sms"] for size in report.job["sms"]]
    with gpu.open_lanes(sizes) as (lanes, missing), torch.no_grad():
        if missing:
            report("note", error=missing)
        work_through(report, list(_pieces(lanes, report.job["ops"])), budget, gpu.device_lost)
    return 0


def _pieces(lanes: list[Lane], ops: list[str]) -> Iterator[Piece]:
    for lane in lanes:
        yield f"{lane.num_sms}/roofline", partial(_roofline, lane)
        for workload in WORKLOADS:
            if workload.op in ops:
                yield f"{lane.num_sms}/{workload.name}", partial(_workload, lane, workload)


def _roofline(lane: Lane) -> dict[str, Any]:
    """What torch's own kernels reach on the lane. A copy by `copy_` may run on a copy engine, outside of any
    lane, so that one counts for the whole device only."""
    source = torch.empty(COPY_BYTES // 2, dtype=torch.bfloat16, device=DEVICE).normal_()
    target = torch.empty_like(source)
    us = measure(torch, lane, [lambda: torch.mul(source, 1.0, out=target)]).us
    if not lane.green:
        us = min(us, measure(torch, lane, [lambda: target.copy_(source)]).us)
    size = MATMUL_SIZE
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    matmul_us = measure(torch, lane, [lambda: torch.mm(a, b.t(), out=out)]).us
    return {
        "num_sms": lane.num_sms,
        "green": lane.green,
        "copy_gb_s": 2 * COPY_BYTES / us / 1e3,
        "matmul_tflop_s": matmul_work(size, size, size).flops / matmul_us / 1e6,
    }


def _workload(lane: Lane, workload: Workload) -> dict[str, Any]:
    """Checks, then times. Raises ValueError when a check fails: a wrong kernel has no time."""
    with torch.cuda.stream(lane.stream):
        check_error = worst_error(workload, DEVICE, lane.num_sms)
        if not check_error <= CHECK_LIMIT:
            raise ValueError(f"wrong: relative error {check_error:.3g} on {workload.checked_shape()}")
        sets = [
            prepare(workload.op, workload.shape, Inputs(DEVICE, DEVICE, seed, num_sms=lane.num_sms))
            for seed in range(gpu.num_sets(workload.work.num_bytes))
        ]
        full_error = _full_size_error(sets[0])
        torch.cuda.synchronize()
    if not full_error <= FULL_SIZE_LIMIT:
        raise ValueError(f"wrong: relative error {full_error:.3g} at full size, against torch")
    timed = measure(torch, lane, [prepared.run for prepared in sets])
    baselines = {name: _baseline(lane, [prepared.baselines[name] for prepared in sets])
                 for name in sets[0].baselines}  # fmt: skip
    return {
        "num_sms": lane.num_sms,
        "green": lane.green,
        "workload": workload.name,
        "us": timed.us,
        "spread": timed.spread,
        "graph": timed.graph,
        "check_error": check_error,
        "full_error": full_error,
        "baselines_us": {name: timed.us for name, timed in baselines.items() if timed is not None},
    }


def _full_size_error(prepared: Prepared) -> float:
    """Against the first baseline that torch has; 0 if none is comparable."""
    if not prepared.comparable:
        return 0.0
    for baseline in prepared.baselines.values():
        try:
            (want,) = baseline()
        except RuntimeError:
            continue
        return relative_error(prepared.run()[0], want)
    return 0.0


def _baseline(lane: Lane, calls: list[Run]) -> Timed | None:
    """None: torch has no such kernel."""
    try:
        return measure(torch, lane, calls)
    except RuntimeError as error:
        if gpu.device_lost(error):
            raise
        return None
