"""The command's parser, configuration output, errors and exit codes; life cycles are in tests/daemon."""

import socket
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest

from semipd.command_line import exit_codes
from semipd.commands import daemon as cli
from semipd.commands.status_text import status_lines
from semipd.config.config import SPECS


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))


def test_config_prints_a_file_that_resolves_to_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["config", "--port", "99", "--set", "kv.fraction=0.25"]) == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["server"]["port"] == 99
    path = tmp_path / "all.toml"
    path.write_text(printed)
    assert cli.main(["config", "--config", str(path)]) == 0
    assert capsys.readouterr().out == printed


def test_explain_names_every_value_and_its_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMIPD__MODEL__DTYPE", "float32")
    assert cli.main(["config", "--explain", "--host", "::1", "--set", "server.port=7"]) == 0
    printed = capsys.readouterr().out
    assert "server.host = '::1'  [flag --host]" in printed
    assert "server.port = 7  [flag --set]" in printed
    assert "model.dtype = 'float32'  [environment variable SEMIPD__MODEL__DTYPE]" in printed
    assert "kv.bytes = 0  [default]" in printed
    for spec in SPECS.values():
        assert f"{spec.key} = " in printed
        assert spec.rule.description in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "x"], "server.port must be a whole number"),
        (["--port", "70000"], "flag --port"),
        (["--set", "engine.max_num_seqs=-1"], "1 to 65536"),
        (["--set", "engine.max_num_seq=1"], "Did you mean engine.max_num_seqs?"),
        (["--set", "novalue"], "--set section.key=value"),
        (["--port", "1", "--set", "server.port=2"], "twice"),
        (["--config", "/no/such.toml"], "/no/such.toml"),
    ],
)
@pytest.mark.parametrize("command", ["start", "config"])
def test_wrong_configuration_is_one_message_and_exit_2(
    command: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, *arguments]) == exit_codes.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error [")
    assert said in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", ["stop", "status"])
def test_nothing_runs(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main([command]) == exit_codes.NOT_RUNNING
    assert str(tmp_path / "runtime" / "semipd" / "daemon.sock") in capsys.readouterr().err

    left_over = tmp_path / "left-over.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left_over))
    assert cli.main([command, "--socket", str(left_over)]) == exit_codes.NOT_RUNNING
    assert "semipd-daemon start" in capsys.readouterr().err


def test_a_socket_path_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--socket", "/x" * 200]) == exit_codes.FAILED
    assert "socket_unreachable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["no-such-command"], ["start", "--no-such-flag"], ["stop", "--model", "x"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == exit_codes.USAGE
    assert "usage: semipd-daemon" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("semipd-daemon 0.")


READY = {
    "state": "ready",
    "phase": None,
    "attempt": None,
    "backoff_left_s": None,
    "why": None,
    "hint": None,
    "pid": 4242,
    "restarts": 0,
}


NO_VALUES = {"p50": None, "p90": None, "p99": None}
SLO = {
    "targets": {"percentile": 90.0, "itl_percentile": 99.0, "window_s": 60.0},
    "classes": {
        "chat": {
            "targets": {"ttft_ms": 300.0, "ttft_ms_per_1k_tokens": 50.0, "tpot_ms": 0.0, "itl_ms": 40.0},
            "requests": 8,
            "attainment": 0.75,
            "goodput_rps": 0.1,
            "ttft_ms": {"p50": 100.0, "p90": 310.25, "p99": 400.0},
            "tpot_ms": {"p50": 10.0, "p90": 20.0, "p99": 30.0},
            "itl_ms": NO_VALUES,
        }
    },
}


def status_document() -> dict[str, object]:
    lane = {"steps": 3, "prefill_tokens": 40, "decode_tokens": 0, "busy_ms": 120.0, "last_step_age_ms": None}
    return {
        "state": "ready",
        "engine": READY,
        "versions": {"daemon": "0.1.0", "engine": "0.1.0"},
        "uptime_s": 7300.0,
        "model": {"name": "demo", "max_model_len": 2048},
        "device_info": {"name": "cpu: two cores"},
        "scheduler": "semipd",
        "split": {"prefill": 1, "decode": 1, "unit": "core"},
        "requests": {
            "waiting": 2,
            "background": 1,
            "prefilling": 1,
            "decoding": 5,
            "oldest_waiting_ms": 1500.0,
        },
        "totals": {"stop": 4},
        "kv": {
            "block_tokens": 16,
            "total_blocks": 100,
            "used_blocks": 7,
            "free_blocks": 93,
            "cached_blocks": 9,
        },
        "prefix": {"prompt_tokens": 50, "cached_tokens": 32},
        "preemptions": 6,
        "lanes": {"prefill": lane, "decode": lane | {"last_step_age_ms": 250.0}},
        "notes": ["the cgroup allows 1.5 cores"],
        "slo": SLO,
        "drain": {
            "state": "draining",
            "actor": "ann",
            "awaited": 2,
            "oldest_ms": 1500.0,
            "seconds_left": 8.0,
            "ended": 0,
        },
    }


def test_status_table() -> None:
    lines = status_lines(cast(Any, status_document()))
    text = "\n".join(lines)
    for fact in (
        "up 2 h 1 min",
        "prefill 1, decode 1 (cores)",
        "2 waiting (the oldest for 1.5 s), 1 in the background, 1 prefilling, 5 decoding",
        "7 of 100 in use (16 tokens each), 9 free ones",
        "32 of 50 prompt tokens",
        "4 stop",
        "draining for ann: 2 requests under way, the oldest for 1.5 s; they have 8 s",
        "never ran",
        "last step 0.2 s ago",
        "note: the cgroup allows 1.5 cores",
        "chat: 75.0% of 8 met, goodput 0.10/s, TTFT 310.2 of 300 ms + 50/1k, TPOT 20 ms, ITL - of 40 ms",
    ):
        assert fact in text


def test_status_without_an_engine() -> None:
    outage = {
        "attempt": 2,
        "backoff_left_s": 1.25,
        "why": "The engine ended with exit code 3.",
        "restarts": 1,
    }
    status = {name: status_document()[name] for name in ("uptime_s", "totals", "drain", "notes", "slo")} | {
        "engine": READY | {"state": "restarting"} | outage,
        "model": {"name": "demo", "max_model_len": None},
        "device_info": None,
        "versions": {"daemon": "0.1.0", "engine": None},
    }
    text = "\n".join(status_lines(cast(Any, status)))
    assert "restarting, attempt 2, in 1.2 s, restarted 1 times: The engine ended with exit code 3." in text
    assert "lane" not in text
    phase = {"name": "loading weights", "seconds": 3.0, "limit_s": 60.0}
    text = "\n".join(
        status_lines(cast(Any, status | {"engine": READY | {"state": "starting", "phase": phase}}))
    )
    assert "starting, loading weights for 3.0 of at most 60 s" in text
