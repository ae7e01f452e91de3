"""The whole CUDA device on CPU tensors under the fake driver.

driver = new_driver()
device = open_fake(driver)
run = LiveRun(device, DEFAULTS)
run.run(greedy_requests(4))
"""

import random
from collections.abc import Callable

import torch
from support.cuda_rig import CPU, DEFAULTS, TINY, random_weights
from support.deferred_cuda import DeferredCuda, WatchedStaging

from semipd.checkpoints.progress import Report
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings
from semipd.devices.cuda.driver.matmul_sms import AimMatmuls, leave_matmuls
from semipd.devices.cuda.sampler.sampler import TorchSampler
from semipd.devices.cuda.start.device import CudaDevice
from semipd.devices.cuda.start.model import DeviceModel
from semipd.devices.cuda.start.opening import RESERVE_BYTES
from semipd.devices.cuda.start.platform import Platform
from semipd.network.config import ModelConfig
from semipd.network.ops_torch import TorchOps


class RandomModel:
    """A ModelSource."""

    def __init__(self, config: ModelConfig = TINY) -> None:
        self.config = config
        self.weights = random_weights(config)

    def read(self, settings: EngineSettings) -> DeviceModel:
        return DeviceModel.of(self.config, settings)

    def load(self, model: DeviceModel, buffer: torch.Tensor, report: Report) -> None:
        report("loading weights", 1.0)
        for spec in model.layout.tensors:
            weight = self.weights[spec.name]
            raw = weight.contiguous().view(torch.uint8).flatten()
            buffer[spec.offset_bytes : spec.offset_bytes + raw.numel()] = raw


def fake_platform(
    driver: DeferredCuda, aim_matmuls_of: Callable[[int], AimMatmuls] = lambda num_sms: leave_matmuls
) -> Callable[[], Platform]:
    zeroed = [(lane, part) for lane in ("prefill", "decode") for part in ("slots", "history", "rows")]

    def platform() -> Platform:
        driver.bind_thread()
        return Platform(
            driver=driver,
            submit=driver.submit,
            staging=WatchedStaging(driver),
            device=CPU,
            ops_of=lambda model, settings: TorchOps(),
            sampler_of=lambda size: TorchSampler(),
            uuid="",
            synchronize=lambda: driver.host("device synchronised", writes=zeroed),
            close=nothing,
            aim_matmuls_of=aim_matmuls_of,
        )

    return platform


def nothing() -> None:
    pass


def new_driver(seed: int = 0) -> DeferredCuda:
    driver = DeferredCuda(random.Random(seed), max_run=8)
    driver.memory = (RESERVE_BYTES + 2**24, 2**31)
    return driver


def open_fake(
    driver: DeferredCuda, settings: EngineSettings = DEFAULTS, phases: list[str] | None = None
) -> CudaDevice:
    torch.set_num_threads(1)

    def report(phase: str, limit_s: float) -> None:
        assert limit_s > 0
        if phases is not None:
            phases.append(phase)

    return CudaDevice.open(settings, report, RandomModel(), fake_platform(driver))


def open_model(model: RandomModel, driver: DeferredCuda) -> CudaDevice:
    torch.set_num_threads(1)
    return CudaDevice.open(DEFAULTS, lambda phase, limit_s: None, model, fake_platform(driver))


def greedy_requests(count: int) -> list[Request]:
    rng = random.Random(count)
    greedy = SamplingParams(max_tokens=20, seed=1, temperature=0.0)
    prompts = [[rng.randrange(61) for _ in range(rng.randrange(1, 70))] for _ in range(count)]
    return [Request(SeqId(i + 1), f"r{i}", prompt, greedy, 0) for i, prompt in enumerate(prompts)]
