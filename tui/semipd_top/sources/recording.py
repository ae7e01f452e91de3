"""Recordings: everything a source yields, as JSON lines, and read back equal.

The first line says what the file is; then one line an item, told by the one before (changes.py); the last
says that it was closed. Each item is flushed, so a file that was cut is readable up to the cut.
"""

import gzip
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Self, cast

from semipd import __version__
from semipd.command_line.new_file import create_new
from semipd.core.errors import SemipdError
from semipd.core.state.daemon import StateDocument
from semipd.core.state.requests import RequestRow
from semipd.wire.client_protocol import StateFrame, no_state
from semipd_top.sources.changes import changed, changed_rows, changes, row_changes
from semipd_top.sources.contract import Gone, Item, Seen

FORMAT = "semipd-top recording"
VERSION = 1
MAX_HEADER_BYTES = 2**16
MAX_LINE_BYTES = 2**26
_GZIP_MAGIC = b"\x1f\x8b"
_COMPRESSION = 6
_UNREADABLE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, IndexError)
"""What reading and decoding raise about a file that does not hold what it should; ValueError: JSON, UTF-8."""


@dataclass(frozen=True, slots=True)
class Header:
    """`began_s`: Unix time; `title`: of the source; `semipd`: the version that recorded."""

    title: str
    interval_s: float
    began_s: float
    semipd: str = __version__


class _Told:
    """The item before, which both sides know."""

    def __init__(self) -> None:
        self.state = no_state()
        self.rows: dict[int, RequestRow] = {}

    def line(self, item: Item) -> dict[str, Any]:
        if isinstance(item, Gone):
            return {"gone": asdict(item)}
        frame = item.frame
        line: dict[str, Any] = {"at_s": item.at_s, "state": changes(self.state, frame.state)}
        self.state = frame.state
        if frame.events:
            line["events"] = frame.events
        if frame.lost:
            line["lost"] = frame.lost
        if item.requests is not None:
            line["requests"] = row_changes(self.rows, item.requests)
            self._take_rows(item.requests)
        return line

    def item(self, line: dict[str, Any]) -> Item:
        if "gone" in line:
            return Gone(**line["gone"])
        self.state = cast(StateDocument, changed(self.state, line["state"]))
        rows = None
        if "requests" in line:
            rows = changed_rows(self.rows, line["requests"])
            self._take_rows(rows)
        frame = StateFrame(self.state, line.get("events", []), line.get("lost", 0))
        return Seen(line["at_s"], frame, rows)

    def _take_rows(self, rows: Sequence[RequestRow]) -> None:
        self.rows = {row["seq"]: row for row in rows}


class Recorder:
    """Writes a recording. When that fails, the reason stands in `stopped` and nothing more is written."""

    def __init__(self, path: Path, title: str, interval_s: float) -> None:
        """Raises SemipdError: `file_exists`, since what is recorded once may not come again, or
        `file_unwritable`."""
        self.path = path
        self.stopped: SemipdError | None = None
        self._why = ""
        self.num_items = 0
        self._told = _Told()
        self._file = _create(path)
        header = asdict(Header(title, interval_s, time.time()))
        self._write({"format": FORMAT, "version": VERSION} | header)

    @property
    def status(self) -> str:
        """In a few words, for a screen."""
        return f"recording to {self.path.name}" if self.stopped is None else f"not recording: {self._why}"

    def write(self, item: Item) -> None:
        """Never raises for what a disk can do."""
        if self.stopped is None:
            self._write(self._told.line(item))
            self.num_items += self.stopped is None

    def close(self) -> None:
        """Idempotent."""
        if self._file.closed:
            return
        if self.stopped is None:
            self._write({"closed_s": time.time()})
        self._close_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self._why = error.strerror or str(error)
        self.stopped = SemipdError(
            "recording_stopped",
            f"Recording to {self.path} stopped after {self.num_items} items ({self._why}).",
            "What was written before can be replayed.",
        )
        self._close_file()

    def _close_file(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            # what is still in the buffer cannot be written either
            if self.stopped is None:
                self._stop(error)


class _GzipOfFile(gzip.GzipFile):
    """Closes the file below, also when its last bytes cannot be written."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__("", "wb", _COMPRESSION, file)
        self._below = file

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._below.close()


def _create(path: Path) -> IO[bytes]:
    file = os.fdopen(create_new(path), "wb")
    return _GzipOfFile(file) if path.suffix == ".gz" else file  # type: ignore[return-value]


class Recording:
    """A recording that is read once, from its beginning to its end or to where it was cut.

    Attributes:
        cut: why not everything can be read, after `items` has ended; empty: it was closed properly.
    """

    def __init__(self, path: Path) -> None:
        """Reads the header. Raises SemipdError: `file_unreadable`, `not_a_recording`,
        `recording_version`."""
        self.path = path
        self.cut = ""
        self._file = _open(path)
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def items(self) -> Iterator[Item]:
        """Equal to those that were recorded."""
        told, num_items = _Told(), 0
        with self._file:
            try:
                while "closed_s" not in (line := self._read_line()):
                    yield told.item(line)
                    num_items += 1
            except _UNREADABLE as error:
                self.cut = f"The recording breaks off after {num_items} items ({error})."

    def close(self) -> None:
        """For a recording whose items are not read to the end. Idempotent."""
        self._file.close()

    def _read_line(self) -> dict[str, Any]:
        raw = self._file.readline(MAX_LINE_BYTES)
        if not raw.endswith(b"\n"):
            raise EOFError("in the middle of a line" if raw else "without its last line")
        line = json.loads(raw)
        if not isinstance(line, dict):
            raise ValueError("a line is no object")
        return line

    def _read_header(self) -> Header:
        try:
            found = json.loads(self._file.readline(MAX_HEADER_BYTES))
            if found.pop("format") != FORMAT:
                raise ValueError("another format")
            version = found.pop("version")
            if version == VERSION:
                return Header(**{field.name: found[field.name] for field in fields(Header)})
        except (AttributeError, *_UNREADABLE) as error:
            hint = "Replay a file that `semipd-top --record` has written."
            message = f"{self.path} is no recording of semipd-top."
            raise SemipdError("not_a_recording", message, hint) from error
        raise SemipdError(
            "recording_version",
            f"{self.path} is a recording of format {version}, written by semipd {found.get('semipd')}; "
            f"this semipd-top {__version__} reads format {VERSION}.",
            "Replay it with the semipd-top that wrote it, or a later one.",
        )


def _open(path: Path) -> IO[bytes]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # a pipe might never be written to
        with path.open("rb") as file:
            is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        return gzip.open(path) if is_gzip else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror or error})."
        raise SemipdError("file_unreadable", message, "Name a file that --record has written.") from error
