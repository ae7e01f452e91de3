"""First contact with a GPU: everything that decides what comes next, in one call of at most 480 s.

    python scripts/gpu_contact.py OUT              # on the machine with the GPU, from the repository root
    python scripts/gpu_contact.py OUT --dry-run    # anywhere: the plan, run by a virtual clock

Each part runs in a process of its own under a time limit and is ended with all that it has started; one that
fails takes nothing from the others. In the folder OUT, whole after each part: contact.json and contact.md
(all results), targets.md (each target beside its figure, for docs/measurements), profile.json (for
`engine.sim_profile` with sim:h200), and kernels/. A part that runs writes to contact.NAME.part.

The engine is driven without the daemon: times exclude HTTP, tokenizing and the socket. Weights are random.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

from contactlib import engine, small  # noqa: E402
from contactlib.plan import PLAN, TOTAL_S, parts, table  # noqa: E402
from contactlib.verdicts import page  # noqa: E402
from gpulib import opening  # noqa: E402
from gpulib.parts import Part, Results, replace_file, run_part, run_parts  # noqa: E402

BODIES: dict[str, engine.RunPart] = {
    "environment": small.environment,
    "compile": small.compile_kernels,
    "kernels": small.kernels,
    "parity": small.parity,
    "engine": engine.engine,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.part:
        name, path = options.part
        opening.prepare_process(os.environ)
        BODIES[name](Results(Path(path)), options.out)
        return 0
    if options.dry_run:
        clock = VirtualClock()
        found = contact(options.out, clock.pass_part, clock)
        print(f"{table()}\n\n{clock.now_s:g} s by the virtual clock")
        return _failures(found)
    opening.refuse_without_cuda("gpu_contact.py")
    os.environ.setdefault("TRITON_CACHE_DIR", str(HERE.parent / ".kernel_cache"))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that parts are ended too
    return _failures(contact(options.out, run_part, time.monotonic))


def contact(
    out: Path, run: Callable[[Part, Path, float], dict[str, Any]], clock: Callable[[], float]
) -> dict[str, Any]:
    def keep(results: dict[str, Any]) -> None:
        done = results["parts"]
        replace_file(out / "targets.md", page(done) + "\n")
        if profile := done.get("engine", {}).get("constants", {}).get("profile"):
            replace_file(out / "profile.json", json.dumps(profile, indent=1) + "\n")

    return run_parts(
        parts(out), out / "contact.json", "First contact", TOTAL_S, run=run, clock=clock, keep=keep
    )


class VirtualClock:
    """Each part takes what is planned, or what `overruns` says, but never more than its limit."""

    def __init__(self, overruns: dict[str, float] | None = None) -> None:
        self.now_s = 0.0
        self._seconds = {planned.name: planned.planned_s for planned in PLAN} | (overruns or {})

    def __call__(self) -> float:
        return self.now_s

    def pass_part(self, part: Part, out: Path, limit_s: float) -> dict[str, Any]:
        took_s = min(self._seconds[part.name], limit_s)
        self.now_s += took_s
        result = {"dry_run": True, "took_s": took_s}
        return (
            result
            if took_s == self._seconds[part.name]
            else result | {"error": f"stopped after {limit_s:g} s"}
        )


def _failures(found: dict[str, Any]) -> int:
    failed = [name for name, result in found["parts"].items() if "error" in result]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument(
        "--dry-run", action="store_true", help="needs no GPU: the parts, their seconds, the files"
    )
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FILE"), help="one part, in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
