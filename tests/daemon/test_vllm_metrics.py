"""What vLLM's dashboards ask /metrics for, with vLLM's bounds."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.daemon import Running, running

from semipd.config.config import default_engine_settings

FAKE = default_engine_settings(device="fake", max_model_len=2048)
ONE_TWO_FIVE = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0]
"""Up to the context."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, fake=FAKE, settings={"kv.fraction": 0.25}) as daemon:
        yield daemon


async def scrape(daemon: Running) -> Samples:
    async with daemon.http.get(f"{daemon.url}/metrics") as response:
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str) -> float:
    [value] = [value for (found, _), value in samples.items() if found == name]
    return value


def bounds(samples: Samples, name: str) -> list[float]:
    found = [dict(labels)["le"] for (sample, labels) in samples if sample == f"{name}_bucket"]
    return sorted(float(bound) for bound in found)[:-1]


async def test_what_was_asked_for_and_what_it_took(daemon: Running) -> None:
    await daemon.complete(prompt=[[5] * 40, [6] * 10], n=3, max_tokens=7, ignore_eos=True)
    await daemon.complete(prompt=[5] * 100, max_tokens=30, ignore_eos=True)
    samples = await scrape(daemon)
    for name, count, summed in (
        ("request_prompt_tokens", 7, 3 * 40 + 3 * 10 + 100),
        ("request_generation_tokens", 7, 6 * 7 + 30),
        ("request_params_max_tokens", 7, 6 * 7 + 30),
        ("request_params_n", 3, 3 + 3 + 1),
    ):
        assert total(samples, f"vllm:{name}_count") == count, name
        assert total(samples, f"vllm:{name}_sum") == summed, name
    for name in ("request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens"):
        assert bounds(samples, f"vllm:{name}") == ONE_TWO_FIVE
    assert bounds(samples, "vllm:request_params_n") == [1, 2, 5, 10, 20]
    inference = total(samples, "vllm:request_inference_time_seconds_sum")
    parts = [total(samples, f"vllm:request_{part}_time_seconds_sum") for part in ("prefill", "decode")]
    assert inference == pytest.approx(sum(parts))
    assert total(samples, "vllm:request_inference_time_seconds_count") == 7


async def test_tokens_of_each_step(daemon: Running) -> None:
    await daemon.complete(prompt=[5] * 600, max_tokens=5, ignore_eos=True)
    engine = await daemon.engine()
    samples = await scrape(daemon)
    steps = sum(lane["steps"] for lane in engine["lanes"].values())
    computed = sum(lane["prefill_tokens"] + lane["decode_tokens"] for lane in engine["lanes"].values())
    assert total(samples, "vllm:iteration_tokens_total_count") == steps
    assert total(samples, "vllm:iteration_tokens_total_sum") == computed >= 604
    assert bounds(samples, "vllm:iteration_tokens_total") == [2.0**power for power in (0, *range(3, 15))]


async def test_facts_of_the_kv_pool(tmp_path: Path, daemon: Running) -> None:
    samples = await scrape(daemon)
    [(_, labels)] = [key for key in samples if key[0] == "vllm:cache_config_info"]
    blocks = sum(value for (name, _), value in samples.items() if name == "semipd:kv_blocks")
    facts = dict(labels)
    del facts["kv_cache_memory_bytes"]  # the fake device has none
    assert samples["vllm:cache_config_info", labels] == 1
    used = sum(v for (n, of), v in samples.items() if n == "semipd:kv_blocks" and ("state", "cached") in of)
    assert facts == {
        "model_name": "bytes",
        "engine": "0",
        "block_size": "16",
        "cache_dtype": "none",
        "enable_prefix_caching": "True",
        "gpu_memory_utilization": "0.25",
        "num_gpu_blocks": str(int(blocks - used)),  # cached blocks are free ones too
    }


async def test_without_an_engine_nothing_is_said_of_the_pool(tmp_path: Path) -> None:
    async with running(tmp_path, start=False) as daemon:
        samples = await scrape(daemon)
    assert not [name for name, _ in samples if re.match("vllm:(cache_config_info|iteration_tokens)", name)]
