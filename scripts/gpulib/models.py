"""Models with random weights: shapes of real ones, or small enough for a CPU to check."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from semipd.checkpoints.progress import Report
from semipd.checkpoints.weights import weight_views
from semipd.core.settings import EngineSettings
from semipd.devices.cuda.start.model import DeviceModel
from semipd.network.config import ModelConfig, RopeConfig
from semipd.network.params import layer_params

LLAMA_3_8B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14_336,
    rms_norm_eps=1e-5,
    rope=RopeConfig("default", 500_000.0),
    max_position_embeddings=8192,
    tie_word_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    dtype="bfloat16",
)
"""meta-llama/Meta-Llama-3-8B, config.json."""

SMALL = replace(
    LLAMA_3_8B,
    vocab_size=4096,
    hidden_size=512,
    num_layers=6,
    num_heads=8,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=1408,
    max_position_embeddings=1024,
)
"""A CPU computes a sequence of it in a fraction of a second."""

MODELS = {"llama-3-8b": LLAMA_3_8B, "small": SMALL}


class RandomModel:
    """A semipd.devices.cuda.start.model.ModelSource. Small models are drawn on the CPU, so that every device
    gets the same one."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self._seed = seed

    def read(self, settings: EngineSettings) -> DeviceModel:
        return DeviceModel.of(self.config, settings)

    def load(self, model: DeviceModel, buffer: Tensor, report: Report) -> None:
        """Normal, with the spread that keeps activations of about size one. Large models are drawn where
        `buffer` lies, for speed."""
        report("drawing random weights", 120.0)
        large = model.layout.total_bytes > 2**30
        device = buffer.device if large else torch.device("cpu")
        generator = torch.Generator(device).manual_seed(self._seed)
        for name, weight in weight_views(model.layout, buffer).items():
            noise = torch.randn(weight.shape, generator=generator, device=device)
            if "norm" in name or weight.dim() == 1:
                noise = 1 + 0.1 * noise
            elif name != "embed":
                noise *= 2.0 * weight.shape[1] ** -0.5
            weight.copy_(noise)


def reference_weights(model: DeviceModel, source: RandomModel, device: str = "cpu") -> dict[str, Tensor]:
    """What the engine has, in its dtype, once more."""
    buffer = torch.empty(model.layout.total_bytes, dtype=torch.uint8, device=device)
    source.load(model, buffer, lambda phase, limit_s: None)
    return weight_views(model.layout, buffer)


def num_parameters(config: ModelConfig) -> int:
    """Of the matrices that every token passes: all but the embedding table."""
    layer = sum(math.prod(param.shape) for param in layer_params(config) if param.packable)
    return config.num_layers * layer + config.vocab_size * config.hidden_size
