"""What the scripts for a GPU do without one: parts, tables, oracle, loads, profile, refusal."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpulib.host import Host, Run
from gpulib.interference import Load, measure
from gpulib.loads import poisson
from gpulib.models import LLAMA_3_8B, SMALL, RandomModel, num_parameters, reference_weights
from gpulib.parity import Reference, Verdict, parity_requests
from gpulib.parts import Part, Results, run_parts
from gpulib.policies import best_of_families, climb, policies
from gpulib.steps import PREFILL_TOKENS, bandwidth_share, decode_read_bytes, measured_profile
from support.cuda_rig import TINY, Oracle, random_weights
from support.ended import ends_soon

from semipd.checkpoints.layout import plan_weights
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.settings import SchedulerName
from semipd.core.slo import Targets
from semipd.core.split import Split
from semipd.devices.cuda.start.model import DeviceModel
from semipd.devices.fake import FakeDevice, expected_tokens
from semipd.devices.sim.gpus import GPUS
from semipd.devices.sim.profile import load_profile
from semipd.sim.outcomes import Outcome, figures

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SETTINGS = default_engine_settings(
    device="fake", max_num_seqs=16, prefill_chunk_tokens=64, step_token_budget=64
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import json, sys, time\n{code}"]


# ---- parts --------------------------------------------------------------------------------------


def test_every_part_is_saved_whatever_becomes_of_the_others(tmp_path: Path) -> None:
    parts = [
        Part(
            "good", python("open(sys.argv[1], 'w').write(json.dumps({'rows': [{'a': 1}, {'b': 2.5}]}))"), 20
        ),
        Part("slow", python("open(sys.argv[1], 'w').write('{\"begun\": 1}'); time.sleep(60)"), 2),
        Part("broken", python("sys.exit('the GPU fell off the bus')"), 20),
        Part("silent", python("pass"), 20),
    ]
    out = tmp_path / "new" / "check.json"
    run_parts(parts, out, "Check", 60)
    found = json.loads(out.read_text())["parts"]
    assert found["good"]["rows"] == [{"a": 1}, {"b": 2.5}]
    assert found["slow"]["begun"] == 1
    assert "stopped after 2 s" in found["slow"]["error"]
    assert "exit status 1: the GPU fell off the bus" in found["broken"]["error"]
    assert found["silent"]["error"] == "it ended well but wrote nothing"
    text = out.with_suffix(".md").read_text()
    assert "| a | b |\n| --- | --- |\n| 1 |  |\n|  | 2.5 |" in text
    assert text.count("**Failed.**") == 3
    assert [path.name for path in sorted(out.parent.iterdir())] == ["check.json", "check.md"]


GRANDCHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(json.dumps({"pid": child.pid}))
"""


@pytest.mark.parametrize("ending", ["time.sleep(60)", "sys.exit(3)", "pass"])
def test_a_part_leaves_no_process_behind(ending: str, tmp_path: Path) -> None:
    """A child of its own would keep the GPU through all later parts."""
    part = Part("parent", python(GRANDCHILD + ending), 2.0)
    found = run_parts([part], tmp_path / "x.json", "Check", 30.0)["parts"]["parent"]
    assert ends_soon(found["pid"])


def test_parts_beyond_the_total_time_are_named(tmp_path: Path) -> None:
    parts = [Part("first", python("time.sleep(60)"), 30), Part("second", python("pass"), 30)]
    found = run_parts(parts, tmp_path / "x.json", "Check", 2.0)["parts"]
    assert "stopped after 2 s" in found["first"]["error"]
    assert "not begun: the 2 s of the whole run were over" in found["second"]["error"]


