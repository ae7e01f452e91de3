"""torch's attention over gathered contexts on a real GPU: by cuDNN and by FlashAttention."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from support.cuda_rig import TINY
from support.kernels import assert_close, oracle_attention, paged_batch, randn

from semipd.core.errors import SemipdError
from semipd.devices.cuda.forward.sdpa_ops import CUDNN_ROWS, attend, check_sdpa

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize(
    ("length", "kv_len"), [(CUDNN_ROWS, CUDNN_ROWS), (37, 37), (37, 300), (1, 300), (CUDNN_ROWS, 300)]
)
def test_causal_to_the_last_token(length: int, kv_len: int, block_size: int) -> None:
    from semipd_kernels.gather_kv import gather_kv

    dtype = torch.bfloat16
    batch = paged_batch([kv_len], kv_heads=2, head_dim=128, dtype=dtype, seed=1, block_size=block_size)
    q = randn((length, 4, 128), dtype, seed=2)
    memory = torch.full((2, 2, 320, 128), torch.nan, dtype=dtype, device=GPU)
    context = gather_kv(batch.pool.to(GPU), batch.block_tables[0].to(GPU), kv_len, memory)
    out = attend(q.to(GPU), context, 0.1).cpu()
    assert_close(out, oracle_attention(q, batch, query_lens=[length], scale=0.1))


def test_what_flash_attention_does_not_know_is_refused() -> None:
    check_sdpa(TINY, torch.bfloat16, GPU)
    with pytest.raises(SemipdError, match="no FlashAttention here"):
        check_sdpa(TINY, torch.float32, GPU)
