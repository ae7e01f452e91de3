"""What two lanes on disjoint SMs still take from each other: memory bandwidth."""

import math

from semipd.devices.sim.cost import StepCost

FAIR_SHARE = 0.5
"""Of two lanes that both want more, none is left with less than this share of the memory."""


def slowdown(mine: StepCost, other: StepCost, hbm_rate: float, scale: float) -> float:
    """How much longer `mine` takes while `other` runs beside it; 1.0 at least.

    The other lane's mean traffic is taken from the memory, and my memory-bound time stretches by the
    same soft ceiling that gave my bandwidth: 1/r^2 grows by 1/left^2 - 1/hbm^2. Compute-bound time is
    left alone: a prefill GEMM beside memory traffic loses under 8 % (Bullet, arXiv 2504.19516). Checks:
    MuxWise (arXiv 2504.14489) measures 0 to 30 % for decode. Nexus (arXiv 2507.06608) writes of 36 %,
    while the axis of its figure ends at 15 %, so that number is no check.
    Power and clocks are not modelled. `hbm_rate` in bytes/ns.
    """
    if not mine.memory_ns or not scale:
        return 1.0
    left = max(hbm_rate - other.hbm_bytes / other.ns, hbm_rate * FAIR_SHARE)
    mine_rate = mine.memory_bytes / mine.memory_ns
    stretch = math.sqrt(1.0 + mine_rate**2 * (1.0 / left**2 - 1.0 / hbm_rate**2))
    return 1.0 + scale * (stretch - 1.0) * mine.memory_ns / mine.ns
