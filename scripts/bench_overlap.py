"""Do the lanes overlap? One long prompt arrives while 8 streams decode; the worst inter-token gap tells.

    python scripts/bench_overlap.py [--model DIR] [--prompt-tokens 1800] [--rounds 3] [--json FILE]

Drives the coordinator on the CPU device in this process, without the daemon, under each scheduler in turn
(medians over alternating rounds, one device, so that the figures are comparable). Columns: median and worst
inter-token latency (ITL) of the 8 streams while the long prompt is being prefilled, the long prompt's time
to first token (TTFT), and the median ITL with no prefill beside it.
"""

import argparse
import json
import select
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import semipd
from semipd.config.config import default_engine_settings
from semipd.core.messages import Inbound, StepTokens, Submit
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.devices.contract import Device
from semipd.engine.coordinator import Coordinator
from semipd.engine.process import open_device

NUM_STREAMS = 8
LONG = SeqId(NUM_STREAMS + 1)
LEAD_TOKENS = 24
"""Tokens every stream has produced before the long prompt arrives."""

DEMO = Path(semipd.__file__).parent / "checkpoints" / "demo"


@dataclass
class Round:
    """Milliseconds."""

    scheduler: str
    itl_alone_ms: float
    itl_median_ms: float
    itl_worst_ms: float
    ttft_ms: float


def greedy(seq: int, prompt: list[int], max_tokens: int) -> Request:
    params = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)
    return Request(
        SeqId(seq), f"bench-{seq}", prompt, params, time.monotonic_ns(), namespace=str(time.time_ns())
    )


def measure(device: Device, settings: EngineSettings, num_prompt_tokens: int) -> Round:
    """One scheduler, once. Fresh namespaces keep earlier rounds' prefixes out."""
    coordinator = Coordinator(device, settings)
    for lane in (device.prefill, device.decode):
        lane.rebuild([])
    times: dict[SeqId, list[float]] = {SeqId(i): [] for i in range(1, NUM_STREAMS + 2)}
    inbox: list[Inbound] = [Submit(greedy(i, [i + 5] * 32, 400)) for i in range(1, NUM_STREAMS + 1)]
    arrival_s = 0.0
    while not times[LONG] or min(stamps[-1] for stamps in streams(times)) <= times[LONG][0]:
        turn = coordinator.tick(time.monotonic_ns(), inbox)
        inbox = []
        for message in turn.outbox:
            if isinstance(message, StepTokens):
                for seq in message.seqs:
                    times[seq].append(time.monotonic())
        if not arrival_s and min(map(len, streams(times))) >= LEAD_TOKENS:
            arrival_s = time.monotonic()
            inbox = [Submit(greedy(LONG, long_prompt(num_prompt_tokens, device.info.vocab_size), 1))]
        else:
            select.select(device.files(), [], [], 30)
    drain(coordinator, device)
    return figures(settings.scheduler, times, arrival_s)


def streams(times: dict[SeqId, list[float]]) -> list[list[float]]:
    return [stamps for seq, stamps in times.items() if seq != LONG]


def long_prompt(num_tokens: int, vocab_size: int) -> list[int]:
    return [7 + i % (vocab_size - 7) for i in range(num_tokens)]


def drain(coordinator: Coordinator, device: Device) -> None:
    """Let steps in flight end, so that the next round starts on idle lanes."""
    while coordinator.prefill.inflight or coordinator.decode.inflight:
        for state in (coordinator.prefill, coordinator.decode):
            for result in state.lane.poll(time.monotonic_ns()):
                state.settle(result, time.monotonic_ns())
        select.select(device.files(), [], [], 0.05)


def figures(scheduler: SchedulerName, times: dict[SeqId, list[float]], arrival_s: float) -> Round:
    first_token_s = times[LONG][0]
    gaps = [gap for stamps in streams(times) for gap in pairwise(stamps)]
    alone = [after - before for before, after in gaps if after <= arrival_s]
    beside = [after - before for before, after in gaps if after > arrival_s and before < first_token_s]
    return Round(
        scheduler,
        1e3 * statistics.median(alone),
        1e3 * statistics.median(beside),
        1e3 * max(beside),
        1e3 * (first_token_s - arrival_s),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=DEMO, help="checkpoint folder (default: the demo model)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=1800)
    parser.add_argument("--chunk-tokens", type=int, default=512, help="prefill chunk and step token budget")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    base = {"model_dir": str(args.model), "prefill_chunk_tokens": args.chunk_tokens}
    base["step_token_budget"] = args.chunk_tokens
    schedulers: list[SchedulerName] = ["semipd", "prefill-first", "chunked"]
    device = open_device(
        default_engine_settings(**base), lambda phase, limit_s: print(f"{phase} (at most {limit_s:g} s)")
    )
    try:
        rounds = [
            # "fixed" shows what dividing does; in mode auto the policy may choose merged steps instead
            measure(
                device,
                default_engine_settings(**base, scheduler=scheduler, partition_mode="fixed"),
                args.prompt_tokens,
            )
            for _ in range(args.rounds)
            for scheduler in schedulers
        ]
        print(f"{device.info.name}, {device.info.dtype}; medians of {args.rounds} alternating rounds")
    finally:
        device.close()
    summary = [summarise(scheduler, rounds) for scheduler in schedulers]
    print("scheduler       ITL alone   ITL beside prefill (median, worst)   TTFT of the long prompt")
    for r in summary:
        print(
            f"{r.scheduler:14s} {r.itl_alone_ms:7.1f} ms {r.itl_median_ms:12.1f} ms {r.itl_worst_ms:9.1f} ms"
            f" {r.ttft_ms:19.1f} ms"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in summary], indent=1) + "\n")


def summarise(scheduler: str, rounds: list[Round]) -> Round:
    own = [r for r in rounds if r.scheduler == scheduler]
    columns = zip(*[(r.itl_alone_ms, r.itl_median_ms, r.itl_worst_ms, r.ttft_ms) for r in own], strict=True)
    return Round(scheduler, *map(statistics.median, columns))


if __name__ == "__main__":
    main()
