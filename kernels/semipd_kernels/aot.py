"""A kernel as it is compiled without a GPU: the contract between the operations and the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from semipd_kernels.dependent import OLDEST_ARCH, dependence

TARGETS = (80, 90)
"""Compute capabilities that must compile; 100 is reported only."""


@dataclass(frozen=True, slots=True)
class AotCase:
    """One specialisation of one kernel, with what must be true of its code.

    Attributes:
        name: unique, for example `decode_attention/bf16/d128/g4`.
        kernel: the function under `triton.jit`.
        signature: Triton's type of every run-time argument, by name in order: `*bf16`, `i32`, `fp32`, ...
        constexprs: values of the `tl.constexpr` arguments.
        aligned: run-time arguments known to be divisible by 16 (pointers: by 16 bytes). Must hold for what
            the launcher passes, or the report describes code that never runs.
        num_warps, num_stages: as launched.
        targets: what it is launched on; a configuration may be one architecture's own.
        shipped: compiled in `make check`; the others only in the full matrix of `make soak`.
        tensor_cores: the code must hold tensor-core instructions.
        async_copy: the code must hold asynchronous copies (cp.async or TMA).
        dependent: launched by programmatic dependent launch: the code must wait for the kernel before
            it before it touches memory; any other must not wait.
        prefetches: innermost loops with asynchronous copies must not wait for those of the same turn.
        max_turn_instructions: most instructions that a warp issues in one turn of the streaming loop with
            tensor cores; 0: no promise.
        counts_arrivals: the last program that arrives goes on with what all have stored: its atomic
            operations must order their stores and its loads.
        vector_bytes: global loads in innermost loops (without loops: all of them) must move at least so many
            bytes per thread and instruction, but for a quarter of the bytes; 0: no promise.
        spills_allowed: bytes; anything else than 0 needs its reason beside it.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    aligned: frozenset[str]
    num_warps: int = 4
    num_stages: int = 2
    targets: tuple[int, ...] = TARGETS
    shipped: bool = True
    tensor_cores: bool = False
    async_copy: bool = False
    dependent: bool = False
    prefetches: bool = False
    max_turn_instructions: int = 0
    counts_arrivals: bool = False
    vector_bytes: int = 0
    spills_allowed: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: {"enable_fp_fusion": True})


def dependently(case: AotCase) -> AotCase:
    """The same launch by programmatic dependent launch."""
    constants = dependence(True)
    return replace(
        case,
        name=f"{case.name}/dependent",
        constexprs={**case.constexprs, "DEPENDENT": constants.pop("DEPENDENT")},
        options={**case.options, **constants},
        targets=tuple(arch for arch in case.targets if arch >= OLDEST_ARCH),
        dependent=True,
    )
