"""The model a device serves, and where its weights come from."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.layout import WeightsLayout, plan_weights
from semipd.checkpoints.weights import load_weights
from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.network.config import ITEM_BYTES, DTypeName, ModelConfig

Report = Callable[[str, float], None]

_LOAD_STALL_S = 60.0
_REPORT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    config: ModelConfig
    dtype: DTypeName
    layout: WeightsLayout
    max_model_len: int

    @classmethod
    def of(cls, config: ModelConfig, settings: EngineSettings) -> "ServedModel":
        """Raises SemipdError(`invalid_value`) for an unknown dtype."""
        dtype = cuda_dtype(settings.dtype, config)
        length = settings.max_model_len or config.max_position_embeddings
        return cls(config, dtype, plan_weights(config, dtype), length)


class ModelSource(Protocol):
    def read(self, settings: EngineSettings) -> ServedModel: ...

    def load(self, model: ServedModel, buffer: Tensor, report: Report) -> None:
        """Fill `buffer`, uint8 [layout.total_bytes] on the device; synchronised when it returns or later."""


class Checkpoint:
    """The folder that the settings name."""

    def __init__(self, settings: EngineSettings) -> None:
        self._model_dir = settings.model_dir

    def read(self, settings: EngineSettings) -> ServedModel:
        """Raises what models.config.load_model_config raises."""
        return ServedModel.of(load_model_config(self._model_dir, settings.max_model_len), settings)

    def load(self, model: ServedModel, buffer: Tensor, report: Report) -> None:
        """Slow disks are no error as long as tensors keep coming: every report renews the limit."""
        reported_s = 0.0

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal reported_s
            now_s = time.monotonic()
            if now_s - reported_s >= _REPORT_EVERY_S:
                reported_s = now_s
                report(f"loading weights: {100 * done_bytes // total_bytes} %", _LOAD_STALL_S)

        report("loading weights", _LOAD_STALL_S)
        load_weights(self._model_dir, model.config, model.layout, buffer, progress)


def cuda_dtype(requested: str, config: ModelConfig) -> DTypeName:
    """`auto` is the checkpoint's own: every supported GPU multiplies all three. Raises
    SemipdError(`invalid_value`)."""
    if requested == "auto":
        return config.dtype
    if requested in ITEM_BYTES:
        return requested
    raise SemipdError(
        "invalid_value",
        f"dtype {requested!r} is unknown.",
        f"Use auto, {', '.join(ITEM_BYTES)}.",
        param="dtype",
    )
