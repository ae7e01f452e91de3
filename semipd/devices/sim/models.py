"""The models that can be simulated: one row of dimensions each, from the published config.json."""

from dataclasses import dataclass

KV_ELEMENT_BYTES = 2
"""KV and activations are bf16 in every row."""


@dataclass(frozen=True, slots=True)
class SimModel:
    """Dimensions of a dense decoder with grouped-query attention and a gated MLP.

    `weight_bytes` is per parameter: 2 for bf16, 1 for 8-bit weights that are multiplied in bf16.
    """

    name: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    max_model_len: int
    weight_bytes: int = 2

    @property
    def layer_linears(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each matrix of a layer: QKV, attention output, gate and up, down."""
        attention = self.num_heads * self.head_dim
        qkv = attention + 2 * self.num_kv_heads * self.head_dim
        return (
            (self.hidden, qkv),
            (attention, self.hidden),
            (self.hidden, 2 * self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def num_params(self) -> int:
        """Layers, embedding and an untied head; norms and biases are left out (under 0.01 %)."""
        layer = sum(inputs * outputs for inputs, outputs in self.layer_linears)
        return self.num_layers * layer + 2 * self.vocab_size * self.hidden

    @property
    def resident_bytes(self) -> int:
        return self.num_params * self.weight_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * KV_ELEMENT_BYTES


MODELS: dict[str, SimModel] = {
    model.name: model
    for model in (
        # meta-llama/Meta-Llama-3-8B and Meta-Llama-3-70B
        SimModel("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256, 8192),
        SimModel("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256, 8192),
        # the same with 8-bit weights, as 16-bit ones leave no room for KV on any row of the GPU table
        SimModel("llama-3-70b-w8", 80, 8192, 64, 8, 128, 28672, 128256, 8192, weight_bytes=1),
        # meta-llama/Llama-3.1-8B: the dimensions of 3-8B and a longer context
        SimModel("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072),
        # Llama-3.1-70B with 8-bit weights: as above, and a longer context
        SimModel("llama-3.1-70b-w8", 80, 8192, 64, 8, 128, 28672, 128256, 131072, weight_bytes=1),
        # Qwen/Qwen3-8B
        SimModel("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, 40960),
    )
}
