"""Kernels that break one promise each. Run as a program, without TRITON_INTERPRET, it prints what the report
says of each: {case name: {"facts": ..., "violations": [...]}}."""

import json
import sys
from collections.abc import Iterator

import triton
import triton.language as tl
from kernellib.report.build import compile_case
from kernellib.report.facts import violations
from semipd_kernels.aot import AotCase


@triton.jit  # type: ignore[untyped-decorator]
def sum_rows(x_ptr, out_ptr, num_rows, row_stride, TILE: tl.constexpr, STAGES: tl.constexpr):  # type: ignore[no-untyped-def]
    total = tl.zeros([TILE], tl.float32)
    for row in tl.range(0, num_rows, num_stages=STAGES):
        total += tl.load(x_ptr + row * row_stride + tl.arange(0, TILE))
    tl.store(out_ptr + tl.arange(0, TILE), total)


@triton.jit  # type: ignore[untyped-decorator]
def multiply(a_ptr, b_ptr, out_ptr, num_tiles, SIZE: tl.constexpr, DOT: tl.constexpr):  # type: ignore[no-untyped-def]
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    at = rows * SIZE + columns
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for tile in tl.range(0, num_tiles, num_stages=1):
        a = tl.load(a_ptr + tile * SIZE * SIZE + at)
        b = tl.load(b_ptr + tile * SIZE * SIZE + at)
        if DOT:
            total += tl.dot(a, b)
        else:
            total += a.to(tl.float32) * b.to(tl.float32)
    tl.store(out_ptr + at, total)


@triton.jit  # type: ignore[untyped-decorator]
def keep_much(x_ptr, out_ptr, num_rows, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Four sums of 64 numbers each per thread in 255 registers."""
    columns = tl.arange(0, TILE)
    one, two = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    three, four = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    for row in tl.range(0, num_rows):
        x = tl.load(x_ptr + row * TILE + columns)
        one += x
        two += one * x
        three += two * x
        four += three * x
    tl.store(out_ptr + columns, one + two * three + four)


def cases() -> Iterator[AotCase]:
    def sums(name: str, aligned: set[str], stages: int, vector_bytes: int = 16) -> AotCase:
        return AotCase(
            name=name,
            kernel=sum_rows,
            signature={"x_ptr": "*fp32", "out_ptr": "*fp32", "num_rows": "i32", "row_stride": "i32"},
            constexprs={"TILE": 4096, "STAGES": stages},
            aligned=frozenset(aligned),
            vector_bytes=vector_bytes,
            async_copy=True,
        )

    def products(name: str, dot: bool) -> AotCase:
        return AotCase(
            name=name,
            kernel=multiply,
            signature={"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32", "num_tiles": "i32"},
            constexprs={"SIZE": 64, "DOT": dot},
            aligned=frozenset({"a_ptr", "b_ptr", "out_ptr"}),
            tensor_cores=True,
            vector_bytes=16,
        )

    everything = {"x_ptr", "out_ptr", "row_stride"}
    yield sums("good", everything, 3)
    yield sums("unaligned", everything - {"row_stride"}, 3)
    yield sums("no stages", everything, 1)
    yield sums("too many stages", everything, 20)
    yield products("good dot", True)
    yield products("no dot", False)
    yield AotCase(
        name="spilling",
        kernel=keep_much,
        signature={"x_ptr": "*fp32", "out_ptr": "*fp32", "num_rows": "i32"},
        constexprs={"TILE": 8192},
        aligned=frozenset({"x_ptr", "out_ptr"}),
        vector_bytes=16,
    )
    yield AotCase(
        name="wrong names",
        kernel=sum_rows,
        signature={"x_ptr": "*fp32", "output": "*fp32", "num_rows": "i32", "row_stride": "i32"},
        constexprs={"TILE": 64, "STAGES": 1},
        aligned=frozenset(),
    )


if __name__ == "__main__":
    found = {}
    for case in cases():
        facts = compile_case(case, int(sys.argv[1]))
        found[case.name] = {"facts": facts.to_json(), "violations": violations(facts)}
    print(json.dumps(found))
