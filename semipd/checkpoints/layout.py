"""Where each weight lies in one flat buffer, and the shape of the KV pool. No torch here.

Weights of one kind that multiply the same input are fused into one matrix, rows in the order
query heads, key heads, value heads; and gate, up.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from semipd.checkpoints.config import ModelConfig
from semipd.checkpoints.dtypes import ITEM_BYTES, DTypeName
from semipd.core.plan import BLOCK_SIZE

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class WeightsLayout:
    """`tensors` by rising offset, each aligned to 64 bytes. With tied embeddings there is no `lm_head`,
    unless matrices will be packed: a packed one cannot serve as a table."""

    dtype: DTypeName
    tensors: tuple[TensorSpec, ...]
    total_bytes: int


def plan_weights(config: ModelConfig, dtype: DTypeName, *, packed: bool = False) -> WeightsLayout:
    """Names: `embed`, `norm`, `lm_head`, and per layer i `layers.{i}.` + `input_norm`, `qkv`, `qkv_bias`,
    `q_norm`, `k_norm`, `o`, `o_bias`, `mlp_norm`, `gate_up`, `gate_up_bias`, `down`, `down_bias`.
    Matrices are [outputs, inputs]."""
    tensors: list[TensorSpec] = []
    offset = 0
    for name, shape in _shapes(config, packed):
        tensors.append(TensorSpec(name, shape, offset))
        num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
        offset += -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return WeightsLayout(dtype, tuple(tensors), offset)


def kv_pool_shape(config: ModelConfig, num_blocks: int) -> tuple[int, int, int, int, int, int]:
    """[layers, 2 (keys, values), num_blocks, kv heads, 16 slots, head_dim].

    Each (block, head) is one contiguous [16, head_dim] tile, so neighbouring blocks of a layer form one batch
    of tiles that a batched matmul reads in place. Whoever writes a sequence's newest slot may also clear the
    slots after it in the same block: they hold nothing yet.
    """
    return (config.num_layers, 2, num_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim)


def kv_block_bytes(config: ModelConfig, dtype: DTypeName) -> int:
    """One block's keys and values over all layers."""
    return math.prod(kv_pool_shape(config, num_blocks=1)) * ITEM_BYTES[dtype]


def _shapes(config: ModelConfig, packed: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "embed", (config.vocab_size, config.hidden_size)
    for idx in range(config.num_layers):
        for name, shape in _layer_shapes(config):
            yield f"layers.{idx}.{name}", shape
    yield "norm", (config.hidden_size,)
    if packed or not config.tie_word_embeddings:
        yield "lm_head", (config.vocab_size, config.hidden_size)


def _layer_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, q_width = config.hidden_size, config.num_heads * config.head_dim
    qkv_width = q_width + 2 * config.num_kv_heads * config.head_dim
    yield "input_norm", (hidden,)
    yield "qkv", (qkv_width, hidden)
    if config.qkv_bias:
        yield "qkv_bias", (qkv_width,)
    if config.qk_norm:
        yield "q_norm", (config.head_dim,)
        yield "k_norm", (config.head_dim,)
    yield "o", (hidden, q_width)
    if config.o_bias:
        yield "o_bias", (hidden,)
    yield "mlp_norm", (hidden,)
    yield "gate_up", (2 * config.intermediate_size, hidden)
    if config.mlp_bias:
        yield "gate_up_bias", (2 * config.intermediate_size,)
    yield "down", (hidden, config.intermediate_size)
    if config.mlp_bias:
        yield "down_bias", (hidden,)
