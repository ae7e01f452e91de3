"""What the kernels compile to, without a GPU: registers, spills, shared memory, loads, instructions.

    python scripts/kernel_report.py                      # shipped cases, sm_80 and sm_90
    python scripts/kernel_report.py --full --json full.json
    python scripts/kernel_report.py --op decode_attention --cache .kernel_cache

Prints a Markdown table, then one line per violation, and exits with 1 if there is any: spills beyond what a
case allows, more shared memory than an SM has, narrow loads in streaming loops, global scratch memory, a
promised kind of instruction that is missing, or a case that does not compile. sm_100 (with --full) is
reported only. With --cache an unchanged tree answers from the folder at once, and after a change only what
changed compiles.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kernellib.report.build import compile_all
from kernellib.report.facts import Facts
from kernellib.report.report_table import table, verdict

SCRIPTS = Path(__file__).parent
KERNELS = SCRIPTS.parent / "kernels" / "semipd_kernels"
COUNTED_ARCHS = (80, 90)
KEPT_REPORTS = 8
DOCS_BEGIN = "<!-- kernel report: begin -->"
DOCS_END = "<!-- kernel report: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if sys.platform != "linux":
        print("kernel report skipped: Triton exists for Linux only")
        return 0
    try:
        every = _report(tuple(options.op or _all_ops()), options.full, options.workers, options.cache)
        if options.docs:
            insert_table(options.docs, table(every))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps([facts.to_json() for facts in every], indent=1) + "\n")
    failed, noted = verdict(every, COUNTED_ARCHS)
    if not options.summary:
        print(table(every))
    for line in noted:
        print(f"reported only: {line}")
    for line in failed:
        print(f"FAILED {line}")
    cases = len({facts.name for facts in every})
    print(f"{cases} cases, {len(every)} compiled kernels, {len(failed)} violations")
    return 1 if failed or not every else 0


def insert_table(page: Path, text: str) -> None:
    """Replace what stands between the two marks of the page."""
    parts = page.read_text().split(DOCS_BEGIN)
    if len(parts) != 2 or DOCS_END not in parts[1]:
        raise RuntimeError(f"{page} needs one line {DOCS_BEGIN} and after it one line {DOCS_END}")
    triton = importlib.metadata.version("triton")
    folded = f"<details><summary>Triton {triton}</summary>\n\n{text}\n</details>\n"
    page.write_text(f"{parts[0]}{DOCS_BEGIN}\n{folded}{DOCS_END}{parts[1].split(DOCS_END, 1)[1]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="every case, and sm_100")
    parser.add_argument("--op", action="append", help="only this operation; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all facts there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table between its marks there")
    parser.add_argument("--summary", action="store_true", help="no table")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep results and compiled kernels there")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    return parser


def _report(ops: tuple[str, ...], full: bool, workers: int, cache: Path | None) -> list[Facts]:
    if unknown := set(ops) - set(_all_ops()):
        raise RuntimeError(f"No operation {', '.join(sorted(unknown))}; there are {', '.join(_all_ops())}.")
    if cache is None:
        return list(compile_all(ops, full=full, workers=workers))
    os.environ["TRITON_CACHE_DIR"] = str((cache / "triton").absolute())
    kept = cache / f"report-{_fingerprint(ops, full)}.json"
    if kept.exists():
        kept.touch()
        return [Facts.from_json(fields) for fields in json.loads(kept.read_text())]
    every = list(compile_all(ops, full=full, workers=workers))
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps([facts.to_json() for facts in every]))
    unfinished.rename(kept)
    for old in sorted(cache.glob("report-*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT_REPORTS]:
        old.unlink(missing_ok=True)
    return every


def _fingerprint(ops: tuple[str, ...], full: bool) -> str:
    """Of everything the result depends on; reads no module, so that an unchanged tree needs no torch."""
    digest = hashlib.sha256(repr((ops, full, importlib.metadata.version("triton"))).encode())
    sources = [
        *KERNELS.rglob("*.py"),
        KERNELS / "tuned.json",
        *SCRIPTS.glob("kernellib/report/*.py"),
        Path(__file__),
    ]
    for path in sorted(sources):
        digest.update(f"\0{path.relative_to(SCRIPTS.parent)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _all_ops() -> tuple[str, ...]:
    from semipd_kernels.catalog import OPS

    return OPS


if __name__ == "__main__":
    sys.exit(main())
