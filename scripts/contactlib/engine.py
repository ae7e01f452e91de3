"""The 8B model, opened once: everything that needs it, most wanted first."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulib import opening
from gpulib.parts import Results
from gpulib.policies import flat

from contactlib.small import LARGE
from semipd.core.settings import EngineSettings
from semipd.core.slo import Targets
from semipd.core.split import Split
from semipd.sim.outcomes import figures

if TYPE_CHECKING:
    from gpulib.steps import StepTimer

    from semipd.devices.contract import Device

SLO = Targets(500.0, tpot_ms=25.0)
RATES = (4.0, 8.0, 12.0)
WINDOW_S = 6.0
SETTLE_FACTOR = 1.25
BUDGETS = (1024, 512)
TARGET_BATCH, TARGET_TOKENS = 64, 2048
LONG_BATCH, LONG_TOKENS = 32, 4096
STREAMS, STREAM_TOKENS = 32, 1024


def engine(results: Results, out: Path) -> None:
    began_s = time.monotonic()
    device = opening.open_random("llama-3-8b", LARGE)
    try:
        results["start_up_s"] = round(time.monotonic() - began_s, 1)
        results["device"], results["splits"] = device.info.name, [str(s) for s in device.info.splits]
        results["memory_gib"] = {name: round(b / 2**30, 2) for name, b in device.info.memory.items()}
        run_sections(results, device)
    finally:
        device.close()


def run_sections(results: Results, device: "Device") -> None:
    """Each stands in the results as soon as it is there."""
    from gpulib.steps import StepTimer

    timer = StepTimer(device)
    results["decode_steps"] = decode_steps(timer, device)
    for row in latency_rows(device):
        results["latency"] = [*results.get("latency", []), row]
    results["state"] = device.stats()
    results["constants"] = constants(timer, device, results)
    for row in goodput_rows(device):
        results["goodput"] = [*results.get("goodput", []), row]
    results["state"] = device.stats()


def middle_splits(device: "Device", count: int = 3) -> list[Split]:
    splits = device.info.splits
    if len(splits) <= count:
        return list(splits)
    first = (len(splits) - count) // 2
    return list(splits[first : first + count])


def decode_steps(timer: "StepTimer", device: "Device") -> list[dict[str, Any]]:
    """Against the copy bandwidth of the whole device, measured now."""
    from gpulib.copying import copy_bytes_per_s
    from gpulib.models import LLAMA_3_8B
    from gpulib.steps import bandwidth_share

    copy, rows = copy_bytes_per_s(), list[dict[str, Any]]()
    for split in [device.info.solo_decode, *middle_splits(device)]:
        for batch, tokens in ((TARGET_BATCH, TARGET_TOKENS), (LONG_BATCH, LONG_TOKENS)):
            ms = timer.decode_ms(split, batch, tokens)
            share = bandwidth_share(ms, batch, tokens, LLAMA_3_8B, copy)
            rows.append(
                {"sms": split.decode_units, "batch": batch, "context": tokens, "ms": round(ms, 3)}
                | {"share of copy": round(share, 3)}
            )
    return rows


def engines(device: "Device") -> list[tuple[str, EngineSettings]]:
    """Those of semipd first: they are what nobody has measured. All take prompts first come, first served."""
    fixed = [
        (
            f"semipd {split}",
            opening.changed(LARGE, {"partition_mode": "fixed", "prefill_units": split.prefill_units}),
        )
        for split in middle_splits(device, 1)
    ]
    chunked = [
        (f"chunked {budget}", opening.changed(LARGE, {"scheduler": "chunked", "step_token_budget": budget}))
        for budget in BUDGETS
    ]
    return [*fixed, ("semipd predictive", LARGE), *chunked]


def latency_rows(device: "Device") -> Iterator[dict[str, Any]]:
    from gpulib.interference import Load, measure

    yield {"engine": "decode alone"} | measure(device, LARGE, Load(prompt_tokens=0, window_s=3.0))
    for name, settings in engines(device):
        yield {"engine": name} | measure(device, settings, Load(window_s=4.0))


def goodput_rows(device: "Device") -> Iterator[dict[str, Any]]:
    """One after the other: every rate of `predictive`, then of each chunked budget, the same requests."""
    for name, settings in engines(device):
        if name == "semipd predictive" or name.startswith("chunked"):
            for rate in RATES:
                yield {"engine": name, "rate": rate} | serve(device, settings, rate)


def serve(device: "Device", settings: EngineSettings, rate: float) -> dict[str, Any]:
    from gpulib.host import Host
    from gpulib.loads import poisson

    slo = {"slo_ttft_ms": SLO.ttft_ms, "slo_tpot_ms": SLO.tpot_ms}
    host = Host(device, opening.changed(settings, slo))
    run = host.run(poisson(rate, WINDOW_S, device.info.vocab_size, targets=SLO), WINDOW_S * SETTLE_FACTOR)
    host.drain(10.0)
    outcomes = list(run.outcomes.values())
    for outcome in outcomes:
        outcome.missed = not outcome.met
    return flat(figures(outcomes, WINDOW_S, complete=True))


def constants(timer: "StepTimer", device: "Device", results: Results) -> dict[str, Any]:
    """What decides the simulator's answers: bandwidth of attention by SMs, how prefill grows with SMs, what
    lanes take from each other, and what the host adds to a step."""
    from gpulib.models import LLAMA_3_8B
    from gpulib.steps import measured_profile, step_table

    rows = step_table(timer, device)
    latency = {row["engine"]: row for row in results.get("latency", [])}
    alone_ms = timer.decode_ms(device.info.solo_decode, STREAMS, STREAM_TOKENS)
    found: dict[str, Any] = {
        "steps": rows,
        "profile": measured_profile(rows, LLAMA_3_8B),
        "prefill_exponent": exponent([(r["sms"], 1 / r["prefill_ms"]) for r in rows if "prefill_ms" in r]),
    }
    if (itl := latency.get("decode alone", {}).get("itl_p50_ms")) is not None:
        found["host_ms_per_step"] = round(itl - alone_ms, 3)
    for split in middle_splits(device, 1):
        if (itl := latency.get(f"semipd {split}", {}).get("itl_p50_ms")) is not None:
            lane_ms = timer.decode_ms(split, STREAMS, STREAM_TOKENS)
            found["decode_slowdown_beside_prefill"] = round(itl / lane_ms, 3)
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """k of rate ~ SMs^k, by least squares of the logarithms. None: fewer than two sizes."""
    if len({sms for sms, _ in points}) < 2:
        return None
    xs, ys = [math.log(sms) for sms, _ in points], [math.log(rate) for _, rate in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    return round(slope, 3)


RunPart = Callable[[Results, Path], None]
