"""Checks, then times every kernel on a GPU: on the whole device and inside green contexts of 16 to 80 SMs.

    python scripts/bench_kernels.py
    python scripts/bench_kernels.py --op decode_attention --sms 0,64,48 --budget-s 120 --out /tmp/kernels

One call, under 8 minutes. Times stand against limits measured in the same run (copy bandwidth, bf16 matmul
rate) and against torch (attention: the best SDPA backend; matmul is cuBLAS itself). Results go to
docs/measurements/ as Markdown and JSON, written anew after each measurement: a run that is cut short leaves
what it has.
The measuring runs in a child process, which is started again without the piece that crashed or hung.
Needs torch with CUDA and triton; green contexts need cuda-bindings 13 and driver 580, else the page says so.
"""

import argparse
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
for folder in (ROOT, ROOT / "kernels"):  # a bare GPU image has not installed us
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from kernellib.bench_table import render  # noqa: E402
from kernellib.budget import Budget  # noqa: E402
from kernellib.supervise import Record, RefusedError, Reporter, supervise  # noqa: E402
from kernellib.workloads import WORK  # noqa: E402

WHOLE_DEVICE = 0
SMS = (WHOLE_DEVICE, 64, 48, 40, 80, 32, 24, 16)
"""Most wanted first."""

PIECE_LIMIT_S = 120.0
BUDGET_S = 450.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.child:
        from kernellib import bench_child

        return bench_child.run(Reporter())
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # lanes must not share hardware queues
    page = Page(options.out, "python scripts/bench_kernels.py " + " ".join(arguments or sys.argv[1:]))
    job = {"sms": options.sms, "ops": options.op or sorted(WORK)}
    budget = Budget(options.budget_s, time.monotonic)
    try:
        supervise([sys.executable, __file__, "--child"], job, budget, PIECE_LIMIT_S, page.keep)
    except RefusedError as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    print(page.text)
    if not page.has_results:
        print("error: nothing was measured", file=sys.stderr)
        return 1
    print(f"{budget.used_s:.0f} s; {page.path}")
    return 0


class Page:
    """The results so far, in a Markdown and a JSON file named after the day and the device."""

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command.strip()
        self._date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        self._records: list[Record] = []
        self._device = "gpu"

    @property
    def path(self) -> Path:
        return self._folder / f"{self._date}-kernels-{self._device}.md"

    @property
    def text(self) -> str:
        return render(self._records, self._date, self._command)

    @property
    def has_results(self) -> bool:
        return any(record["kind"] == "result" for record in self._records)

    def keep(self, record: Record) -> None:
        if record in self._records:
            return  # a child that was started again describes the device again
        if record["kind"] == "device":
            self._device = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
        self._records.append(record)
        print(_progress(record), file=sys.stderr, flush=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        _replace(self.path, self.text)
        _replace(self.path.with_suffix(".json"), json.dumps(self._records, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_suffix(path.suffix + ".part")
    unfinished.write_text(text)
    unfinished.rename(path)


def _progress(record: Record) -> str:
    if record["kind"] == "result":
        return f"{record['key']}: {record['us']:.1f} us" if "us" in record else record["key"]
    return f"{record['kind']} {record.get('key', '')} {record.get('error', '')}".strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", action="append", choices=sorted(WORK), help="only this one; may be repeated")
    parser.add_argument("--sms", type=_sizes, default=list(SMS), help="SM counts, 0 for the whole device")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="time limit in seconds")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "measurements", help="folder of the results"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
