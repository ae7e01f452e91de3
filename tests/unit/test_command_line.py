"""What the commands share: the table of exit codes, suggestions, numbers, completion, small files."""

import os
import subprocess
import threading
from pathlib import Path

import pytest
import semipd_top.cli

import semipd.commands.client
import semipd.commands.daemon
import semipd.plan.command
from semipd.command_line import exit_codes
from semipd.command_line.arguments import CommandParser, did_you_mean
from semipd.command_line.streams import printable
from semipd.config.config import load_config
from semipd.core.errors import SemipdError
from semipd.system import small_files
from semipd.wire.address import connect_error, default_socket_path

MAINS = {
    "client": semipd.commands.client.main,
    "daemon": semipd.commands.daemon.main,
    "plan": semipd.plan.command.main,
    "top": semipd_top.cli.main,
}
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.mark.parametrize("name", MAINS)
def test_help_ends_with_the_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        MAINS[name](["--help"])
    assert exit_codes.EPILOG in capsys.readouterr().out


def test_the_table_is_documented_and_no_code_ends_in_two_ways() -> None:
    text = OPERATIONS.read_text()
    for row in exit_codes.EXITS:
        assert f"| {row.number} | {row.meaning} | {', '.join(f'`{code}`' for code in row.codes)} |" in text
    codes = [code for row in exit_codes.EXITS for code in row.codes]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("name", MAINS)
