"""The parts of first contact before the 8B model. Imports torch only inside."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulib import opening
from gpulib.parts import Results

from semipd.core.messages import Inbound, SetPartition
from semipd.core.settings import EngineSettings

if TYPE_CHECKING:
    from gpulib.parity import Reference

    from semipd.devices.contract import Device

LARGE = opening.changed(
    opening.BASE,
    {"max_num_seqs": 128, "prefill_chunk_tokens": 2048, "step_token_budget": 2048, "merge_tokens": 2048},
)
SMALL = opening.changed(
    opening.BASE,
    {"max_num_seqs": 32, "prefill_chunk_tokens": 256, "step_token_budget": 256, "kv_bytes": 2**28},
)
KERNEL_OPS = ("decode_attention", "prefill_attention", "matmul", "rms_norm", "sampling")
KERNELS_S = 65
NUM_SMS = 132
"""Of an H100 or H200."""
WANTED_SWITCHES = 200


def environment(results: Results, out: Path) -> None:
    import torch
    from gpulib.copying import copy_bytes_per_s
    from kernellib import gpu

    results["device"] = gpu.describe()
    results["memory_gib"] = [round(b / 2**30, 1) for b in torch.cuda.mem_get_info()]
    results["copy_gb_per_s"] = round(copy_bytes_per_s() / 1e9, 1)


def compile_kernels(results: Results, out: Path) -> None:
    from gpulib.models import MODELS

    from semipd.devices.cuda.lane.graphs import batch_buckets
    from semipd.devices.cuda.start.compiling import KernelSet, compile_all, lane_sizes
    from semipd.devices.cuda.start.model import cuda_dtype

    lane_sms = tuple(lane_sizes(NUM_SMS))

    for name, dtype, settings in (
        ("llama-3-8b", "bfloat16", LARGE),
        ("small", "bfloat16", SMALL),
        ("small", "float32", SMALL),
    ):
        config, known = MODELS[name], cuda_dtype(dtype, MODELS[name])
        buckets, longest = batch_buckets(settings.max_num_seqs), config.max_position_embeddings
        compile_all(KernelSet(config, known, 90, lane_sms, buckets, longest, settings.cuda.kv_block_size))
        results[f"{name} {dtype}"] = "compiled"


def kernels(results: Results, out: Path) -> None:
    """bench_kernels has a page of its own in the folder."""
    import bench_kernels

    ops = [word for op in KERNEL_OPS for word in ("--op", op)]
    status = bench_kernels.main(
        ["--sms", "0,64,40", *ops, "--budget-s", str(KERNELS_S), "--out", str(out / "kernels")]
    )
    results["status"] = status
    results["pages"] = [path.name for path in sorted((out / "kernels").glob("*.md"))]


def parity(results: Results, out: Path) -> None:
    """float32 finds what is wrong, bfloat16 is what is served. Raises SystemExit after both."""
    results["float32 semipd"] = _parity("float32", switching=False)
    results["bfloat16 live switches"] = _parity("bfloat16", switching=True)
    wrong = [name for name, verdict in results.items() if not verdict["passed"]]
    if wrong:
        raise SystemExit(f"tokens beyond the tolerance, or missing, in {', '.join(wrong)}")


def _parity(dtype: str, *, switching: bool) -> dict[str, Any]:
    from gpulib.models import MODELS, RandomModel, reference_weights
    from gpulib.parity import Reference

    settings, source = opening.changed(SMALL, {"dtype": dtype}), RandomModel(MODELS["small"])
    where = "cpu" if dtype == "float32" else "cuda"
    reference = Reference(source.config, reference_weights(source.read(settings), source, where))
    device = opening.open_random("small", settings)
    try:
        return parity_run(device, settings, reference, switching=switching)
    finally:
        device.close()


def parity_run(
    device: "Device", settings: EngineSettings, reference: "Reference", *, switching: bool
) -> dict[str, Any]:
    from gpulib.host import Host
    from gpulib.parity import parity_requests

    switching = switching and bool(device.info.splits)
    count, output_tokens = (48, 96) if switching else (24, 48)
    requests = parity_requests(count, device.info.vocab_size, seed=1, output_tokens=output_tokens)
    meddle = random_switches(device) if switching else lambda now_ns: []
    run = Host(device, settings).run(requests, 20.0, meddle)
    switches = sum(event.kind == "split_changed" for event in run.events)
    verdict = reference.judge(requests, run).to_plain() | {"split_changes": switches}
    if switching and switches < WANTED_SWITCHES:
        verdict["note"] = f"only {switches} of {WANTED_SWITCHES} switches"
    return verdict


def random_switches(device: "Device") -> Callable[[int], list[Inbound]]:
    """Another split with every turn of the coordinator."""
    rng = random.Random(5)

    def meddle(now_ns: int) -> list[Inbound]:
        split = rng.choice(device.info.splits)
        return [SetPartition(1, "fixed", "gpu_contact", prefill_units=split.prefill_units)]

    return meddle
