"""What the report compiles."""

from collections.abc import Iterator

from semipd_kernels.aot import AotCase, dependently
from semipd_kernels.embedding.kernel import embedding_kernel
from semipd_kernels.embedding.launch import NUM_WARPS, TILE


def cases() -> Iterator[AotCase]:
    for dtype in ("bf16", "fp16", "fp32"):
        for ids in ("i64", "i32"):
            yield _case(dtype, ids)
    yield dependently(_case("bf16", "i64"))


def _case(dtype: str, ids: str) -> AotCase:
    sizes = ("table_stride", "out_stride", "width")
    return AotCase(
        name=f"embedding/{dtype}/{ids}",
        kernel=embedding_kernel,
        signature={
            "ids_ptr": f"*{ids}",
            "table_ptr": f"*{dtype}",
            "out_ptr": f"*{dtype}",
            **dict.fromkeys(("table_stride", "out_stride", "vocab_size", "width", "tiles"), "i32"),
        },
        constexprs={"TILE": TILE, "DEPENDENT": False},
        aligned=frozenset(("table_ptr", "out_ptr", *sizes)),
        num_warps=NUM_WARPS,
        num_stages=1,
        shipped=ids == "i64" and dtype != "fp32",
    )
