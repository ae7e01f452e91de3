"""Does the CUDA device do what it should, on this GPU? One call, under 8 minutes:

    python scripts/gpu_check.py --out docs/measurements/YYYY-MM-DD-gpu-check.json

Parts, each in a process of its own under a time limit; JSON and Markdown are written after each:

    first_contact  green contexts: shapes, SM census, graph binding, queues, switch cost, bandwidth
    parity         tokens of a small random Llama against a float32 CPU reference: schedulers, 200 switches
    device         Llama-3-8B shapes, random weights: start-up, memory, graphs, step times, bandwidth share
    interference   inter-token latency beside a stream of prompts: semipd against chunked; switches
    serving        a short Poisson run under the default policy

The engine is driven without the daemon: times exclude HTTP, tokenizing and the socket.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

from gpulib import opening  # noqa: E402
from gpulib.parts import Part, Results, run_parts  # noqa: E402

from semipd.core.messages import Inbound, SetPartition  # noqa: E402
from semipd.core.settings import EngineSettings  # noqa: E402

if TYPE_CHECKING:
    from gpulib.parity import Reference

    from semipd.devices.contract import Device

TOTAL_S = 470.0
LIMITS_S = {"first_contact": 120.0, "parity": 110.0, "device": 120.0, "interference": 110.0, "serving": 60.0}
WANTED_SWITCHES = 200
LARGE = opening.changed(
    opening.BASE,
    {"max_num_seqs": 128, "prefill_chunk_tokens": 2048, "step_token_budget": 2048, "merge_tokens": 2048},
)
SMALL = opening.changed(
    opening.BASE,
    {"max_num_seqs": 32, "prefill_chunk_tokens": 256, "step_token_budget": 256, "kv_bytes": 2**28},
)


def first_contact_part() -> Part:
    script = HERE / "gpu_first_contact" / "gpu_checks.py"
    return Part("first_contact", [sys.executable, str(script), "--out"], LIMITS_S["first_contact"])


def parity(results: Results) -> None:
    """Both dtypes of interest: bfloat16 as served; float32 with a tolerance that hides nothing."""
    from gpulib.models import MODELS, RandomModel, reference_weights
    from gpulib.parity import Reference

    for dtype in ("float32", "bfloat16"):
        settings = opening.changed(SMALL, {"dtype": dtype})
        source = RandomModel(MODELS["small"])
        where = "cpu" if dtype == "float32" else "cuda"
        reference = Reference(source.config, reference_weights(source.read(settings), source, where))
        device = opening.open_random("small", settings)
        try:
            results[dtype] = {"partition": device.stats()["partition"]}
            for scheduler in ("semipd", "chunked", "prefill-first"):
                results[dtype] = results[dtype] | {
                    scheduler: parity_run(
                        device, opening.changed(settings, {"scheduler": scheduler}), reference
                    )
                }
            if device.info.splits:
                results[dtype] = results[dtype] | {
                    "live switches": parity_run(device, settings, reference, switching=True)
                }
        finally:
            device.close()
    wrong = [
        f"{dtype} {name}"
        for dtype, found in results.items()
        for name, verdict in found.items()
        if name != "partition" and not verdict["passed"]
    ]
    if wrong:
        raise SystemExit(f"tokens beyond the tolerance, or missing, in {', '.join(wrong)}")


def parity_run(
    device: "Device", settings: EngineSettings, reference: "Reference", *, switching: bool = False
) -> dict[str, Any]:
    from gpulib.host import Host
    from gpulib.parity import parity_requests

    count = 48 if switching else 24
    requests = parity_requests(count, device.info.vocab_size, seed=1, output_tokens=96 if switching else 48)
    host = Host(device, settings)
    run = host.run(requests, 30.0, random_switches(device) if switching else lambda now_ns: [])
    switches = sum(event.kind == "split_changed" for event in run.events)
    verdict = reference.judge(requests, run).to_plain()
    if switching and switches < WANTED_SWITCHES:
        verdict["note"] = f"only {switches} of {WANTED_SWITCHES} switches"
    return verdict | {"split_changes": switches}


def random_switches(device: "Device") -> Callable[[int], list[Inbound]]:
    """Another split with every turn of the coordinator."""
    rng = random.Random(5)

    def meddle(now_ns: int) -> list[Inbound]:
        split = rng.choice(device.info.splits)
        return [SetPartition(1, "fixed", "gpu_check", prefill_units=split.prefill_units)]

    return meddle


def device_part(results: Results) -> None:
    from gpulib.copying import copy_bytes_per_s
    from gpulib.models import LLAMA_3_8B
    from gpulib.steps import StepTimer, bandwidth_share, measured_profile, step_table

    began_s = time.monotonic()
    device = opening.open_random("llama-3-8b", LARGE)
    try:
        results["start_up_s"] = round(time.monotonic() - began_s, 1)
        results["versions"] = opening.versions()
        results["device"] = device.info.name
        results["splits"] = [str(split) for split in device.info.splits]
        results["memory_gib"] = {name: round(b / 2**30, 2) for name, b in device.info.memory.items()}
        stats = device.stats()
        results["gpu"], results["partition"], results["graphs"] = (
            stats["gpu"],
            stats["partition"],
            stats["graphs"],
        )
        copy = copy_bytes_per_s()
        results["copy_gb_per_s"] = round(copy / 1e9, 1)
        timer = StepTimer(device)
        whole = device.info.solo_decode
        results["decode_batch_64_context_2048_ms"] = ms = timer.decode_ms(whole, 64, 2048)
        results["share_of_copy_bandwidth"] = bandwidth_share(ms, 64, 2048, LLAMA_3_8B, copy)
        results["steps"] = rows = step_table(timer, device)
        results["profile"] = measured_profile(rows, LLAMA_3_8B)
    finally:
        device.close()


def interference(results: Results) -> None:
    from gpulib.interference import Load, measure

    device = opening.open_random("llama-3-8b", LARGE)
    try:
        rows: list[dict[str, Any]] = [
            {"engine": "decode alone"} | measure(device, LARGE, Load(prompt_tokens=0))
        ]
        for budget in (256, 512, 1024, 2048):
            settings = opening.changed(LARGE, {"scheduler": "chunked", "step_token_budget": budget})
            rows.append({"engine": f"chunked {budget}"} | measure(device, settings, Load()))
            results["rows"] = rows
        for split in device.info.splits[2::2]:
            changes = {"partition_mode": "fixed", "prefill_units": split.prefill_units}
            rows.append(
                {"engine": f"semipd {split}"} | measure(device, opening.changed(LARGE, changes), Load())
            )
            results["rows"] = rows
        rows.append({"engine": "semipd predictive"} | measure(device, LARGE, Load()))
        results["rows"] = rows
        results["switches"] = device.stats()["switches"]
    finally:
        device.close()


def serving(results: Results) -> None:
    from dataclasses import asdict

    from gpulib.host import Host
    from gpulib.loads import poisson

    from semipd.sim.outcomes import Targets, figures

    device = opening.open_random("llama-3-8b", LARGE)
    try:
        slo = Targets(500.0, 25.0)
        settings = opening.changed(LARGE, {"slo_ttft_ms": slo.ttft_ms, "slo_tpot_ms": slo.tpot_ms})
        for rate in (2.0, 6.0):
            host = Host(device, settings)
            run = host.run(poisson(rate, 8.0, device.info.vocab_size), 20.0)
            host.drain(10.0)
            found = figures(list(run.outcomes.values()), slo, 8.0, complete=True)
            results[f"{rate:g} requests/s"] = asdict(found) | {
                "split_changes": sum(event.kind == "split_changed" for event in run.events)
            }
        results["device"] = device.stats()
    finally:
        device.close()


PARTS: dict[str, Callable[[Results], None]] = {
    "parity": parity,
    "device": device_part,
    "interference": interference,
    "serving": serving,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-check.json"), help="JSON file; Markdown beside it"
    )
    parser.add_argument("--parts", default="first_contact," + ",".join(PARTS), help="which, in this order")
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="time for everything")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FILE"), help="one part, in this process")
    args = parser.parse_args()
    if args.part:
        opening.prepare_process(os.environ)
        PARTS[args.part[0]](Results(Path(args.part[1])))
        return
    opening.refuse_without_cuda("gpu_check.py")
    names = args.parts.split(",")
    unknown = [name for name in names if name != "first_contact" and name not in PARTS]
    if unknown:
        parser.error(f"unknown parts {', '.join(unknown)}; there are first_contact, {', '.join(PARTS)}")
    parts = [
        first_contact_part()
        if name == "first_contact"
        else Part(name, [sys.executable, str(HERE / "gpu_check.py"), "--part", name], LIMITS_S[name])
        for name in names
    ]
    results = run_parts(parts, args.out, "GPU check", args.total_s)
    failed = [name for name, result in results["parts"].items() if "error" in result]
    print(f"written to {args.out} and {args.out.with_suffix('.md')}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
