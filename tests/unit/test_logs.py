"""Log lines: text for people, JSON for collectors, facts as fields. And the limit of open files."""

import errno
import io
import json
import logging
import resource
import sys
from collections.abc import Iterator

import pytest

from semipd.daemon.host.process_limits import ConnectionRoom, exhausted, raise_file_limit
from semipd.system.logs import JsonFormatter, LineHandler, LogFormat, TextFormatter, configure_logging


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "semipd.x", "levelname": "INFO", "msg": message, "args": args})
    vars(made).update(extra)
    return made


def test_json_lines_have_their_facts_as_fields() -> None:
    line = JsonFormatter().format(record("got %d\n", 3, request_id="r-1", lane="decode", level="no"))
    parsed = json.loads(line)
    assert "\n" not in line
    assert parsed["time"].endswith("Z")
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("info", "semipd.x", "got 3\n")
    assert (parsed["request_id"], parsed["lane"]) == ("r-1", "decode")
    assert set(parsed) == {"time", "level", "logger", "message", "request_id", "lane"}


def test_json_lines_hold_exceptions_and_anything() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        parsed = json.loads(JsonFormatter().format(record("x", exc_info=sys.exc_info(), odd={1, 2} - {2})))
    assert parsed["exception"].endswith("ValueError: boom")
    assert parsed["odd"] == "{1}"


def test_text_lines_end_with_their_facts() -> None:
    line = TextFormatter().format(record("got %d", 3, request_id="r-1", lane="decode"))
    assert line.endswith("INFO    semipd.x: got 3 request_id=r-1 lane=decode")
    assert TextFormatter().format(record("plain")).endswith("semipd.x: plain")


EVIL = "a\nERROR forged\r\x1b[31mred\x9b2J\u2028end\u202ereversed"


def test_no_line_can_be_forged_nor_a_terminal_be_driven() -> None:
    """By what clients send: in the sentence, in a field, or in an exception."""
    try:
        raise ValueError(EVIL)
    except ValueError:
        made = record("said %s", EVIL, prompt=EVIL, exc_info=sys.exc_info())
    for formatter in (TextFormatter(), JsonFormatter()):
        shown = formatter.format(made)
        assert all(char.isprintable() or char == "\n" for char in shown)
        assert not any(line.startswith("ERROR") for line in shown.splitlines())
    parsed = json.loads(shown)
    assert "\n" not in shown
    assert (parsed["message"], parsed["prompt"]) == (f"said {EVIL}", EVIL)
    first, *rest = TextFormatter().format(made).split("\n")
    assert "semipd.x: said a\\u000aERROR forged" in first
    assert all(line.startswith("  ") for line in rest)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_configured_for_the_process(
    log_format: LogFormat, root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("text", "error")
    configure_logging(log_format, "info")
    logging.getLogger("semipd.y").info("said", extra={"request_id": "r"})
    logging.getLogger("semipd.y").debug("unsaid")
    [line] = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["request_id"] == "r") if log_format == "json" else line.endswith("request_id=r")


def test_the_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _what, pair: limits.append(pair))
    assert raise_file_limit() is None
    assert limits[-1] == (4096, 4096)
    limits.append((256, resource.RLIM_INFINITY))
    assert raise_file_limit() is None

    def refuse(_what: int, _pair: tuple[int, int]) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    limits.append((256, 4096))
    assert "stays at 256" in (raise_file_limit() or "")


class FullDisk(io.StringIO):
    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_lost_on_a_full_disk_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stream = FullDisk()
    handler = LineHandler(stream)
    for number in range(6):
        stream.is_full = number in (1, 2, 3)
        handler.handle(logging.makeLogRecord({"msg": f"line {number}"}))
    said = stream.getvalue().splitlines()
    assert [line[:6] for line in said] == ["line 0", "line 4", "3 line", "line 5"]
    assert "3 lines of this log were lost" in said[2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("files", [1, 40, 64, 256, 1024, 4096, 20000, 2**20, resource.RLIM_INFINITY])
@pytest.mark.parametrize("wanted", [1, 8, 4096, 2**20])
def test_connections_fit_into_the_limit_of_files(
    files: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (files, files))
    room = ConnectionRoom.of(wanted)
    assert 1 <= room.max_connections <= wanted
    passing = (room.num_reserved, room.num_overflowing, room.num_lingering)
    assert sum(passing) <= room.num_passing
    if files >= 64:
        assert all(passing)
        assert files == resource.RLIM_INFINITY or 2 * (room.max_connections + room.num_passing) < files
    if room.max_connections < wanted:
        assert f"`ulimit -n` {files}" in room.cause
        assert f"at most {room.max_connections} connections" in (room.note or "")
    else:
        assert (room.cause, room.note) == (f"limits.max_connections={wanted}", None)
    assert files < 2**20 or wanted > 4096 or room.max_connections == wanted


def test_what_the_system_lacks_is_told_apart() -> None:
    for number, word in ((errno.EMFILE, "-n"), (errno.ENFILE, "file-max"), (errno.EAGAIN, "-u")):
        error = exhausted(OSError(number, "no"), "It cannot be started")
        assert error is not None
        assert error.code == "overloaded"
        assert word in error.hint
    assert exhausted(RuntimeError("can't start new thread"), "x") is not None
    assert exhausted(RuntimeError("a fault"), "x") is None
    assert exhausted(OSError(errno.ENOENT, "no"), "x") is None