def test_results_are_on_disk_after_every_entry(tmp_path: Path) -> None:
    results = Results(tmp_path / "part.json")
    results["first"] = {"ms": 1.5}
    assert json.loads((tmp_path / "part.json").read_text()) == {"first": {"ms": 1.5}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("script", ["gpu_contact.py", "gpu_bench.py"])
def test_scripts_refuse_clearly_without_a_gpu(script: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,10,5\n")
    bench = ["--trace", str(trace), "--out", str(tmp_path / "x.json")]
    more = bench if script == "gpu_bench.py" else [str(tmp_path)]
    command = [sys.executable, str(SCRIPTS / script), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert f"error: {script} measures a GPU, but torch" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]


# ---- driving an engine --------------------------------------------------------------------------


def test_the_host_serves_in_real_time_and_notes_when() -> None:
    device = FakeDevice()
    requests = list(poisson(40.0, 0.4, 1000, seed=3))
    run = Host(device, SETTINGS).run(requests, 20.0)
    assert run.outcomes.keys() == {request.seq for request in requests}
    for request in requests:
        tokens = expected_tokens(request.prompt, request.params, device.info.max_model_len, 1000)
        assert run.tokens.get(request.seq, []) == tokens
        outcome = run.outcomes[request.seq]
        if outcome.done:
            assert outcome.first_ns > request.arrival_ns
            assert len(run.token_times_ns[request.seq]) == len(tokens)
    assert all(gap > 0 for gap in run.inter_token_ms([requests[0].seq]))


def test_a_run_that_is_cut_short_can_be_drained() -> None:
    device = FakeDevice()
    host = Host(device, SETTINGS)
    run = host.run(list(poisson(500.0, 0.2, 1000)), 0.1)
    assert any(not outcome.finished_ns for outcome in run.outcomes.values())
    host.drain(5.0)
    again = Host(device, SETTINGS).run(list(poisson(20.0, 0.2, 1000, seed=9)), 20.0)
    assert all(outcome.finished_ns for outcome in again.outcomes.values())


@pytest.mark.parametrize("scheduler", ["semipd", "chunked"])
def test_interference_is_measured_while_all_streams_decode(scheduler: SchedulerName) -> None:
    settings = replace(SETTINGS, scheduler=scheduler)
    load = Load(streams=4, stream_prompt_tokens=32, prompt_tokens=64, window_s=0.3, start_limit_s=10.0)
    row = measure(FakeDevice(), settings, load)
    assert row["prompt_tokens_per_s"] > 0
    assert row["decode_tokens_per_s"] > 0
    assert 0 < row["itl_p50_ms"] <= row["itl_p99_ms"]
    quiet = measure(FakeDevice(), settings, Load(4, 32, 0, 0.2, 10.0))
    assert quiet["prompt_tokens_per_s"] == 0


def test_streams_that_never_all_decode_are_an_error() -> None:
    row = measure(FakeDevice(), SETTINGS, Load(streams=40, start_limit_s=0.3, window_s=0.2))
    assert "did not all decode" in row["error"]


# ---- policies -----------------------------------------------------------------------------------


def test_policies_are_engine_settings() -> None:
    splits = (Split(116, 16), Split(84, 48))
    chosen = policies(["chunked", "fixed", "predictive"], (256, 512), splits, 8192)
    assert [policy.name for policy in chosen] == [
        "chunked 256",
        "chunked 512",
        "fixed 116+16",
        "fixed 84+48",
        "predictive",
    ]
    settings = chosen[3].settings(SETTINGS, Targets(500.0, tpot_ms=25.0))
    assert (settings.partition_mode, settings.prefill_units) == ("fixed", 84)
    assert (settings.slo_ttft_ms, settings.slo_tpot_ms) == (500.0, 25.0)
    with pytest.raises(SemipdError, match="'best' is no policy"):
        policies(["best"], (), (), 0)


def test_the_climb_ends_when_it_is_hopeless() -> None:
    asked: list[float] = []

    def run(rate: float) -> object:
        asked.append(rate)
        slow = int(rate * 10)
        outcomes = [
            Outcome(0, 10**6, 2 * 10**6, 3) if i >= slow else Outcome(0, missed=True) for i in range(100)
        ]
        return figures(outcomes, 10.0, complete=True)

    found = climb([8.0, 1.0, 0.5, 6.0, 4.0], run)  # type: ignore[arg-type]
    assert asked == [0.5, 1.0, 4.0, 6.0]
    assert found.best_rate == 1.0
    assert found.rows[0]["attainment"] == 0.95
    assert found.rows[0]["ttft_p50_ms"] == 1.0


def test_families_stand_beside_tuned_chunked() -> None:
    found = {
        "chunked 256": ("chunked", 4.0),
        "chunked 512": ("chunked", 5.0),
        "predictive": ("predictive", 8.0),
    }
    assert best_of_families(found) == [
        {"family": "chunked", "best member": "chunked 512", "rate": 5.0, "over tuned chunked": 1.0},
        {"family": "predictive", "best member": "predictive", "rate": 8.0, "over tuned chunked": 1.6},
    ]


# ---- step times ---------------------------------------------------------------------------------


def test_a_profile_recovers_the_rates_and_the_simulator_reads_it(tmp_path: Path) -> None:
    weights = plan_weights(LLAMA_3_8B, "bfloat16").total_bytes - 128_256 * 4096 * 2
    kv = 32 * 256 * 16 * 2 * 2 * 8 * 128 * 32
    flops = 2 * num_parameters(LLAMA_3_8B) * PREFILL_TOKENS
    rows = [
        {
            "sms": sms,
            "prefill_ms": flops / (sms * 5e12) * 1e3,
            "decode_1_ms": weights / (sms * 3e10) * 1e3,
            "decode_short_ms": 5.0,
            "decode_long_ms": 5.0 + kv / (sms * 2e10) * 1e3,
        }
        for sms in (16, 48, 132)
    ]
    profile = measured_profile(rows, LLAMA_3_8B)
    for name, per_sm in (("weight_bytes_per_s", 3e10), ("attention_bytes_per_s", 2e10), ("gemm_flops", 5e12)):
        for sms, value in profile["curves"][name]:
            assert value == pytest.approx(sms * per_sm, rel=1e-6)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    assert load_profile(GPUS["h200"], path).curves["gemm_flops"][0][0] == 16


def test_bandwidth_counts_what_is_read() -> None:
    """15.0 GB of weights (embedding table left out) and 17.2 GB of KV: docs/gpu.md."""
    read = decode_read_bytes(LLAMA_3_8B, 64, 2048)
    assert read == pytest.approx(15.01e9 + 17.18e9, rel=1e-3)
    assert bandwidth_share(8.0, 64, 2048, LLAMA_3_8B, 4.3e12) == pytest.approx(read / 8e-3 / 4.3e12)
    tied = replace(LLAMA_3_8B, tie_word_embeddings=True)
    assert decode_read_bytes(tied, 64, 2048) == pytest.approx(read, rel=1e-3)


def test_a_difference_lost_in_noise_gives_no_point() -> None:
    row = {"sms": 16, "decode_1_ms": 5.0, "decode_short_ms": 6.0, "decode_long_ms": 6.1}
    assert measured_profile([row], LLAMA_3_8B)["curves"].keys() == {"weight_bytes_per_s"}


def test_llama_has_as_many_parameters_as_published() -> None:
    """8.03e9 with the embedding table, https://huggingface.co/meta-llama/Meta-Llama-3-8B."""
    assert num_parameters(LLAMA_3_8B) + 128_256 * 4096 == pytest.approx(8.03e9, rel=1e-3)


# ---- the reference ------------------------------------------------------------------------------


def test_random_models_are_the_same_everywhere() -> None:
    config = replace(SMALL, num_layers=1, vocab_size=256)
    source = RandomModel(config, seed=4)
    model = DeviceModel.of(config, default_engine_settings(device="cuda", dtype="bfloat16"))
    first, second = reference_weights(model, source), reference_weights(model, RandomModel(config, seed=4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed"], reference_weights(model, RandomModel(config, seed=5))["embed"])
    assert first["layers.0.qkv"].float().std() == pytest.approx(2 * 512**-0.5, rel=0.02)


def test_the_reference_accepts_the_oracles_tokens_and_nothing_else() -> None:
    weights = random_weights(TINY)
    oracle, reference = Oracle(TINY, weights), Reference(TINY, weights)
    requests = [r for r in parity_requests(40, 61, seed=2, output_tokens=6) if len(r.prompt) < 120]
    assert {request.params.greedy for request in requests} == {True, False}

    served = Run()
    for request in requests:
        served.tokens[request.seq], entries = oracle.generate(request)
        served.logprobs[request.seq] = [entry.logprob for entry in entries]
    verdict = reference.judge(requests, served)
    assert (verdict.tokens, verdict.beyond, verdict.deviations) == (6 * len(requests), 0, 0)
    assert verdict.passed
    assert verdict.worst_logprob_gap < 1e-3
    for tokens in served.tokens.values():
        tokens[3] = (tokens[3] + 1) % 61
    served.tokens[requests[0].seq].pop()
    served.logprobs[requests[0].seq].pop()
    verdict = reference.judge(requests, served)
    assert verdict.beyond >= len(requests) - 1
    assert verdict.unfinished == 1
    assert not verdict.passed


def test_rounding_is_allowed_for_and_a_fault_is_not() -> None:
    assert Verdict(tokens=2000, beyond=2, allowed=2).passed
    assert not Verdict(tokens=2000, beyond=3, allowed=2).passed
    assert not Verdict(tokens=2000, beyond=0, allowed=2, unfinished=1).passed


def test_bfloat16_is_judged_in_bfloat16_with_an_allowance() -> None:
    weights = {name: weight.bfloat16() for name, weight in random_weights(TINY).items()}
    reference = Reference(TINY, weights)
    requests = [r for r in parity_requests(30, 61, seed=2, output_tokens=50) if r.params.greedy][:10]
    served = Run()
    for request in requests:
        tokens = list(request.prompt[:9])
        request.prompt[:] = tokens
        for _ in range(50):
            tokens.append(int(reference._logits(tokens)[-1].argmax()))
        served.tokens[request.seq] = tokens[9:]
    verdict = reference.judge(requests, served)
    assert (verdict.tokens, verdict.beyond, verdict.allowed) == (500, 0, 0)
    assert verdict.passed
    served.tokens[requests[0].seq][7] = int(reference._logits(requests[0].prompt)[-1].argmin())
    assert not reference.judge(requests, served).passed
