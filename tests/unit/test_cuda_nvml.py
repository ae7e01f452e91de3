"""Statistics of the GPU, and their absence, which is an answer."""

import sys
import types
from types import SimpleNamespace

import pytest

from semipd.devices.cuda.start.nvml import Nvml

UUID = "01234567-89ab-cdef-0123-456789abcdef"


class FakeNvml(types.ModuleType):
    """As much of pynvml as is used, of one GPU. `refuses`: functions that this GPU does not support."""

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, known_as: str = f"GPU-{UUID}", refuses: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.known_as = known_as
        self.refuses = refuses
        self.opened = 0
        self.throttles = 0

    def _answer(self, name: str, value: object) -> object:
        assert self.opened > 0, f"{name} before nvmlInit or after nvmlShutdown"
        if name in self.refuses:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        if "nvmlInit" in self.refuses:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:  # noqa: N802
        if uuid != self.known_as:
            raise self.NVMLError("Not Found")
        return "handle"

    def __getattr__(self, name: str) -> object:
        answers = {
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=5, total=9, free=4),
            "nvmlDeviceGetPowerUsage": 250_500,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetCurrentClocksEventReasons": self.throttles,
        }
        if name == "nvmlDeviceGetClockInfo":
            return lambda handle, kind: self._answer(name, {1: 1980, 2: 3201}[kind])
        if name not in answers:
            raise AttributeError(name)
        return lambda handle, *args: self._answer(name, answers[name])


def opened(monkeypatch: pytest.MonkeyPatch, library: FakeNvml) -> Nvml:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return Nvml.open(UUID)


def test_numbers_in_plain_units(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    library.throttles = 0x4 | 0x1 | 0x20
    nvml = opened(monkeypatch, library)
    assert nvml.reason == ""
    assert nvml.stats() == {
        "memory_used_bytes": 5,
        "memory_total_bytes": 9,
        "power_w": 250.5,
        "power_limit_w": 700.0,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 61,
        "throttled_by": ("power cap", "thermal (software)"),
    }
    nvml.close()
    nvml.close()
    assert library.opened == 0
    assert nvml.reason
    assert nvml.stats() == {"absent": nvml.reason}


def test_a_mig_instance_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, FakeNvml(known_as=f"MIG-{UUID}")).reason == ""


def test_what_the_gpu_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml(
        refuses=("nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetClockInfo")
    )
    found = opened(monkeypatch, library).stats()
    assert (found["power_w"], found["memory_used_bytes"], found["sm_clock_mhz"]) == (None, None, None)
    assert (found["power_limit_w"], found["temperature_c"], found["throttled_by"]) == (700.0, 61, ())


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (FakeNvml(refuses=("nvmlInit",)), "NVML does not start: NVML Shared Library Not Found"),
        (FakeNvml(known_as="GPU-another"), f"NVML does not know the GPU {UUID}: Not Found"),
        (None, "pip install nvidia-ml-py"),
    ],
)
def test_absence_has_a_reason(monkeypatch: pytest.MonkeyPatch, library: FakeNvml | None, says: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml = Nvml.open(UUID)
    assert says in nvml.reason
    assert nvml.stats() == {"absent": nvml.reason}
    nvml.close()
    assert library is None or library.opened == 0
