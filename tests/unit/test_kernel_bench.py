"""Everything of the kernel benchmark that needs no GPU: figures, the page, time limits, children that die."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_kernels
import pytest
from kernellib import lanes, timing, workloads
from kernellib.bench_table import render
from kernellib.budget import Budget
from kernellib.roofline import Roofline, rate, share
from kernellib.supervise import RefusedError, supervise
from kernellib.workloads import WORKLOADS, Work
from support.ended import ends_soon

ROOT = Path(__file__).parents[2]
H200 = Roofline(132, copy_gb_s=4000.0, matmul_tflop_s=800.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_bytes_and_operations_counted_by_hand() -> None:
    decode = workloads.decode_attention_work(seqs=2, context=32, heads=4, kv_heads=2, head_dim=64)
    kv, q_and_out, tables = 2 * 2 * 32 * 2 * 64 * 2, 2 * 2 * 4 * 64 * 2, 2 * 2 * 4
    assert decode == (kv + q_and_out + tables, 2 * 4 * 32 * (64 + 64) * 2)
    visible = sum(range(3, 6))  # 3 queries behind 2 tokens see 3, 4 and 5
    prefill = workloads.prefill_attention_work(1, 3, 5, heads=4, kv_heads=2, head_dim=64)
    assert prefill.flops == visible * 4 * (64 + 64) * 2
    assert prefill.num_bytes == (2 * 5 * 2 + 2 * 3 * 4) * 64 * 2
    assert workloads.matmul_work(2, 3, 5) == ((6 + 15 + 10) * 2, 60)
    assert workloads.add_rms_norm_work(3, 8).num_bytes == (4 * 24 + 8) * 2
    assert workloads.silu_mul_work(3, 8).num_bytes == 3 * 24 * 2
    assert workloads.rope_write_work(3, 4, 2, 64).num_bytes == 3 * (8 * 64 * 2 * 2 + 16)
    assert workloads.embedding_work(3, 8, 99).num_bytes == 2 * 24 * 2 + 24
    assert workloads.sampling_work(3, 100).num_bytes == 1200


def test_roofline() -> None:
    work = Work(num_bytes=4_000_000_000, flops=8 * 10**11)
    assert H200.least_us(work) == pytest.approx(1000.0)
    assert H200.least_us(work._replace(flops=16 * 10**11)) == pytest.approx(2000.0)
    assert rate(work, "memory", 2000.0) == pytest.approx(2000.0)
    assert rate(work, "compute", 2000.0) == pytest.approx(400.0)
    assert share(work, "memory", 2000.0, H200) == pytest.approx(0.5)
    assert share(work, "compute", 1000.0, H200) == pytest.approx(1.0)


def test_products_have_the_rows_of_prompts_and_of_decode_steps() -> None:
    assert [w.shape["m"] for w in WORKLOADS if w.op == "matmul"] == [8192, 64, 16]


def test_workloads_have_unique_names_and_shapes_that_fit() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    for workload in WORKLOADS:
        assert workload.work.num_bytes > 0
        assert workload.work.flops > 0 or workload.bound == "memory"
        small = workloads.WORK[workload.op](**workload.checked_shape())
        assert small.num_bytes < workload.work.num_bytes
        assert not workload.target or workload.target in workloads.TARGETS
    from semipd_kernels.catalog import OPS

    assert {workload.op for workload in WORKLOADS} == {*OPS, "matmul"}


def test_budget_leaves_out_what_would_not_end_in_time() -> None:
    clock = Clock()
    budget = Budget(100.0, clock)
    assert budget.allows()
    clock.now_s = 30.0
    budget.spent(30.0)
    clock.now_s = 70.0
    assert budget.allows()
    clock.now_s = 70.1
    assert not budget.allows()
    assert budget.left_s == pytest.approx(29.9)
    clock.now_s = 200.0
    assert budget.left_s == 0.0


# --- the page


def result(workload: str, num_sms: int, us: float, **fields: Any) -> dict[str, Any]:
    record = {"spread": 0.01, "graph": True, "check_error": 0.0, "full_error": 0.0, "baselines_us": {}}
    return {
        "kind": "result",
        "key": f"{num_sms}/{workload}",
        "workload": workload,
        "num_sms": num_sms,
        "us": us,
        **record,
        **fields,
    }


def limits(num_sms: int, copy_gb_s: float) -> dict[str, Any]:
    return {
        "kind": "result",
        "key": f"{num_sms}/roofline",
        "num_sms": num_sms,
        "green": num_sms != 132,
        "copy_gb_s": copy_gb_s,
        "matmul_tflop_s": 6.0 * num_sms,
    }


def test_page() -> None:
    decode, prefill = WORKLOADS[0], WORKLOADS[1]
    least_us = decode.work.num_bytes / 4000.0 / 1e3
    records: list[dict[str, Any]] = [
        {
            "kind": "device",
            "device": "NVIDIA H200",
            "num_sms": 132,
            "driver": "580.1",
            "cuda": "13.0",
            "python": "3.12.3",
            "versions": {"torch": "2.11.0", "triton": "3.6.0"},
        },
        limits(132, 4000.0),
        limits(64, 3200.0),
        result(decode.name, 132, least_us / 0.9, baselines_us={"sdpa flash": 900.0, "sdpa cudnn": 700.0}),
        result(decode.name, 64, least_us / 0.7, graph=False),
        result(prefill.name, 132, 1000.0, baselines_us={"sdpa flash": 740.0}),
        {"kind": "note", "error": "the device gives no lanes of [80] SMs"},
        {"kind": "error", "key": "64/rms_norm/t8192", "error": "ValueError: wrong"},
        {"kind": "skipped", "key": "16/a/b", "error": "the time limit of 9 s came first"},
        {"kind": "skipped", "key": "16/c/d", "error": "the time limit of 9 s came first"},
    ]
    page = render(records, "2026-11-21", "python scripts/bench_kernels.py")
    rows = [line for line in page.splitlines() if line.startswith(("| 132 |", "| 64 |"))]
    assert rows[0] == "| 132 | 4,000 | 792 |"
    assert rows[2].startswith(
        f"| 132 | {least_us / 0.9:,.1f} | 1% | 3,600 | 90% | 90% | 700.0 (sdpa cudnn) |"
    )
    assert rows[3].startswith(f"| 64 | {least_us / 0.7:,.1f}* | 1% | 2,800 | 88% | 70% |  |  |")
    assert "- reached: decode_attention/b64-ctx4096 on 132 SMs, 90% of the copy bandwidth" in page
    assert "- missed: decode_attention/b64-ctx4096 on 64 SMs, 70%" in page
    assert "- missed: prefill_attention/b1-q8192-ctx8192 on 132 SMs, 74% of the best SDPA backend" in page
    assert "- failed: the device gives no lanes of [80] SMs\n- failed: 64/rms_norm/t8192: ValueError" in page
    assert "- not measured: 16 SMs, the time limit of 9 s came first: a/b, c/d" in page
    assert "NVIDIA H200, 132 SMs, driver 580.1, CUDA 13.0, Python 3.12.3, torch 2.11.0, triton 3.6.0." in page


def test_page_of_a_run_that_measured_no_limits() -> None:
    page = render([result(WORKLOADS[0].name, 132, 100.0)], "2026-11-21", "x")
    assert "| 132 | 100.0 | 1% |" in page
    assert "Targets" not in page


def test_files_are_written_after_each_record_and_once_per_fact(tmp_path: Path) -> None:
    page = bench_kernels.Page(tmp_path / "new", "x")
    device = {"kind": "device", "device": "NVIDIA H200 (SXM)", "num_sms": 132, "driver": "1", "cuda": "13",
              "python": "3", "versions": {}}  # fmt: skip
    page.keep(device)
    page.keep(device)
    assert page.path.name.endswith("-kernels-nvidia-h200-sxm.md")
    assert not page.has_results
    page.keep(limits(132, 4000.0))
    assert page.has_results
    assert "| 132 | 4,000 | 792 |" in page.path.read_text()
    assert [record["kind"] for record in json.loads(page.path.with_suffix(".json").read_text())] == [
        "device",
        "result",
    ]
    assert sorted(path.suffix for path in page.path.parent.iterdir()) == [".json", ".md"]


@pytest.mark.soak
def test_without_cuda_it_refuses_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench_kernels.py", "--out", out],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment,
    )
    assert done.returncode == 1
    assert "This needs an NVIDIA GPU and a CUDA build of torch" in done.stderr
    assert not done.stdout
    assert not out.exists()


# --- children that die


CHILD = """
import os, subprocess, sys, time
from kernellib.budget import Budget
from kernellib.supervise import Reporter, work_through
report = Reporter()
print("a library's words")
mode = report.job["mode"]
if mode == "refuse":
    report("refused", error="no GPU")
    sys.exit(0)
