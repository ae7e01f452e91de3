"""What a real GPU and a test do differently."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from semipd.devices.cuda.bindings import CudaDriver
from semipd.devices.cuda.driver import Driver
from semipd.devices.cuda.lane_memory import LaneSize
from semipd.devices.cuda.ops import Ops
from semipd.devices.cuda.sampling import Sampler, TorchSampler
from semipd.devices.cuda.staging import Staging
from semipd.devices.cuda.stream_work import Submit, submit_to
from semipd.devices.cuda.torch_ops import TorchOps


@dataclass(frozen=True, slots=True)
class Platform:
    """`uuid`: of the GPU, for NVML; "": no statistics. `synchronize`: wait for everything on the device."""

    driver: Driver
    submit: Submit
    staging: Staging
    device: torch.device
    ops: Ops
    sampler_of: Callable[[LaneSize], Sampler]
    uuid: str
    synchronize: Callable[[], None]
    close: Callable[[], None]


def real_platform() -> Platform:
    """Raises SemipdError(`cuda_unavailable`), CudaError."""
    driver = CudaDriver.open()
    return Platform(
        driver=driver,
        submit=submit_to(driver),
        staging=Staging(pin=True),
        device=torch.device("cuda", 0),
        ops=TorchOps(),
        sampler_of=lambda size: TorchSampler(),
        uuid=driver.device_uuid(),
        synchronize=torch.cuda.synchronize,
        close=driver.close,
    )
