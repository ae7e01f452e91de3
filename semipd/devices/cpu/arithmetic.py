"""Which number formats this torch multiplies natively on this machine's CPU."""

import torch

from semipd.checkpoints.dtypes import BF16_FLAGS, FP16_FLAGS, cpu_flags


def native_flags() -> frozenset[str]:
    """`cpu_flags` without those of a format that torch's oneDNN does not use here: it was built without, or
    ONEDNN_MAX_CPU_ISA forbids it."""
    flags = cpu_flags()
    for question, names in (("bf16", BF16_FLAGS), ("fp16", FP16_FLAGS)):
        if not _onednn_has(question):
            flags -= names
    return flags


def _onednn_has(name: str) -> bool:
    try:
        return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())
    except (AttributeError, RuntimeError):
        return False
