"""Fills Triton's cache with the kernels of the CUDA device: in parallel, without a GPU.

    TRITON_CACHE_DIR=/cache python scripts/warm_cache.py --model llama-3-8b --dtype bfloat16
    TRITON_CACHE_DIR=/cache python scripts/warm_cache.py --model FOLDER --max-num-seqs 256

For an image build, or beside other work before a first start. Found again by the same versions of
Triton and of these kernels, for the same model, dtype, compute capability and SM counts of lanes.
`--model`: a folder with a config.json, or llama-3-8b or small, the shapes that the GPU scripts use.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT), str(ROOT / "kernels")]

from semipd.checkpoints.config import load_model_config  # noqa: E402
from semipd.config.config import default_engine_settings  # noqa: E402
from semipd.core.settings import KV_BLOCK_SIZES  # noqa: E402
from semipd.devices.cuda.lane.graphs import batch_buckets  # noqa: E402
from semipd.devices.cuda.start.compiling import KernelSet, compile_all, lane_sizes  # noqa: E402
from semipd.devices.cuda.start.model import cuda_dtype  # noqa: E402
from semipd.network.config import ModelConfig  # noqa: E402


def model_config(name: str, max_model_len: int) -> ModelConfig:
    from gpulib.models import MODELS

    return MODELS[name] if name in MODELS else load_model_config(name, max_model_len)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    config = model_config(options.model, options.max_model_len)
    kernels = KernelSet(
        config=config,
        dtype=cuda_dtype(options.dtype, config),
        arch=options.arch,
        lane_sms=tuple(options.sms or lane_sizes(options.num_sms)),
        buckets=batch_buckets(options.max_num_seqs),
        max_model_len=options.max_model_len or config.max_position_embeddings,
        block_size=options.kv_block_size,
        dependent=options.dependent_launch,
        prefill_attention=options.prefill_attention,
    )
    began_s = time.monotonic()
    compile_all(kernels, options.processes, _say)
    print(f"kernels of {options.model} in {options.dtype}: {time.monotonic() - began_s:.1f} s")


def _say(done: int, total: int) -> None:
    print(f"compiling kernels: {done} of {total}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    default = default_engine_settings(device="cuda")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    parser.add_argument("--max-num-seqs", type=int, default=default.max_num_seqs)
    parser.add_argument("--max-model-len", type=int, default=0, help="0: the model's own")
    parser.add_argument(
        "--kv-block-size", type=int, default=default.cuda.kv_block_size, choices=KV_BLOCK_SIZES
    )
    parser.add_argument(
        "--prefill-attention", default=default.cuda.prefill_attention, choices=("triton", "sdpa")
    )
    parser.add_argument(
        "--dependent-launch", action="store_true", default=default.cuda.dependent_launch, help="from sm_90 on"
    )
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 for Hopper")
    parser.add_argument("--num-sms", type=int, default=132, help="of the GPU: lanes of all its sizes")
    parser.add_argument("--sms", type=_sizes, help="only lanes of these sizes, as 16,64,132")
    parser.add_argument("--processes", type=int, default=0, help="at once; 0: one per core, at most 14")
    return parser


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


if __name__ == "__main__":
    main()
