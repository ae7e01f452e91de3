"""scripts/bench_peers.py: CPU time, medians, the checkpoint, and whole comparisons of stub servers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from threading import Thread

import bench_peers
import pytest
from benchlib.checkpoint import LlamaShape, ensure_checkpoint, text_of
from benchlib.comparison import PeerRun, markdown, medians
from benchlib.load.records import Record
from benchlib.metrics import Slo, summarize
from benchlib.procfs import ProcessCpu, cpu_used, process_tree
from benchlib.servers import Peer
from support import openai_stub
from tokenizers import Tokenizer

from semipd.core.errors import SemipdError
from semipd.daemon.model.files import ModelFiles

STUB = f"{sys.executable} {openai_stub.__file__}"
SMALL = LlamaShape(
    layers=1, hidden=16, intermediate=24, heads=2, kv_heads=1, vocab_size=60, context_tokens=64
)

Compare = Callable[..., int]

FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import sys, time
while time.process_time() < 0.3: pass
print("burnt", flush=True)
sys.stdin.read()
'''], stdin=subprocess.PIPE)
sys.stdin.readline()
child.communicate()
print("reaped", flush=True)
sys.stdin.read()
"""


def test_cpu_time_of_a_tree() -> None:
    command = [sys.executable, "-c", FAMILY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        before = process_tree(parent.pid)
        assert parent.stdout.readline() == "burnt\n"
        both = process_tree(parent.pid)
        parent.stdin.write("go on\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "reaped\n"
        alone = process_tree(parent.pid)
    assert len(both) == 2
    used = {process.pid: process.cpu_s for process in cpu_used(before, both)}
    (child,) = set(both) - {parent.pid}
    assert used[child] >= 0.25
    # afterwards the child's time is its parent's, and none of it counts twice
    assert list(alone) == [parent.pid]
    assert alone[parent.pid].cpu_s >= 0.25
    assert sum(process.cpu_s for process in cpu_used(both, alone)) < 0.25
    assert process_tree(parent.pid) == {}


def test_processes_have_names() -> None:
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        label = process_tree(process.pid)[process.pid].label
        process.terminate()
    assert label == "http.server"


def run(
    peer: str, concurrency: int, tokens_per_s: int, faults: list[str] | None = None, **cpu_s: float
) -> PeerRun:
    """A run of one second with one request."""
    record = Record(0, 8, tokens_per_s, event_times_s=[0.1, 0.2], outcome="ok")
    record.take_usage({"prompt_tokens": 8, "completion_tokens": tokens_per_s})
    processes = [ProcessCpu(1 + i, 0, label, used) for i, (label, used) in enumerate(cpu_s.items())]
    summary = summarize([record], 1.0, Slo(1, 1))
    return PeerRun(peer, 0, concurrency, summary, processes, 0.0, {}, faults or [])


def test_medians_and_ratios() -> None:
    runs = [
        *(
            run("ours", 8, rate, engine=used, daemon=0.5)
            for rate, used in ((90, 2.0), (100, 1.0), (400, 3.0))
        ),
        *(run("other", 8, rate) for rate in (50, 10, 60)),
        run("other", 1, 25, ["prompts were counted as 9 tokens"]),
        run("ours", 1, 50, engine=1.0),
    ]
    rows = {(row.concurrency, row.peer): row for row in medians(runs, "ours")}
    assert [key[0] for key in rows] == [1, 1, 8, 8]
    ours, other = rows[8, "ours"], rows[8, "other"]
    assert (ours.output_tokens_per_s, ours.ratio) == (100, 1)
    assert (other.output_tokens_per_s, other.ratio) == (50, 2)
    assert rows[1, "other"].ratio == 2
    assert ours.cpu_s == 2.5
    assert ours.cpu_s_by_process == {"engine": 2.0, "daemon": 0.5}
    # 27.8, 15 and 8.75 s in the three runs
    assert ours.cpu_s_per_1000_tokens == pytest.approx(15)
    assert other.cpu_s is None
    text = markdown(list(rows.values()))
    assert "| 8 | other | 50.0 | 2.00 |" in text
    assert "| 1 | other* | 25.0 |" in text
    assert "* other at 1: prompts were counted as 9 tokens" in text
    assert "| 8 | ours | engine 2.00, daemon 0.50 |" in text


def test_naming_peers() -> None:
    assert Peer.parse("a=http://h:1") == Peer("a", url="http://h:1")
    assert Peer.parse("b=env X='1 2' vllm serve {model}").command == (
        "env",
        "X=1 2",
        "vllm",
        "serve",
        "{model}",
    )
    for text in ("other", "=x", "a=", "a= "):
        with pytest.raises(SemipdError):
            Peer.parse(text)


def test_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    ensure_checkpoint(checkpoint, SMALL)
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (1, 1)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = [5, 0, 59, 5, 17]
    assert tokenizer.encode(text_of(ids)).ids == ids
    files = ModelFiles.open(str(checkpoint))
    assert files.eos_token_ids == ()
    assert files.tokenizer.encode(text_of(ids)) == ids

    weights = checkpoint / "model.safetensors"
    made_at = weights.stat().st_mtime_ns
    ensure_checkpoint(checkpoint, SMALL)
    assert weights.stat().st_mtime_ns == made_at, "it is there already"
    with pytest.raises(SemipdError, match="holds something else"):
        ensure_checkpoint(checkpoint, LlamaShape())


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compare:
    monkeypatch.setattr(bench_peers, "SHAPE", SMALL)
    # stubs read no weights: the note that says what the folder holds is enough
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "shape.json").write_text(json.dumps(asdict(SMALL) | {"seed": 0}))

    def call(*peers: str) -> int:
        named = [word for peer in peers for word in ("--peer", peer)]
        sizes = ["--concurrency", "1,3", "--prompt-tokens", "9", "--output-tokens", "5", "--rounds", "1"]
        sizes += ["--repetitions", "2"]
        out = ["--json", str(tmp_path / "x.json"), "--markdown", str(tmp_path / "x.md")]
        return bench_peers.main([*named, *sizes, *out, "--checkpoint", str(checkpoint)])

    return call


def test_a_comparison(compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = compare(
        f"easy={STUB} {{port}}",
        f"strict={STUB} {{port}} strict no-models burn",
        f"sloppy={STUB} {{port}} short no-usage",
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert (tmp_path / "x.md").read_text() == printed.out
    document = json.loads((tmp_path / "x.json").read_text())
    names = ["easy", "strict", "sloppy"]
    assert [row["peer"] for row in document["medians"]] == names * 2
    assert len(document["runs"]) == 3 * 2 * 2
    order = [line.split()[-2] for line in printed.err.splitlines() if line.endswith("starts")]
    assert order == [*names, *reversed(names)]
    for one in document["runs"]:
        assert one["summary"]["outcomes"] == {"ok": 8}
        kept = one["fields"] | {"stream_options": {"include_usage": True}}
        assert kept["temperature"] == 0
        assert ("ignore_eos" in kept) is (one["peer"] != "strict")
        match one["peer"]:
            case "sloppy":
                assert one["summary"]["output_tokens"] == 8 * 4
                assert one["faults"] == [
                    "8 answers had no usage: tokens are counted by stream events",
                    "8 answers had 4 to 4 tokens, not as many as asked",
                ]
            case _:
                assert one["summary"]["output_tokens"] == 8 * 5
                assert one["faults"] == []
        (process,) = one["processes"]
        assert process["label"] == "openai_stub.py"
        if one["peer"] == "strict":
            assert process["cpu_s"] >= 8 * openai_stub.BURN_S * 0.9


def test_a_server_that_runs_already(compare: Compare, tmp_path: Path) -> None:
    with openai_stub.Server(("127.0.0.1", 0), openai_stub.Stub) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            assert compare(f"already=http://127.0.0.1:{server.server_address[1]}") == 0
        finally:
            server.shutdown()
            thread.join()
    assert "| 3 | already | not ours to measure |" in (tmp_path / "x.md").read_text()


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_does_not_outlive_a_comparison_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, subprocess
from pathlib import Path
from benchlib.servers import Peer, serving
async def main():
    peer = Peer.parse("stub={STUB} {{port}}")
    async with serving(peer, Path("."), Path({str(tmp_path)!r}), "w1 w2", 60) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environ) as it:
        assert it.stdout is not None
        pid = int(it.stdout.readline())
        assert process_tree(pid)[pid].label == "openai_stub.py"
        it.kill()
    while is_running(pid):
        time.sleep(0.01)


def test_servers_that_do_not_start(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(f"gone={STUB} {{port}} exit") == 1
    error = capsys.readouterr().err
    assert "error [peer_failed]: gone ended with code 7" in error
    assert "the reason is here" in error
    assert compare("missing=/no/such/program") == 1
    error = capsys.readouterr().err
    assert "error [peer_failed]: missing ended with code 127" in error
    assert "/no/such/program cannot be started: No such file" in error
    assert compare("unknown") == 1
    assert "error [invalid_value]" in capsys.readouterr().err
