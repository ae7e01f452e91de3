"""Worlds of the simulator change what they say, as much as their sources; models with experts."""

import math
from dataclasses import replace

import pytest

from semipd.core.errors import SemipdError
from semipd.devices.sim.contention import slowdown
from semipd.devices.sim.cost import CostModel, StepCost, StepWork
from semipd.devices.sim.gpus import GPUS
from semipd.devices.sim.models import MODELS, Experts, Latent, SimModel
from semipd.devices.sim.profile import Profile
from semipd.sim.worlds import WORLDS, known_world

LONG_PROMPT = 16_384


def costs(world: str, gpu: str = "h200", model: str = "llama-3-8b", *, one_lane: bool = False) -> CostModel:
    return CostModel(known_world(world).apply(Profile(GPUS[gpu]), one_lane=one_lane), MODELS[model])


def prefill_ns(model: CostModel, sms: int, length: int = 4096) -> float:
    return model.step(StepWork(0, 0, ((0, length),), 1), sms).ns


@pytest.mark.parametrize(
    ("world", "exponent"), [("default", 1.0), ("prefill^0.9", 0.9), ("prefill^0.8", 0.8)]
)
def test_a_small_lane_computes_by_the_exponent(world: str, exponent: float) -> None:
    model = costs(world)
    assert model.rates(66)[2] / model.rates(132)[2] == pytest.approx(0.5**exponent)
    whole = prefill_ns(costs("default"), 132)
    assert prefill_ns(model, 132) == whole
    assert prefill_ns(model, 66) == pytest.approx(whole * 2**exponent, rel=0.1)


def test_prefill_at_most_of_the_sms_lies_between_the_published_fits() -> None:
    """semi-PD's released fit: 0.77 of the speed at 70 %. Nexus: 10 % less time from 70 to 80 %."""
    model = costs("prefill^0.8", "a100")
    rates = {sms: model.rates(sms)[2] for sms in (76, 86, 108)}
    assert rates[76] / rates[108] == pytest.approx(0.77, abs=0.03)
    assert rates[76] / rates[86] == pytest.approx(0.90, abs=0.01)


def chunked_ratio(world: str) -> tuple[float, float]:
    """A 16k prompt in 1k chunks on an A100: time over one whole step, and last chunk over the first."""
    model = costs(world, "a100")
    chunks = [
        model.step(StepWork(0, 0, ((start, 1024),), int(start + 1024 == LONG_PROMPT)), 108).ns
        for start in range(0, LONG_PROMPT, 1024)
    ]
    return sum(chunks) / prefill_ns(model, 108, LONG_PROMPT), chunks[-1] / chunks[0]


def test_chunked_attention_is_fitted_to_what_bullet_measured() -> None:
    whole, last = chunked_ratio("chunked attention")
    assert whole == pytest.approx(1.13, abs=0.01)
    assert last == pytest.approx(1.9, abs=0.1)
    assert chunked_ratio("default")[0] == pytest.approx(1.08, abs=0.01)


def worst_decode_slowdown(world: str) -> float:
    model = costs(world)
    scale = model.profile.kernels.contention_scale
    batches = ((8, 8_000), (32, 65_536), (64, 200_000), (128, 500_000))
    return max(
        slowdown(model.step(StepWork(*batch), sms), prefill_step(model, 132 - sms), model.hbm_rate, scale)
        for batch in batches
        for sms in (16, 32, 48, 64, 80)
    )


def prefill_step(model: CostModel, sms: int) -> StepCost:
    return model.step(StepWork(0, 0, ((0, 512),)), sms)


def test_contention_reaches_what_was_measured_at_most() -> None:
    assert worst_decode_slowdown("contention 30 %") == pytest.approx(1.30, abs=0.02)
    assert worst_decode_slowdown("default") < 1.2


