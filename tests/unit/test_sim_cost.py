"""The simulated device's arithmetic: hand-computed steps, monotonicity, published curves, contention."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semipd.config.config import SPECS
from semipd.core.errors import SemipdError
from semipd.devices.sim.contention import slowdown
from semipd.devices.sim.cost import CostModel, StepCost, StepWork
from semipd.devices.sim.device import pool_blocks, split_table
from semipd.devices.sim.gpus import GPUS, Gpu
from semipd.devices.sim.models import MODELS, SimModel
from semipd.devices.sim.profile import Kernels, Profile, interpolate, load_profile

TINY = SimModel("tiny", 2, 16, 2, 1, 8, 32, 64, 1024)
TOY = Gpu("toy", "toy", 10, 1, 0, 1e13, 1e9, 1e9, 10**6, 10**9, 1e9)
PLAIN = Kernels(gemm_frac=1.0, attention_frac=1.0, kernel_gap_ns=0, launch_ns=0, step_ns=100)


def toy(flops: float, **kernels: Any) -> CostModel:
    """10 SMs that read 1 byte and compute `flops` operations per nanosecond together."""
    curves = {
        "weight_bytes_per_s": ((10, 1e9),),
        "attention_bytes_per_s": ((10, 1e9),),
        "gemm_flops": ((10, flops * 1e9),),
    }
    return CostModel(Profile(TOY, dataclasses.replace(PLAIN, **kernels), curves), TINY)


def model(gpu: str, name: str = "llama-3-8b") -> CostModel:
    return CostModel(Profile(GPUS[gpu]), MODELS[name])


def test_a_decode_step_by_hand() -> None:
    """One token over 100 tokens of context, everything bound by memory."""
    linears = sum(
        inputs * outputs * 2 + (inputs + outputs) * 2
        for inputs, outputs in ((16, 32), (16, 16), (16, 64), (32, 16))
    )
    attention = 100 * 2 * 8 * 2  # K and V of one head of 8 values, bf16
    elementwise = (8 * 16 + 3 * 32 + 2 * (2 + 2) * 8) * 2 / 10  # in L2: ten ports of 1 byte/ns
    head = 16 * 64 * 2 + (16 + 64) * 2 + 64 * 4 * 3
    cost = toy(flops=1e6).step(StepWork(1, 100), 10)
    assert cost.ns == pytest.approx(2 * (linears + attention + elementwise) + head + 100)
    assert cost.memory_ns == pytest.approx(2 * (linears + attention) + head)
    assert cost.hbm_bytes == cost.memory_bytes == 2 * (linears + attention) + head


def test_a_prefill_step_by_hand() -> None:
    """256 tokens after 64, everything bound by compute: two tiles of 128 rows per matrix, split over all
    SMs; the padding of a tile's columns is computed too."""
    tiles = sum(2 * 2 * 128 * 128 * inputs for inputs in (16, 16, 16, 32)) / 10
    pairs = 256 * 64 + 256 * 257 / 2
    attention = pairs * 4 * 2 * 8 / 10
    elementwise = 256 * (8 * 16 + 3 * 32 + 64) * 2 / 10
    cost = toy(flops=10).step(StepWork(0, 0, ((64, 256),)), 10)
    assert cost.ns == pytest.approx(2 * (tiles + attention + elementwise) + 100)
    assert cost.memory_ns == 0.0


def test_the_last_wave_of_tiles_costs_a_whole_one() -> None:
    """12 tiles on 10 SMs take as long as 20."""
    compute = toy(flops=10)
    assert compute._gemm_ns(12 * 128, 16, 128, 10, 10.0) == compute._gemm_ns(20 * 128, 16, 128, 10, 10.0)
    assert compute._gemm_ns(5 * 128, 16, 128, 10, 10.0) * 2 == compute._gemm_ns(1280, 16, 128, 10, 10.0)


def test_eager_launches_bound_a_small_chunk_but_no_graph() -> None:
    slow_host = toy(flops=1e6, launch_ns=1e6)
    launches = 2 * 10 * 1e6
    assert slow_host.step(StepWork(0, 0, ((0, 16),)), 10).ns == launches + 100
    assert slow_host.step(StepWork(1, 16), 10).ns < launches


steps = st.builds(
    StepWork,
    st.integers(1, 256),
    st.integers(1, 500_000),
    st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 2048)), max_size=3).map(tuple),
    st.integers(0, 3),
)


