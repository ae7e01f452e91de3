"""Which number format weights, activations and KV use on this machine's CPU. No torch here."""

from pathlib import Path

from semipd.core.errors import SemipdError
from semipd.network.config import ITEM_BYTES, DTypeName, ModelConfig

# x86 flags, and "bf16" and "asimdhp" as Arm's Linux spells them.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
FP16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction-set flags of the first CPU as Linux names them; empty where they cannot be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def resolve_dtype(requested: str, config: ModelConfig, flags: frozenset[str] | None = None) -> DTypeName:
    """The format to serve `config` in.

    `auto` is bfloat16 when the checkpoint is 16-bit and the CPU multiplies bfloat16 natively, else float32:
    also for quantised numbers, which would be rounded a second time (SmolLM2-135M, Q4_1: that changed the
    first token of its first answer).

    Args:
        requested: "auto", "float32", "bfloat16" or "float16".
        flags: instruction-set flags; None: this machine's.

    Raises:
        SemipdError: `invalid_value` for another name, and for float16 on a CPU without float16 arithmetic.
    """
    have = cpu_flags() if flags is None else flags
    if requested == "auto":
        is_16_bit = config.dtype != "float32" and not config.is_quantized
        return "bfloat16" if is_16_bit and have & BF16_FLAGS else "float32"
    name = known_dtype(requested)
    # Emulated: a 512 x 512 x 2048 linear took 57 ms in float16, 11 in float32 and 5 in bfloat16 (EPYC with
    # avx512_bf16, one thread, torch 2.13).
    if name == "float16" and not have & FP16_FLAGS:
        raise SemipdError(
            "invalid_value",
            "dtype float16: this CPU has no float16 arithmetic and would run about 5 times slower.",
            "Use auto, bfloat16 or float32.",
            param="dtype",
        )
    return name


def known_dtype(requested: str) -> DTypeName:
    """Raises SemipdError(`invalid_value`)."""
    if requested in ITEM_BYTES:
        return requested
    raise SemipdError(
        "invalid_value",
        f"dtype {requested!r} is unknown.",
        f"Use auto, {', '.join(ITEM_BYTES)}.",
        param="dtype",
    )
