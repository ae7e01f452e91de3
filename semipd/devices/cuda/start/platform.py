"""What a real GPU and a test do differently."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from semipd.checkpoints.weights import TORCH_DTYPES
from semipd.core.errors import SemipdError
from semipd.core.settings import CudaSettings
from semipd.devices.cuda.driver.bindings import CudaDriver
from semipd.devices.cuda.driver.interface import Driver
from semipd.devices.cuda.driver.matmul_sms import AimMatmuls, sm_carveout
from semipd.devices.cuda.driver.stream_work import Submit, submit_to
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.rows.staging import Staging
from semipd.devices.cuda.sampler.sampler import Sampler, TorchSampler
from semipd.devices.cuda.start.model import DeviceModel
from semipd.network.config import DTypeName
from semipd.network.ops import Ops
from semipd.network.ops_torch import TorchOps

_OLDEST_ARCH = 80
_OLDEST_TMA_ARCH = 90

OpsOf = Callable[[DeviceModel, CudaSettings], Ops]


@dataclass(frozen=True, slots=True)
class Platform:
    """Attributes:
    ops_of: for the model's weights and KV, as settings choose. sampler_of: for a lane of some size.
    uuid: of the GPU, for NVML; "": no statistics.
    synchronize: wait for everything on the device.
    aim_matmuls_of: for a device of so many SMs; asked for only where it is wanted.
    kernel_arch: compute capability that our kernels are compiled for; 0: none of them run.
    """

    driver: Driver
    submit: Submit
    staging: Staging
    device: torch.device
    ops_of: OpsOf
    sampler_of: Callable[[LaneSize], Sampler]
    uuid: str
    synchronize: Callable[[], None]
    close: Callable[[], None]
    aim_matmuls_of: Callable[[int], AimMatmuls]
    kernel_arch: int = 0


def real_platform() -> Platform:
    """With the kernels of semipd_kernels.

    Raises SemipdError: `cuda_unavailable`, `unsupported_gpu`; CudaError.
    """
    from semipd.devices.cuda.forward.kernel_ops import KernelOps
    from semipd.devices.cuda.forward.sdpa_ops import SdpaOps, check_sdpa
    from semipd.devices.cuda.sampler.kernel_sampler import KernelSampler

    driver = CudaDriver.open()
    device, arch = torch.device("cuda", 0), _arch()

    def ops_of(model: DeviceModel, settings: CudaSettings) -> Ops:
        dtype, dependent = TORCH_DTYPES[model.dtype], can_launch_dependently(settings, arch)
        tma = can_load_by_tma(settings, model.dtype, arch)
        if settings.prefill_attention == "triton":
            return KernelOps(dtype, arch, dependent=dependent, tma=tma)
        check_sdpa(model.config, dtype, device)
        return SdpaOps(dtype, arch, dependent=dependent, tma=tma)

    return replace(
        _platform(driver, device, ops_of, lambda size: KernelSampler(size, device)), kernel_arch=arch
    )


def can_launch_dependently(settings: CudaSettings, arch: int) -> bool:
    """Whether it is wanted. Raises SemipdError(`unsupported_gpu`): wanted and not possible."""
    from semipd_kernels.dependent import why_not_dependent

    reason = why_not_dependent(arch) if settings.dependent_launch else ""
    if reason:
        raise SemipdError(
            "unsupported_gpu",
            f"cuda.dependent_launch is on, but there is no programmatic dependent launch: {reason}.",
            "Set cuda.dependent_launch to false.",
            param="cuda.dependent_launch",
        )
    return settings.dependent_launch


def can_load_by_tma(settings: CudaSettings, dtype: DTypeName, arch: int) -> bool:
    """Whether it is wanted. Raises SemipdError(`unsupported_gpu`): wanted and not possible."""
    if settings.tma_loads and (arch < _OLDEST_TMA_ARCH or dtype == "float32"):
        raise SemipdError(
            "unsupported_gpu",
            f"cuda.tma_loads is on, but it takes compute capability 9.0 and a 16-bit type; the GPU has "
            f"{arch // 10}.{arch % 10}, the model's type is {dtype}.",
            "Set cuda.tma_loads to false.",
            param="cuda.tma_loads",
        )
    return settings.tma_loads


def plain_platform() -> Platform:
    """With plain torch operations: slow, but what results can be compared with."""
    driver = CudaDriver.open()
    device = torch.device("cuda", 0)
    return _platform(driver, device, lambda model, settings: TorchOps(), lambda size: TorchSampler())


def _platform(
    driver: CudaDriver,
    device: torch.device,
    ops_of: OpsOf,
    sampler_of: Callable[[LaneSize], Sampler],
) -> Platform:
    return Platform(
        driver=driver,
        submit=submit_to(driver),
        staging=Staging(pin=True),
        device=device,
        ops_of=ops_of,
        sampler_of=sampler_of,
        uuid=driver.device_uuid(),
        synchronize=torch.cuda.synchronize,
        close=driver.close,
        aim_matmuls_of=lambda num_sms: sm_carveout(torch, num_sms),
    )


def _arch() -> int:
    major, minor = torch.cuda.get_device_capability(0)
    arch = 10 * major + minor
    if arch < _OLDEST_ARCH:
        raise SemipdError(
            "unsupported_gpu",
            f"The GPU has compute capability {major}.{minor}; the kernels need 8.0 (A100) or newer.",
            "Use --device cpu.",
        )
    return arch
