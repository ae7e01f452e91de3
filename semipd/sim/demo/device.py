"""The demo's GPU: a simulated one with sensors."""

import random

from semipd.core.state.device import DeviceStats, GpuStats
from semipd.devices.sim.device import SimDevice

IDLE_W, BUSY_W, LIMIT_W, THROTTLED_W = 118.0, 560.0, 700.0, 672.0
ROOM_CELSIUS, CELSIUS_PER_W = 31.0, 0.062
WARM_UP_S, HEAT_UP_S = 3.0, 25.0
"""Half-lives of power and temperature."""


class Sensors:
    """What NVML would say, following the work with some inertia."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._watts, self._celsius = IDLE_W, 34.0
        self._shown_watts = self._watts

    def pass_time(self, seconds: float, busy_frac: float) -> None:
        keep = 0.5 ** (seconds / WARM_UP_S)
        self._watts = keep * self._watts + (1 - keep) * (IDLE_W + BUSY_W * busy_frac)
        slow = 0.5 ** (seconds / HEAT_UP_S)
        self._celsius = slow * self._celsius + (1 - slow) * (ROOM_CELSIUS + CELSIUS_PER_W * self._watts)
        self._shown_watts = self._watts + self._rng.uniform(-6, 6)

    def to_wire(self, used_bytes: int, total_bytes: int) -> GpuStats:
        watts = self._shown_watts
        return {
            "memory_used_bytes": used_bytes,
            "memory_total_bytes": total_bytes,
            "power_w": round(watts, 3),
            "power_limit_w": LIMIT_W,
            "sm_clock_mhz": 1980 if watts < BUSY_W else 1980 - 15 * int((watts - BUSY_W) / 9),
            "memory_clock_mhz": 3201,
            "temperature_c": round(self._celsius),
            "throttled_by": [] if watts < THROTTLED_W else ["power limit"],
        }


class DemoDevice(SimDevice):
    """A simulated GPU with sensors: those of the machine, which outlive an engine."""

    sensors: Sensors

    def stats(self) -> DeviceStats:
        used, total = sum(self.info.memory.values()), self.profile.gpu.memory_bytes
        return {**super().stats(), "gpu": self.sensors.to_wire(used, total)}
