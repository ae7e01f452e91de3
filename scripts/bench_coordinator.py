"""Microseconds of coordinator work per tick, on the fake device at decode batch 1, 64 and 256.

    python scripts/bench_coordinator.py [--ticks 2000] [--json FILE]

Every tick settles one decode step and launches the next. Time inside the device (`launch`, `poll`) is
measured apart and not counted; encoding the outbox into frames is given in a column of its own.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from semipd.config.config import default_engine_settings
from semipd.core.messages import Submit
from semipd.core.plan import StepPlan, StepResult
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.devices.fake import FakeDevice, FakeLane
from semipd.engine.coordinator import Coordinator
from semipd.wire.engine_link import outbound_to_wire
from semipd.wire.frames import encode_frame

PROMPT_TOKENS = 32


@dataclass
class Figures:
    """Microseconds per tick."""

    batch: int
    ticks: int
    median_us: float
    p99_us: float
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
        start = time.perf_counter_ns()
        self.lane.launch(plan, now_ns)
        self.spent_ns += time.perf_counter_ns() - start

    def poll(self, now_ns: int) -> list[StepResult]:
        start = time.perf_counter_ns()
        results = self.lane.poll(now_ns)
        self.spent_ns += time.perf_counter_ns() - start
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
        start = time.perf_counter_ns()
        turn = coordinator.tick(now_ns, inbox)
        spent_ns = time.perf_counter_ns() - start - device.take_spent_ns()
        start = time.perf_counter_ns()
        frames = [encode_frame(outbound_to_wire(message)) for message in turn.outbox]
        if len(coordinator.scheduler.decoding) == batch and frames:
            tick_us.append(spent_ns / 1e3)
            encode_us.append((time.perf_counter_ns() - start) / 1e3)
        inbox = []
        assert turn.wake_at_ns is not None, "the engine fell idle"
        now_ns = turn.wake_at_ns
    coordinator.check_integrity()
    p99 = statistics.quantiles(tick_us, n=100)[98]
    return Figures(batch, num_ticks, statistics.median(tick_us), p99, statistics.median(encode_us))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ticks", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    figures = [measure(batch, args.ticks) for batch in (1, 64, 256)]
    print("batch   tick median us   tick p99 us   encode median us")
    for f in figures:
        print(f"{f.batch:5d}   {f.median_us:14.1f}   {f.p99_us:11.1f}   {f.encode_median_us:16.1f}")
    if args.json:
        args.json.write_text(json.dumps([asdict(f) for f in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
