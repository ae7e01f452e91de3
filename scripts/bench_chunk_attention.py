"""Attention of a prefill chunk: tiles (semipd.network.chunk_attention) against torch's SDPA.

    python scripts/bench_chunk_attention.py [--threads 1]

Milliseconds per layer, best of the repetitions, timed in turn; 8 query and 4 KV heads of 64.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from semipd.network.chunk_attention import attend_chunk

HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
SIZES = ((128, 128), (512, 512), (128, 1024), (512, 2048))
REPEATS = 8


def sdpa(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )[0]


def timed_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print("dtype      queries  context   SDPA ms   tiles ms   ratio")
    for dtype in (torch.bfloat16, torch.float32):
        for length, context in SIZES:
            q = torch.randn(length, HEADS, HEAD_DIM).to(dtype)
            keys, values = torch.randn(2, KV_HEADS, context, HEAD_DIM).to(dtype)
            mask = None
            if context > length:
                mask = torch.full((length, context), -torch.inf, dtype=dtype).triu_(context - length + 1)
            best = [float("inf"), float("inf")]
            for _ in range(REPEATS):
                best[0] = min(best[0], timed_ms(partial(sdpa, q, keys, values, mask)))
                best[1] = min(best[1], timed_ms(partial(attend_chunk, q, keys, values, HEAD_DIM**-0.5)))
            name = str(dtype).removeprefix("torch.")
            print(
                f"{name:9s} {length:8d} {context:8d} {best[0]:9.2f} {best[1]:10.2f} {best[0] / best[1]:7.2f}"
            )


if __name__ == "__main__":
    main()
