"""The model a device serves, and where its weights come from."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.dtypes import known_dtype
from semipd.checkpoints.layout import WeightsLayout, plan_weights
from semipd.checkpoints.progress import Report, loading
from semipd.checkpoints.weights import load_weights
from semipd.core.settings import EngineSettings
from semipd.network.config import DTypeName, ModelConfig
from semipd.network.kv_layout import KvLayout


@dataclass(frozen=True, slots=True)
class DeviceModel:
    config: ModelConfig
    dtype: DTypeName
    layout: WeightsLayout
    kv_layout: KvLayout
    max_model_len: int

    @classmethod
    def of(cls, config: ModelConfig, settings: EngineSettings) -> "DeviceModel":
        """Raises SemipdError(`invalid_value`) for an unknown dtype."""
        dtype = cuda_dtype(settings.dtype, config)
        length = settings.max_model_len or config.max_position_embeddings
        kv_layout = KvLayout.of(config, settings.cuda.kv_block_size)
        return cls(config, dtype, plan_weights(config, dtype), kv_layout, length)


class ModelSource(Protocol):
    def read(self, settings: EngineSettings) -> DeviceModel: ...

    def load(self, model: DeviceModel, buffer: Tensor, report: Report) -> None:
        """Fill `buffer`, uint8 [layout.total_bytes] on the device; synchronised when it returns or later."""


class Checkpoint:
    """The folder that the settings name."""

    def __init__(self, settings: EngineSettings) -> None:
        self._model_dir = settings.model_dir

    def read(self, settings: EngineSettings) -> DeviceModel:
        """Raises what checkpoints.config.load_model_config raises."""
        return DeviceModel.of(load_model_config(self._model_dir, settings.max_model_len), settings)

    def load(self, model: DeviceModel, buffer: Tensor, report: Report) -> None:
        load_weights(self._model_dir, model.config, model.layout, buffer, loading(report))


def cuda_dtype(requested: str, config: ModelConfig) -> DTypeName:
    """`auto` is the checkpoint's own: every supported GPU multiplies all three. Raises
    SemipdError(`invalid_value`)."""
    return config.dtype if requested == "auto" else known_dtype(requested)
