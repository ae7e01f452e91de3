"""One case compiled for one architecture: what it promises, what came out, and where the two differ."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

KIB = 1024
SHARED_LIMIT_BYTES = {80: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB}
"""Dynamic shared memory one block may ask for (CUDA programming guide, table of compute capabilities)."""

WIDE_FRAC = 0.75
"""Of the bytes a streaming loop loads, so much must come in wide loads. The rest is room for block table
entries: a thread that fetches 16 bytes of keys and 16 of values needs 4 bytes to know where."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Attributes: as `AotCase` names them, then as `PtxFacts` and `CubinFacts` do.

    `error` is empty, or why there is nothing else to say. `scratch_bytes`: global memory that the launch
    would have to allocate.
    """

    name: str
    arch: int
    shipped: bool
    tensor_cores: bool
    async_copy: bool
    vector_bytes: int
    spills_allowed: int
    dependent: bool = False
    prefetches: bool = False
    max_turn_instructions: int = 0
    counts_arrivals: bool = False
    error: str = ""
    registers: int = 0
    spill_bytes: int = 0
    spills_in_loops: int | None = 0
    shared_bytes: int = 0
    scratch_bytes: int = 0
    loads: tuple[dict[int, int], ...] = ()
    tensor_core_ops: dict[str, int] = field(default_factory=dict)
    async_copies: int = 0
    async_depth: int | None = None
    turn_instructions: int = 0
    waits_first: bool | None = None
    counts_in_order: bool | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.arch

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Facts":
        loads = tuple({int(width): count for width, count in loop.items()} for loop in fields["loads"])
        return cls(**{**fields, "loads": loads})


def violations(facts: Facts) -> list[str]:
    """A sentence for each promise or limit that the code breaks."""
    if facts.error:
        return [facts.error]
    broken = []
    if facts.spill_bytes > facts.spills_allowed:
        where = {None: "perhaps in loops", 0: "none in innermost loops"}.get(
            facts.spills_in_loops, f"{facts.spills_in_loops} instructions in innermost loops"
        )
        broken.append(
            f"spills {facts.spill_bytes} bytes per thread, {facts.spills_allowed} allowed ({where})"
        )
    limit = SHARED_LIMIT_BYTES[facts.arch]
    if facts.shared_bytes > limit:
        broken.append(f"needs {facts.shared_bytes / KIB:.1f} KiB of shared memory, limit {limit // KIB} KiB")
    if facts.scratch_bytes:
        broken.append(f"allocates {facts.scratch_bytes} bytes of global scratch memory at every launch")
    if facts.vector_bytes:
        broken += _narrow_loads(facts.loads, facts.vector_bytes)
    if facts.tensor_cores and not facts.tensor_core_ops:
        broken.append("promises tensor cores, has no mma or wgmma instruction")
    if facts.async_copy and not facts.async_copies:
        broken.append("promises asynchronous copies, has no cp.async in an innermost loop")
    if facts.counts_arrivals and not facts.counts_in_order:
        broken.append("counts arrivals without ordering the stores before and the loads after")
    return broken + _slow_loops(facts)


def _slow_loops(facts: Facts) -> list[str]:
    broken = []
    if facts.prefetches and facts.async_depth is None:
        broken.append("promises loads ahead, no innermost loop waits for asynchronous copies")
    elif facts.prefetches and not facts.async_depth:
        broken.append("waits in an innermost loop for the loads of the same turn")
    limit = facts.max_turn_instructions
    if limit and not facts.turn_instructions:
        broken.append("promises few instructions a tile, has no streaming loop with tensor cores")
    elif limit and facts.turn_instructions > limit:
        broken.append(f"issues {facts.turn_instructions} instructions a tile and warp, limit {limit}")
    if facts.dependent and not facts.waits_first:
        broken.append("is launched dependently, and does not wait for the kernel before it first of all")
    if not facts.dependent and facts.waits_first is not None:
        broken.append("has griddepcontrol instructions, though it is not launched dependently")
    return broken


def wide_frac(loads: Mapping[int, int], vector_bytes: int) -> float:
    """Share of a loop's loaded bytes that instructions of at least `vector_bytes` load."""
    return sum(width * count for width, count in loads.items() if width >= vector_bytes) / loaded(loads)


def loaded(loads: Mapping[int, int]) -> int:
    """Bytes one thread loads in one turn of the loop."""
    return sum(width * count for width, count in loads.items())


def streaming_loops(loops: Iterable[Mapping[int, int]], vector_bytes: int) -> list[Mapping[int, int]]:
    """Loops that could load in vectors. Threads that fetch less in a turn run a search or a walk over a few
    lengths; but where no loop fetches more, all of them count."""
    every = list(loops)
    return [loads for loads in every if loaded(loads) >= vector_bytes] or every


def _narrow_loads(loops: Iterable[Mapping[int, int]], vector_bytes: int) -> list[str]:
    streaming = streaming_loops(loops, vector_bytes)
    if not streaming:
        return [f"promises loads of {vector_bytes} bytes, has no load from global memory"]
    return [
        f"loads {describe_loads(loads)} in a streaming loop: "
        f"{1 - wide_frac(loads, vector_bytes):.0%} of the bytes in loads under {vector_bytes} bytes"
        for loads in streaming
        if wide_frac(loads, vector_bytes) < WIDE_FRAC
    ]


def describe_loads(loads: Mapping[int, int]) -> str:
    """`8 x 16 B + 2 x 4 B`"""
    return " + ".join(f"{count} x {width} B" for width, count in sorted(loads.items(), reverse=True))
