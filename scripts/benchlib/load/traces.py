"""Readers of request traces: what `semipd-daemon record` wrote, and published ones: Azure 2023, Mooncake,
ShareGPT lengths.

* Azure Public Dataset, LLM inference trace 2023: CSV, TIMESTAMP, ContextTokens, GeneratedTokens.
* Mooncake (FAST'25): JSON lines, timestamp in ms, input_length, output_length, hash_ids. A hash stands for
  one block of the prompt and everything before it.
* ShareGPT lengths as published with Vidur: CSV, num_prefill_tokens, num_decode_tokens; no times.
"""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from benchlib.load.workload import PlannedRequest
from semipd.core.errors import SemipdError
from semipd.wire.load_file import is_load_header, read_load

Row = TypeVar("Row")
TraceKind = Literal["azure", "mooncake", "recorded", "sharegpt"]


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the file's order, with times unless the trace has none (sharegpt).

    `block_tokens`: prompt tokens behind one hash; 0 when the trace has no hashes.
    """

    kind: TraceKind
    requests: list[PlannedRequest]
    block_tokens: int = 0


def read_trace(path: Path, block_tokens: int = 0) -> Trace:
    """Read a trace, its format known by its first line. `block_tokens` 0: found out from the lengths.

    Raises SemipdError: `trace_unreadable` with the line at fault.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            lines = chain([first], file)
            if is_load_header(first):
                return _recorded(path, block_tokens)
            if first.lstrip().startswith("{"):
                return _mooncake(path, lines, block_tokens)
            return _table(path, lines, first)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, f"{error}") from error


def infer_block_tokens(requests: Iterable[PlannedRequest]) -> tuple[int, float]:
    """The smallest and the largest block size with which every prompt has as many blocks as hashes."""
    low, high = 1, float("inf")
    for request in requests:
        num_blocks = len(request.block_hashes)
        low = max(low, -(-request.prompt_tokens // num_blocks))
        if num_blocks > 1:
            high = min(high, (request.prompt_tokens - 1) // (num_blocks - 1))
    return low, high


def _recorded(path: Path, block_tokens: int) -> Trace:
    """Sequences without output are left out. Sorted by time: the file has them as they ended."""
    load = read_load(path)
    in_file = load.facts["block_tokens"]
    if block_tokens not in (0, in_file):
        raise _unreadable(path, f"it has blocks of {in_file} tokens, not of {block_tokens}")
    rows = sorted((row for row in load.rows if row.output_tokens), key=lambda row: row.at_ms)
    if not rows:
        raise _unreadable(path, "it holds no request")
    requests = [
        PlannedRequest(row.prompt_tokens, row.output_tokens, row.at_ms / 1e3, row.blocks) for row in rows
    ]
    return Trace("recorded", requests, in_file)


def _mooncake(path: Path, lines: Iterable[str], block_tokens: int) -> Trace:
    rows = _rows(path, lines, 1, lambda line: _mooncake_row(json.loads(line)))
    low, high = infer_block_tokens(rows)
    if block_tokens:
        if not low <= block_tokens <= high:
            raise _unreadable(path, f"blocks of {block_tokens} tokens do not fit it, only {low} to {high:g}")
        return Trace("mooncake", rows, block_tokens)
    if low > high:
        raise _unreadable(path, "the numbers of hash_ids fit no block size")
    # Publishers use powers of two; more than one in reach means that the excerpt does not tell.
    power = 1 << (low - 1).bit_length()
    if power > high or 2 * power <= high:
        raise _unreadable(
            path, f"its block size may be {low} to {high:g} tokens: say which by --block-tokens"
        )
    return Trace("mooncake", rows, power)


def _mooncake_row(row: dict[str, Any]) -> PlannedRequest:
    hashes = tuple(int(value) for value in row["hash_ids"])
    if not hashes:
        raise ValueError("hash_ids is empty")
    times = float(row["timestamp"]) / 1e3
    return PlannedRequest(int(row["input_length"]), int(row["output_length"]), times, hashes)


def _table(path: Path, lines: Iterable[str], header: str) -> Trace:
    # line 1 is the header, which the reader takes for itself
    table = csv.DictReader(lines)
    if "ContextTokens" in header:
        return Trace("azure", _rows(path, table, 2, _azure_row))
    if "num_prefill_tokens" in header:
        return Trace("sharegpt", _rows(path, table, 2, _sharegpt_row))
    raise _unreadable(
        path, f"its first line {header.strip()!r:.80} is none of Azure 2023, Mooncake or ShareGPT lengths"
    )


def _azure_row(row: dict[str, Any]) -> PlannedRequest:
    # seconds since some day: only differences matter, and a naive time has no time zone to jump in
    time_s = (datetime.fromisoformat(row["TIMESTAMP"]) - datetime(2020, 1, 1)).total_seconds()
    return PlannedRequest(int(row["ContextTokens"]), int(row["GeneratedTokens"]), time_s)


def _sharegpt_row(row: dict[str, Any]) -> PlannedRequest:
    return PlannedRequest(int(row["num_prefill_tokens"]), int(row["num_decode_tokens"]))


def _rows(
    path: Path, rows: Iterable[Row], first_line: int, convert: Callable[[Row], PlannedRequest]
) -> list[PlannedRequest]:
    requests = list[PlannedRequest]()
    try:
        for row in rows:
            request = convert(row)
            if request.prompt_tokens < 1 or request.output_tokens < 1:
                raise ValueError("a request without prompt or output tokens")
            requests.append(request)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise _unreadable(path, f"line {first_line + len(requests)}: {error!r}") from error
    if not requests:
        raise _unreadable(path, "it holds no request")
    return requests


def _unreadable(path: Path, why: str) -> SemipdError:
    return SemipdError("trace_unreadable", f"The trace {path} cannot be used: {why}.")
