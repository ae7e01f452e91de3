"""First contact with a GPU: what an SM partition made of green contexts really does.

    CUDA_DEVICE_MAX_CONNECTIONS=32 python gpu_checks.py --out gpu_checks.json

Sections run in one child process, each under a time limit. The results are written after every
section; when the child hangs or dies, the section is marked and a new child does the rest.

Not yet run on a GPU: the logic was tried with a mocked driver, the probes compiled ahead of time for sm_90.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # must precede CUDA initialisation

import partitions
import rates
from lab import Lab

SECTIONS: dict[str, Callable[[Lab], dict[str, Any]]] = {
    f.__name__: f
    for f in (
        partitions.info, partitions.build, partitions.sm_sets, partitions.graph_binding,
        partitions.queue_alias, partitions.switch_cost, rates.bandwidth, rates.gemm, rates.interference,
        rates.remainder, rates.graph_cost, rates.group_ids, rates.teardown,
    )
}  # fmt: skip


def store(out: Path, name: str, result: dict[str, Any]) -> None:
    results = json.loads(out.read_text()) if out.exists() else {}
    results[name] = result
    out.write_text(json.dumps(results, indent=1, default=str))


def child(names: list[str], out: Path, limit_s: float) -> None:
    faulthandler.dump_traceback_later(limit_s, exit=True)
    lab = Lab()
    for name in names:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        began, sound = time.perf_counter(), True
        try:
            result = SECTIONS[name](lab)
        except Exception:
            result = {"error": traceback.format_exc(limit=-4)}
        try:
            lab.torch.cuda.synchronize()
        except Exception as error:  # a sticky CUDA error: this process is of no more use
            result["after"], sound = repr(error), False
        store(out, name, result | {"section_s": round(time.perf_counter() - began, 2)})
        sys.stderr.write(f"{name} {time.perf_counter() - began:.2f} s\n")
        if not sound:
            os._exit(3)
    os._exit(0)  # skip destructors that may touch destroyed contexts


def parent(names: list[str], out: Path, limit_s: float) -> None:
    out.unlink(missing_ok=True)
    idle_children = 0
    while names and idle_children < 2:
        options = ["--out", str(out), "--limit-s", str(limit_s), "--child", ",".join(names)]
        code = subprocess.run([sys.executable, __file__, *options], check=False).returncode
        done = json.loads(out.read_text()) if out.exists() else {}
        left = [n for n in names if n not in done]
        idle_children = idle_children + 1 if left == names else 0
        if left == names or (left and code not in (0, 3)):
            store(out, left[0], {"error": f"the process ended with status {code}"})
            left = left[1:]
        names = left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--limit-s", type=float, default=40.0)
    parser.add_argument("--child", default="")
    args = parser.parse_args()
    if args.child:
        child(args.child.split(","), args.out, args.limit_s)
    parent(args.sections.split(","), args.out, args.limit_s)


if __name__ == "__main__":
    main()