def test_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        MAINS[name](["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"semipd-{name} {semipd.__version__}\n"


@pytest.mark.parametrize(
    ("name", "arguments", "near"),
    [
        ("client", ["statsu"], "Did you mean status?"),
        ("client", ["generate", "a", "--max-tokns", "3"], "Did you mean --max-tokens?"),
        ("client", ["--verison"], "Did you mean --version?"),
        ("daemon", ["strat"], "Did you mean start?"),
        ("daemon", ["status", "--sokcet=x"], "Did you mean --socket?"),
        ("daemon", ["partition", "shwo"], "Did you mean show?"),
        ("daemon", ["recrod", "x"], "Did you mean record?"),
        ("plan", ["--modle", "x"], "Did you mean --model?"),
        ("top", ["--onec"], "Did you mean --once?"),
        ("top", ["--completion", "bahs"], "Did you mean bash?"),
    ],
)
def test_the_nearest_word_is_suggested(
    name: str, arguments: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        MAINS[name](arguments)
    assert end.value.code == exit_codes.USAGE
    assert near in capsys.readouterr().err


def test_nothing_is_suggested_when_nothing_is_near() -> None:
    assert did_you_mean("xyzzy", ["status", "start"]) == ""


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "1" + "0" * 30, "9" * 5000, "", "x", "--"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("client", ["generate", "a", "--max-tokens"]),
        ("client", ["generate", "a", "--temperature"]),
        ("client", ["generate", "a", "--top-k"]),
        ("client", ["watch", "--interval"]),
        ("client", ["watch", "--count"]),
        ("daemon", ["slo", "--ttft-ms"]),
        ("daemon", ["stop", "--within"]),
        ("daemon", ["partition", "set", "--prefill"]),
        ("daemon", ["partition", "off", "--for"]),
        ("daemon", ["record", "x", "--for"]),
        ("daemon", ["record", "x", "--max-size"]),
        ("plan", ["--rate"]),
        ("plan", ["--gpus"]),
        ("plan", ["--seeds"]),
        ("plan", ["--slo"]),
        ("plan", ["--attainment"]),
        ("top", ["--json", "--count"]),
        ("top", ["--json", "--interval"]),
        ("top", ["--json", "--replay", "x", "--speed"]),
    ],
)
def test_numbers_at_the_edges(
    name: str, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        MAINS[name]([*arguments, text])
    assert end.value.code == exit_codes.USAGE
    assert arguments[-1] in capsys.readouterr().err


def test_a_count_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        MAINS["client"](["watch", "--count", "0"])
    assert "not within 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["client", "daemon", "top"])
def test_completion(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["--completion"] if name == "top" else ["completion"]
    for shell in ("bash", "zsh", "tcsh", "fish"):
        assert MAINS[name]([*asked, shell]) == 0
        script = capsys.readouterr().out
        assert f"semipd-{name}" in script
        if shell == "bash":
            (tmp_path / "script").write_text(script)
    begun, wanted = ("--rep", "--replay") if name == "top" else ("stat", "status")
    code = f"""source {tmp_path}/script; COMP_WORDS=(semipd-{name} {begun}); COMP_CWORD=1
        _shtab_semipd_{name} semipd-{name} {begun} semipd-{name}; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [wanted], done.stderr


# ---- connections ------------------------------------------------------------------------------------


def test_permission_denied_is_not_not_running() -> None:
    error = connect_error("/run/x.sock", PermissionError(13, "Permission denied"))
    assert error.code == "permission_denied"
    assert exit_codes.exit_code_of(error) == exit_codes.NO_PERMISSION
    assert "not running" not in str(error)


def test_hints_repeat_what_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a b.sock")
    for name, arguments in (("client", ["status"]), ("daemon", ["status"]), ("top", ["--once"])):
        assert MAINS[name]([*arguments, "--socket", path]) == exit_codes.NOT_RUNNING
        assert f"`semipd-daemon start --socket '{path}'`" in capsys.readouterr().err
    config = tmp_path / "c.toml"
    config.write_text(f'[server]\nsocket = "{path}"\n')
    assert MAINS["daemon"](["stop", "--config", str(config), "--set", "server.port=1"]) == 3
    assert f"start --config {config} --set server.port=1`" in capsys.readouterr().err


def test_hints_for_the_default_socket_name_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert connect_error(default_socket_path(), FileNotFoundError()).hint.startswith(
        "Start one with `semipd-daemon start`,"
    )


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/", exit_codes.USAGE),
        (".", exit_codes.USAGE),
        ("..", exit_codes.FAILED),
        ("", exit_codes.NOT_RUNNING),
    ],
)
def test_paths_without_a_name(path: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert MAINS["daemon"](["stop", "--socket", path]) == code


@pytest.mark.parametrize(("name", "arguments"), [("client", ["status"]), ("top", ["--once"])])
def test_an_empty_socket_means_the_default(
    name: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert MAINS[name]([*arguments, "--socket", ""]) == exit_codes.NOT_RUNNING
    assert str(tmp_path) in capsys.readouterr().err


# ---- odd files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"a=" + b"[" * 100_000,
        b'[server]\nsocket = "a\\u0000b"\n',
        b"[server]\nport = 0x" + b"f" * 9000,
        b"[server]\nport = " + b"9" * 9000,
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_configuration_of_odd_content_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(SemipdError) as refused:
        load_config(path)
    assert exit_codes.exit_code_of(refused.value) == exit_codes.USAGE


def test_a_configuration_may_come_from_a_pipe_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_files, "PIPE_LIMIT_S", 0.1)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, why in ((fifo, "nothing came"), (Path("/dev/zero"), "more than 1048576 bytes")):
        with pytest.raises(SemipdError) as refused:
            load_config(path)
        assert refused.value.code == "config_unreadable"
        assert why in refused.value.message
    monkeypatch.setattr(small_files, "PIPE_LIMIT_S", 60)
    writing = threading.Thread(target=fifo.write_text, args=("[server]\nport = 9\n",))
    writing.start()
    assert load_config(fifo).server.port == 9
    writing.join()


def test_what_would_steer_a_terminal_is_shown() -> None:
    assert printable("a\x1b[2J\x9b\u202eb\nΩ") == "a\\x1b[2J\\x9b\\u202eb\nΩ"


@pytest.mark.parametrize("option", ["--number=--", "--words=--"])
def test_an_option_whose_value_argparse_drops_is_an_error(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = CommandParser(prog="x")
    parser.add_argument("--number", type=int)
    parser.add_argument("--words", action="append", default=[])
    assert parser.parse_args([]).words == []
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([option])
    assert ended.value.code == 2
    assert "expected one argument" in capsys.readouterr().err
