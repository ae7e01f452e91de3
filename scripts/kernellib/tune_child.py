"""The measuring half of tune_kernels: runs in a child process, on the GPU. Imports torch."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import Any

import torch

from kernellib import gpu
from kernellib.bench_ops import CHECK_LIMIT, Inputs, prepare, worst_error
from kernellib.budget import Budget
from kernellib.lanes import Lane
from kernellib.supervise import Reporter, work_through
from kernellib.timing import measure
from kernellib.tuning import shapes

DEVICE = "cuda"

Piece = tuple[str, Callable[[], Mapping[str, Any]]]


def run(report: Reporter) -> int:
    """`report.job`: `ops`, `head_dims`, and `sms` with 0 for the whole device."""
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
        pieces = [
            piece
            for head_dim in report.job["head_dims"]
            for op in report.job["ops"]
            for lane in lanes
            for piece in candidate_pieces(op, device["arch"], head_dim, lane)
        ]
        work_through(report, pieces, budget, gpu.device_lost)
    return 0


def candidate_pieces(op: str, arch: int, head_dim: int, lane: Lane) -> Iterator[Piece]:
    """The configuration in use first, then the others."""
    configs = import_module(f"semipd_kernels.{op}.configs")
    current = configs.choose(arch=arch, head_dim=head_dim, num_sms=lane.num_sms)
    others = [config for config in configs.candidates(arch=arch, head_dim=head_dim) if config != current]
    for config in [current, *others]:
        fields = asdict(config)
        key = f"{op}/d{head_dim}/{lane.num_sms}/" + ",".join(map(str, fields.values()))
        described = {
            "op": op,
            "arch": arch,
            "head_dim": head_dim,
            "num_sms": lane.num_sms,
            "config": fields,
            "current": config == current,
        }
        yield key, partial(_try, lane, config, described)


def _try(lane: Lane, config: Any, described: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError when the configuration computes something else."""
    times_us = []
    for idx, workload in enumerate(shapes(described["op"], described["head_dim"])):
        with torch.cuda.stream(lane.stream):
            error = worst_error(workload, DEVICE, lane.num_sms, config) if idx == 0 else 0.0
            if not error <= CHECK_LIMIT:
                raise ValueError(f"wrong: relative error {error:.3g}")
            prepared = [
                prepare(
                    workload.op,
                    workload.shape,
                    Inputs(DEVICE, DEVICE, seed, num_sms=lane.num_sms, config=config),
                )
                for seed in range(gpu.num_sets(workload.work.num_bytes))
            ]
            torch.cuda.synchronize()
        times_us.append(measure(torch, lane, [one.run for one in prepared]).us)
    return {**described, "us": times_us}
