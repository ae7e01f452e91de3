"""What the report compiles. The dtype does not matter: words are copied."""

from collections.abc import Iterator
from typing import Any

from semipd_kernels.aot import AotCase
from semipd_kernels.kv_copy.kernel import copy_blocks_kernel, transfer_kernel
from semipd_kernels.kv_copy.launch import NUM_WARPS, TILE

HEAD_WORDS = {64: 32, 128: 64, 256: 128}
"""Of 16-bit dtypes; fp32 has the same at half the head dim, and 256."""


def cases() -> Iterator[AotCase]:
    for index in ("i32", "i64"):
        yield _case(
            f"kv_copy/copy_blocks/{index}",
            copy_blocks_kernel,
            pointers={"pool_ptr": "*i32", "src_ptr": f"*{index}", "dst_ptr": f"*{index}"},
            counts=("num_blocks", "num_units", "num_pairs", "tiles", "block_words"),
            constexprs={},
            shipped=index == "i32",
        )
        for to_pool in (False, True):
            for head_dim, words in HEAD_WORDS.items():
                for block_size in (16, 64):
                    yield _transfer(index, to_pool, head_dim, words, block_size)


def _transfer(index: str, to_pool: bool, head_dim: int, words: int, block_size: int) -> AotCase:
    return _case(
        f"kv_copy/{'scatter' if to_pool else 'gather'}/{index}/d{head_dim}/b{block_size}",
        transfer_kernel,
        pointers={"pool_ptr": "*i32", "table_ptr": f"*{index}", "kv_ptr": "*i32"},
        counts=(
            "num_blocks",
            "num_units",
            "num_columns",
            "num_tokens",
            "num_heads",
            "tiles",
            "block_words",
        ),
        constexprs={"BLOCK_SIZE": block_size, "HEAD_WORDS": words, "TO_POOL": to_pool},
        shipped=index == "i32" and head_dim == 128 and block_size == 16,
    )


def _case(
    name: str,
    kernel: Any,
    *,
    pointers: dict[str, str],
    counts: tuple[str, ...],
    constexprs: dict[str, Any],
    shipped: bool,
) -> AotCase:
    return AotCase(
        name=name,
        kernel=kernel,
        signature={**pointers, **dict.fromkeys(counts, "i32")},
        constexprs={**constexprs, "TILE": TILE},
        aligned=frozenset({"pool_ptr", "kv_ptr"} & set(pointers) | {"block_words"}),
        num_warps=NUM_WARPS,
        num_stages=1,
        shipped=shipped,
        vector_bytes=16,
    )
