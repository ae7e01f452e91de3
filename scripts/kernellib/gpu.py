"""What both programs that need a GPU do first. Imports torch."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from kernellib.lanes import Lane, green_lanes

PACKAGES = ("torch", "triton", "cuda-bindings", "numpy")
CACHE_FACTOR = 3
"""Data sets that take turns hold so many times the L2 cache."""

MAX_SETS = 16


def refusal() -> str:
    """Why nothing can be measured here; empty if it can."""
    if not torch.cuda.is_available():
        return (
            "This needs an NVIDIA GPU and a CUDA build of torch; "
            f"torch {torch.__version__} sees no CUDA device here. Nothing was measured."
        )
    return ""


def describe() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "num_sms": properties.multi_processor_count,
        "arch": properties.major * 10 + properties.minor,
        "l2_bytes": properties.L2_cache_size,
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


@contextmanager
def open_lanes(sizes: Sequence[int]) -> Iterator[tuple[list[Lane], str]]:
    """A plain stream for the whole device, if asked for, then green contexts in the order of `sizes`; and why
    some are missing."""
    total = torch.cuda.get_device_properties(0).multi_processor_count
    torch.ones(1, device="cuda").sum().item()  # makes the primary context
    cuda: Any = torch.cuda  # whose streams some releases type and some do not
    lanes = [Lane(total, cuda.Stream(), green=False)] if total in sizes else []
    green = [size for size in sizes if size != total]
    missing = ""
    with ExitStack() as stack:
        try:
            if green:
                from cuda.bindings import driver

                lanes += stack.enter_context(green_lanes(driver, torch, green))
            if left_out := set(green) - {lane.num_sms for lane in lanes}:
                missing = f"the device gives no lanes of {sorted(left_out)} SMs"
        except (ImportError, RuntimeError) as error:
            missing = f"no green contexts: {error}"
        try:
            yield lanes, missing
        finally:
            with suppress(RuntimeError):  # a lost device has said so already
                torch.cuda.synchronize()


def num_sets(num_bytes: int) -> int:
    """Data sets of so many bytes that together exceed the L2 cache."""
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(MAX_SETS, -(-CACHE_FACTOR * l2_bytes // max(num_bytes, 1))))


def device_lost(error: Exception) -> bool:
    """After such an error every further CUDA call of the process fails."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").sum().item()
    except RuntimeError:
        return True
    return False


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver_version() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception as error:  # a figure for the record, whatever is missing
        return f"unknown ({type(error).__name__})"
