"""The measuring halves of the benchmark and of tuning, from job to page, on a CPU that plays the GPU: the
interpreter computes, and a clock that counts calls measures."""

import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from kernellib import bench_child, bench_ops, gpu, tune_child, tuning
from kernellib.bench_table import render
from kernellib.lanes import Lane
from kernellib.timing import Timed
from kernellib.workloads import WORKLOADS, Workload
from semipd_kernels import dispatch
from support.interpreter import multiply_bf16

TINY = {
    "decode_attention": {"seqs": 2, "context": 64, "heads": 4, "kv_heads": 2, "head_dim": 64},
    "prefill_attention": {
        "seqs": 1, "query_len": 16, "context": 32, "heads": 4, "kv_heads": 2, "head_dim": 64,
    },
    "silu_mul": {"rows": 3, "width": 64},
}  # fmt: skip


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Runs a child's `run` with a job and returns its records."""
    multiply_bf16(monkeypatch)

    def measure(module: Any, lane: Lane, calls: Sequence[Callable[[], object]]) -> Timed:
        for call in calls:
            call()
        return Timed(1000.0 / lane.num_sms, 0.0, True)

    @contextmanager
    def open_lanes(sizes: Sequence[int]) -> Any:
        yield [Lane(size, None, green=size != 8) for size in sizes], "no lane of 3 SMs"

    described = {
        "device": "CPU",
        "num_sms": 8,
        "arch": 90,
        "driver": "0",
        "cuda": "0",
        "python": "3",
        "versions": {},
    }
    for module in (bench_child, tune_child):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "measure", measure)
    for name, value in {
        "refusal": lambda: "",
        "describe": lambda: described,
        "open_lanes": open_lanes,
        "num_sets": lambda num_bytes: 2,
        "device_lost": lambda error: False,
    }.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(bench_child, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(bench_child, "MATMUL_SIZE", 16)

    def play(child: Any, job: dict[str, Any]) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []

        def report(kind: str, **fields: Any) -> None:
            records.append(json.loads(json.dumps({"kind": kind, **fields})))

        reporter: Any = report
        reporter.job = {"left_s": 1e9, "skip": [], **job}
        assert child.run(reporter) == 0
        return [record for record in records if record["kind"] != "begin"]

    return play


def tiny(workload: Workload) -> Workload:
    return Workload(workload.op, workload.label, TINY[workload.op], {}, workload.bound)


def test_bench(played: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [next(workload for workload in WORKLOADS if workload.op == op) for op in TINY]
    monkeypatch.setattr(bench_child, "WORKLOADS", [tiny(workload) for workload in chosen])
    job = {"sms": [0, 4], "ops": list(TINY), "skip": ["4/silu_mul/t8192"]}
    records = played(bench_child, job)
    assert [record["kind"] for record in records] == ["device", "note", *["result"] * 7]
    assert [record["key"] for record in records[2:]] == [
        f"{sms}/{name}"
        for sms in (8, 4)
        for name in ("roofline", *(workload.name for workload in chosen))
        if (sms, name) != (4, "silu_mul/t8192")
    ]
    decode = records[3]
    assert decode["us"] == 125.0
    assert decode["check_error"] == 0.0  # here the interpreter plays the CPU's part too
    assert 0 < decode["full_error"] < 2e-2
    assert "sdpa flash" in decode["baselines_us"]
    page = render(records, "2026-11-21", "x")
    assert page.count("| 8 | 125.0 |") == 3
    assert "- failed: no lane of 3 SMs" in page


def test_a_wrong_kernel_has_no_time(played: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_ops._BUILD["silu_mul"]

    def wrong(inputs: bench_ops.Inputs, **shape: int) -> bench_ops.Prepared:
        prepared = right(inputs, **shape)
        factor = 1.02 if dispatch.INTERPRETED and inputs.num_sms > 1 else 1.0
        return bench_ops.Prepared(lambda: tuple(out * factor for out in prepared.run()), prepared.baselines)

    monkeypatch.setitem(bench_ops._BUILD, "silu_mul", wrong)
    silu_mul = next(workload for workload in WORKLOADS if workload.op == "silu_mul")
    monkeypatch.setattr(bench_child, "WORKLOADS", [tiny(silu_mul)])
    records = played(bench_child, {"sms": [4], "ops": ["silu_mul"]})
    assert records[-1]["kind"] == "error"
    assert "wrong: relative error 0.02" in records[-1]["error"]


@pytest.mark.parametrize("op", tuning.TUNED_OPS)
def test_tune(op: str, played: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(op, "tiny", TINY[op], {})
    monkeypatch.setattr(tune_child, "shapes", lambda op, head_dim: (workload, workload))
    every = tune_child.candidate_pieces
    monkeypatch.setattr(tune_child, "candidate_pieces", lambda *args: list(every(*args))[:3])
    records = played(tune_child, {"sms": [0, 4], "ops": [op], "head_dims": [64]})
    results = records[2:]
    assert [record["kind"] for record in results] == ["result"] * 6, results
    assert len({record["key"] for record in results}) == 6
    assert [record["current"] for record in results] == [True, False, False] * 2
    assert [record["us"] for record in results] == [[125.0] * 2] * 3 + [[250.0] * 2] * 3
    won = tuning.winners(results)
    assert [(winner.key.op, winner.num_sms, winner.num_tried) for winner in won] == [(op, 4, 3), (op, 8, 3)]
    assert [winner.config for winner in won] == [results[3]["config"], results[0]["config"]]


def test_without_a_gpu_the_children_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "refusal", lambda: "no GPU")
    told: list[dict[str, Any]] = []
    reporter: Any = lambda kind, **fields: told.append({"kind": kind, **fields})  # noqa: E731
    for child in (bench_child, tune_child):
        assert child.run(reporter) == 0
    assert told == [{"kind": "refused", "error": "no GPU"}] * 2
