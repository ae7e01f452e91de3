"""Request traces: arrival times and lengths, read from published files, replayed at a chosen rate."""

import csv
import heapq
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count, groupby, pairwise
from pathlib import Path
from typing import cast

from semipd.core.errors import SemipdError
from semipd.core.slo import DEFAULT_CLASS, NO_TARGETS, Targets
from semipd.wire.load_file import is_load_header, read_load

MAX_FIRST_LINE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One request. `at_s`: on the trace's clock, or after its session's beginning. `blocks` are ids of its
    prompt's leading blocks, chained: equal id, equal prefix. `service_class`: "" where the trace has none."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    service_class: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """`block_tokens`: tokens behind one id of `Row.blocks`; 0: prompts share nothing. `timed`: the rows
    carry arrival times; else arrivals are Poisson. `session_starts`: rows with which a session begins, in
    order; then sessions begin by Poisson, and their rows follow at their own times. `classes`:
    targets of the service classes, where the trace names them. `num_unserved`: requests that came and of
    whose output nothing is known, refused ones mostly."""

    name: str
    rows: tuple[Row, ...]
    block_tokens: int = 0
    timed: bool = True
    session_starts: tuple[int, ...] = ()
    classes: Mapping[str, Targets] = field(default_factory=dict)
    num_unserved: int = 0

    @property
    def recorded_rate(self) -> float:
        """Mean arrivals per second; 0 for a trace without times or without a span."""
        span_s = self.rows[-1].at_s - self.rows[0].at_s if self.timed else 0.0
        return (len(self.rows) - 1) / span_s if span_s > 0 else 0.0

    @property
    def offered_rate(self) -> float:
        """The same with those that were not served: what somebody wanted."""
        return self.recorded_rate * (1.0 + self.num_unserved / len(self.rows))

    def up_to(self, longest: int) -> "Trace":
        """Without sequences of more tokens, prompt and output together; 0: all of it."""
        rows = tuple(row for row in self.rows if row.prompt_tokens + row.output_tokens <= longest)
        return replace(self, rows=rows) if longest else self


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row at its time in the replay. Equal blocks are equal prefixes within one `lap`: the trace from its
    beginning, or a run of its rows."""

    at_ns: int
    idx: int
    lap: int
    row: Row


def replay(trace: Trace, rate: float, duration_s: float, seed: int = 0) -> Iterator[Arrival]:
    """Arrivals of `duration_s` seconds at `rate` per second on average.

    A timed trace keeps its order and the pattern of its gaps, stretched to the rate, and begins again when
    it ends; with a `seed` above 0 it is replayed in runs of `RUN_ROWS` rows from random places (the circular
    block bootstrap of Politis and Romano, 1992). One without times is drawn from with replacement, at
    exponential gaps. Deterministic in `seed`.
    """
    if trace.session_starts:
        times = _sessions(trace, rate, seed)
    elif trace.timed:
        times = _runs(trace, rate, seed) if seed else _stretched(trace, rate)
    else:
        times = _poisson(trace, rate, seed)
    for idx, (at_s, lap, row) in enumerate(times):
        if at_s >= duration_s:
            return
        yield Arrival(round(at_s * 1e9), idx, lap, row)


def _stretched(trace: Trace, rate: float) -> Iterator[tuple[float, int, Row]]:
    first_s, recorded = trace.rows[0].at_s, trace.recorded_rate
    stretch = recorded / rate if recorded else 1.0 / rate
    lap_s = len(trace.rows) / rate
    for lap in count():
        for row in trace.rows:
            yield lap * lap_s + (row.at_s - first_s) * stretch, lap, row


def _runs(trace: Trace, rate: float, seed: int) -> Iterator[tuple[float, int, Row]]:
    """Where rows follow that did not in the trace, the mean gap is between them."""
    chance, stretch = random.Random(seed), trace.recorded_rate / rate if trace.recorded_rate else 0.0
    at_s = 0.0
    for lap in count():
        first = chance.randrange(len(trace.rows))
        for place in range(first, first + min(RUN_ROWS, len(trace.rows))):
            row, previous = (trace.rows[idx % len(trace.rows)] for idx in (place, place - 1))
            follows = stretch and place > first and place % len(trace.rows)
            at_s += (row.at_s - previous.at_s) * stretch if follows else 1.0 / rate
            yield at_s, lap, row