@settings(max_examples=150, deadline=None)
@given(work=steps, gpu=st.sampled_from(sorted(GPUS)), name=st.sampled_from(sorted(MODELS)), data=st.data())
def test_more_work_is_never_faster_and_more_sms_never_slower(
    work: StepWork, gpu: str, name: str, data: st.DataObject
) -> None:
    costs = model(gpu, name)
    sms = data.draw(st.integers(4, GPUS[gpu].num_sms))
    ns = costs.step(work, sms).ns
    assert costs.step(work, data.draw(st.integers(4, sms))).ns >= ns
    more = data.draw(st.integers(1, 64))
    assert costs.step(work._replace(decode_rows=work.decode_rows + more), sms).ns >= ns
    assert costs.step(work._replace(context_tokens=work.context_tokens + more), sms).ns >= ns
    longer = tuple((start, length + more) for start, length in work.chunks)
    assert costs.step(work._replace(chunks=longer), sms).ns >= ns


PUBLISHED = [
    # SGLang PD-multiplexing's predictor tables: decode at batch 32 over `context` tokens in total, relative
    # to the whole GPU. The model behind them is not named; the H800 computes and reads like an H100.
    ("h100", 8192, {8: 3.21, 16: 1.81, 24: 1.47, 32: 1.28, 40: 1.17, 48: 1.14, 56: 1.08, 64: 1.03, 80: 0.99}),
    ("h100", 131072, {8: 5.19, 16: 2.83, 24: 2.10, 32: 1.72, 40: 1.53, 48: 1.40, 56: 1.30, 64: 1.23}),
    ("a100", 8192, {16: 1.67, 32: 1.18, 48: 1.14, 64: 1.02, 80: 1.01, 96: 0.98}),
    ("a100", 65536, {16: 2.04, 32: 1.34, 48: 1.22, 64: 1.06, 80: 1.03, 96: 1.00}),
    ("a100", 131072, {16: 2.40, 32: 1.48, 48: 1.29, 64: 1.10, 80: 1.05, 96: 1.01}),
]


@pytest.mark.parametrize(("gpu", "context", "curve"), PUBLISHED)
def test_decode_follows_published_curves(gpu: str, context: int, curve: dict[int, float]) -> None:
    costs = model(gpu)
    whole = costs.step(StepWork(32, context), GPUS[gpu].num_sms).ns
    for sms, relative in curve.items():
        assert costs.step(StepWork(32, context), sms).ns / whole == pytest.approx(relative, rel=0.12), sms


def test_prefill_needs_sms_and_decode_does_not() -> None:
    costs = model("h200")
    prompt, batch = StepWork(0, 0, ((0, 4096),), 1), StepWork(16, 16_000)
    assert costs.step(prompt, 64).ns / costs.step(prompt, 132).ns == pytest.approx(132 / 64, rel=0.1)
    assert costs.step(batch, 64).ns / costs.step(batch, 132).ns < 1.2


def test_contention_only_from_traffic_and_on_memory_bound_time() -> None:
    costs = model("h200")
    decode, chunk = costs.step(StepWork(32, 65_536), 64), costs.step(StepWork(0, 0, ((0, 512),)), 68)
    rate = costs.hbm_rate
    assert 1.05 < slowdown(decode, chunk, rate, 1.0) < 1.30  # MuxWise: 0-30 %
    assert 1.0 < slowdown(chunk, decode, rate, 1.0) < 1.08  # Bullet: under 8 %
    quiet = StepCost(ns=1e6)
    assert slowdown(decode, quiet, rate, 1.0) == 1.0
    assert slowdown(quiet, decode, rate, 1.0) == 1.0
    assert slowdown(decode, chunk, rate, 0.0) == 1.0
    full = slowdown(decode, chunk, rate, 1.0) - 1.0
    assert slowdown(decode, chunk, rate, 1.3) - 1.0 == pytest.approx(1.3 * full)


def test_contention_grows_with_the_others_traffic_up_to_a_fair_share() -> None:
    costs = model("h200")
    decode = costs.step(StepWork(32, 65_536), 64)
    others = [StepCost(ns=1e6, hbm_bytes=1e6 * costs.hbm_rate * frac) for frac in (0.1, 0.3, 0.5, 0.9)]
    factors = [slowdown(decode, other, costs.hbm_rate, 1.0) for other in others]
    assert factors[0] < factors[1] < factors[2] == factors[3]


