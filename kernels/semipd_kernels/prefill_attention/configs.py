"""Launch configurations. The constants are reasoned from compiled code, not measured; tuned.json wins."""

from collections.abc import Iterator
from dataclasses import dataclass

from semipd_kernels.tuned import lookup


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """`block_m` query rows (tokens x heads of a group) meet `block_n` keys at a time; `num_stages` tiles of
    keys and values are in shared memory; `ctas_per_sm` workers share an SM. Blocks: powers of two from 16."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    ctas_per_sm: int


# Hopper: two warpgroups of 64 rows. A wgmma of 64 keys with both operands in shared memory reads as many
# bytes as shared memory gives, one of 128 keys three quarters of that; so 128 keys where they fit in 227 KiB.
# D 64 is bound by exp2 rather than by the tensor cores: two independent CTAs hide each other's softmax.
_WIDE = {
    (90, 64): PrefillConfig(128, 64, num_warps=4, num_stages=3, ctas_per_sm=2),
    (90, 128): PrefillConfig(128, 128, num_warps=8, num_stages=3, ctas_per_sm=1),
    (90, 256): PrefillConfig(128, 32, num_warps=8, num_stages=3, ctas_per_sm=1),
    (80, 64): PrefillConfig(128, 64, num_warps=8, num_stages=3, ctas_per_sm=1),
    (80, 128): PrefillConfig(128, 64, num_warps=8, num_stages=3, ctas_per_sm=1),
    (80, 256): PrefillConfig(64, 32, num_warps=8, num_stages=2, ctas_per_sm=1),
}

# For steps that would leave workers idle: 64 rows, the least that wgmma takes. They read keys and values
# twice as often, which is no loss while SMs would have nothing to do.
_NARROW = {
    (90, 64): PrefillConfig(64, 64, num_warps=4, num_stages=3, ctas_per_sm=2),
    (90, 128): PrefillConfig(64, 64, num_warps=4, num_stages=3, ctas_per_sm=2),
    (90, 256): PrefillConfig(64, 32, num_warps=8, num_stages=3, ctas_per_sm=1),
    (80, 64): PrefillConfig(64, 64, num_warps=4, num_stages=3, ctas_per_sm=2),
    (80, 128): PrefillConfig(64, 64, num_warps=4, num_stages=3, ctas_per_sm=1),
    (80, 256): PrefillConfig(64, 32, num_warps=8, num_stages=2, ctas_per_sm=1),
}

# fp32 without TF32 has no tensor cores: a thread holds whole rows of its operands, so small tiles, or spills.
_FP32 = {
    64: PrefillConfig(32, 32, num_warps=8, num_stages=2, ctas_per_sm=2),
    128: PrefillConfig(32, 32, num_warps=8, num_stages=2, ctas_per_sm=2),
    256: PrefillConfig(16, 32, num_warps=8, num_stages=2, ctas_per_sm=1),
}


def table_arch(arch: int) -> int:
    """Which column serves a compute capability: 90 where a CTA has 227 KiB of shared memory, else 80, whose
    constants fit in the 99 KiB of sm_86, sm_89 and sm_120 as well."""
    return 90 if 90 <= arch < 120 else 80


def choose(*, arch: int, head_dim: int, num_sms: int) -> PrefillConfig:
    """For 16-bit dtypes."""
    tuned = lookup("prefill_attention", arch=arch, head_dim=head_dim, num_sms=num_sms)
    return PrefillConfig(**tuned) if tuned is not None else _WIDE[table_arch(arch), head_dim]


def choose_narrow(*, arch: int, head_dim: int) -> PrefillConfig:
    """For 16-bit dtypes, when `choose` makes fewer units of work than there are workers."""
    return _NARROW[table_arch(arch), head_dim]


def choose_fp32(*, head_dim: int) -> PrefillConfig:
    return _FP32[head_dim]


def candidates(*, arch: int, head_dim: int) -> Iterator[PrefillConfig]:
    """What tuning tries for `choose`: fits the registers, and shared memory `ctas_per_sm` times."""
    sm_bytes = (228 if table_arch(arch) == 90 else 164) * 1024
    for block_m, num_warps in ((64, 4), (64, 8), (128, 4), (128, 8)):
        for block_n in (32, 64, 128):
            # accumulators and scores of a thread; the rest is operands and addresses
            if block_m * (head_dim + block_n) // (32 * num_warps) > 192:
                continue
            for num_stages in (2, 3, 4):
                shared_bytes = 2 * head_dim * (block_m + 2 * num_stages * block_n) + 1024
                for ctas_per_sm in (1, 2):
                    if ctas_per_sm * shared_bytes <= sm_bytes and ctas_per_sm * num_warps <= 8:
                        yield PrefillConfig(block_m, block_n, num_warps, num_stages, ctas_per_sm)
