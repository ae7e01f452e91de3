"""What the device can do, said at start-up: whether its SMs can be divided, and if not, why."""

from dataclasses import dataclass

from semipd.core.split import Split
from semipd.devices.cuda.driver.interface import Versions, cuda_version


@dataclass(frozen=True, slots=True)
class Capability:
    """Attributes:
    device_name, versions, num_sms: of the device.
    group_sms, num_groups, remainder_sms: shape of the driver's division; zeros where it was not made.
    splits: that can be used, by rising decode share.
    reason: why the device cannot be divided, with the next step; "" when it can.
    notes: what an operator should know though it stops nothing.
    """

    device_name: str
    versions: Versions
    num_sms: int
    group_sms: int = 0
    num_groups: int = 0
    remainder_sms: int = 0
    splits: tuple[Split, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def can_partition(self) -> bool:
        return not self.reason

    def text(self) -> str:
        """For the log, several lines."""
        cuda, bindings = cuda_version(self.versions.driver), self.versions.bindings
        lines = [f"{self.device_name}: {self.num_sms} SMs, driver CUDA {cuda}, cuda-bindings {bindings}"]
        if self.num_groups:
            left = f", {self.remainder_sms} left over" if self.remainder_sms else ""
            lines.append(f"division by the driver: {self.num_groups} groups of {self.group_sms} SMs{left}")
        if self.can_partition:
            lines.append(f"splits (prefill + decode SMs): {', '.join(map(str, self.splits))}")
        else:
            lines.append(f"cannot be divided: {self.reason}")
            lines.append(f"used instead: scheduler chunked on all {self.num_sms} SMs")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