def test_a_profile_replaces_rows_constants_and_curves(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    content = {
        "gpu": {"hbm_bytes_per_s": 1e12},
        "kernels": {"step_ns": 7},
        "curves": {"weight_bytes_per_s": [[66, 5e11], [132, 6e11]]},
    }
    path.write_text(json.dumps(content))
    profile = load_profile(GPUS["h200"], path)
    assert (profile.gpu.hbm_bytes_per_s, profile.gpu.num_sms) == (1e12, 132)
    assert (profile.kernels.step_ns, profile.kernels.hbm_frac) == (7, Kernels().hbm_frac)
    costs = CostModel(profile, MODELS["llama-3-8b"])
    assert costs.rates(99)[0] == pytest.approx(550)
    assert costs.step(StepWork(1, 1), 132).ns > model("h200").step(StepWork(1, 1), 132).ns * 4
    doubled = profile.scaled(bandwidth=2.0, contention=0.5)
    assert CostModel(doubled, MODELS["llama-3-8b"]).rates(99)[0] == pytest.approx(1100)
    assert doubled.kernels.contention_scale == 0.5


def test_interpolation() -> None:
    curve = ((10, 100.0), (20, 120.0))
    assert [interpolate(curve, sms) for sms in (5, 10, 15, 20, 99)] == [50, 100, 110, 120, 120]


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"gpus": {}}',
        '{"gpu": {"num_smss": 1}}',
        '{"gpu": {"num_sms": 0}}',
        '{"gpu": {"num_sms": 1.5}}',
        '{"gpu": {"name": 3}}',
        '{"kernels": {"hbm_frac": true}}',
        '{"kernels": {"hbm_frac": 0}}',
        '{"kernels": {"step_ns": -1}}',
        '{"curves": {"speed": [[1, 1]]}}',
        '{"curves": {"gemm_flops": [[2, 1], [1, 1]]}}',
        '{"curves": {"gemm_flops": []}}',
        '{"curves": {"gemm_flops": [1]}}',
    ],
)
def test_a_bad_profile_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(SemipdError) as refused:
        load_profile(GPUS["h200"], path)
    assert refused.value.code == "invalid_profile"
    assert str(path) in refused.value.message


def test_tables_agree_with_what_is_published() -> None:
    published = {"llama-3-8b": 8.03e9, "llama-3-70b": 70.6e9, "llama-3.1-8b": 8.03e9, "qwen3-8b": 8.19e9}
    for name, params in published.items():
        assert MODELS[name].num_params == pytest.approx(params, rel=0.005)
    assert MODELS["llama-3-8b"].kv_bytes_per_token == 131_072
    for gpu in GPUS.values():
        assert gpu.num_granules * gpu.granule_sms + gpu.remainder_sms == gpu.num_sms
        table = split_table(gpu)
        assert all(sum(split) == gpu.num_sms and not split.is_solo for split in table)
        assert [split.decode_units for split in table] == sorted({split.decode_units for split in table})
    assert split_table(GPUS["h200"])[0] == (124, 8)
    assert split_table(GPUS["h200"])[-1] == (12, 120)


def test_the_configuration_offers_every_simulated_gpu() -> None:
    choices = [choice for choice in SPECS["engine.device"].rule.choices if "sim:" in str(choice)]
    assert choices == [f"sim:{name}" for name in GPUS]


def test_the_pool_is_what_weights_and_activations_leave() -> None:
    profile, llama = Profile(GPUS["h200"]), MODELS["llama-3-8b"]
    free = 141e9 * 0.95 - llama.num_params * 2
    assert pool_blocks(profile, llama, kv_frac=0.5) == int(free * 0.5 // (16 * 131_072))
    assert pool_blocks(profile, llama, kv_bytes=2**30) == 512
    for bad in ({"kv_bytes": 130 * 10**9}, {"kv_bytes": 2**20}):
        with pytest.raises(SemipdError, match=r"16\.1 GB of weights"):
            pool_blocks(profile, llama, **bad)
    with pytest.raises(SemipdError) as refused:
        pool_blocks(profile, MODELS["llama-3-70b"])
    assert refused.value.code == "out_of_memory"
