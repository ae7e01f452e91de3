"""What the device can do, said at start-up: whether its SMs can be divided, and if not, why."""

from dataclasses import dataclass

from semipd.core.split import Split
from semipd.devices.cuda.driver.interface import Versions


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
