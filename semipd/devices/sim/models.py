"""The models that can be simulated: one row of dimensions each, from the published config.json."""

from dataclasses import dataclass

KV_ELEMENT_BYTES = 2
"""KV and activations are bf16 in every row."""

Linear = tuple[int, int]
"""(inputs, outputs) of a matrix."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Feed-forward layers that are mixtures of experts. Each token goes through `top_k` of `num` gated MLPs
    of width `intermediate`, and through `num_shared` more of that width, which every token shares. The
    first `num_dense_layers` layers have the model's ordinary MLP instead."""

    num: int
    top_k: int
    intermediate: int
    num_shared: int = 0
    num_dense_layers: int = 0

    def num_read(self, rows: int) -> float:
        """Experts that at least one of `rows` tokens is sent to, when each token picks at random."""
        return self.num * (1.0 - (1.0 - self.top_k / self.num) ** rows)


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the KV pool holds `kv_rank` + `rope_dim`
    values a token and layer for all heads together. Prompts are computed with keys and values expanded to
    `head_dim` + `rope_dim` and `head_dim` values a head; decode steps attend to the latents themselves."""

    kv_rank: int
    rope_dim: int


@dataclass(frozen=True, slots=True)
class SimModel:
    """Dimensions of a decoder with grouped-query or latent attention and gated MLPs or experts.

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
    experts: Experts | None = None
    latent: Latent | None = None

    @property
    def attention_linears(self) -> tuple[Linear, ...]:
        """Each matrix of a layer's attention: QKV and output; of latent attention: queries, latents, keys and
        values out of latents, output."""
        attention = self.num_heads * self.head_dim
        if self.latent is None:
            return (self.hidden, attention + 2 * self.num_kv_heads * self.head_dim), (attention, self.hidden)
        queries = self.num_heads * (self.head_dim + self.latent.rope_dim)
        latents = self.latent.kv_rank + self.latent.rope_dim
        return (
            (self.hidden, queries),
            (self.hidden, latents),
            (self.latent.kv_rank, 2 * attention),
            (attention, self.hidden),
        )

    @property
    def layer_linears(self) -> tuple[tuple[Linear, int], ...]:
        """Matrices that every token passes, each with the number of layers that have it: attention's, then
        gate and up, and down, of the dense MLPs and of the experts that all tokens share."""
        linears = [(linear, self.num_layers) for linear in self.attention_linears]
        if self.num_dense_layers:
            linears += [(linear, self.num_dense_layers) for linear in self._mlp(self.intermediate)]
        if self.experts and self.experts.num_shared:
            shared = self._mlp(self.experts.num_shared * self.experts.intermediate)
            linears += [(linear, self.num_expert_layers) for linear in shared]
        return tuple(linears)

    @property
    def expert_linears(self) -> tuple[Linear, ...]:
        """Matrices of one expert that tokens are sent to."""
        return self._mlp(self.experts.intermediate) if self.experts else ()

    @property
    def num_dense_layers(self) -> int:
        return self.experts.num_dense_layers if self.experts else self.num_layers

    @property
    def num_expert_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    @property
    def active_intermediate(self) -> int:
        """MLP width that one token passes in a layer, in the layers that most are."""
        if self.experts is None:
            return self.intermediate
        return (self.experts.top_k + self.experts.num_shared) * self.experts.intermediate

    @property
    def num_params(self) -> int:
        """Layers, embedding and an untied head; norms, biases and routers are left out (under 0.1 %)."""
        layers = sum(inputs * outputs * times for (inputs, outputs), times in self.layer_linears)
        expert = sum(inputs * outputs for inputs, outputs in self.expert_linears)
        experts = self.experts.num * expert * self.num_expert_layers if self.experts else 0
        return layers + experts + 2 * self.vocab_size * self.hidden

    @property
    def resident_bytes(self) -> int:
        return self.num_params * self.weight_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        if self.latent is not None:
            return self.num_layers * (self.latent.kv_rank + self.latent.rope_dim) * KV_ELEMENT_BYTES
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * KV_ELEMENT_BYTES

    def _mlp(self, intermediate: int) -> tuple[Linear, ...]:
        return (self.hidden, 2 * intermediate), (intermediate, self.hidden)


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
        # deepseek-ai/DeepSeek-V2-Lite: 27 layers, the first of them dense
        SimModel(
            "deepseek-v2-lite",
            27,
            2048,
            16,
            16,
            128,
            10944,
            102400,
            163840,
            experts=Experts(num=64, top_k=6, intermediate=1408, num_shared=2, num_dense_layers=1),
            latent=Latent(kv_rank=512, rope_dim=64),
        ),
        # Qwen/Qwen3-30B-A3B
        SimModel(
            "qwen3-30b-a3b",
            48,
            2048,
            32,
            4,
            128,
            6144,
            151936,
            40960,
            experts=Experts(num=128, top_k=8, intermediate=768),
        ),
    )
}
