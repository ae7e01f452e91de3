"""scripts/bench_serving.py as a person runs it, against a daemon on the fake device."""

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_serving
import pytest
from benchlib import plot
from benchlib.load.records import Record
from benchlib.metrics import Slo
from support import tiny_tokenizers
from support.patience import Patience

from semipd.core.errors import SemipdError

SCRIPT = Path(bench_serving.__file__)
CONTEXT_TOKENS = 512


class FakeDaemon:
    """In a process of its own, with a model folder without weights."""

    def __init__(self, folder: Path) -> None:
        tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
        config = {"vocab_size": 400, "eos_token_id": 1, "max_position_embeddings": CONTEXT_TOKENS}
        (folder / "config.json").write_text(json.dumps(config))
        self.socket = folder / "s.sock"
        command = [
            sys.executable,
            "-m",
            "semipd.commands.daemon",
            "start",
            "--model",
            str(folder),
            "--device",
            "fake",
        ]
        command += ["--port", "0", "--socket", str(self.socket), "--set", "model.served_model_name=tiny"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        first_line = self.process.stdout.readline()
        assert first_line.startswith("semipd serves tiny at "), (folder / "log").read_text()
        self.url = first_line.split()[-1]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def target(self, kind: str) -> list[str]:
        return ["--url", self.url] if kind == "http" else ["--socket", str(self.socket)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDaemon]:
    started = FakeDaemon(tmp_path_factory.mktemp("daemon"))
    yield started
    started.close()


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def measure(tmp_path: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    """(the JSON document, what was printed)."""
    done = run(*arguments, "--json", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bar without a terminal"
    document: dict[str, Any] = json.loads((tmp_path / "run.json").read_text())
    check_document(document)
    return document, done.stdout


def check_document(document: dict[str, Any]) -> None:
    """Totals follow from the requests, request by request."""
    results, requests = document["results"], document["requests"]
    ok = [request for request in requests if request["outcome"] == "ok"]
    assert [request["index"] for request in requests] == list(range(results["sent"]))
    assert results["outcomes"].get("ok", 0) == len(ok)
    for key in ("prompt_tokens", "output_tokens", "cached_tokens"):
        assert results[key] == sum(request[key] for request in ok)
    assert results["events"] == sum(len(request["event_ms"]) for request in ok)
    per_s = results["output_tokens"] / results["duration_s"]
    assert results["output_tokens_per_s"] == pytest.approx(per_s)
    for request in ok:
        assert request["ttft_ms"] == request["event_ms"][0] > 0
        assert request["event_ms"] == sorted(request["event_ms"])
        assert request["e2e_ms"] == request["event_ms"][-1]
        assert len(request["event_ms"]) <= request["output_tokens"]


@pytest.mark.parametrize("kind", ["http", "socket"])
def test_closed_loop(daemon: FakeDaemon, tmp_path: Path, kind: str) -> None:
    arguments = ("--concurrency", 4, "--num-requests", 12, "--prompt-tokens", "20-60", "--output-tokens", 9)
    seed = ("--seed", 1 if kind == "http" else 2)
    document, printed = measure(tmp_path, *daemon.target(kind), *arguments, *seed)
    results = document["results"]
    assert results["outcomes"] == {"ok": 12}
    assert results["output_tokens"] == 12 * 9
    assert results["without_usage"] == results["short"] == results["cached_tokens"] == 0
    lengths = [request["prompt_tokens"] for request in document["requests"]]
    assert lengths == [request["asked_prompt_tokens"] for request in document["requests"]]
    assert 20 <= min(lengths) < max(lengths) <= 60
    assert results["send_lag_ms"] is None
    assert document["server"] | {"versions": {}} == {
        "model": "tiny",
        "max_model_len": CONTEXT_TOKENS,
        "versions": {},
    }
    assert document["command"][1:3] == daemon.target(kind)
    assert "12 requests in " in printed
    assert "12 ok" in printed


@pytest.mark.parametrize("kind", ["http", "socket"])
def test_poisson(daemon: FakeDaemon, tmp_path: Path, kind: str) -> None:
    arguments = ("--rate", 40, "--num-requests", 20, "--prompt-tokens", 30, "--output-tokens", 4)
    first, _ = measure(tmp_path, *daemon.target(kind), *arguments, "--seed", 3)
    second, printed = measure(tmp_path, *daemon.target(kind), *arguments, "--seed", 3)
    due_ms = [request["due_ms"] for request in first["requests"]]
    assert due_ms == [request["due_ms"] for request in second["requests"]]
    assert due_ms == sorted(due_ms)
    assert all(request["sent_ms"] >= request["due_ms"] for request in first["requests"])
    assert first["results"]["send_lag_ms"]["count"] == 20
    # 30 tokens are one full block and a rest
    assert second["results"]["cached_tokens"] == 20 * 16
    assert "warning: the prefix cache knew these prompts" in printed


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [
        (0, 96, [1, 2, 3]),
        (100, 90, [1, 2, 4]),
        (500, 60, [1, 5]),
        (1000, 64, [1, 2]),
        (9000, 40, [1, 6]),
    ]
    keys = ("timestamp", "input_length", "hash_ids")
    lines = [json.dumps(dict(zip(keys, row, strict=True)) | {"output_length": 3}) for row in rows]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_trace_at_its_own_times(daemon: FakeDaemon, tmp_path: Path, trace: Path) -> None:
    arguments = ("--trace", trace, "--window", "0:5", "--speed", 4, "--seed", 4)
    document, _ = measure(tmp_path, *daemon.target("socket"), *arguments)
    assert [request["due_ms"] for request in document["requests"]] == [0, 25, 125, 250]
    assert [request["prompt_tokens"] for request in document["requests"]] == [96, 90, 60, 64]
    assert document["workload"]["block_tokens"] == 32


def test_prefixes_that_a_trace_shares(daemon: FakeDaemon, tmp_path: Path, trace: Path) -> None:
    """One after the other, each finds what earlier ones left; its last token is always computed."""
    arguments = ("--trace", trace, "--concurrency", 1, "--limit", 4, "--seed", 5)
    document, printed = measure(tmp_path, *daemon.target("http"), *arguments)
    assert [request["cached_tokens"] for request in document["requests"]] == [0, 64, 32, 48]
    assert "--seed" not in printed


def test_refusals_are_misses(daemon: FakeDaemon, tmp_path: Path) -> None:
    trace = tmp_path / "lengths.csv"
    trace.write_text(f"num_prefill_tokens,num_decode_tokens\n20,4\n{CONTEXT_TOKENS},4\n20,1\n30,2\n")
    arguments = ("--trace", trace, "--rate", 50, "--slo-ttft-ms", 1e6, "--slo-tpot-ms", 1e6)
    document, printed = measure(tmp_path, *daemon.target("http"), *arguments)
    results = document["results"]
    assert results["outcomes"] == {"ok": 3, "refused": 1}
    assert results["errors"] == {"context_length_exceeded": 1}
    assert results["attainment_frac"] == 0.75
    assert "error context_length_exceeded: 1" in printed
    document, _ = measure(tmp_path, *daemon.target("http"), *arguments, "--max-request-tokens", 400)
    assert document["workload"]["dropped"] == 1
    assert document["results"]["attainment_frac"] == 1


def test_ctrl_c_gives_the_figures_so_far(daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = [sys.executable, str(SCRIPT), *daemon.target("socket"), "--rate", "20"]
    command += ["--num-requests", "4000", "--prompt-tokens", "16", "--output-tokens", "400"]
    command += ["--json", str(path), "--warmup", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    status = [
        sys.executable,
        "-m",
        "semipd.commands.daemon",
        "status",
        "--socket",
        str(daemon.socket),
        "--json",
    ]
    while True:
        done = subprocess.run(status, capture_output=True, text=True, timeout=60, check=True)
        if json.loads(done.stdout)["live_requests"] > 1:
            break
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    document = json.loads(path.read_text())
    results = document["results"]
    assert results["outcomes"]["cancelled"] >= 1
    assert results["sent"] == results["arrived"] + results["outcomes"]["cancelled"] < 4000
    assert "the run was stopped before its end" in printed
    assert document["generator"]["was_stopped"] is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "say when"),
        (["--rate", "1"], "--num-requests is needed"),
        (["--rate", "1", "--concurrency", "2"], "exclude each other"),
        (["--rate", "1", "--num-requests", "2", "--speed", "2"], "--speed is for"),
        (["--trace", "x", "--prompt-tokens", "5"], "lengths of its own"),
        (["--concurrency", "1", "--num-requests", "2", "--window", "1:2"], "need --trace"),
        (["--socket", "--url", "http://x", "--rate", "1", "--num-requests", "2"], "without --url"),
        (["--rate", "0"], "not a number above 0"),
        (["--rate", "nan"], "not a number above 0"),
        (["--num-requests", "0"], "whole number"),
        (["--window", "5:1"], "A:B"),
        (["--prompt-tokens", "9-1"], "neither N nor N-M"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench_serving.main(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert bench_serving.main(arguments) == 1
    return capsys.readouterr().err


def test_clear_refusals(daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ["--concurrency", "1", "--num-requests", "1"]
    nobody = ["--url", "http://127.0.0.1:1", *some]
    assert "error [connect_failed]: Nothing answers at 127.0.0.1:1" in refused(nobody, capsys)
    nowhere = ["--socket", str(tmp_path / "nowhere"), *some]
    assert "error [daemon_not_running]" in refused(nowhere, capsys)
    other = [*daemon.target("http"), "--model", "other", "--vocab", "400", *some]
    assert "error [model_not_found]: The warm-up request was refused" in refused(other, capsys)
    trace = tmp_path / "lengths.csv"
    trace.write_text("num_prefill_tokens,num_decode_tokens\n20,4\n")
    timeless = [*daemon.target("http"), "--trace", str(trace)]
    assert "error [trace_without_times]" in refused(timeless, capsys)


def test_a_plot_without_matplotlib_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["--rate", "1", "--num-requests", "1", "--plot", "x.png", "--url", "http://127.0.0.1:1"]
    assert "error [matplotlib_missing]" in refused(arguments, capsys)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_plot(tmp_path: Path) -> None:
    good = Record(0, 1, 3, sent_s=0.1, event_times_s=[0.2, 0.3, 0.5], output_tokens=3, outcome="ok")
    records = [good, Record(1, 1, 1, sent_s=0.2, outcome="refused")]
    plot.save_plot(tmp_path / "x.png", records, Slo(50, 5), "a run")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SemipdError) as caught:
        plot.save_plot(tmp_path / "no" / "x.png", records, Slo(50, 5), "a run")
    assert caught.value.code == "cannot_write"
    plot.save_plot(tmp_path / "empty.png", records[1:], Slo(50, 5), "nothing ended well")


def test_the_daemon_is_idle_afterwards(daemon: FakeDaemon) -> None:
    """Whatever the tests above cancelled."""
    status = [
        sys.executable,
        "-m",
        "semipd.commands.daemon",
        "status",
        "--socket",
        str(daemon.socket),
        "--json",
    ]
    patience = Patience(30)
    while True:
        done = subprocess.run(status, capture_output=True, text=True, timeout=60, check=True)
        if json.loads(done.stdout)["live_requests"] == 0:
            return
        assert not patience.is_over()
