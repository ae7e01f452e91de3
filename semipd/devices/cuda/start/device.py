"""The CUDA device: one process, one copy of weights and KV pool, two lanes of SMs (DESIGN section 2)."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from semipd.checkpoints.progress import Report
from semipd.core.settings import EngineSettings
from semipd.core.state.device import DeviceStats, SwitchTimes
from semipd.devices.cuda.lane.lane import CudaLane
from semipd.devices.cuda.split.streams import SwitchStats
from semipd.devices.cuda.start.model import Checkpoint, ModelSource
from semipd.devices.cuda.start.opening import Opened, Opening
from semipd.devices.cuda.start.platform import Platform, real_platform

DECODE_DEPTH = 2
"""The host runs one step behind the device."""

PREFILL_DEPTH = 2
"""Nothing is fed back between two chunks of a prompt, so the next one waits on the device. In the
millisecond or two in which host and coordinator turn around, a tenth of a chunk of 256 tokens is computed."""

_START_S = 60.0
_GRAPH_POLL_S = 0.01
_WAKE_NS = 1_000_000_000


class CudaDevice:
    """See devices.contract.Device."""

    def __init__(self, opened: Opened, stack: ExitStack) -> None:
        self.info = opened.info
        self.prefill = CudaLane("prefill", opened.thread, PREFILL_DEPTH)
        self.decode = CudaLane("decode", opened.thread, DECODE_DEPTH)
        self._opened = opened
        self._stack = stack

    @classmethod
    def open(
        cls,
        settings: EngineSettings,
        report: Report,
        source: ModelSource | None = None,
        platform_of: Callable[[], Platform] = real_platform,
    ) -> "CudaDevice":
        """`source`: of the weights; None: the folder that the settings name.

        Raises SemipdError: what reading the checkpoint raises, `cuda_unavailable`, `insufficient_memory`;
        CudaError; LaneFailed. Nothing is left behind then. A device that cannot be divided is no error:
        `info.splits` is empty.
        """
        with ExitStack() as stack:
            report("starting CUDA", _START_S)
            platform = platform_of()
            stack.callback(platform.close)
            opened = Opening(settings, report, platform, source or Checkpoint(settings), stack).run()
            return cls(opened, stack.pop_all())

    def files(self) -> Sequence[int]:
        return [self._opened.thread.fileno()]

    def wake_at_ns(self) -> int | None:
        """While work is in flight somebody has to notice that the launch thread hangs."""
        return time.monotonic_ns() + _WAKE_NS if self._opened.thread.is_busy else None

    def wait_for_graphs(self, limit_s: float) -> int:
        """For measurements: start-up captures only what it has time for. Blocks, while the lanes are idle,
        until every graph is captured or `limit_s` has passed; returns how many are missing."""
        tables, end_s = self._opened.graphs.values(), time.monotonic() + limit_s
        while (missing := sum(table.num_missing for table in tables)) and time.monotonic() < end_s:
            if self._opened.thread.has_failed:
                break
            time.sleep(_GRAPH_POLL_S)
        return missing

    def stats(self) -> DeviceStats:
        lanes, graphs = self._opened.lanes, self._opened.graphs.values()
        found = lanes.capability
        return {
            "gpu": self._opened.nvml.stats(),
            "partition": {
                "possible": found.can_partition,
                "reason": found.reason,
                "notes": list(found.notes),
            },
            "switches": {name: _switches(stats) for name, stats in lanes.switches.items()},
            "graphs": {
                "captured": sum(len(table) for table in graphs),
                "missing": sum(table.num_missing for table in graphs),
                "hits": sum(table.num_hits for table in graphs),
                "misses": sum(table.num_misses for table in graphs),
            },
            "memory": dict(self.info.memory),
        }

    def close(self) -> None:
        """After a failure nothing that waits for the device is tried: the process ends anyway."""
        thread, stack = self._opened.thread, self._stack.pop_all()
        if thread.stop() and not thread.has_failed:
            stack.close()
        thread.close()


def _switches(stats: SwitchStats) -> SwitchTimes:
    return {
        "count": stats.count,
        "last_us": stats.last_ns / 1e3,
        "mean_us": stats.total_ns / 1e3 / max(stats.count, 1),
        "max_us": stats.max_ns / 1e3,
    }
