"""Tries the configurations of the attention kernels on a GPU and writes the fastest to tuned.json.

    python scripts/tune_kernels.py
    python scripts/tune_kernels.py --op decode_attention --head-dim 128 --sms 0,64,48

For each operation, head dimension and SM count (0: the whole device; others: green contexts) every candidate
of `<op>/configs.py` is compared with the reference, then timed on a few shapes; the best geometric mean wins,
and replaces what is in use if it is at least 2 % faster. Entries that were not measured stay as they are.
tuned.json is written anew after each result; run `make check` afterwards, which compiles what is in use now.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
for folder in (ROOT, ROOT / "kernels"):  # a bare GPU image has not installed us
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from kernellib import tuning  # noqa: E402
from kernellib.budget import Budget  # noqa: E402
from kernellib.supervise import Record, RefusedError, Reporter, supervise  # noqa: E402
from semipd_kernels import tuned  # noqa: E402

TABLE = ROOT / "kernels" / "semipd_kernels" / "tuned.json"
SMS = (0, 64, 48, 40, 32, 80, 24, 16)
HEAD_DIMS = (128, 64, 256)
PIECE_LIMIT_S = 120.0
BUDGET_S = 540.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.child:
        from kernellib import tune_child

        return tune_child.run(Reporter())
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    before = tuned.parse(options.table.read_text(), str(options.table))
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        text = f"{record['us']} us" if record["kind"] == "result" else record.get("error", "")
        print(f"{record['kind']} {record.get('key', '')} {text}", file=sys.stderr, flush=True)
        if record["kind"] == "result":
            _replace(options.table, tuned.render(tuning.updated(before, tuning.winners(records))))

    job = {
        "sms": options.sms,
        "ops": options.op or tuning.TUNED_OPS,
        "head_dims": options.head_dim or HEAD_DIMS,
    }
    command = [sys.executable, __file__, "--child"]
    try:
        supervise(command, job, Budget(options.budget_s, time.monotonic), PIECE_LIMIT_S, keep)
    except RefusedError as refused:
        print(f"error: {refused}", file=sys.stderr)
        return 1
    return _summarise(records, options.table)


def _summarise(records: Sequence[Record], table: Path) -> int:
    won = tuning.winners(records)
    if not won:
        print("error: no configuration could be measured; tuned.json is unchanged", file=sys.stderr)
        return 1
    print(tuning.render(won))
    for record in records:
        if record["kind"] in ("error", "note"):
            print(f"failed: {record.get('key', '')} {record['error']}")
    skipped = sum(record["kind"] == "skipped" for record in records)
    print(
        f"{table}: {len(won)} entries written"
        + (f"; {skipped} candidates left for lack of time" * bool(skipped))
    )
    return 0


def _replace(path: Path, text: str) -> None:
    tuned.parse(text)  # what we write, we can read
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text)
    unfinished.rename(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--op", action="append", choices=tuning.TUNED_OPS, help="only this one; may be repeated"
    )
    parser.add_argument("--head-dim", action="append", type=int, choices=HEAD_DIMS, help="may be repeated")
    parser.add_argument("--sms", type=_sizes, default=list(SMS), help="SM counts, 0 for the whole device")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="time limit in seconds")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to update")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
