"""The kernel behind `Driver.placement`. Imported only where there is a GPU: needs torch and triton."""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl


@triton.jit
def _where(out_ptr, SPIN_NS: tl.constexpr):  # noqa: N803
    """Each CTA records its SM, then stays, so that later CTAs must take the other SMs."""
    pid = tl.program_id(0)
    smid = tl.inline_asm_elementwise(
        "mov.u32 $0, %smid;", "=r,r", [pid], dtype=tl.int32, is_pure=False, pack=1
    )
    start = tl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l,r", [pid], dtype=tl.int64, is_pure=False, pack=1
    )
    now = start
    while now - start < SPIN_NS:
        now = tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l,r", [pid], dtype=tl.int64, is_pure=False, pack=1
        )
    tl.store(out_ptr + pid, smid)


def launch_placement(smids: torch.Tensor, spin_ns: int) -> None:
    """Launch one CTA per element of `smids`, int32 on the device, on the current stream; each writes its SM's
    number there."""
    _where[(smids.numel(),)](smids, SPIN_NS=spin_ns, num_warps=1)