def test_a_serial_host_holds_up_one_lane_engines_only() -> None:
    work = StepWork(8, 8_000)
    plain = costs("default").step(work, 132).ns
    for world, host_ns in (("host 2 ms", 2e6), ("host 5 ms", 5e6)):
        assert costs(world, one_lane=True).step(work, 132).ns == pytest.approx(plain + host_ns)
        assert costs(world).step(work, 132).ns == plain


def test_memory_worlds() -> None:
    assert WORLDS["less KV"].divided_kv_frac == pytest.approx(1 / 1.062, abs=0.005)
    decode = StepWork(1, 1000)
    slow, plain, fast = (
        costs(world).step(decode, 132).ns for world in ("bandwidth -30 %", "default", "bandwidth +30 %")
    )
    assert fast < plain < slow


def test_the_default_world_changes_nothing_and_others_have_reasons() -> None:
    profile = Profile(GPUS["h200"])
    for one_lane in (False, True):
        assert WORLDS["default"].apply(profile, one_lane=one_lane) == profile
    assert all(len(world.why) > 10 for world in WORLDS.values())
    with pytest.raises(SemipdError) as refused:
        known_world("flat")
    assert refused.value.code == "unknown_world"


TINY = SimModel(
    "tiny", 3, 64, 4, 4, 16, 128, 256, 1024, experts=Experts(8, 2, 32, num_shared=1, num_dense_layers=1)
)


def test_experts_by_hand() -> None:
    """Parameters: attention in 3 layers, one dense MLP, 8 + 1 experts in 2 layers, embedding and head."""
    attention = 64 * 192 + 64 * 64
    dense, expert = 3 * 64 * 128, 3 * 64 * 32
    assert TINY.num_params == 3 * attention + dense + 2 * 9 * expert + 2 * 256 * 64
    assert TINY.active_intermediate == 3 * 32
    assert Experts(8, 2, 32).num_read(1) == pytest.approx(2)
    assert Experts(8, 2, 32).num_read(2) == pytest.approx(8 * (1 - 0.75**2))
    assert Experts(8, 2, 32).num_read(1000) == pytest.approx(8)


def test_more_tokens_read_more_experts_and_then_fill_them() -> None:
    """V2-Lite: a decode step of one token reads a small part of the weights, one of 32 nearly all of them;
    128 rows per expert (64 experts, 6 for each token) need 1,365 tokens."""
    model = costs("default", model="deepseek-v2-lite")
    weights = MODELS["deepseek-v2-lite"].resident_bytes
    read = {rows: model.step(StepWork(rows, rows), 132).hbm_bytes / weights for rows in (1, 32, 256)}
    assert read[1] < 0.2
    assert 0.9 < read[32] < 1.05
    per_token = {tokens: prefill_ns(model, 132, tokens) / tokens for tokens in (256, 1365, 4096)}
    assert per_token[256] > 2.5 * per_token[1365] > 2.5 * per_token[4096]
    dense = costs("default")
    assert prefill_ns(dense, 132, 256) / 256 < 1.5 * prefill_ns(dense, 132, 1365) / 1365


def test_latents_are_small_and_cost_more_to_attend_to() -> None:
    lite = MODELS["deepseek-v2-lite"]
    assert lite.kv_bytes_per_token == 27 * 576 * 2
    assert lite.num_params == pytest.approx(15.7e9, rel=0.005)
    assert MODELS["qwen3-30b-a3b"].num_params == pytest.approx(30.5e9, rel=0.005)
    plain = replace(TINY, experts=None)
    latent = replace(plain, latent=Latent(kv_rank=32, rope_dim=8))
    assert latent.kv_bytes_per_token == 3 * 40 * 2 < plain.kv_bytes_per_token
    profile = Profile(GPUS["h200"])
    per_token = [CostModel(profile, model)._decode_flops_per_token for model in (plain, latent)]
    assert per_token == [4 * 4 * 16 * 16, 2 * 16 * (32 + 8 + 32)]
    assert all(
        math.isfinite(CostModel(profile, model).step(StepWork(3, 99), 132).ns) for model in (plain, latent)
    )
