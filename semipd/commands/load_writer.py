"""Writes a recorded load: whole lines or nothing, within a size."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from semipd.command_line.new_file import create_new
from semipd.core.errors import SemipdError
from semipd.core.state.load import LoadFacts
from semipd.wire.load_file import encode_line, header_line, request_line, timestamp

if TYPE_CHECKING:
    from semipd.wire.load_frame import LoadFrame

LAST_LINE_BYTES = 512
"""Kept free for the lines that say how it ended."""

STANDARD_OUTPUT = Path("-")


class LoadWriter:
    """`is_full`: the size is reached and nothing more is written but the end."""

    def __init__(self, path: Path, max_bytes: int, now_s: Callable[[], float]) -> None:
        self.num_requests = self.num_lost = self.num_bytes = 0
        self.is_full = False
        self.began_s = now_s()
        self._now_s = now_s
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor: int | None = None
        self.has_begun = False

    def begin(self, facts: LoadFacts) -> None:
        """Makes the file, with its first line. Raises SemipdError as `create_new` does."""
        if self._path != STANDARD_OUTPUT:
            self._descriptor = create_new(self._path)
        self.has_begun = True
        self._put(encode_line(header_line(self.began_s, facts)))

    def frame(self, frame: "LoadFrame") -> None:
        """Raises SemipdError(`recording_stopped`), and BrokenPipeError when standard output is not read."""
        for request in frame.requests:
            self.num_requests += self._add(request_line(request, self.began_s))
        for refusal in frame.refusals:
            self._add(request_line(refusal, self.began_s))
        if frame.lost:
            self.num_lost += frame.lost
            self._add({"timestamp": self._timestamp(), "lost": frame.lost})

    def gap(self, lost_at_s: float, why: str, facts: LoadFacts | None) -> None:
        """There was no daemon since `lost_at_s`. `facts`: of the one that is there now."""
        since = timestamp(lost_at_s, self.began_s)
        line = {"timestamp": since, "break_ms": round(self._timestamp() - since, 3), "why": why}
        self._add(line | (facts or {}))

    def close(self, why: str) -> None:
        """The last line, if there is a first one. Raises as `frame` does."""
        if self.has_begun:
            self._put(encode_line({"timestamp": self._timestamp(), "closed": why}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """What was not closed before is a recording that was cut."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _timestamp(self) -> float:
        return timestamp(self._now_s(), self.began_s)

    def _add(self, line: Mapping[str, Any]) -> bool:
        """Whether there was room."""
        if not self.is_full:
            data = encode_line(line)
            self.is_full = self.num_bytes + len(data) + LAST_LINE_BYTES > self._max_bytes
            if not self.is_full:
                self._put(data)
        return not self.is_full

    def _put(self, data: bytes) -> None:
        if self._descriptor is None:
            sys.stdout.write(data.decode())
            sys.stdout.flush()
        else:
            self._put_in_file(self._descriptor, data)
        self.num_bytes += len(data)

    def _put_in_file(self, descriptor: int, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError as error:
            # the file ends with a whole line
            os.ftruncate(descriptor, self.num_bytes)
            why = error.strerror or error
            raise SemipdError(
                "recording_stopped",
                f"Recording to {self._path} stopped after {self.num_requests} requests ({why}).",
                "What was written before can be used; free some room, and record to another file.",
            ) from error
