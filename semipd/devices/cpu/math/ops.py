"""Ops of a CPU: packed matrices, decode attention in pool order, prefill a tile of queries at a time.

Prefill chunks run one by one, see chunk_attention.py. So do decode rows while they are few and short; more of
them run together in pool order. paged_decode.py has the measurements behind the two limits.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from semipd.core.plan import blocks_for
from semipd.devices.cpu.math.packing import linear
from semipd.devices.cpu.math.paged_decode import PagedDecode
from semipd.network.chunk_attention import attend_chunk
from semipd.network.ops import Heads
from semipd.network.rope import normed_and_rotated, rotation
from semipd.network.rows import NO_PLAN, ChunkPlan, ChunkRows, DecodeRows, PassSize, StepRows

MAX_COPIED_SEQS = 4
MAX_COPIED_BYTES = 2**20
"""Decode rows of at most so many sequences, with so many bytes of keys and values in a layer, use SDPA."""


class _Placed(NamedTuple):
    """What all layers need of a pass: rotation and KV slots of its rows."""

    rows: StepRows
    rotary: tuple[Tensor, Tensor]
    blocks: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, rows: StepRows, heads: Heads, block_size: int) -> "_Placed":
        rotary = rotation(rows.positions, heads.frequencies, heads.rope_scale)
        return cls(rows, rotary, rows.slots // block_size, rows.slots % block_size)


class _Decode(NamedTuple):
    """How all layers attend to the contexts of decode rows; `paged` is None: one by one."""

    rows: DecodeRows
    kv_lens: list[int]
    paged: PagedDecode | None

    @classmethod
    def of(cls, rows: DecodeRows, kv_pool: Tensor) -> "_Decode":
        kv_lens: list[int] = rows.kv_lens.tolist()
        token_bytes = kv_pool[0, :, 0, :, 0].nbytes
        few = len(kv_lens) <= MAX_COPIED_SEQS and sum(kv_lens) * token_bytes <= MAX_COPIED_BYTES
        return cls(
            rows,
            kv_lens,
            None if few else PagedDecode(rows.tables.long().numpy(), rows.kv_lens.long().numpy(), kv_pool),
        )


class CpuOps:
    """See network.ops.Ops. Runs one pass at a time: what its layers share is made at the first one and kept
    until `end_pass`.

    Results are memory of their own: with torch on a CPU, writing into given memory would be one more copy.
    """

    def __init__(self, kv_pool: Tensor) -> None:
        self._kv_pool = kv_pool
        self._placed: _Placed | None = None
        self._decode: _Decode | None = None

    def end_pass(self) -> None:
        self._placed = self._decode = None

    def embed(self, token_ids: Tensor, table: Tensor, out: Tensor) -> Tensor:
        return functional.embedding(token_ids, table)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor) -> Tensor:
        return functional.rms_norm(residual.add_(x), weight.shape, weight, eps)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        result = linear(x, weight, bias)
        return result if result.dtype == out.dtype else result.to(out.dtype)

    def silu_mul(self, gate_up: Tensor, out: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    def rope_and_cache(
        self, qkv: Tensor, heads: Heads, qk_norm: Tensor | None, rows: StepRows, layer_kv: Tensor
    ) -> None:
        if self._placed is None or self._placed.rows is not rows:
            self._placed = _Placed.of(rows, heads, layer_kv.shape[3])
        placed, (qk, kv) = self._placed, heads.split(qkv)
        qk.copy_(normed_and_rotated(qk, qk_norm, heads.eps, placed.rotary))
        layer_kv[:, placed.blocks, :, placed.offsets] = kv

    def decode_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, rows: DecodeRows, num_units: int, out: Tensor
    ) -> None:
        if self._decode is None or self._decode.rows is not rows:
            self._decode = _Decode.of(rows, self._kv_pool)
        q, decode = qkv[:, : heads.num_q], self._decode
        if decode.paged is not None:
            decode.paged.attend(q, layer_kv[0], layer_kv[1], heads.attention_scale, out)
            return
        for idx, kv_len in enumerate(decode.kv_lens):
            keys, values = _context(layer_kv, rows.tables[idx], kv_len)
            out[idx] = _attend_one(q[idx : idx + 1], keys, values, heads.attention_scale)

    def decode_workspace(self, max_rows: int, heads: Heads, num_units: int) -> tuple[Tensor, ...]:
        return ()

    def plan_chunks(
        self,
        query_lens: Sequence[int],
        kv_lens: Sequence[int],
        heads: Heads,
        num_units: int,
        padded: PassSize | None = None,
    ) -> ChunkPlan:
        assert padded is None, "attention here reads lengths on the host"
        return NO_PLAN

    def prefill_attention(
        self, qkv: Tensor, heads: Heads, layer_kv: Tensor, chunks: ChunkRows, num_units: int, out: Tensor
    ) -> None:
        start = 0
        for idx, (length, kv_len) in enumerate(zip(chunks.host_query_lens, chunks.host_kv_lens, strict=True)):
            own = slice(start, start + length)
            start += length
            if length == kv_len:  # the keys and values just computed are all there is
                keys, values = heads.split(qkv[own])[1].permute(1, 2, 0, 3)
            else:
                keys, values = _context(layer_kv, chunks.tables[idx], kv_len)
            q, attend = qkv[own, : heads.num_q], attend_chunk if length > 1 else _attend_one
            out[own] = attend(q, keys, values, heads.attention_scale)


def _context(layer_kv: Tensor, table: Tensor, kv_len: int) -> Tensor:
    """Keys and values [2, kv heads, kv_len, head_dim], copied out of the pool."""
    blocks = layer_kv.index_select(1, table[: blocks_for(kv_len, layer_kv.shape[3])])
    return blocks.transpose(1, 2).flatten(2, 3)[:, :, :kv_len]


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """`q` [1, heads, head_dim]: a single query attends to everything, so the heads of a group can be rows.
    SDPA's own grouping took 3 times longer in bf16 (503 us instead of 168 for 512 tokens)."""
    rows = q.view(1, keys.shape[0], -1, q.shape[2])
    return functional.scaled_dot_product_attention(
        rows, keys.unsqueeze(0), values.unsqueeze(0), scale=scale
    ).view(q.shape)
