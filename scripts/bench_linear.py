"""Plain against packed weights: microseconds of one matrix product per number of rows.

    python scripts/bench_linear.py [--threads 1] [--dtype bfloat16]

Both are timed in turn on the same inputs; medians. The matrices are those of a model with hidden size 512,
8 copies of each, so that they come from memory and not from the cache.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from semipd.checkpoints.layout import TensorSpec, WeightsLayout
from semipd.checkpoints.weights import TORCH_DTYPES, weight_views
from semipd.devices.cpu.math.packing import can_pack, linear, pack_weights, packed_views
from semipd.network.config import ITEM_BYTES, DTypeName

SHAPES = ((1024, 512), (512, 512), (2752, 512), (512, 1376), (32000, 512))
ROWS = (1, 8, 32, 128, 512)
COPIES = 8
REPEATS = 24


def weights(shape: tuple[int, int], dtype: DTypeName) -> tuple[list[Tensor], list[Tensor]]:
    """The same random matrices, plain and packed."""
    num_bytes = shape[0] * shape[1] * ITEM_BYTES[dtype]
    specs = tuple(TensorSpec(f"{idx}.o", shape, idx * num_bytes, dtype, True) for idx in range(COPIES))
    layout = WeightsLayout(dtype, specs, COPIES * num_bytes)
    plain = torch.empty(layout.total_bytes, dtype=torch.uint8)
    for view in weight_views(layout, plain).values():
        view.copy_(torch.randn(shape))
    packed = plain.clone()
    descriptions = pack_weights(layout, packed)
    assert len(descriptions) == COPIES, f"{shape} has another size when packed"
    return list(weight_views(layout, plain).values()), list(
        packed_views(layout, packed, descriptions).values()
    )


def timed_us(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = TORCH_DTYPES[args.dtype]
    if not can_pack(dtype):
        raise SystemExit(f"This CPU or torch {torch.__version__} cannot pack {args.dtype} matrices.")
    print("outputs inputs   rows   plain us   packed us   ratio")
    for shape in SHAPES:
        plain, packed = weights(shape, args.dtype)
        for rows in ROWS:
            x = torch.randn(rows, shape[1]).to(dtype)
            times: tuple[list[float], list[float]] = ([], [])
            for idx in range(REPEATS):
                for kind, matrices in enumerate((plain, packed)):
                    times[kind].append(timed_us(lambda w=matrices[idx % COPIES], x=x: linear(x, w, None)))  # type: ignore[misc]
            slow, fast = map(statistics.median, times)
            print(f"{shape[0]:7d} {shape[1]:6d} {rows:6d} {slow:10.0f} {fast:11.0f} {slow / fast:7.2f}")


if __name__ == "__main__":
    main()
