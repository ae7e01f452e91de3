"""Triton probes of where and when the hardware runs a CTA, and of streaming reads."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def smid_census(out_ptr, SPIN_NS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Each CTA records its SM, then stays SPIN_NS, so that CTAs spread over every allowed SM."""
    pid = tl.program_id(0)
    smid = tl.inline_asm_elementwise(
        "mov.u32 $0, %smid;", "=r,r", [pid], dtype=tl.int32, is_pure=False, pack=1
    )
    t0 = tl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l,r", [pid], dtype=tl.int64, is_pure=False, pack=1
    )
    t = t0
    while t - t0 < SPIN_NS:
        t = tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l,r", [pid], dtype=tl.int64, is_pure=False, pack=1
        )
    tl.store(out_ptr + pid, smid)


@triton.jit
def stamp(out_ptr):  # type: ignore[no-untyped-def]
    """Single tiny CTA: writes globaltimer. Shows when the hardware really ran it."""
    pid = tl.program_id(0)
    t = tl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l,r", [pid], dtype=tl.int64, is_pure=False, pack=1
    )
    tl.store(out_ptr + pid, t)


@triton.jit  # type: ignore[untyped-decorator]
def read_bw(ptr, out_ptr, n_blocks, BLOCK: tl.constexpr, STAGES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Persistent streaming read; grid = CTAs per SM x SMs. The explicit num_stages makes
    Triton pipeline the loads (cp.async) although no dot consumes them."""
    pid = tl.program_id(0)
    n_prog = tl.num_programs(0)
    offs = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.int32)
    for b in tl.range(pid, n_blocks, n_prog, num_stages=STAGES):
        acc += tl.load(ptr + b.to(tl.int64) * BLOCK + offs)
    tl.store(out_ptr + pid, tl.sum(acc))
