"""The entry of this device: prepares the process before torch is imported, then opens it."""

import os
import sys
from typing import TYPE_CHECKING

from semipd.checkpoints.progress import Report
from semipd.core.settings import EngineSettings
from semipd.devices.cuda.driver.environment import cuda_environment

if TYPE_CHECKING:
    from semipd.devices.cuda.start.device import CudaDevice


SWITCH_INTERVAL_S = 1e-4
"""Python hands the GIL over at most so late: with the default of 5 ms a busy coordinator delays a launch by
as much, with this by 0.3 ms (measured on two cores, CPython 3.11)."""


def open_cuda(settings: EngineSettings, report: Report) -> "CudaDevice":
    """See CudaDevice.open."""
    os.environ.update(cuda_environment(os.environ))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    from semipd.devices.cuda.start.device import CudaDevice

    return CudaDevice.open(settings, report)
