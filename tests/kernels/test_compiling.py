"""Triton's cache is filled without a GPU, and what is launched later finds everything there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import warm_cache
from gpulib.models import LLAMA_3_8B
from kernellib.noop_triton import noop_triton
from semipd_kernels.sampling.aot import cases as sampling_cases

from semipd.devices.cuda.start import compiling
from semipd.devices.cuda.start.compiling import Job, KernelSet, _pass_of, _sample, jobs, lane_sizes

TINY = replace(
    LLAMA_3_8B,
    vocab_size=256,
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=256,
    max_position_embeddings=128,
)
KERNELS = KernelSet(TINY, "bfloat16", 90, (16,), (1, 2), 128, 16)
CODE = """
import json, test_compiling as t
from semipd.devices.cuda.start.compiling import Job, compile_job
print(json.dumps(compile_job(t.KERNELS, Job("decode", 16))))
"""


def compiled_in_a_new_process(cache: Path) -> list[str]:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environ |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environ, capture_output=True, text=True, timeout=300, check=True
    )
    names: list[str] = json.loads(done.stdout)
    return names


def test_later_launches_compile_nothing(tmp_path: Path) -> None:
    first = compiled_in_a_new_process(tmp_path)
    assert {"decode_attention_kernel", "rope_write_kernel", "embedding_kernel"} <= set(first)
    assert compiled_in_a_new_process(tmp_path) == []


def test_what_was_compiled_for_a_cache_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiling, "ProcessPoolExecutor", _Inline)
    done = list[Job]()

    def compile_job(kernels: KernelSet, job: Job) -> list[str]:
        done.append(job)
        return []

    monkeypatch.setattr(compiling, "compile_job", compile_job)
    said = list[tuple[int, int]]()
    compiling.compile_all(KERNELS, progress=lambda *numbers: said.append(numbers))
    assert set(done) == set(jobs(KERNELS))
    assert said == [(1, 3), (2, 3), (3, 3)]
    done.clear()
    compiling.compile_all(KERNELS)
    assert done == []
    compiling.compile_all(replace(KERNELS, lane_sms=(16, 64)))
    assert set(done) == {Job("prefill", 64), Job("decode", 64)}
    done.clear()
    compiling.compile_all(replace(KERNELS, block_size=64))
    assert set(done) == set(jobs(KERNELS))


def test_a_start_goes_on_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    phases = list[str]()

    def compile_all(kernels: KernelSet, *, progress: Callable[[int, int], None]) -> None:
        progress(3, 7)
        raise OSError("no space left")

    monkeypatch.setattr(compiling, "compile_all", compile_all)
    compiling.compile_beforehand(KERNELS, lambda phase, limit_s: phases.append(phase), 9.0)
    assert phases == ["compiling kernels: 3 of 7"]
    assert "could not be compiled beforehand" in caplog.text


class _Inline:
    def __init__(self, processes: int, mp_context: object) -> None:
        pass

    def __enter__(self) -> "_Inline":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, call: Callable[..., list[str]], *args: object) -> "Future[list[str]]":
        future: Future[list[str]] = Future()
        future.set_result(call(*args))
        return future


def test_lanes_of_an_h200() -> None:
    assert lane_sizes(132) == sorted({16, 24, 32, 40, 48, 64, 80, 116, 108, 100, 92, 84, 68, 52, 132})


def test_every_lane_is_compiled_for() -> None:
    several = KernelSet(TINY, "bfloat16", 90, (16, 64, 132), (1, 2), 128, 16)
    wanted = {Job("prefill", sms) for sms in (16, 64, 132)} | {Job("decode", sms) for sms in (16, 64, 132)}
    assert set(jobs(several)) == {Job("sampling"), *wanted}


def test_for_torchs_attention_the_copy_of_a_context_is_compiled_instead_of_ours() -> None:
    with noop_triton() as noop:
        _pass_of(replace(KERNELS, prefill_attention="sdpa"), "prefill", 16)
        assert {"gather_kv_kernel", "rope_write_kernel"} <= set(noop.compiled)
        assert not [name for name in noop.compiled if "prefill_attention" in name]


def test_the_script_compiles_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[KernelSet]()
    monkeypatch.setattr(warm_cache, "compile_all", lambda kernels, *_: asked.append(kernels))
    options = ("--prefill-attention", "sdpa", "--dependent-launch", "--sms", "64", "--kv-block-size", "64")
    warm_cache.main(options)
    warm_cache.main([])
    sets = [(each.prefill_attention, each.dependent, each.block_size) for each in asked]
    assert sets == [("sdpa", True, 64), ("triton", False, 16)]


def test_sampling_is_compiled_whole() -> None:
    """No kernel of the operation is missing: those of rows in graphs, and of everything else."""
    with noop_triton() as noop:
        _sample(256)
        assert set(noop.compiled) == {case.kernel.fn.__name__ for case in sampling_cases()}
