"""Which operations there are."""

from collections.abc import Iterable, Iterator
from importlib import import_module

from semipd_kernels.aot import AotCase

OPS = (
    "rms_norm",
    "rope_write",
    "silu_mul",
    "embedding",
    "sampling",
    "gather_kv",
    "prefill_attention",
    "decode_attention",
)
"""Each is a folder of this package."""


def aot_cases(ops: Iterable[str] = OPS) -> Iterator[AotCase]:
    """What every operation compiles ahead of time: `<op>/aot.py: cases()`. Imports triton."""
    for op in ops:
        yield from import_module(f"semipd_kernels.{op}.aot").cases()
