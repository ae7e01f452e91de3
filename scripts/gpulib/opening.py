"""Opening the CUDA device in a script: environment first, then torch."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.devices.cuda.driver.environment import cuda_environment
from semipd.devices.cuda.start.entry import SWITCH_INTERVAL_S

if TYPE_CHECKING:
    from semipd.devices.cuda.start.device import CudaDevice

BASE = default_engine_settings(device="cuda", dtype="bfloat16", partition_mode="auto", kv_fraction=0.95)


def prepare_process(environ: "os._Environ[str]") -> None:
    """Before the first import of torch."""
    assert "torch" not in sys.modules, "torch was imported before the environment was set"
    environ.update(cuda_environment(environ))
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def why_no_cuda() -> str:
    """Empty when there is a CUDA device that torch can use."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return ""


def open_random(model: str, settings: EngineSettings, *, plain: bool = False, seed: int = 0) -> "CudaDevice":
    """The device over a model with random weights. `plain`: plain torch operations instead of our kernels."""
    from gpulib.models import MODELS, RandomModel
    from semipd.devices.cuda.start.device import CudaDevice
    from semipd.devices.cuda.start.platform import plain_platform, real_platform

    def report(phase: str, limit_s: float) -> None:
        print(f"{phase} (at most {limit_s:g} s)", file=sys.stderr, flush=True)

    source = RandomModel(MODELS[model], seed)
    return CudaDevice.open(settings, report, source, plain_platform if plain else real_platform)


def versions() -> dict[str, str]:
    """Of everything that a figure depends on."""
    from importlib import metadata

    found = {}
    for package in ("torch", "triton", "cuda-bindings"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def changed(settings: EngineSettings, changes: Mapping[str, object]) -> EngineSettings:
    return replace(settings, **changes)  # type: ignore[arg-type]


def refuse_without_cuda(script: str) -> None:
    """Raises SystemExit with what is missing."""
    reason = why_no_cuda()
    if reason:
        error = SemipdError(
            "cuda_unavailable",
            f"{script} measures a GPU, but {reason}.",
            "Run it on a machine with an NVIDIA GPU, driver 580 or newer; scripts/simulate.py needs none.",
        )
        raise SystemExit(f"error: {error}")
