"""What the assembler made of a kernel: registers and spills, read with the tools that triton ships."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from kernellib.report.loops import UnclearFlowError, innermost_loops

TOOL_LIMIT_S = 120
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_COPY = re.compile(r"\b(?:LDGSTS|UTMALDG)\b")
_DEPBAR = re.compile(r"(?<!\.)\bDEPBAR\.LE SB0, (0x[0-9a-f]+)")
_TENSOR = re.compile(r"\b(?:HMMA|HGMMA)\b")
_LOCAL = re.compile(r"\b(?:LDL|STL)(\.\w+)*\b")


@dataclass(frozen=True, slots=True)
class CubinFacts:
    """
    Attributes:
        registers: per thread.
        spill_bytes: stack of one thread. Triton's kernels have no arrays and no calls, so it holds spills.
        spills_in_loops: instructions of innermost loops that load or store them; None when the machine code
            does not tell its loops.
        async_depth: groups of asynchronous copies that may be under way when a streaming loop goes on after
            its wait, the least of all; 0: it waits for loads of its own turn. None without such a loop, or
            unknown. Streaming: innermost loops with asynchronous copies, and with tensor-core instructions if
            any of them has some: another one only fills the pipeline for the next item.
        turn_instructions: of the innermost loops with tensor-core instructions and asynchronous copies,
            the fewest in one turn; those with masks have more. 0 without such a loop.
    """

    registers: int
    spill_bytes: int
    spills_in_loops: int | None
    async_depth: int | None = None
    turn_instructions: int = 0


def inspect(cubin: bytes, *, streams: bool = False) -> CubinFacts:
    """`streams`: its streaming loops are read too.

    Raises `RuntimeError` with the tool's words when the cubin cannot be read."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        registers, stack = parse_usage(_run("cuobjdump", "-res-usage", file.name))
        if not stack and not streams:
            return CubinFacts(registers, 0, 0)  # disassembling takes seconds
        sass = _run("nvdisasm", "-c", file.name)
        return CubinFacts(registers, stack, spills_in_loops(sass), async_depth(sass), turn_instructions(sass))


def parse_usage(text: str) -> tuple[int, int]:
    """Registers and stack bytes of the only function of a cubin."""
    usages = _USAGE.findall(text)
    if len(usages) != 1:
        raise RuntimeError(f"cuobjdump reports {len(usages)} functions, 1 expected: {text.strip()[:300]}")
    return int(usages[0][0]), int(usages[0][1])


def spills_in_loops(sass: str) -> int | None:
    loops = _loops(sass)
    if loops is None:
        return None
    return sum(bool(_LOCAL.search(instruction)) for loop in loops for instruction in loop)


def async_depth(sass: str) -> int | None:
    copying = [loop for loop in _loops(sass) or [] if any(map(_COPY.search, loop))]
    waits = [map(_DEPBAR.search, loop) for loop in _multiplying(copying) or copying]
    return min((int(wait[1], 16) for loop in waits for wait in loop if wait), default=None)


def turn_instructions(sass: str) -> int:
    copying = [loop for loop in _loops(sass) or [] if any(map(_COPY.search, loop))]
    return min(map(len, _multiplying(copying)), default=0)


def _multiplying(loops: list[list[str]]) -> list[list[str]]:
    return [loop for loop in loops if any(map(_TENSOR.search, loop))]


@lru_cache(maxsize=1)
def _loops(sass: str) -> list[list[str]] | None:
    """None where the machine code does not tell its loops. Asked three times of each kernel."""
    try:
        return innermost_loops(sass)
    except UnclearFlowError:
        return None


def _run(tool: str, *args: str) -> str:
    done = subprocess.run([_tools() / tool, *args], capture_output=True, text=True, timeout=TOOL_LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{tool} failed with status {done.returncode}: {done.stderr.strip()[:300]}")
    return done.stdout


@cache
def _tools() -> Path:
    import triton

    return Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"
