"""What the report compiles."""

from collections.abc import Iterator

from semipd_kernels.aot import AotCase
from semipd_kernels.gather_kv.kernel import gather_kv_kernel
from semipd_kernels.gather_kv.launch import NUM_WARPS


def cases() -> Iterator[AotCase]:
    for dtype in ("bf16", "fp16", "fp32"):
        for head_dim in (64, 128, 256):
            for block_size in (16, 64):
                yield _case(dtype, head_dim, block_size)


def _case(dtype: str, head_dim: int, block_size: int) -> AotCase:
    sizes = ("num_tokens", "num_blocks", "num_kv", "out_tokens")
    return AotCase(
        name=f"gather_kv/{dtype}/d{head_dim}/b{block_size}",
        kernel=gather_kv_kernel,
        signature={
            "pool_ptr": f"*{dtype}",
            "table_ptr": "*i32",
            "out_ptr": f"*{dtype}",
            **dict.fromkeys(sizes, "i32"),
        },
        constexprs={"BLOCK_SIZE": block_size, "HEAD_DIM": head_dim},
        aligned=frozenset(("pool_ptr", "out_ptr", "out_tokens")),
        num_warps=NUM_WARPS,
        num_stages=1,
        shipped=dtype == "bf16" and head_dim == 128,
        vector_bytes=16,
    )
