"""The file of a recorded load: JSON lines, of which docs/operations.md ("How many GPUs?") describes each.

The first line says what the file is. Then a line for each sequence, with the field names of the Mooncake
traces (FAST'25); lines for what is missing; and a last one when the recording was ended. A file that was
cut is readable up to the cut.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

from semipd import __version__
from semipd.core.errors import SemipdError
from semipd.core.state.load import LoadFacts, RecordedRefusal, RecordedRequest
from semipd.core.state.partition import TargetsDocument

FORMAT = "semipd load recording"
VERSION = 1
MAX_LINE_BYTES = 2**26
TARGETS = tuple(TargetsDocument.__annotations__)
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One sequence. `at_ms`: since the recording began, times without a recorder left out. `blocks`: equal
    numbers are equal prompts up to there."""

    at_ms: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    service_class: str
    end: str


@dataclass(slots=True)
class LoadFile:
    """`rows` in the file's order: as they ended. `refused`: by code. `num_lost`: sequences that the recorder
    was too slow for. `breaks_ms`: how long it had no daemon, each time. `cut`: why not everything could be
    read; empty: it was ended properly."""

    began_s: float
    facts: LoadFacts
    rows: list[LoadRow] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    num_lost: int = 0
    breaks_ms: list[float] = field(default_factory=list)
    cut: str = ""


def header_line(began_s: float, facts: LoadFacts) -> dict[str, Any]:
    return {"format": FORMAT, "version": VERSION, "semipd": __version__, "began_s": began_s, **facts}


def request_line(request: RecordedRequest | RecordedRefusal, began_s: float) -> dict[str, Any]:
    """`timestamp`, in ms since the beginning, in place of `at_s`."""
    line: dict[str, Any] = {"timestamp": timestamp(request["at_s"], began_s), **request}
    del line["at_s"]
    return line


def timestamp(at_s: float, began_s: float) -> float:
    """To a microsecond; not before the beginning, whatever clocks do."""
    return round(max(at_s - began_s, 0.0) * 1e3, 3)


def encode_line(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def is_load_header(line: str | bytes) -> bool:
    """Whether a file that begins with this line calls itself a recorded load, of whatever version."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def read_load(path: Path) -> LoadFile:
    """Raises OSError, and SemipdError: `not_a_recording`, `recording_version`, and `invalid_trace` for a line
    before the last that cannot be understood."""
    with path.open("rb") as file:
        return _Reader(path, file).read()


class _Reader:
    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._load = LoadFile(*self._header())
        self._numbers: dict[int, int] = {}
        self._next_number = count()

    def read(self) -> LoadFile:
        number, is_over = 1, False
        while not is_over and (raw := self._file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            number += 1
            try:
                is_over = self._take(json.loads(raw))
            except _UNREADABLE as error:
                message = f"Line {number} of {self._path} is not understood ({error!r:.200})."
                hint = "Remove the line, if you know why it is there."
                raise SemipdError("invalid_trace", message, hint) from error
        if not is_over:
            self._load.cut = f"it breaks off {'in' if raw else 'after'} line {number + bool(raw)}"
        return self._load

    def _header(self) -> tuple[float, LoadFacts]:
        try:
            found = json.loads(self._file.readline(MAX_LINE_BYTES))
            if found["format"] != FORMAT:
                raise ValueError("another format")
            version = found["version"]
            if version == VERSION:
                return _positive(found["began_s"]), _facts(found)
        except _UNREADABLE as error:
            message = f"{self._path} is no recorded load."
            hint = "Name a file that `semipd-daemon record` has written."
            raise SemipdError("not_a_recording", message, hint) from error
        raise SemipdError(
            "recording_version",
            f"{self._path} is a recorded load of format {version!r:.40}, written by semipd "
            f"{found.get('semipd')!r:.40}; this semipd {__version__} reads format {VERSION}.",
            "Read it with the semipd that wrote it, or a later one.",
        )

    def _take(self, line: Any) -> bool:
        """True: it was the last. Lines of a kind that is not known here are passed over."""
        if not isinstance(line, dict):
            raise TypeError("it is no object")
        load = self._load
        if "input_length" in line:
            load.rows.append(self._row(line))
        elif "refused" in line:
            load.refused[str(line["refused"])] += 1
        elif "lost" in line:
            load.num_lost += _whole(line["lost"])
        elif "break_ms" in line:
            load.breaks_ms.append(_positive(line["break_ms"]))
            # another daemon, or another salt: what was cached before is not known any more
            self._numbers.clear()
        return "closed" in line

    def _row(self, line: dict[str, Any]) -> LoadRow:
        prompt_tokens, hashes = _whole(line["input_length"], 1), line["hash_ids"]
        num_blocks = -(-prompt_tokens // self._load.facts["block_tokens"])
        if len(hashes) != num_blocks:
            raise ValueError(f"{len(hashes)} hash_ids for {num_blocks} blocks")
        return LoadRow(
            max(_positive(line["timestamp"]) - sum(self._load.breaks_ms), 0.0),
            prompt_tokens,
            _whole(line["output_length"]),
            tuple(self._numbered(hashes)),
            str(line["service_class"]),
            str(line["end"]),
        )

    def _numbered(self, hashes: Iterable[Any]) -> Iterable[int]:
        numbers = self._numbers
        for value in hashes:
            found = numbers.get(_whole(value))
            if found is None:
                numbers[value] = found = next(self._next_number)
            yield found


def _facts(found: Mapping[str, Any]) -> LoadFacts:
    classes = {
        str(name): cast(TargetsDocument, {key: _positive(targets[key]) for key in TARGETS})
        for name, targets in found["classes"].items()
    }
    return {
        "model": str(found["model"]),
        "device": None if found["device"] is None else str(found["device"]),
        "block_tokens": _whole(found["block_tokens"], 1),
        "classes": classes,
    }


def _whole(value: Any, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r:.40} is no whole number from {least} on")
    return value


def _positive(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.40} is no number from 0 on")
    return float(value)
