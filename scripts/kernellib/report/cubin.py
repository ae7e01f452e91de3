"""What the assembler made of a kernel: registers and spills, read with the tools that triton ships."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kernellib.report.loops import UnclearFlowError, innermost_loops

TOOL_LIMIT_S = 120
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_LOCAL = re.compile(r"\b(?:LDL|STL)(\.\w+)*\b")


@dataclass(frozen=True, slots=True)
class CubinFacts:
    """
    Attributes:
        registers: per thread.
        spill_bytes: stack of one thread. Triton's kernels have no arrays and no calls, so it holds spills.
        spills_in_loops: instructions of innermost loops that load or store them; None when the machine code
            does not tell its loops.
    """

    registers: int
    spill_bytes: int
    spills_in_loops: int | None


def inspect(cubin: bytes) -> CubinFacts:
    """Raises `RuntimeError` with the tool's words when the cubin cannot be read."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        registers, stack = parse_usage(_run("cuobjdump", "-res-usage", file.name))
        if not stack:
            return CubinFacts(registers, 0, 0)  # disassembling takes seconds
        return CubinFacts(registers, stack, spills_in_loops(_run("nvdisasm", "-c", file.name)))


def parse_usage(text: str) -> tuple[int, int]:
    """Registers and stack bytes of the only function of a cubin."""
    usages = _USAGE.findall(text)
    if len(usages) != 1:
        raise RuntimeError(f"cuobjdump reports {len(usages)} functions, 1 expected: {text.strip()[:300]}")
    return int(usages[0][0]), int(usages[0][1])


def spills_in_loops(sass: str) -> int | None:
    try:
        loops = innermost_loops(sass)
    except UnclearFlowError:
        return None
    return sum(bool(_LOCAL.search(instruction)) for loop in loops for instruction in loop)


def _run(tool: str, *args: str) -> str:
    done = subprocess.run([_tools() / tool, *args], capture_output=True, text=True, timeout=TOOL_LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{tool} failed with status {done.returncode}: {done.stderr.strip()[:300]}")
    return done.stdout


@cache
def _tools() -> Path:
    import triton

    return Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