if mode == "no start":
    sys.exit(7)
def work(key):
    if key.startswith("crash"): os._exit(11)
    if key == "hang": time.sleep(600)
    if key.startswith("/"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(key, "w").write(str(child.pid))
        time.sleep(600)
    if key in ("raise", "lose"): raise ValueError(key + "\\nsecond line")
    return {"value": key.upper()}
pieces = [(key, lambda key=key: work(key)) for key in report.job["keys"]]
limit = report.job["left_s"] if mode != "no time" else -1.0
work_through(report, pieces, Budget(limit, time.monotonic), lambda error: "lose" in str(error))
"""


@pytest.fixture
def run_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts"))

    def run(mode: str, keys: list[str], patience_s: float = 20.0) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        budget = Budget(100.0, Clock())
        job = {"mode": mode, "keys": keys}
        supervise([sys.executable, str(script)], job, budget, patience_s, records.append)
        return records

    return run


def told(records: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(r["kind"], r["key"], r.get("value") or r.get("error", "")) for r in records]


def test_pieces_that_fail_do_not_hide_the_others(run_child: Callable[..., Any]) -> None:
    assert told(run_child("work", ["a", "raise", "crash", "lose", "b"])) == [
        ("result", "a", "A"),
        ("error", "raise", "ValueError: raise second line"),
        ("error", "crash", "the process ended with status 11"),
        ("error", "lose", "ValueError: lose second line"),
        ("result", "b", "B"),
    ]


def test_a_hang_is_killed(run_child: Callable[..., Any]) -> None:
    assert told(run_child("work", ["hang", "b"], patience_s=1.5)) == [
        ("error", "hang", "no answer within 2 s; the process was killed"),
        ("result", "b", "B"),
    ]


def test_a_hang_is_killed_with_what_it_started(run_child: Callable[..., Any], tmp_path: Path) -> None:
    name = tmp_path / "pid"
    run_child("work", [str(name)], patience_s=1.5)
    assert ends_soon(int(name.read_text()))


def test_what_time_does_not_allow_is_named(run_child: Callable[..., Any]) -> None:
    records = run_child("no time", ["a", "b"])
    assert [(record["kind"], record["key"]) for record in records] == [("skipped", "a"), ("skipped", "b")]


def test_a_child_that_cannot_start_ends_the_run(run_child: Callable[..., Any]) -> None:
    assert told(run_child("no start", ["a"])) == [("error", "start", "the process ended with status 7")]
    with pytest.raises(RefusedError, match="no GPU"):
        run_child("refuse", ["a"])


def test_restarts_are_bounded(run_child: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernellib.supervise.MAX_RESTARTS", 1)
    records = run_child("work", ["crash 1", "crash 2", "a"])
    assert [record["key"] for record in records] == ["crash 1", "crash 2", "restarts"]
    assert records[-1]["error"] == "gave up after 1 restarts"


# --- lanes and timing on a device that is not there


@dataclass
class FakeDriver:
    """A device of `total` SMs in groups of 8; `log` has what was made and destroyed."""

    total: int = 132
    broken: str = ""
    log: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if name == self.broken:
                return (1,)
            return getattr(self, f"fake_{name}")(*args)

        return call

    def fake_CUdevResourceType(self, number: int) -> int:  # noqa: N802
        return number

    def fake_cuDeviceGet(self, ordinal: int) -> Any:  # noqa: N802
        return 0, "device"

    def fake_cuDeviceGetDevResource(self, device: Any, kind: int) -> Any:  # noqa: N802
        return 0, SimpleNamespace(sm=SimpleNamespace(smCount=self.total))

    def fake_cuDevSmResourceSplitByCount(self, count: int, full: Any, flags: int, least: int) -> Any:  # noqa: N802
        fitting = count or self.total // least
        groups = [SimpleNamespace(sm=SimpleNamespace(smCount=least)) for _ in range(fitting)]
        return 0, groups if count else [], fitting, "rest"

    def fake_cuDevResourceGenerateDesc(self, groups: list[Any], count: int) -> Any:  # noqa: N802
        assert len(groups) == count
        return 0, 8 * count

    def fake_cuGreenCtxCreate(self, description: int, device: Any, flags: int) -> Any:  # noqa: N802
        assert flags == 1
        self.log.append(f"context {description}")
        return 0, description

    def fake_cuGreenCtxGetDevResource(self, context: int, kind: int) -> Any:  # noqa: N802
        return 0, SimpleNamespace(sm=SimpleNamespace(smCount=context))

    def fake_cuGreenCtxStreamCreate(self, context: int, flags: int, priority: int) -> Any:  # noqa: N802
        self.log.append(f"stream {context}")
        return 0, 1000 + context

    def fake_cuStreamDestroy(self, stream: int) -> Any:  # noqa: N802
        self.log.append(f"end stream {stream - 1000}")
        return (0,)

    def fake_cuGreenCtxDestroy(self, context: int) -> Any:  # noqa: N802
        self.log.append(f"end context {context}")
        return (0,)


FAKE_STREAMS = SimpleNamespace(
    cuda=SimpleNamespace(ExternalStream=lambda raw, device: f"stream {raw}"), device=lambda name: name
)


def test_lanes_of_whole_groups_are_closed_in_reverse() -> None:
    driver = FakeDriver()
    with lanes.green_lanes(driver, FAKE_STREAMS, [64, 20, 16, 136]) as made:
        assert [(lane.num_sms, lane.stream) for lane in made] == [(64, "stream 1064"), (16, "stream 1016")]
        assert driver.log == ["context 64", "stream 64", "context 16", "stream 16"]
    assert driver.log[4:] == ["end stream 16", "end context 16", "end stream 64", "end context 64"]


def test_a_lane_that_cannot_be_made_leaves_nothing_open() -> None:
    driver = FakeDriver(broken="cuGreenCtxStreamCreate")
    with (
        pytest.raises(RuntimeError, match="CUDA driver error 1"),
        lanes.green_lanes(driver, FAKE_STREAMS, [64]),
    ):
        pass
    assert driver.log == ["context 64", "end context 64"]


class FakeCuda:
    """A stream that takes `call_us` per call; `capturable` says whether a graph may be made."""

    def __init__(self, call_us: float, capturable: bool = True) -> None:
        self.call_us, self.capturable = call_us, capturable
        self.now_us = 0.0
        self.captured: int | None = None
        self.cuda = self
        self.stream_synchronised = 0

    @contextmanager
    def stream(self, stream: Any) -> Any:
        yield

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Any:
        if not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.captured = 0
        yield
        graph.calls, self.captured = self.captured, None

    def CUDAGraph(self) -> Any:  # noqa: N802
        graph = SimpleNamespace(calls=0)

        def replay() -> None:
            self.now_us += graph.calls * self.call_us

        graph.replay = replay
        return graph

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802
        event = SimpleNamespace(us=0.0, synchronize=lambda: None)

        def record(stream: Any) -> None:
            event.us = self.now_us

        event.record = record
        event.elapsed_time = lambda end: (end.us - event.us) / 1e3
        return event

    def synchronize(self) -> None:
        self.stream_synchronised += 1

    def call(self) -> None:
        if self.captured is None:
            self.now_us += self.call_us
        else:
            self.captured += 1


@pytest.mark.parametrize("capturable", [True, False])
def test_measure(capturable: bool) -> None:
    cuda = FakeCuda(12.5, capturable)
    lane = lanes.Lane(132, SimpleNamespace(synchronize=lambda: None))
    timed = timing.measure(cuda, lane, [cuda.call, cuda.call, cuda.call])
    assert astuple(timed) == (pytest.approx(12.5), pytest.approx(0.0), capturable)
    assert cuda.stream_synchronised == (0 if capturable else 1)


@pytest.mark.parametrize(
    ("once_us", "sets", "calls"), [(10.0, 1, 64), (10.0, 16, 64), (100.0, 3, 21), (1e6, 4, 4), (0.0, 5, 60)]
)
def test_calls_are_whole_turns_through_the_sets(once_us: float, sets: int, calls: int) -> None:
    assert timing.num_calls(once_us, sets) == calls
