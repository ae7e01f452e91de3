"""What first contact does, in which order and how long: most wanted first, so that a run that is cut short
tells as much as it can."""

import sys
from dataclasses import dataclass
from pathlib import Path

from gpulib.parts import Part

SCRIPTS = Path(__file__).resolve().parents[1]
TOTAL_S = 470.0
"""The whole call then ends within 480 s."""
CHECKS = "info,build,sm_sets,graph_binding,queue_alias,switch_cost,bandwidth,gemm,interference"


@dataclass(frozen=True, slots=True)
class Planned:
    """`planned_s`: an estimate, not measured yet. `limit_s`: after it the part is ended with all it started;
    all limits together are no more than TOTAL_S, so that no part takes time from a later one."""

    name: str
    planned_s: float
    limit_s: float
    what: str


PLAN = (
    Planned("environment", 8, 20, "versions, driver, memory, copy bandwidth"),
    Planned("compile", 40, 60, "all kernels, in parallel, without the GPU"),
    Planned("facts", 35, 55, "green contexts: SMs, graphs, queues, switches, bandwidth and products by SMs"),
    Planned("kernels", 65, 80, "parity and speed of the kernels on 132, 64 and 40 SMs"),
    Planned("parity", 45, 65, "tokens: float32 semipd, bfloat16 through live switches"),
    Planned("engine", 165, 190, "Llama-3-8B, opened once: steps, latency beside prompts, constants, goodput"),
)


def parts(out: Path) -> list[Part]:
    """As processes. `out`: the folder of the results."""
    return [Part(planned.name, command(planned.name, out), planned.limit_s) for planned in PLAN]


def command(name: str, out: Path) -> list[str]:
    """Its last argument, the file of its result, is added by who runs it."""
    if name == "facts":
        checks = SCRIPTS / "gpu_first_contact" / "gpu_checks.py"
        return [sys.executable, str(checks), "--sections", CHECKS, "--out"]
    return [sys.executable, str(SCRIPTS / "gpu_contact.py"), str(out), "--part", name]


def table() -> str:
    lines = ["| part | planned s | limit s | what |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {p.name} | {p.planned_s:g} | {p.limit_s:g} | {p.what} |" for p in PLAN]
    planned_s, limit_s = sum(p.planned_s for p in PLAN), sum(p.limit_s for p in PLAN)
    return "\n".join([*lines, f"| **all** | {planned_s:g} | {limit_s:g} | at most {TOTAL_S:g} s |"])
