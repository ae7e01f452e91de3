"""What the report compiles."""

from collections.abc import Iterator
from dataclasses import replace

from semipd_kernels.aot import TARGETS, AotCase, dependently
from semipd_kernels.decode_attention import TMA_BLOCK_SIZE
from semipd_kernels.decode_attention.configs import DecodeConfig, choose
from semipd_kernels.decode_attention.kernel import decode_attention_kernel
from semipd_kernels.decode_attention.launch import (
    batch_pad,
    group_pad,
    heads_at_once,
    most_registers,
    splits_at_once,
)

HEAD_DIMS = (64, 128, 256)
TURN_INSTRUCTIONS = {64: 350, 128: 310, 256: 310}
"""Of a warp, for a tile of 32 KiB; with splits at D 128 it is below 300. A scheduler issues one a clock, so
with 300 an SM reads at most 109 bytes a clock; to saturate an H200, 64 SMs need 67 and 40 SMs 107."""
ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def cases() -> Iterator[AotCase]:
    """One group size stands for all that are padded to the same tile; others in the full matrix."""
    for dtype in ITEM_BYTES:
        for head_dim in HEAD_DIMS:
            for config in _configs(head_dim):
                for split in (True, False):
                    shipped = dtype == "bf16" or head_dim == 128
                    yield _case(dtype, head_dim, config, split=split, shipped=shipped)
    for head_dim in HEAD_DIMS:
        for config in _configs(head_dim):
            for block_size in (32, 64, 256):
                yield _case("bf16", head_dim, config, block_size=block_size)
            for group in (1, 7, 12, 32, 64):
                yield _case("bf16", head_dim, config, group=group)
            for batch in (256, 1024):
                yield _case("bf16", head_dim, config, batch=batch)
    for head_dim in HEAD_DIMS:
        config = _configs(head_dim)[-1]
        config = replace(config, tile=min(config.tile, TMA_BLOCK_SIZE))
        yield _case("bf16", head_dim, config, block_size=TMA_BLOCK_SIZE, tma=True, shipped=head_dim == 128)
    yield dependently(_case("bf16", 128, _configs(128)[-1], shipped=True))


def _configs(head_dim: int) -> list[DecodeConfig]:
    """Configurations in use that differ in code."""
    lanes = ((80, 108), (90, 132), (90, 24))
    chosen = [choose(arch=arch, head_dim=head_dim, num_sms=num_sms) for arch, num_sms in lanes]
    return list({(config.tile, config.buffers, config.num_warps): config for config in chosen}.values())


def _case(
    dtype: str,
    head_dim: int,
    config: DecodeConfig,
    *,
    split: bool = True,
    block_size: int = 16,
    group: int = 4,
    batch: int = 64,
    tma: bool = False,
    shipped: bool = False,
) -> AotCase:
    partials = "*fp32" if split else f"*{dtype}"
    item_bytes = ITEM_BYTES[dtype]
    tile = config.tile_of(item_bytes)
    return AotCase(
        name=f"decode_attention/{dtype}/d{head_dim}/g{group}/b{block_size}/tile{tile}x{config.buffers}"
        + (f"/split{batch_pad(batch)}" if split else "")
        + ("/tma" if tma else ""),
        kernel=decode_attention_kernel,
        signature={
            "q_ptr": f"*{dtype}",
            "kv_ptr": f"*{dtype}",
            "kv_rows": f"tensordesc<{dtype}[{tile}, {head_dim}]>" if tma else f"*{dtype}",
            "block_tables_ptr": "*i32",
            "kv_lens_ptr": "*i32",
            "out_ptr": f"*{dtype}",
            "partial_out_ptr": partials,
            "partial_lse_ptr": partials,
            "counters_ptr": "*i32",
            **dict.fromkeys(("q_stride", "out_stride", "table_stride", "batch", "num_items"), "i32"),
            **dict.fromkeys(("num_blocks", "num_kv_heads"), "i32"),
            "scale_log2e": "fp32",
        },
        constexprs={
            "GROUP": group,
            "GROUP_PAD": group_pad(group),
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": block_size,
            "TILE": tile,
            "BUFFERS": config.buffers,
            "TMA": tma,
            "SPLIT": split,
            "BATCH_PAD": batch_pad(batch) if split else 1,
            "HEADS_AT_ONCE": heads_at_once(group, head_dim) if split else 1,
            "SPLITS_AT_ONCE": splits_at_once(group, head_dim, item_bytes) if split else 1,
            "DEPENDENT": False,
        },
        aligned=frozenset(
            ("q_ptr", "kv_ptr", "out_ptr", "partial_out_ptr", "partial_lse_ptr", "q_stride", "out_stride")
        ),
        num_warps=config.num_warps,
        num_stages=1,
        targets=(90,) if tma else TARGETS,
        shipped=shipped,
        tensor_cores=dtype != "fp32",  # fp32 is for exactness: its products are plain multiply-adds
        async_copy=True,
        prefetches=dtype != "fp32" and not tma,  # barriers in memory do not tell how far it loads ahead
        max_turn_instructions=TURN_INSTRUCTIONS[head_dim] if dtype != "fp32" else 0,
        counts_arrivals=split,
        # In the merge of 32-bit types, two splits a turn, every third load is a log-sum-exp.
        vector_bytes=0 if dtype == "fp32" and split else 16,
        # An address, saved before the loop and read after it: ptxas prefers 80 or 96 registers for sm_80.
        spills_allowed=8 if dtype == "fp32" else 0,
        options={
            "enable_fp_fusion": True,
            "maxnreg": most_registers(head_dim, config.num_warps, item_bytes),
        },
    )
