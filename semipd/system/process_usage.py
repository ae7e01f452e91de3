"""What a process and its descendants have used so far, from /proc: CPU time, bytes from disk, and the time
that they were ready to run while others ran."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Attributes:
    cpu_s: CPU time of all threads.
    read_bytes: read from disk, pages of mapped files included.
    withheld_s: time that the main thread of one process waited for a core: of the one that waited longest.
    waits_s: of each process.
    """

    cpu_s: float = 0.0
    read_bytes: int = 0
    withheld_s: float = 0.0
    waits_s: Mapping[int, float] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, parts: Sequence["ProcessUsage"]) -> "ProcessUsage":
        waits_s = {pid: wait_s for part in parts for pid, wait_s in part.waits_s.items()}
        cpu_s, read_bytes = sum(part.cpu_s for part in parts), sum(part.read_bytes for part in parts)
        return cls(cpu_s, read_bytes, max(waits_s.values(), default=0.0), waits_s)

    def since(self, before: "ProcessUsage") -> "ProcessUsage":
        """Never negative: what a process had used goes with it."""
        withheld_s = self.withheld_s - before.withheld_s
        if self.waits_s:
            new_s = [wait_s - before.waits_s.get(pid, 0.0) for pid, wait_s in self.waits_s.items()]
            withheld_s = max(new_s)
        return ProcessUsage(
            max(self.cpu_s - before.cpu_s, 0.0),
            max(self.read_bytes - before.read_bytes, 0),
            max(withheld_s, 0.0),
        )


NOTHING = ProcessUsage()


def tree_usage(root: int, proc: Path = PROC) -> ProcessUsage:
    """Of process `root` and its descendants. What cannot be read counts as nothing."""
    return ProcessUsage.of([process_usage(pid, proc) for pid in _with_descendants(root, proc)])


def process_usage(pid: int, proc: Path = PROC) -> ProcessUsage:
    folder = proc / str(pid)
    wait_s = _withheld_s(folder)
    return ProcessUsage(_cpu_s(folder), _read_bytes(folder), wait_s, {pid: wait_s})


def waiting_time(pid: int, proc: Path = PROC) -> ProcessUsage:
    """Of one process, only what it has waited for a core: a fifth of the work, for who asks at every step."""
    wait_s = _withheld_s(proc / str(pid))
    return ProcessUsage(withheld_s=wait_s, waits_s={pid: wait_s})


def _with_descendants(root: int, proc: Path) -> list[int]:
    if not (proc / f"{root}/task/{root}/children").exists():
        return _by_parents(root, proc)
    pids = [root]
    for pid in pids:  # grows meanwhile
        pids += map(int, _text(proc / f"{pid}/task/{pid}/children").split())
    return pids


def _by_parents(root: int, proc: Path) -> list[int]:
    """For kernels that do not list children."""
    parents = {int(path.name): _fields(path)[1:2] for path in proc.iterdir() if path.name.isdecimal()}
    return _grown([root], {pid: int(parent[0]) for pid, parent in parents.items() if parent})


def _grown(pids: list[int], parents: dict[int, int]) -> list[int]:
    for parent in pids:  # grows meanwhile
        pids += [pid for pid, its_parent in parents.items() if its_parent == parent]
    return pids


def _cpu_s(folder: Path) -> float:
    """Children that were waited for included."""
    return sum(map(int, _fields(folder)[11:15])) / _TICKS_PER_S


def _fields(folder: Path) -> list[str]:
    """Of `stat`, from the state (field 3) on: the name before it may hold anything."""
    return _text(folder / "stat").rpartition(")")[2].split()


def _read_bytes(folder: Path) -> int:
    return _number_after("read_bytes:", _text(folder / "io").splitlines())


def _number_after(label: str, lines: Iterable[str]) -> int:
    return sum(int(line.removeprefix(label)) for line in lines if line.startswith(label))


def _withheld_s(folder: Path) -> float:
    """0 where the kernel keeps no such statistics."""
    words = _text(folder / "schedstat").split()
    return int(words[1]) / 1e9 if len(words) > 1 else 0.0


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
