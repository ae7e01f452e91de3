"""What every kernel that may be launched dependently does first."""

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

COMPILED = tl.constexpr(not knobs.runtime.interpret)
"""The interpreter runs one kernel after the other, and knows neither call."""


@triton.jit
def wait_for_earlier_kernels(DEPENDENT: tl.constexpr):
    """Every program's first statement. Nothing unless DEPENDENT."""
    if DEPENDENT and COMPILED:
        gdc_wait()
        gdc_launch_dependents()
