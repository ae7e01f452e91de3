"""Prefill attention by torch: its masks against a slow oracle, and the executor's tokens with it."""

import random
from dataclasses import replace

import pytest
import torch
from support import cuda_rig
from support.cuda_rig import DEFAULTS, Rig
from support.cuda_serving import check_outputs, random_requests, serve
from support.kernels import assert_close, oracle_attention, paged_batch, randn, starts_of

from semipd.core.errors import SemipdError
from semipd.devices.cuda.forward.sdpa_ops import SdpaOps, check_sdpa
from semipd.devices.cuda.sampler.kernel_sampler import KernelSampler
from semipd.network.ops import Heads
from semipd.network.rows import ChunkRows

SDPA = replace(DEFAULTS, cuda=replace(DEFAULTS.cuda, prefill_attention="sdpa"))
CHUNKS = [(1, 1), (1, 40), (7, 7), (5, 40), (16, 17), (33, 33), (2, 64)]
"""(length, context): alone or behind a prefix, one token or many."""


@pytest.mark.parametrize(("kv_heads", "group"), [(2, 3), (2, 1), (1, 4)])
def test_each_chunk_sees_its_context_up_to_itself(kv_heads: int, group: int) -> None:
    """The memory between the pool and torch holds NaN before every chunk."""
    lengths, contexts = [length for length, _ in CHUNKS], [context for _, context in CHUNKS]
    batch = paged_batch(contexts, kv_heads=kv_heads, head_dim=64, dtype=torch.float32, seed=group)
    qkv = randn((sum(lengths), (group + 2) * kv_heads, 64), torch.float32, seed=7)
    num_q = group * kv_heads
    heads = Heads(num_q, kv_heads, 64, torch.empty(0), 1.0, 0.0)
    rows = ChunkRows(
        batch.block_tables,
        starts_of(lengths),
        batch.kv_lens,
        torch.empty(0),
        SdpaOps(torch.float32, 90).plan_chunks(lengths, contexts, heads, 8),
        lengths,
        contexts,
        torch.full((2, kv_heads, 64, 64), torch.nan),
    )
    out = torch.full((sum(lengths), num_q, 64), torch.nan)
    SdpaOps(torch.float32, 90).prefill_attention(qkv, heads, batch.pool, rows, 8, out)
    expected = oracle_attention(qkv[:, :num_q], batch, query_lens=lengths, scale=heads.attention_scale)
    assert_close(out, expected)


@pytest.mark.parametrize("seed", range(2))
def test_requests_get_their_tokens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lanes, through live switches; each copies contexts to memory of its own."""
    for name, config in cuda_rig.FAMILIES.items():
        monkeypatch.setitem(cuda_rig.FAMILIES, name, replace(config, head_dim=64))
    rig = Rig(
        seed,
        block_size=(16, 64)[seed],
        settings=SDPA,
        family=["llama", "qwen3"][seed],
        ops=SdpaOps(torch.float32, 90),
        sampler_of=lambda size: KernelSampler(size, cuda_rig.CPU),
    )
    requests = random_requests(random.Random(seed), 8, rig.config.vocab_size)
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)


def test_a_torch_without_a_kernel_for_it_is_refused() -> None:
    """Here that is a CPU; on a GPU, float32."""
    with pytest.raises(SemipdError, match="no FlashAttention here for") as raised:
        check_sdpa(cuda_rig.TINY, torch.float32, cuda_rig.CPU)
    assert raised.value.code == "unsupported_kernel"
