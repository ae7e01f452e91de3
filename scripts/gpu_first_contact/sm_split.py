"""Nested splits of one GPU's SMs into a decode lane and a prefill lane, as CUDA green contexts.

Written for driver 580 (CUDA 13.0). Flags are integer literals on purpose: the enum names differ
between cuda-bindings 13.0 and 13.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SM_RESOURCE = 1
GREEN_CTX_DEFAULT_STREAM = 0x1  # mandatory on 13.0
STREAM_NON_BLOCKING = 0x1  # mandatory for cuGreenCtxStreamCreate


class SmSplitError(RuntimeError):
    pass


def ck(returned: tuple[Any, ...]) -> Any:
    """Unpack what a driver call returned; raises on any status but success."""
    status, *values = returned
    if int(status) != 0:
        raise SmSplitError(f"CUDA driver error {int(status)} ({status})")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


@dataclass
class Lane:
    sm_count: int
    gctx: Any
    raw: Any  # CUstream
    stream: Any = None  # torch.cuda.ExternalStream


@dataclass
class Split:
    k: int  # groups given to decode
    prefill: Lane
    decode: Lane


@dataclass
class SplitTable:
    total: int
    granule: int
    groups: list[Any]
    remainder: Any | None
    splits: list[Split] = field(default_factory=list)
    lanes: list[Lane] = field(default_factory=list)


def probe(drv: Any, ordinal: int = 0, granule: int = 8, flags: int = 0) -> tuple[Any, SplitTable]:
    """One split call; only resources that come from one call may be merged afterwards."""
    device = ck(drv.cuDeviceGet(ordinal))
    full = ck(drv.cuDeviceGetDevResource(device, drv.CUdevResourceType(SM_RESOURCE)))
    _, n, _ = ck(drv.cuDevSmResourceSplitByCount(0, full, flags, granule))  # 0: how many fit
    n = n or full.sm.smCount // granule
    resources, n, rest = ck(drv.cuDevSmResourceSplitByCount(n, full, flags, granule))
    groups = list(resources)[:n]  # the binding returns the requested length
    sizes = {g.sm.smCount for g in groups}
    if len(sizes) != 1:
        raise SmSplitError(f"groups of sizes {sorted(sizes)}")
    size = sizes.pop()
    rest_sms = rest.sm.smCount if int(rest.type) == SM_RESOURCE else 0
    total = size * n + rest_sms
    if total != full.sm.smCount:
        raise SmSplitError(f"{n} x {size} + {rest_sms} != {full.sm.smCount}")
    return device, SplitTable(total, size, groups, rest if rest_sms else None)


def make_lane(drv: Any, device: Any, resources: list[Any], priority: int) -> Lane:
    want = sum(r.sm.smCount for r in resources)
    description = ck(drv.cuDevResourceGenerateDesc(resources, len(resources)))
    gctx = ck(drv.cuGreenCtxCreate(description, device, GREEN_CTX_DEFAULT_STREAM))
    try:
        got = ck(drv.cuGreenCtxGetDevResource(gctx, drv.CUdevResourceType(SM_RESOURCE))).sm.smCount
        if got != want:
            raise SmSplitError(f"green context has {got} SMs, wanted {want}")
        stream = ck(drv.cuGreenCtxStreamCreate(gctx, STREAM_NON_BLOCKING, priority))
    except BaseException:
        drv.cuGreenCtxDestroy(gctx)
        raise
    return Lane(got, gctx, stream)


def build(drv: Any, decode_groups: Iterable[int], ordinal: int = 0) -> SplitTable:
    """Decode takes the first k groups, prefill the other groups and the remainder."""
    device, table = probe(drv, ordinal)
    rest = [] if table.remainder is None else [table.remainder]
    try:
        for k in decode_groups:
            decode = make_lane(drv, device, table.groups[:k], priority=-1)
            table.lanes.append(decode)
            prefill = make_lane(drv, device, table.groups[k:] + rest, priority=0)
            table.lanes.append(prefill)
            table.splits.append(Split(k, prefill, decode))
    except BaseException:
        destroy(drv, table)
        raise
    return table


def destroy(drv: Any, table: SplitTable) -> None:
    """Streams first, then their green context; synchronise and drop graphs before."""
    for lane in reversed(table.lanes):
        ck(drv.cuStreamDestroy(lane.raw))
        ck(drv.cuGreenCtxDestroy(lane.gctx))
    table.lanes.clear()
    table.splits.clear()


def attach_torch(table: SplitTable, torch: Any, device: Any) -> None:
    for lane in table.lanes:
        lane.stream = torch.cuda.ExternalStream(int(lane.raw), device=device)
