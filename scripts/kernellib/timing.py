"""Time of one launch on a lane, from CUDA events around replays of a captured graph."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WARM_UPS = 3
REPLAY_US = 2_000
MAX_CALLS = 64
REPLAYS = 9


@dataclass(frozen=True, slots=True)
class Timed:
    """`us`: median over replays of the time per call. `spread`: (slowest - fastest) / median.
    `graph` is false when the calls could not be captured: then Python's launch time may be in it."""

    us: float
    spread: float
    graph: bool


def measure(torch: Any, lane: Any, calls: Sequence[Callable[[], object]]) -> Timed:
    """`calls` do the same work on different data, which together exceed the L2 cache; they take turns."""
    with torch.cuda.stream(lane.stream):
        for idx in range(max(WARM_UPS, len(calls))):  # compiles, fills caches
            calls[idx % len(calls)]()
        lane.stream.synchronize()
        once_us = _elapsed_us(torch, lane, lambda: [call() for call in calls]) / len(calls)
        count = num_calls(once_us, len(calls))
        sequence = [calls[idx % len(calls)] for idx in range(count)]
        replay, captured = _capture(torch, lane, sequence)
        times = [_elapsed_us(torch, lane, replay) / count for _ in range(REPLAYS + 1)][1:]
    return Timed(statistics.median(times), (max(times) - min(times)) / statistics.median(times), captured)


def num_calls(once_us: float, num_sets: int) -> int:
    """Whole turns through the sets, so that a replay takes about REPLAY_US."""
    turns = max(1, min(round(REPLAY_US / max(once_us, 1.0) / num_sets), MAX_CALLS // num_sets))
    return turns * num_sets


def _capture(
    torch: Any, lane: Any, sequence: Sequence[Callable[[], object]]
) -> tuple[Callable[[], Any], bool]:
    def eager() -> None:
        for call in sequence:
            call()

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=lane.stream):
            eager()
    except RuntimeError:
        torch.cuda.synchronize()  # raises what was worse than an operation that cannot be captured
        return eager, False
    return graph.replay, True


def _elapsed_us(torch: Any, lane: Any, run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(lane.stream)
    run()
    end.record(lane.stream)
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3
