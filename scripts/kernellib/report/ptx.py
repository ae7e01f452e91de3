"""What a kernel's PTX says about how it moves and multiplies."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from kernellib.report.loops import innermost_loops

_LOAD = re.compile(r"\bld(?:\.\w+)*?\.global((?:(?:\.|::)\w+)*)")
_ASYNC = re.compile(r"\bcp\.async\.c[ag]\.[^,;]*,[^,;]*,\s*(0x[0-9a-fA-F]+|\d+)")
_BULK = re.compile(r"\bcp\.async\.bulk\.(?!commit|wait)")
_TOUCHES = re.compile(r"\b(?:bra\b|(?:ld|st|atom|red|cp|prefetch)\.[\w.:]*global)")
_ORDERING = re.compile(r"\b(?:bar\.sync|atom\.[\w.:]+|(?:ld|st|red|cp)\.[\w.:]*global[\w.:]*)")
_TENSOR = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
_VECTOR = re.compile(r"[.:]v(\d+)")
_ITEM_BITS = re.compile(r"[.:][busf](\d+)$")

BULK_BYTES = 1 << 10
"""Stands for a bulk copy, which one thread starts for a whole tile."""


@dataclass(frozen=True, slots=True)
class PtxFacts:
    """
    Attributes:
        loads: of each innermost loop that loads from global memory, bytes per instruction and thread to
            number of such instructions; loads into registers and asynchronous copies alike. A kernel whose
            loops load nothing has one entry for its whole body, or none.
        tensor_core_ops: instructions in the text, by name.
        async_copies: instructions in innermost loops.
        waits_first: whether `griddepcontrol.wait` stands before every branch and every instruction that
            touches global memory; None: there is no griddepcontrol at all.
        counts_in_order: whether every atomic operation on global memory releases what its program's threads
            stored and acquires what others did: `acq_rel` at the scope of the GPU, between two barriers with
            no access to global memory between; None: there is no atomic operation.
    """

    loads: tuple[dict[int, int], ...]
    tensor_core_ops: dict[str, int]
    async_copies: int
    waits_first: bool | None = None
    counts_in_order: bool | None = None


def inspect(ptx: str) -> PtxFacts:
    """Raises `loops.UnclearFlowError` where the loops cannot be told from the text."""
    loops = innermost_loops(ptx)
    loads = [load_widths(loop) for loop in loops]
    if not any(loads):
        loads = [load_widths(ptx.splitlines())]
    return PtxFacts(
        loads=tuple(widths for widths in loads if widths),
        tensor_core_ops=dict(Counter(_TENSOR.findall(ptx))),
        async_copies=sum(
            bool(_ASYNC.search(instruction) or _BULK.search(instruction))
            for loop in loops
            for instruction in loop
        ),
        waits_first=waits_first(ptx),
        counts_in_order=counts_in_order(ptx),
    )


def waits_first(ptx: str) -> bool | None:
    """See PtxFacts."""
    if "griddepcontrol" not in ptx:
        return None
    wait, touch = ptx.find("griddepcontrol.wait"), _TOUCHES.search(ptx)
    return wait >= 0 and (touch is None or wait < touch.start())


def counts_in_order(ptx: str) -> bool | None:
    """See PtxFacts."""
    steps = ["", *_ORDERING.findall(ptx), ""]
    found = [
        "acq_rel" in step and ".gpu" in step and before == after == "bar.sync"
        for before, step, after in zip(steps, steps[1:], steps[2:], strict=False)
        if step.startswith("atom.")
    ]
    return all(found) if found else None


def load_widths(instructions: Iterable[str]) -> dict[int, int]:
    """Bytes that an instruction loads from global memory per thread -> number of such instructions."""
    widths: Counter[int] = Counter()
    for instruction in instructions:
        if copy := _ASYNC.search(instruction):
            widths[int(copy[1], 0)] += 1
        elif _BULK.search(instruction):
            widths[BULK_BYTES] += 1
        elif load := _LOAD.search(instruction):
            widths[_register_bytes(load[1])] += 1
    return dict(sorted(widths.items()))


def _register_bytes(modifiers: str) -> int:
    """`.L1::evict_last.v4.b32` -> 16."""
    vector, item = _VECTOR.search(modifiers), _ITEM_BITS.search(modifiers)
    if item is None:
        raise ValueError(f"a load of unknown width: ld.global{modifiers}")
    return int(item[1]) // 8 * (int(vector[1]) if vector else 1)
