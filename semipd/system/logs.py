"""Log lines of daemon and engine: text for people, or one JSON object a line.

What a line is about stands in fields (`extra={"request_id": ...}`), not in the sentence. Whatever clients
send may be part of a line: it cannot end the line, forge another, or reach a terminal as a control sequence.
"""

import json
import logging
import re
import sys
import time
from typing import Any, Literal, TextIO, get_args

LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; anything else came with `extra`."""


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, ends of lines, and what changes the direction of text."""


def configure_logging(log_format: LogFormat, level: str = "info") -> None:
    """Everything this process logs goes to standard error in this format; replaces what was set before."""
    handler = LineHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class LineHandler(logging.StreamHandler[TextIO]):
    """A line that cannot be written, on a full disk for instance, is lost without a word about logging in the
    log; when lines can be written again, one says how many were lost."""

    _num_lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        before = self._num_lost
        super().emit(record)
        if before and self._num_lost == before:
            self._num_lost = 0
            message = f"{before} lines of this log were lost because it could not be written"
            super().emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if isinstance(sys.exc_info()[1], OSError):
            self._num_lost += 1
        else:
            super().handleError(record)


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        facts = "".join(f" {name}={value}" for name, value in _fields(record).items())
        return _in_one_line(super().formatMessage(record) + facts)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Indented: no line of it looks like the beginning of another."""
        lines = super().formatException(ei).split("\n")
        return "\n".join("  " + _in_one_line(line) for line in lines)


class JsonFormatter(logging.Formatter):
    """Keys: time (UTC, ISO 8601), level, logger, message, then the line's own fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in _fields(record).items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _in_one_line(json.dumps(line, default=str, ensure_ascii=False))


def _in_one_line(text: str) -> str:
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}
