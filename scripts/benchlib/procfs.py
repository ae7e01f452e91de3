"""CPU time of a process and all its descendants, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessCpu:
    """`cpu_s`: user and system time of its threads and of the children it has waited for."""

    pid: int
    parent: int
    label: str
    cpu_s: float


def process_tree(root: int) -> dict[int, ProcessCpu]:
    """The process `root` and its descendants that live now; empty when `root` is gone."""
    everyone = {entry.pid: entry for entry in map(_read, _pids()) if entry is not None}
    tree = {root: everyone[root]} if root in everyone else {}
    grown = -1
    while grown != len(tree):
        grown = len(tree)
        tree |= {pid: entry for pid, entry in everyone.items() if entry.parent in tree}
    return tree


def cpu_used(before: dict[int, ProcessCpu], after: dict[int, ProcessCpu]) -> list[ProcessCpu]:
    """What each process used between two looks at a tree. One that ended in between is counted with the
    parent that waited for it."""
    spent = {pid: entry.cpu_s - (before[pid].cpu_s if pid in before else 0) for pid, entry in after.items()}
    for pid, entry in before.items():
        if pid not in after and entry.parent in spent:
            spent[entry.parent] -= entry.cpu_s
    return [ProcessCpu(pid, entry.parent, entry.label, spent[pid]) for pid, entry in after.items()]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _read(pid: int) -> ProcessCpu | None:
    """None when it has just gone."""
    try:
        # the name in parentheses may hold anything, so count from its end: state is field 3
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    ticks = sum(map(int, fields[11:15]))
    return ProcessCpu(pid, int(fields[1]), _label(arguments), ticks / _TICKS_PER_S)


def _label(arguments: list[str]) -> str:
    """The module or script that a Python runs, else the program."""
    program = Path(arguments[0]).name
    if not program.startswith("python"):
        return program
    if "-m" in arguments[:-1]:
        return arguments[arguments.index("-m") + 1]
    scripts = [argument for argument in arguments[1:] if argument and not argument.startswith("-")]
    return Path(scripts[0]).name if scripts else program
