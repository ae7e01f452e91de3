"""What the report compiles."""

from collections.abc import Iterator

from semipd_kernels.aot import AotCase
from semipd_kernels.embedding.kernel import embedding_kernel
from semipd_kernels.embedding.launch import NUM_WARPS, TILE


def cases() -> Iterator[AotCase]:
    for dtype in ("bf16", "fp16", "fp32"):
        for ids in ("i64", "i32"):
            sizes = ("table_stride", "out_stride", "width")
            pointers = ("ids_ptr", "table_ptr", "out_ptr")
            yield AotCase(
                name=f"embedding/{dtype}/{ids}",
                kernel=embedding_kernel,
                signature={
                    "ids_ptr": f"*{ids}",
                    "table_ptr": f"*{dtype}",
                    "out_ptr": f"*{dtype}",
                    "table_stride": "i32",
                    "out_stride": "i32",
                    "vocab_size": "i32",
                    "width": "i32",
                    "tiles": "i32",
                },
                constexprs={"TILE": TILE},
                aligned=frozenset((*pointers, *sizes)),
                num_warps=NUM_WARPS,
                num_stages=1,
                shipped=ids == "i64" and dtype != "fp32",
            )