def _sessions(trace: Trace, rate: float, seed: int) -> Iterator[tuple[float, int, Row]]:
    """Sessions in their order, beginning so long before 0 that at 0 as many are under way as later; what came
    before 0 is left out."""
    chance = random.Random(seed)
    ends = (*trace.session_starts[1:], len(trace.rows))
    sessions = [trace.rows[start:end] for start, end in zip(trace.session_starts, ends, strict=True)]
    starts_per_s = rate * len(sessions) / len(trace.rows)
    start_s = -max(session[-1].at_s for session in sessions)
    under_way: list[tuple[float, int, int]] = []
    for number in count():
        start_s += chance.expovariate(starts_per_s)
        while under_way and under_way[0][0] < start_s:
            at_s, of, place = heapq.heappop(under_way)
            lap, session = divmod(of, len(sessions))
            if at_s >= 0.0:
                yield at_s, lap, sessions[session][place]
        for place, row in enumerate(sessions[number % len(sessions)]):
            heapq.heappush(under_way, (start_s + row.at_s, number, place))


def _poisson(trace: Trace, rate: float, seed: int) -> Iterator[tuple[float, int, Row]]:
    chance = random.Random(seed)
    at_s = 0.0
    for idx in count():
        at_s += chance.expovariate(rate)
        yield at_s, idx, chance.choice(trace.rows)


LONG_PROMPT = range(16_000, 120_001)
"""Tokens of a prompt that counts as long."""

RUN_ROWS = 1000
"""Rows that follow each other as recorded: many times longer than the bursts of the public traces, so that
those stay whole."""


