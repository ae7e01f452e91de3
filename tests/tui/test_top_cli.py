"""semipd-top's options: which go together, and what is imported to say so."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from semipd_top import cli
from semipd_top.screen import app
from semipd_top.screen.environment import blamed_on_variables

from semipd import __version__
from semipd.command_line import exit_codes

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tui")])}
NOT_FOR_HELP = ("torch", "textual", "rich", "asyncio", "msgpack", "pydantic")
HELP_LIMIT_S = 0.2
HELP_AND_MODULES = """
import sys, json
from semipd_top.cli import main
try:
    main(["--help"])
except SystemExit:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speed", "2"], "--speed needs --replay"),
        (["--speed", "2", "--demo"], "--speed needs --replay"),
        (["--count", "2"], "--count needs --json"),
        (["--count", "2", "--once"], "--once and --count"),
        (["--count", "0", "--json"], "at least 1"),
        (["--replay", "f", "--demo"], "--replay and --demo"),
        (["--replay", "f", "--socket", "s"], "--replay and --socket"),
        (["--replay", "f", "--record", "g"], "--replay and --record"),
        (["--replay", "f", "--interval", "1"], "--replay and --interval"),
        (["--replay", "f", "--once", "--speed", "2"], "--speed and --once"),
        (["--demo", "--socket", "s"], "--demo and --socket"),
        (["--json", "--theme", "nord"], "--json and --theme"),
        (["--once", "--read-only"], "--once and --read-only"),
        (["--interval", "0.1"], "--interval is 0.1"),
        (["--interval", "61"], "0.25 to 60"),
        (["--interval", "nan"], "--interval is nan"),
        (["--interval", "fast"], "--interval"),
        (["--socke", "s"], "unrecognized"),
        (["extra"], "extra"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == exit_codes.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_every_conflict_is_about_an_option_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for pair in (*cli._CONFLICTS, *cli._NEEDS):
        assert all(cli._flag(name) in text for name in pair), pair


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"semipd-top {__version__}\n"


def test_the_screen_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--demo"]) == exit_codes.USAGE
    said = capsys.readouterr().err
    assert "[no_terminal]" in said
    assert "--once" in said
    assert "--json" in said


def test_help_is_quick_and_needs_little() -> None:
    command = [sys.executable, "-c", HELP_AND_MODULES]
    cpu_s: list[float] = []
    for _ in range(5):
        before_s = _children_cpu_s()
        done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)
        cpu_s.append(_children_cpu_s() - before_s)
    assert "--replay FILE" in done.stdout
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert not loaded & set(NOT_FOR_HELP)
    assert min(cpu_s) < HELP_LIMIT_S * 5, "the limit is for a quiet machine"


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "module",
    [
        "sources.live",
        "sources.recording",
        "sources.replay",
        "sources.demo",
        "headless",
        "picture",
        "panels.overview",
    ],
)
def test_headless_parts_do_without_textual(module: str) -> None:
    script = f"import sys, semipd_top.{module}; sys.exit(any(m in sys.modules for m in ('textual', 'torch')))"
    assert subprocess.run([sys.executable, "-c", script], env=ENV, timeout=60).returncode == 0


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, dict[str, Any]]]:
    """What the screen was started with; it ends at once."""
    calls: list[tuple[Any, Any, dict[str, Any]]] = []

    def run_app(source: Any, recorder: Any, **options: Any) -> int:
        calls.append((source, recorder, options))
        return 0

    monkeypatch.setattr(app, "run_app", run_app)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    return calls


def test_the_screen_gets_what_was_asked_for(shown: list[Any], tmp_path: Path) -> None:
    record, socket = tmp_path / "r.gz", tmp_path / "s.sock"
    asked = ["--socket", str(socket), "--interval", "2", "--record", str(record)]
    assert cli.main([*asked, "--read-only", "--theme", "nord"]) == 0
    [(source, recorder, options)] = shown
    assert (source.title, source.interval_s) == (str(socket), 2.0)
    assert recorder.path == record
    assert options == {"read_only": True, "theme": "nord"}
    assert cli.main(["--replay", str(record), "--speed", "4"]) == 0
    assert shown[1][0].speed == 4.0
    assert shown[1][0].interval_s == 2.0
    assert cli.main(["--demo"]) == 0
    assert shown[2][1:] == (None, {"read_only": False, "theme": None})
    assert cli.main(["--socket", str(socket), "--record", str(record)]) == exit_codes.FAILED, "it exists"
    assert len(shown) == 3


def test_an_unknown_theme_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert cli.main(["--demo", "--theme", "no-such-theme"]) == exit_codes.USAGE
    said = capsys.readouterr().err
    assert "unknown_theme" in said
    assert "nord" in said


AT_A_TERMINAL = """
import sys
from unittest import mock
from semipd_top import cli
with mock.patch("semipd_top.cli._check_terminal"):
    sys.exit(cli.main(["--demo"]))
"""


@pytest.mark.parametrize("name", ["TEXTUAL_COLOR_SYSTEM", "TEXTUAL_DRIVER"])
def test_a_variable_that_textual_cannot_use(name: str) -> None:
    command = [sys.executable, "-c", AT_A_TERMINAL]
    done = subprocess.run(
        command, env=os.environ | {name: "bogus"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == exit_codes.USAGE, done.stderr
    [line] = done.stderr.splitlines()
    assert name in line
    assert line.endswith("[invalid_environment]")


def test_other_faults_are_not_blamed_on_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTUAL_DRIVER", raising=False)
    monkeypatch.setattr("semipd_top.screen.environment._given", list)
    with pytest.raises(KeyError), blamed_on_variables():
        raise KeyError("ours")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semipd_top.headless.print_frames", interrupt)
    assert cli.main(["--demo", "--json"]) == exit_codes.INTERRUPTED
