"""Which cores there are, how they may be split, and moving a process to its share."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from semipd.core.split import LaneName, Split
from semipd.devices.cpu.cgroups import ROOT, cpu_quota


def usable_cores(root: Path = ROOT) -> tuple[int, ...]:
    """Cores of our affinity mask, no more than the cgroup's CPU quota pays for."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    quota = cpu_quota(root)
    return cores if quota is None else cores[: max(1, int(quota))]


def split_table(num_cores: int) -> tuple[Split, ...]:
    """Every split with both lanes busy, by rising decode share; empty for one core."""
    return tuple(Split(num_cores - decode, decode) for decode in range(1, num_cores))


def lane_cores(cores: Sequence[int], lane: LaneName, split: Split) -> tuple[int, ...]:
    """Prefill holds the first cores, decode the last, so a change of split moves only the border."""
    units = split.units_of(lane)
    assert 1 <= units <= len(cores), f"{lane} has {units} of {len(cores)} cores under {split}"
    return tuple(cores[:units] if lane == "prefill" else cores[len(cores) - units :])


def pin_process(cores: Sequence[int]) -> None:
    """Move every thread of this process: setting the process itself would move only its main thread."""
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:
            continue  # the thread has ended meanwhile


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name for people; its architecture where the kernel does not say more, as on Arm."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.machine() or 'unknown'} CPU"