def read_azure(path: Path) -> Trace:
    """Azure Public Dataset, LLM inference trace 2023: TIMESTAMP, ContextTokens, GeneratedTokens."""
    rows = []
    for record in _records(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        # seven decimals in the file, six in datetime
        stamp = datetime.fromisoformat(record["TIMESTAMP"][:26])
        rows.append(Row(stamp.timestamp(), int(record["ContextTokens"]), int(record["GeneratedTokens"])))
    return _trace(path, rows)


def read_mooncake(path: Path) -> Trace:
    """As `read_mooncake_raw`, with the requests of one time stamp spread evenly until the next one.

    The published stamps are ticks of about three seconds with ten requests on each; taken literally, the
    time to the first token measures nothing but the place in such a batch.
    """
    trace = read_mooncake_raw(path)
    stamps = sorted({row.at_s for row in trace.rows})
    gaps = {at_s: later - at_s for at_s, later in pairwise(stamps)}
    last_gap = sum(gaps.values()) / len(gaps) if gaps else 0.0
    spread: list[Row] = []
    for at_s, group in groupby(trace.rows, key=lambda row: row.at_s):
        rows = list(group)
        step_s = gaps.get(at_s, last_gap) / len(rows)
        spread += [replace(row, at_s=at_s + place * step_s) for place, row in enumerate(rows)]
    return replace(trace, rows=tuple(spread))


def read_mooncake_raw(path: Path) -> Trace:
    """Mooncake: JSON lines with timestamp (ms), input_length, output_length, hash_ids of prompt blocks."""
    rows, block_tokens = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        blocks = tuple(record["hash_ids"])
        rows.append(Row(record["timestamp"] / 1e3, record["input_length"], record["output_length"], blocks))
        if len(blocks) > 1:
            # n blocks hold between (n - 1) * size + 1 and n * size tokens
            block_tokens = max(block_tokens, -(-record["input_length"] // len(blocks)))
    return _trace(path, rows, block_tokens=_power_of_two(block_tokens))


def read_mooncake_long(path: Path) -> Trace:
    """The requests of `read_mooncake` with long prompts, at their times."""
    trace = read_mooncake(path)
    return replace(trace, rows=tuple(row for row in trace.rows if row.prompt_tokens in LONG_PROMPT))


def read_sharegpt(path: Path) -> Trace:
    """Lengths only: num_prefill_tokens, num_decode_tokens."""
    records = _records(path, ("num_prefill_tokens", "num_decode_tokens"))
    rows = [
        Row(0.0, int(float(record["num_prefill_tokens"])), int(float(record["num_decode_tokens"])))
        for record in records
    ]
    return _trace(path, rows, timed=False)


def read_recorded(path: Path) -> Trace:
    """What `semipd-daemon record` has written (wire.load_file), of a recording that was cut as far as it
    goes. Sequences without a token of output count as not served."""
    load = read_load(path)
    served = [row for row in load.rows if row.output_tokens]
    rows = [
        Row(row.at_ms / 1e3, row.prompt_tokens, row.output_tokens, row.blocks, row.service_class)
        for row in served
    ]
    num_unserved = len(load.rows) - len(served) + load.refused.total() + load.num_lost
    trace = _trace(path, rows, block_tokens=load.facts["block_tokens"])
    told = cast(Mapping[str, Mapping[str, float]], load.facts["classes"])
    classes = {name: Targets.of(targets) for name, targets in told.items()}
    for row in rows:
        # a class of a daemon that came after a break
        classes.setdefault(row.service_class, classes.get(DEFAULT_CLASS, NO_TARGETS))
    return replace(trace, classes=classes, num_unserved=num_unserved)


READERS: dict[str, Callable[[Path], Trace]] = {
    "azure": read_azure,
    "mooncake": read_mooncake,
    "mooncake-long": read_mooncake_long,
    "mooncake-raw": read_mooncake_raw,
    "recorded": read_recorded,
    "sharegpt": read_sharegpt,
}


def form_of(path: Path) -> str:
    """Which of READERS reads it, as its first line says. Raises SemipdError: `trace_not_found`,
    `invalid_trace`."""
    try:
        with path.open("rb") as file:
            first = file.readline(MAX_FIRST_LINE_BYTES)
    except OSError as error:
        raise _not_found(path, error) from error
    if is_load_header(first):
        return "recorded"
    marks = {b"hash_ids": "mooncake", b"ContextTokens": "azure", b"num_prefill_tokens": "sharegpt"}
    for mark, form in marks.items():
        if mark in first:
            return form
    message = f"The first line of {path} is of no trace that is known here."
    raise SemipdError("invalid_trace", message, f"Known formats: {', '.join(READERS)}.")


def read_trace(path: Path, form: str) -> Trace:
    """Raises SemipdError: `trace_not_found`, `invalid_trace`."""
    try:
        return READERS[form](path)
    except OSError as error:
        raise _not_found(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} is not a trace of the format {form}: {error!r}."
        hint = f"Known formats: {', '.join(READERS)}."
        raise SemipdError("invalid_trace", message, hint) from error


def _not_found(path: Path, error: OSError) -> SemipdError:
    hint = "Name the file with --trace, or its folder with --traces."
    message = f"The trace {path} cannot be read: {error.strerror or error}."
    return SemipdError("trace_not_found", message, hint)


def _records(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    missing = [column for column in columns if not records or records[0].get(column) is None]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    return records


def _trace(path: Path, rows: list[Row], *, block_tokens: int = 0, timed: bool = True) -> Trace:
    usable = [row for row in rows if row.prompt_tokens > 0 and row.output_tokens > 0]
    if not usable:
        raise ValueError("no usable row")
    usable.sort(key=lambda row: row.at_s)
    return Trace(path.stem, tuple(usable), block_tokens, timed)


def _power_of_two(least: int) -> int:
    """The published block sizes are powers of two; the largest mean over a prompt's blocks is just below."""
    size = 1
    while size < least:
        size *= 2
    return size if least else 0
