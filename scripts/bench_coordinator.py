"""Microseconds of processor time of a coordinator's tick, on the fake device: at decode batch 1, 64 and 256,
and with 1,000 requests waiting beside a batch of 64, for each order of prompts.

    python scripts/bench_coordinator.py [--ticks 2000] [--json FILE]

Every tick settles one decode step and launches the next. With requests waiting, each tick also computes a
chunk, and who leaves the queue is replaced: prompts of 16 to 512 tokens, a third with a common prefix, due at
very different times. Time inside the device (`launch`, `poll`) is
measured apart and not counted; encoding the outbox into frames is given in a column of its own.
"""

import argparse
import json
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from semipd.config.config import default_engine_settings
from semipd.core.messages import Submit
from semipd.core.plan import StepPlan, StepResult
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import OrderName
from semipd.core.slo import Targets
from semipd.devices.fake import FakeDevice, FakeLane
from semipd.engine.coordinator import Coordinator
from semipd.wire.engine_link import outbound_to_wire
from semipd.wire.frames import encode_frame

PROMPT_TOKENS = 32
WARM_UP_TICKS = 200


@dataclass
class Figures:
    """Microseconds of processor time per tick: what else runs on the machine hardly counts."""

    batch: int
    waiting: int
    order: OrderName
    ticks: int
    median_us: float
    p99_us: float
    max_us: float
    encode_median_us: float


class TimedLane:
    """A fake lane that knows how long its launches and polls took, so that a tick's time can exclude them."""

    def __init__(self, lane: FakeLane) -> None:
        self.spent_ns = 0
        self.lane = lane
        self.name = lane.name
        self.capacity = lane.capacity
        self.rebuild = lane.rebuild

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        start = time.thread_time_ns()
        self.lane.launch(plan, now_ns)
        self.spent_ns += time.thread_time_ns() - start

    def poll(self, now_ns: int) -> list[StepResult]:
        start = time.thread_time_ns()
        results = self.lane.poll(now_ns)
        self.spent_ns += time.thread_time_ns() - start
        return results


class TimedDevice(FakeDevice):
    """The fake device with a stopwatch on both lanes."""

    def __init__(self, num_blocks: int, max_model_len: int) -> None:
        super().__init__(num_blocks=num_blocks, max_model_len=max_model_len)
        self.timed = (TimedLane(self.prefill), TimedLane(self.decode))
        self.wake_lanes = (self.prefill, self.decode)
        self.prefill, self.decode = self.timed  # type: ignore[assignment]

    def wake_at_ns(self) -> int | None:
        times = [lane.next_finish_ns() for lane in self.wake_lanes]
        return min((time for time in times if time is not None), default=None)

    def take_spent_ns(self) -> int:
        spent_ns = sum(lane.spent_ns for lane in self.timed)
        for lane in self.timed:
            lane.spent_ns = 0
        return spent_ns


def measure(batch: int, num_ticks: int) -> Figures:
    tokens = num_ticks + 200
    device = TimedDevice(num_blocks=batch * (tokens // 16 + 4) + 2, max_model_len=tokens + PROMPT_TOKENS + 1)
    settings = default_engine_settings(
        device="fake", max_num_seqs=batch, prefill_chunk_tokens=batch * PROMPT_TOKENS
    )
    coordinator = Coordinator(device, settings)
    params = SamplingParams(max_tokens=tokens, seed=1)
    now_ns, tick_us, encode_us = 0, list[float](), list[float]()
    inbox = [Submit(Request(SeqId(i), str(i), [i] * PROMPT_TOKENS, params, i)) for i in range(1, batch + 1)]
    while len(tick_us) < num_ticks:
        start = time.thread_time_ns()
        turn = coordinator.tick(now_ns, inbox)
        spent_ns = time.thread_time_ns() - start - device.take_spent_ns()
        start = time.thread_time_ns()
        frames = [encode_frame(outbound_to_wire(message)) for message in turn.outbox]
        if len(coordinator.scheduler.decoding) == batch and frames:
            tick_us.append(spent_ns / 1e3)
            encode_us.append((time.thread_time_ns() - start) / 1e3)
        inbox = []
        assert turn.wake_at_ns is not None, "the engine fell idle"
        now_ns = turn.wake_at_ns
    coordinator.check_integrity()
    return _figures(batch, 0, settings.order, tick_us, encode_us)


def _figures(
    batch: int, waiting: int, order: OrderName, tick_us: list[float], encode_us: list[float]
) -> Figures:
    median_us, p99_us = statistics.median(tick_us), statistics.quantiles(tick_us, n=100)[98]
    encode_median_us = statistics.median(encode_us)
    return Figures(batch, waiting, order, len(tick_us), median_us, p99_us, max(tick_us), encode_median_us)


def measure_waiting(order: OrderName, num_ticks: int, num_waiting: int = 1000, batch: int = 64) -> Figures:
    """Step times are learned during the first ticks, which do not count."""
    rng = random.Random(1)
    device = TimedDevice(num_blocks=batch * 1024, max_model_len=num_ticks + 2000)
    settings = default_engine_settings(
        device="fake", scheduler="chunked", order=order, max_num_seqs=batch + 8, step_token_budget=batch + 64
    )
    coordinator = Coordinator(device, settings)
    now_ns, next_seq, tick_us, encode_us = 0, 0, list[float](), list[float]()
    while len(tick_us) < num_ticks + WARM_UP_TICKS:
        missing = num_waiting - coordinator.scheduler.queue.num_waiting
        inbox = [
            Submit(_waiting_request(rng, next_seq + idx, now_ns, batch)) for idx in range(1, missing + 1)
        ]
        next_seq += missing
        start = time.thread_time_ns()
        turn = coordinator.tick(now_ns, inbox)
        tick_us.append((time.thread_time_ns() - start - device.take_spent_ns()) / 1e3)
        start = time.thread_time_ns()
        for message in turn.outbox:
            encode_frame(outbound_to_wire(message))
        encode_us.append((time.thread_time_ns() - start) / 1e3)
        assert turn.wake_at_ns is not None, "the engine fell idle"
        now_ns = max(turn.wake_at_ns, now_ns)
    coordinator.check_integrity()
    return _figures(batch, num_waiting, order, tick_us[WARM_UP_TICKS:], encode_us[WARM_UP_TICKS:])


def _waiting_request(rng: random.Random, seq: int, now_ns: int, batch: int) -> Request:
    """The first ones decode all the time; the others leave with their first token."""
    prefix = [7] * rng.choice([0, 0, 160])
    prompt = prefix + [rng.randrange(900) for _ in range(rng.randint(16, 352))]
    params = SamplingParams(max_tokens=10**6 if seq <= batch else 1, seed=1)
    targets = Targets(ttft_ms=rng.choice([1_000.0, 10_000.0, 1e6]), ttft_ms_per_1k_tokens=100.0)
    return Request(SeqId(seq), str(seq), prompt, params, now_ns, targets=targets, accept_late=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ticks", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    figures = [measure(batch, args.ticks) for batch in (1, 64, 256)]
    figures += [measure_waiting(order, args.ticks) for order in get_args(OrderName)]
    print("batch   waiting   order      tick median us   tick p99 us   tick max us   encode median us")
    for f in figures:
        print(
            f"{f.batch:5d}   {f.waiting:7d}   {f.order:8s}   {f.median_us:14.1f}   {f.p99_us:11.1f}   "
            f"{f.max_us:11.1f}   {f.encode_median_us:16.1f}"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(f) for f in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
