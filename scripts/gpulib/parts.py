"""Parts of a GPU run, each in a process of its own with a time limit: a fault of the device ends one part.

Results are written after every part, as JSON and as Markdown: nothing is lost when the machine goes away.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchlib.child import mortal

from semipd.system.children import kill_group

TAIL_CHARS = 3000


@dataclass(frozen=True, slots=True)
class Part:
    """`command`: what to run; it writes its result as JSON to the path it is given as the last argument."""

    name: str
    command: Sequence[str]
    limit_s: float


RunPart = Callable[[Part, Path, float], dict[str, Any]]


def run_parts(
    parts: Sequence[Part],
    out: Path,
    title: str,
    total_s: float,
    *,
    run: RunPart | None = None,
    clock: Callable[[], float] = time.monotonic,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Run all, in order, as long as `total_s` lasts; `out` is the JSON file, Markdown stands beside it.

    Args:
        run: instead of `run_part`, with its arguments. clock: what `total_s` is measured by.
        keep: called with the results so far after each part.
    """
    results: dict[str, Any] = {"title": title, "host": platform.node(), "python": sys.version.split()[0]}
    results["began"] = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    results["parts"] = {}
    end_s = clock() + total_s
    out.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        limit_s = min(part.limit_s, end_s - clock())
        if limit_s < 1.0:
            results["parts"][part.name] = {
                "error": f"not begun: the {total_s:g} s of the whole run were over"
            }
        else:
            results["parts"][part.name] = (run or run_part)(part, out, limit_s)
        save(results, out)
        keep(results)
    return results


def run_part(part: Part, out: Path, limit_s: float) -> dict[str, Any]:
    """The part's result, with `error` when it failed; what it wrote before failing is kept."""
    result_path = out.with_suffix(f".{part.name}.part")
    result_path.unlink(missing_ok=True)
    began_s = time.monotonic()
    ended = run_group([*part.command, str(result_path)], limit_s)
    result = _read(result_path)
    result_path.unlink(missing_ok=True)
    result["took_s"] = round(time.monotonic() - began_s, 1)
    if ended.status is None:
        result["error"] = f"stopped after {limit_s:.0f} s: {ended.words}"
    elif ended.status:
        result["error"] = f"exit status {ended.status}: {ended.words}"
    elif len(result) == 1:
        result["error"] = "it ended well but wrote nothing"
    return result


class Ended(NamedTuple):
    """`status`: None when it was stopped. `words`: the last ones on its standard error stream."""

    status: int | None
    words: str


def run_group(command: Sequence[str], limit_s: float) -> Ended:
    """Run it to its end or for so long; then nothing that it started is left, and the GPU is free again. Call
    from the main thread."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            mortal(command), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
        )
        status = None
        try:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(limit_s)
        finally:
            kill_group(process)
            process.wait()
        errors.seek(0)
        return Ended(status, errors.read().decode(errors="replace")[-TAIL_CHARS:])


def save(results: Mapping[str, Any], out: Path) -> None:
    """Both files, each replaced in one go."""
    for path, text in ((out, json.dumps(results, indent=1)), (out.with_suffix(".md"), to_markdown(results))):
        replace_file(path, text + "\n")


def replace_file(path: Path, text: str) -> None:
    """In one go: whoever reads it, or is cut short here, has a whole file."""
    scratch = path.with_suffix(path.suffix + ".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def to_markdown(results: Mapping[str, Any]) -> str:
    lines = [f"# {results['title']}", "", f"{results['began']}, Python {results['python']}."]
    for name, result in results["parts"].items():
        lines += ["", f"## {name} ({result.get('took_s', 0)} s)", ""]
        if "error" in result:
            lines += ["**Failed.**", "", "```", str(result["error"]).strip(), "```", ""]
        lines += _items({k: v for k, v in result.items() if k not in ("error", "took_s")}, 0)
    return "\n".join(lines)


def _items(values: Mapping[str, Any], depth: int) -> list[str]:
    """Nested maps as nested lists; rows of maps with the same keys as a table."""
    lines: list[str] = []
    for key, value in values.items():
        indent = "  " * depth
        if isinstance(value, Mapping):
            lines += [f"{indent}* {key}:", *_items(value, depth + 1)]
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            lines += ["", f"{key}:", "", *_table(value), ""]
        else:
            lines.append(f"{indent}* {key}: {_plain(value)}")
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_plain(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells]]


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {"result": found}


class Results(dict[str, Any]):
    """A part's results, on disk after every entry."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        replace_file(self._path, json.dumps(self))
