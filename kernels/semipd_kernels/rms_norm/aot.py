"""What the report compiles."""

from collections.abc import Iterator

from semipd_kernels.aot import AotCase, dependently
from semipd_kernels.rms_norm.kernel import rms_norm_kernel
from semipd_kernels.rms_norm.launch import tile_shape

SHIPPED_SIZES = (2048, 4096, 5120, 8192)
OTHER_SIZES = (64, 896, 3584, 16384, 20480)


def cases() -> Iterator[AotCase]:
    for dtype in ("bf16", "fp16", "fp32"):
        for add in (False, True):
            for size in SHIPPED_SIZES + OTHER_SIZES:
                yield _case(dtype, add, size, dtype != "fp32" and size in SHIPPED_SIZES)
    yield dependently(_case("bf16", True, 4096, True))


def _case(dtype: str, add: bool, hidden_size: int, shipped: bool) -> AotCase:
    tile, num_warps = tile_shape(hidden_size)
    pointers = ("x_ptr", "residual_ptr", "weight_ptr", "out_ptr")
    sizes = ("x_stride", "residual_stride", "out_stride", "hidden_size")
    return AotCase(
        name=f"rms_norm/{'add/' if add else ''}{dtype}/h{hidden_size}",
        kernel=rms_norm_kernel,
        signature={**dict.fromkeys(pointers, f"*{dtype}"), **dict.fromkeys(sizes, "i32"), "eps": "fp32"},
        constexprs={"ADD": add, "TILE": tile, "ONE_TILE": hidden_size <= tile, "DEPENDENT": False},
        aligned=frozenset((*pointers, *sizes)),
        num_warps=num_warps,
        num_stages=1,
        shipped=shipped,
        vector_bytes=0 if hidden_size <= tile else 16,
    )
