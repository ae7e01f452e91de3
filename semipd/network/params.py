"""The parameters of a model: the one place that names weights. No torch here.

From these tables follow the flat buffer's layout, what is loaded from a checkpoint and to where, the fields
of the network's blocks, which matrices are packed on a CPU, and each tensor-parallel rank's share.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from semipd.network.config import DTypeName, ModelConfig

ShardAxis = Literal["rows", "columns"]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor of the checkpoint that fills rows of a parameter.

    Attributes:
        shape: of the whole tensor.
        rows: which of its rows, in the parameter's order; of a vector under a matrix, row 0 is all of it.
        columns: which of its columns, neighbours; None: all.
    """

    tensor: str
    shape: tuple[int, ...]
    rows: Sequence[int]
    columns: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter as the network uses it. Matrices are [outputs, inputs].

    Attributes:
        sources: one after the other, they fill all rows.
        dtype: None: the model's.
        shard_axis: what tensor-parallel ranks divide, each source by itself; None: all have the whole.
        packable: a matrix that rows are multiplied with.
        lora: its sources are targets of LoRA adapters.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[TensorSource, ...]
    dtype: DTypeName | None = None
    shard_axis: ShardAxis | None = None
    packable: bool = False
    lora: bool = False

    def of_rank(self, rank: int, world: int) -> "Param":
        """The share of one of `world` tensor-parallel ranks. Heads, inner width and vocabulary must be
        multiples of `world`."""
        if self.shard_axis is None:
            return self
        if self.shard_axis == "rows":
            sources = tuple(replace(s, rows=_share(s.rows, rank, world)) for s in self.sources)
            return replace(self, shape=(sum(len(s.rows) for s in sources), *self.shape[1:]), sources=sources)
        columns = _share(range(self.shape[1]), rank, world)
        sources = tuple(replace(source, columns=columns) for source in self.sources)
        return replace(self, shape=(self.shape[0], len(columns)), sources=sources)

    def of_layer(self, idx: int) -> "Param":
        """Of a table of layer_params: with the names that its layer `idx` has in model and checkpoint."""
        sources = tuple(replace(s, tensor=f"model.layers.{idx}.{s.tensor}") for s in self.sources)
        return replace(self, name=layer_prefix(idx) + self.name, sources=sources)


def layer_prefix(idx: int) -> str:
    return f"layers.{idx}."


def model_params(config: ModelConfig, *, packed: bool = False) -> Iterator[Param]:
    """Every parameter, in the order of the flat buffer. With tied embeddings there is no `lm_head`, unless
    matrices will be packed: a packed one cannot serve as a table."""
    yield _table("embed", "model.embed_tokens.weight", config)
    for idx in range(config.num_layers):
        yield from (param.of_layer(idx) for param in layer_params(config))
    yield _norm("norm", "model.norm.weight", config)
    if packed or not config.tie_word_embeddings:
        tied = config.tie_word_embeddings
        head = _table("lm_head", "model.embed_tokens.weight" if tied else "lm_head.weight", config)
        yield replace(head, packable=True)


def layer_params(config: ModelConfig) -> tuple[Param, ...]:
    """Of one layer. Matrices that multiply the same input are fused, rows in the order query heads, key
    heads, value heads; and gate, up."""
    return (*_attention(config), *_dense_mlp(config))


def is_harmless(tensor: str, config: ModelConfig) -> bool:
    """Tensors some checkpoints carry that nothing reads: RoPE buffers, a second copy of tied embeddings."""
    return tensor.endswith("rotary_emb.inv_freq") or (
        config.tie_word_embeddings and tensor == "lm_head.weight"
    )


def _attention(config: ModelConfig) -> Iterator[Param]:
    yield _norm("input_norm", "input_layernorm.weight", config)
    q, kv = _head_rows(config, config.num_heads), _head_rows(config, config.num_kv_heads)
    outputs = {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": range(config.kv_width)}
    yield from _linear("qkv", outputs, config.hidden_size, "rows", bias=config.qkv_bias)
    if config.qk_norm:
        heads = (("q", config.num_heads), ("k", config.num_kv_heads))
        sources = [
            TensorSource(f"self_attn.{name}_norm.weight", (config.head_dim,), (0,) * count)
            for name, count in heads
        ]
        shape = (config.num_heads + config.num_kv_heads, config.head_dim)
        yield Param("qk_norm", shape, tuple(sources), "float32", "rows")
    hidden = {"self_attn.o_proj": range(config.hidden_size)}
    yield from _linear("o", hidden, config.q_width, "columns", bias=config.o_bias)


def _dense_mlp(config: ModelConfig) -> Iterator[Param]:
    yield _norm("mlp_norm", "post_attention_layernorm.weight", config)
    inner = range(config.intermediate_size)
    outputs = {"mlp.gate_proj": inner, "mlp.up_proj": inner}
    yield from _linear("gate_up", outputs, config.hidden_size, "rows", bias=config.mlp_bias)
    hidden = {"mlp.down_proj": range(config.hidden_size)}
    yield from _linear("down", hidden, config.intermediate_size, "columns", bias=config.mlp_bias)


def _linear(
    name: str, outputs: Mapping[str, Sequence[int]], num_inputs: int, shard_axis: ShardAxis, *, bias: bool
) -> Iterator[Param]:
    """A matrix and, with `bias`, its vector, from the modules `outputs` (name to rows). A rank that has
    columns has a part of each sum: whoever adds the parts adds the bias, once."""
    num_outputs = sum(map(len, outputs.values()))
    weights = [TensorSource(f"{m}.weight", (len(rows), num_inputs), rows) for m, rows in outputs.items()]
    yield Param(name, (num_outputs, num_inputs), tuple(weights), None, shard_axis, packable=True, lora=True)
    if bias:
        biases = [TensorSource(f"{module}.bias", (len(rows),), rows) for module, rows in outputs.items()]
        axis = shard_axis if shard_axis == "rows" else None
        yield Param(f"{name}_bias", (num_outputs,), tuple(biases), shard_axis=axis)


def _norm(name: str, tensor: str, config: ModelConfig) -> Param:
    shape = (config.hidden_size,)
    return Param(name, shape, (TensorSource(tensor, shape, range(config.hidden_size)),))


def _table(name: str, tensor: str, config: ModelConfig) -> Param:
    shape = (config.vocab_size, config.hidden_size)
    return Param(name, shape, (TensorSource(tensor, shape, range(config.vocab_size)),), shard_axis="rows")


def _head_rows(config: ModelConfig, num_heads: int) -> Sequence[int]:
    """Of queries or keys: our rotation pairs the halves of a head, so interleaved pairs are separated here.
    Products of queries and keys stay what they are."""
    if not config.interleaved_rope:
        return range(num_heads * config.head_dim)
    pairs = (*range(0, config.head_dim, 2), *range(1, config.head_dim, 2))
    return tuple(head * config.head_dim + row for head in range(num_heads) for row in pairs)


def _share(items: Sequence[int], rank: int, world: int) -> Sequence[int]:
    count, rest = divmod(len(items), world)
    assert not rest, f"{len(items)} cannot be divided among {world} ranks"
    return items[rank * count : (rank + 1) * count]
