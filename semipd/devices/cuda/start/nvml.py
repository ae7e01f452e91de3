"""Memory, power, clocks and temperature through NVML. Its "utilisation" is not among them: that is the
share of time in which any kernel ran. How busy the SMs are comes from step times."""

from collections.abc import Callable
from typing import Any

from semipd.core.state.device import GpuStats

_THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}
"""nvmlClocksEventReasons that slow the GPU down against its will."""


class Nvml:
    """One GPU. `reason` says why there are no statistics; "" when there are."""

    def __init__(self, library: Any, handle: Any, reason: str = "") -> None:
        self.reason = reason
        self._library = library
        self._handle = handle

    @classmethod
    def open(cls, uuid: str) -> "Nvml":
        """`uuid`: as Driver.device_uuid. Never raises: statistics are no reason to stop."""
        try:
            import pynvml
        except ImportError as error:
            return cls(None, None, f"pynvml cannot be imported ({error}): pip install nvidia-ml-py")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return cls(None, None, f"NVML does not start: {error}")
        try:
            return cls(pynvml, _handle(pynvml, uuid))
        except pynvml.NVMLError as error:
            pynvml.nvmlShutdown()
            return cls(None, None, f"NVML does not know the GPU {uuid}: {error}")

    def stats(self) -> GpuStats:
        """Takes a few milliseconds at most."""
        if self._library is None:
            return {"absent": self.reason}
        library, handle = self._library, self._handle
        ask = self._ask
        memory = ask(lambda: library.nvmlDeviceGetMemoryInfo(handle))
        power_mw = ask(lambda: library.nvmlDeviceGetPowerUsage(handle))
        limit_mw = ask(lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle))
        throttles = ask(lambda: library.nvmlDeviceGetCurrentClocksEventReasons(handle))
        return GpuStats(
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            power_w=None if power_mw is None else power_mw / 1000,
            power_limit_w=None if limit_mw is None else limit_mw / 1000,
            sm_clock_mhz=ask(lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM)),
            memory_clock_mhz=ask(lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM)),
            temperature_c=ask(lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
            throttled_by=None if throttles is None else _throttles(throttles),
        )

    def close(self) -> None:
        """Idempotent."""
        library, self._library = self._library, None
        if library is not None:
            self.reason = "NVML was closed"
            library.nvmlShutdown()

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._library.NVMLError:
            return None


def _handle(library: Any, uuid: str) -> Any:
    """NVML writes the kind in front of what CUDA says."""
    try:
        return library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except library.NVMLError:
        return library.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")


def _throttles(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLES.items() if bits & bit)
