"""The executor over the kernels' launchers: on CPU tensors their references compute."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("semipd_kernels.sampling", reason="the kernels are not part of this tree")

from semipd_kernels.decode_attention import decode_attention, most_items
from support import cuda_rig
from support.cuda_rig import DEFAULTS, Rig
from support.cuda_serving import check_outputs, random_requests, serve
from support.seeds import each_seed
from torch import Tensor

from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.devices.cuda.sampler.kernel_sampler import KernelSampler
from semipd.network.rows import PassSize


@pytest.fixture
def wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take heads of 64 and more."""
    for name, config in cuda_rig.FAMILIES.items():
        monkeypatch.setitem(cuda_rig.FAMILIES, name, replace(config, head_dim=64))


def kernel_rig(seed: int, **options: Any) -> Rig:
    return Rig(
        seed,
        block_size=(16, 64)[seed % 2],
        family=list(cuda_rig.FAMILIES)[seed],
        settings=DEFAULTS,
        ops=KernelOps(torch.float32, 90),
        sampler_of=lambda size: KernelSampler(size, cuda_rig.CPU),
        **options,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("wide_heads")
def test_requests_get_their_tokens_through_the_launchers(seed: int) -> None:
    rig = kernel_rig(seed)
    requests = random_requests(random.Random(seed), 8, rig.config.vocab_size)
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)


PASSES = (PassSize(4, 3), PassSize(8, 3), PassSize(24, 3))


@each_seed(range(2), soak=range(2, 24))
@pytest.mark.usefixtures("wide_heads")
def test_captured_passes_over_chunks_give_the_tokens_of_eager_ones(seed: int) -> None:
    """With all graphs, or with those that pauses left captured; others run without, and so do steps that fill
    no pass. Padding holds NaN, and the happens-before model sees every access."""
    rig = kernel_rig(seed, chunk_passes=PASSES, group_layers=1 + seed % 2)
    for memory in (rig.pool, *rig.activations("prefill")):
        memory.fill_(torch.nan)
    if seed % 2:
        rig.capture_all()
    else:
        for _ in range(rig.graphs.num_missing + rig.prefill_graphs.num_missing // 2):
            rig.use_pause()
    assert rig.pool[:, :, 1:].isnan().all(), "capturing wrote beyond the padding block"
    requests = random_requests(rig.rng, 8, rig.config.vocab_size)
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)
    table = rig.prefill_graphs
    assert table.num_hits > 10
    assert (table.num_misses == 0) == (seed % 2 == 1)


@pytest.mark.usefixtures("wide_heads")
def test_a_slot_forgets_what_its_last_sequence_was_allowed() -> None:
    """The kernel reads the counts of a row that has edits, whether or not they were uploaded for it."""
    rig = kernel_rig(0)
    for seq, changes in enumerate(({"allowed_token_ids": (1, 2)}, {"logit_bias": ((9, 0.5),)}, {}), 1):
        params = SamplingParams(max_tokens=8, seed=seq, **changes)  # type: ignore[arg-type]
        request = Request(SeqId(seq), f"r{seq}", [3, 4, 5], params, 0)
        serve(rig, [request])
        check_outputs(rig, [request])
    assert set(rig.tokens[SeqId(1)]) == {1, 2}


@pytest.mark.usefixtures("wide_heads")
def test_each_lane_attends_in_a_workspace_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In decode passes and in merged steps; it is part of the lane's memory, for every row on all SMs."""
    used = set[int]()

    def note(*args: Any, **options: Any) -> Tensor:
        used.add(options["workspace"].counters.data_ptr())
        return decode_attention(*args, **options)

    monkeypatch.setattr("semipd.devices.cuda.forward.kernel_ops.decode_attention", note)
    rig = kernel_rig(1)
    prefill, decode = (rig.memory(lane) for lane in ("prefill", "decode"))
    serve(rig, random_requests(random.Random(1), 6, rig.config.vocab_size), switches=True)
    counters = [memory.workspace[2] for memory in (prefill, decode)]
    assert used == {counters[1].data_ptr()}
    assert counters[0].data_ptr() not in used
    assert not any(counter.any() for counter in counters)
    for memory in (prefill, decode):
        bare = replace(memory, workspace=())
        assert memory.num_bytes - bare.num_bytes == sum(part.nbytes for part in memory.workspace)
    most_sms, rows = rig.cuda_lanes.capability.num_sms, decode.workspace[2].shape[0]
    assert rows == rig.settings.max_num_seqs
    assert len(decode.workspace[0]) == most_items(rows, rig.config.num_kv_heads, most_sms)
