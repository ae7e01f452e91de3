"""Standard input and output as they may be: closed, full, in another encoding, and left by their reader."""

import errno
import io
import os
import re
import stat
import sys
from contextlib import suppress
from typing import IO, Any, TextIO

from semipd.core.errors import SemipdError

MAX_INPUT_CHARS = 4 * 2**20
"""Of a text from standard input; a frame of the socket holds no more."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_STREAMS = (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))
"""With the flags of what stands in for a closed one: reading the first and writing the second then fail."""


def prepare_streams() -> None:
    """A closed descriptor is taken, lest the next socket gets its number. What standard output cannot encode
    is replaced; what standard input does not decode is kept, for `valid_text` to find."""
    for descriptor, (name, mode, flags) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            _stand_in(descriptor, name, mode, flags)
    _set("stdout", _remembering(sys.stdout))
    for stream, errors in ((sys.stdout, "replace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


class _Output(io.FileIO):
    """Remembers what could not be written: Python's buffers forget it, and argparse swallows the error."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self._left(error) or error
            raise self.failure from error

    def _left(self, error: OSError) -> BrokenPipeError | None:
        """A terminal that has vanished is a pipe without a reader. EIO of a file is a broken disk."""
        if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode):
            return BrokenPipeError(errno.EPIPE, "the terminal has gone")
        return None

    def reported(self) -> OSError | None:
        """The last failure, once."""
        failure, self.failure = self.failure, None
        return failure


def _remembering(stream: TextIO) -> TextIO:
    """Standard output, if it is a descriptor's. What was unbuffered (PYTHONUNBUFFERED) is written line by
    line."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    output = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
    by_line = stream.line_buffering or stream.write_through
    return io.TextIOWrapper(output, stream.encoding, stream.errors, line_buffering=by_line)


def _stand_in(descriptor: int, name: str, mode: str, flags: int) -> None:
    opened = os.open(os.devnull, flags)
    if opened == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(opened, descriptor)
        os.close(opened)
    errors = "backslashreplace" if name == "stderr" else "strict"
    stream = open(descriptor, mode, errors=errors, closefd=False)  # noqa: SIM115 (a descriptor)
    _set(name, stream)


def _set(name: str, stream: IO[Any]) -> None:
    for attribute in (name, f"__{name}__"):
        setattr(sys, attribute, stream)


def print_in_utf8() -> None:
    """What is printed now is a file whose encoding is set, whatever the terminal's is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def flush(stream: TextIO) -> OSError | None:
    """Why what was printed cannot be written. Then the rest is dropped, so that the interpreter, which
    flushes at its end, has nothing to complain about."""
    try:
        stream.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)
            stream.flush()
        _failure(stream)
        return error
    return _failure(stream)


def _failure(stream: TextIO) -> OSError | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.reported() if isinstance(raw, _Output) else None


def read_text() -> str:
    """All of standard input. Raises SemipdError: `input_unreadable`, `input_too_long`, `not_text`."""
    try:
        text = sys.stdin.read(MAX_INPUT_CHARS + 1)
    except OSError as error:
        message = f"Standard input cannot be read ({error.strerror or error})."
        raise SemipdError("input_unreadable", message, "Give a text or a file.") from error
    except UnicodeError as error:
        raise _not_text("Standard input", f"{error}") from error
    if len(text) > MAX_INPUT_CHARS:
        message = f"Standard input has more than {MAX_INPUT_CHARS} characters."
        raise SemipdError("input_too_long", message, "Give a shorter text.")
    return valid_text(text, "Standard input", sys.stdin.encoding)


def valid_text(text: str, what: str, encoding: str = "utf-8") -> str:
    """`text`, if it was made of valid bytes. Raises SemipdError(`not_text`)."""
    found = _SURROGATE.search(text)
    if found is None:
        return text
    byte = ord(found[0]) & 0xFF
    raise _not_text(what, f"not valid {encoding}: byte 0x{byte:02x} after {found.start()} characters")


def _not_text(what: str, why: str) -> SemipdError:
    return SemipdError("not_text", f"{what} is no text: {why}.", "Convert it, with iconv for example.")


def printable(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
