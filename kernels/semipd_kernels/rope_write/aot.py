"""What the report compiles."""

from collections.abc import Iterator

from semipd_kernels.aot import AotCase, dependently
from semipd_kernels.rope_write.kernel import rope_write_kernel
from semipd_kernels.rope_write.launch import NUM_WARPS, heads_per_program


def cases() -> Iterator[AotCase]:
    for dtype in ("bf16", "fp16", "fp32"):
        for head_dim in (64, 128, 256):
            for qk_norm in (False, True):
                for block_size in (16, 32, 64):
                    yield _case(dtype, head_dim, qk_norm, block_size)
    yield dependently(_case("bf16", 128, False, 16))


def _case(dtype: str, head_dim: int, qk_norm: bool, block_size: int) -> AotCase:
    tables = ("frequencies_ptr", "qk_norm_ptr")
    return AotCase(
        name=f"rope_write/{dtype}/d{head_dim}/b{block_size}" + ("/qk_norm" if qk_norm else ""),
        kernel=rope_write_kernel,
        signature={
            "qkv_ptr": f"*{dtype}",
            "positions_ptr": "*i64",
            "frequencies_ptr": "*fp32",
            "slots_ptr": "*i64",
            "pool_ptr": f"*{dtype}",
            "qk_norm_ptr": "*fp32",
            **dict.fromkeys(("qkv_stride", "num_q", "num_kv", "num_blocks", "num_groups"), "i32"),
            "rope_scale": "fp32",
            "eps": "fp32",
        },
        constexprs={
            "QK_NORM": qk_norm,
            "BLOCK_SIZE": block_size,
            "HEAD_DIM": head_dim,
            "HEADS": heads_per_program(head_dim),
            "DEPENDENT": False,
        },
        aligned=frozenset(("qkv_ptr", "pool_ptr", "qkv_stride", *tables)),
        num_warps=NUM_WARPS,
        num_stages=1,
        shipped=dtype != "fp32" and block_size == 16 and (head_dim != 256 or not qk_norm),
        options={"enable_fp_fusion": False},
    )
