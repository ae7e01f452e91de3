"""What the report compiles: each architecture's own configurations."""

from collections.abc import Iterator

from semipd_kernels.aot import TARGETS, AotCase
from semipd_kernels.prefill_attention.configs import PrefillConfig, choose, choose_fp32, choose_narrow
from semipd_kernels.prefill_attention.kernel import prefill_attention_kernel

FULL_GPU_SMS = 132
SHIPPED = {
    ("wide", "bf16", 64, 4, 16),
    ("wide", "bf16", 128, 4, 16),
    ("wide", "bf16", 128, 7, 16),
    ("wide", "bf16", 256, 4, 16),
    ("narrow", "bf16", 64, 7, 16),
    ("narrow", "bf16", 128, 4, 16),
}
KV_HEADS = {1: 32, 4: 8, 7: 4, 8: 8, 16: 1}


def cases() -> Iterator[AotCase]:
    for dtype in ("bf16", "fp16", "fp32"):
        for head_dim in (64, 128, 256):
            for group in KV_HEADS:
                for block_size in (16, 64):
                    for arch in TARGETS:
                        for width, config in _configs(arch, dtype, head_dim):
                            yield _case(arch, width, dtype, head_dim, group, block_size, config)


def _configs(arch: int, dtype: str, head_dim: int) -> Iterator[tuple[str, PrefillConfig]]:
    if dtype == "fp32":
        yield "wide", choose_fp32(head_dim=head_dim)
    else:
        yield "wide", choose(arch=arch, head_dim=head_dim, num_sms=FULL_GPU_SMS)
        yield "narrow", choose_narrow(arch=arch, head_dim=head_dim)


def _case(
    arch: int, width: str, dtype: str, head_dim: int, group: int, block_size: int, config: PrefillConfig
) -> AotCase:
    rows = ("q_ptr", "key_ptr", "value_ptr", "out_ptr")
    indices = ("table_ptr", "query_starts_ptr", "kv_lens_ptr", "items_ptr")
    strides = ("q_stride", "out_stride", "block_stride")
    return AotCase(
        name=f"prefill_attention/{width}{arch}/{dtype}/d{head_dim}/g{group}/b{block_size}",
        kernel=prefill_attention_kernel,
        signature={
            **dict.fromkeys(rows, f"*{dtype}"),
            **dict.fromkeys(indices, "*i32"),
            "qk_scale": "fp32",
            **dict.fromkeys(("table_stride", *strides), "i32"),
        },
        constexprs={
            "KV_HEADS": KV_HEADS[group],
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": block_size,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "STAGES": config.num_stages,
        },
        aligned=frozenset((*rows, "items_ptr", *strides)),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        targets=(arch,),
        shipped=(width, dtype, head_dim, group, block_size) in SHIPPED,
        tensor_cores=dtype != "fp32",
        async_copy=True,
        # A third stage of D 256 would not fit in the 99 KiB of sm_86 and sm_89, which take this code too.
        prefetches=dtype != "fp32" and (arch, head_dim) != (80, 256),
        vector_bytes=16,
        # 128 rows of 256 fp32 sums take half of the registers; a few values spill around the loops, none in
        # them
        spills_allowed=32 if arch == 90 and head_dim == 256 and config.block_m == 128 else 0,
    )
