"""What the report compiles."""

from collections.abc import Iterator

from semipd_kernels.aot import AotCase, dependently
from semipd_kernels.silu_mul.kernel import silu_mul_kernel
from semipd_kernels.silu_mul.launch import NUM_WARPS, TILE


def cases() -> Iterator[AotCase]:
    for dtype in ("bf16", "fp16", "fp32"):
        for aligned in (True, False):
            yield _case(dtype, aligned)
    yield dependently(_case("bf16", True))


def _case(dtype: str, aligned: bool) -> AotCase:
    sizes = ("gate_up_stride", "out_stride", "width")
    return AotCase(
        name=f"silu_mul/{dtype}" + ("" if aligned else "/odd"),
        kernel=silu_mul_kernel,
        signature={
            "gate_up_ptr": f"*{dtype}",
            "out_ptr": f"*{dtype}",
            **dict.fromkeys((*sizes, "tiles"), "i32"),
        },
        constexprs={"TILE": TILE, "DEPENDENT": False},
        aligned=frozenset(("gate_up_ptr", "out_ptr", *(sizes if aligned else ()))),
        num_warps=NUM_WARPS,
        num_stages=1,
        shipped=aligned and dtype != "fp32",
        # Widths no model has: element-wise loads, whose mask bits for sm_80 are kept in memory.
        spills_allowed=0 if aligned else 24,
    )
