"""Streams bound to a part of the SMs: CUDA green contexts (driver 580, CUDA 13.0 or newer).

Flags are integer literals on purpose: the names of the enums differ between releases of cuda-bindings.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

SM_RESOURCE = 1
GREEN_CTX_DEFAULT_STREAM = 0x1
STREAM_NON_BLOCKING = 0x1
GRANULE_SMS = 8


@dataclass(frozen=True, slots=True)
class Lane:
    """`stream`: a torch stream. `green` is false for a plain stream, which has the whole device."""

    num_sms: int
    stream: Any
    green: bool = True


@contextmanager
def green_lanes(driver: Any, torch: Any, sizes: Iterable[int]) -> Iterator[list[Lane]]:
    """A lane for each size that the device can give exactly; the caller synchronises before leaving.

    `driver`: cuda.bindings.driver. Lanes overlap each other: they are for one measurement at a time.

    Raises:
        RuntimeError: the driver refused.
    """
    with ExitStack() as stack:
        device = _checked(driver.cuDeviceGet(0))
        groups = _groups(driver, device)
        per_group = groups[0].sm.smCount
        lanes = []
        for size in sizes:
            count, rest = divmod(size, per_group)
            if not rest and 1 <= count <= len(groups):
                lanes.append(_lane(driver, torch, device, groups[:count], stack))
        yield lanes


def _groups(driver: Any, device: Any) -> list[Any]:
    """All groups of the smallest size, from one call: only those of one call may be merged."""
    kind = driver.CUdevResourceType(SM_RESOURCE)
    full = _checked(driver.cuDeviceGetDevResource(device, kind))
    _, count, _ = _checked(driver.cuDevSmResourceSplitByCount(0, full, 0, GRANULE_SMS))  # 0: how many fit
    groups, count, _ = _checked(driver.cuDevSmResourceSplitByCount(count, full, 0, GRANULE_SMS))
    return list(groups)[:count]


def _lane(driver: Any, torch: Any, device: Any, groups: list[Any], stack: ExitStack) -> Lane:
    description = _checked(driver.cuDevResourceGenerateDesc(groups, len(groups)))
    context = _checked(driver.cuGreenCtxCreate(description, device, GREEN_CTX_DEFAULT_STREAM))
    stack.callback(driver.cuGreenCtxDestroy, context)
    kind = driver.CUdevResourceType(SM_RESOURCE)
    got = _checked(driver.cuGreenCtxGetDevResource(context, kind)).sm.smCount
    raw = _checked(driver.cuGreenCtxStreamCreate(context, STREAM_NON_BLOCKING, 0))
    stack.callback(driver.cuStreamDestroy, raw)
    return Lane(got, torch.cuda.ExternalStream(int(raw), device=torch.device("cuda:0")))


def _checked(returned: tuple[Any, ...]) -> Any:
    status, *values = returned
    if int(status) != 0:
        raise RuntimeError(f"CUDA driver error {int(status)} ({status})")
    return None if not values else values[0] if len(values) == 1 else tuple(values)
