"""What is timed: shapes of an 8B model (hidden 4096, 32 heads, 8 kv heads), and the least work they mean.

Bytes: every input that must be read and every output that must be written, once. Operations: the matrix
products. Both in bfloat16. Nothing here imports torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

ITEM_BYTES = 2
INDEX_BYTES = 4
BLOCK_SIZE = 16
"""Tokens per KV block, where a shape says nothing else."""


class Work(NamedTuple):
    num_bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Workload:
    """
    Attributes:
        label: short, unique within the operation.
        shape: arguments of `WORK[op]` and of the operation's builder in `bench_ops`.
        small: overrides that make the shape small enough to compare with the reference on the CPU.
        bound: what the roofline is: copy bandwidth, or the bf16 matmul rate.
        target: least share of the whole device's roofline -> on so many SMs; see `TARGETS`.
    """

    op: str
    label: str
    shape: Mapping[str, int]
    small: Mapping[str, int]
    bound: Literal["memory", "compute"] = "memory"
    target: str = ""

    @property
    def name(self) -> str:
        return f"{self.op}/{self.label}"

    @property
    def work(self) -> Work:
        return WORK[self.op](**self.shape)

    def checked_shape(self) -> dict[str, int]:
        return {**self.shape, **self.small}


@dataclass(frozen=True, slots=True)
class Target:
    """From issue 7. `shares`: on so many SMs, at least this share of what `of` says."""

    of: Literal["copy bandwidth of the device", "best SDPA backend"]
    shares: Mapping[int, float] = field(default_factory=dict)


TARGETS = {
    "bandwidth": Target("copy bandwidth of the device", {132: 0.85, 64: 0.75}),
    "sdpa": Target("best SDPA backend", {132: 0.75}),
}


def add_rms_norm_work(rows: int, width: int) -> Work:
    """Reads x and the residual, writes the residual and the result; the weights once."""
    return Work((4 * rows * width + width) * ITEM_BYTES, 0)


def silu_mul_work(rows: int, width: int) -> Work:
    return Work(3 * rows * width * ITEM_BYTES, 0)


def embedding_work(rows: int, width: int, vocab_size: int) -> Work:
    """Few enough ids that most rows of the table are read once; int64 ids."""
    return Work(2 * rows * width * ITEM_BYTES + 8 * rows, 0)


def rope_write_work(rows: int, heads: int, kv_heads: int, head_dim: int) -> Work:
    """All is read once; queries are written in place, keys and values to the pool; two int64 per row."""
    return Work(2 * rows * (heads + 2 * kv_heads) * head_dim * ITEM_BYTES + 16 * rows, 0)


def sampling_work(rows: int, vocab_size: int) -> Work:
    """fp32 logits, once. Filters need more passes; those are not the least."""
    return Work(rows * vocab_size * 4, 0)


def decode_attention_work(
    seqs: int, context: int, heads: int, kv_heads: int, head_dim: int, block_size: int = BLOCK_SIZE
) -> Work:
    kv_items = 2 * seqs * context * kv_heads * head_dim
    q_items = 2 * seqs * heads * head_dim
    tables = seqs * -(-context // block_size) * INDEX_BYTES
    return Work((kv_items + q_items) * ITEM_BYTES + tables, 4 * seqs * context * heads * head_dim)


def prefill_attention_work(
    seqs: int,
    query_len: int,
    context: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int = BLOCK_SIZE,
) -> Work:
    """Only the products of a query with keys it may see. `context` includes the `query_len` new tokens."""
    visible = query_len * (context - query_len) + query_len * (query_len + 1) // 2
    items = 2 * seqs * context * kv_heads * head_dim + 2 * seqs * query_len * heads * head_dim
    return Work(items * ITEM_BYTES, 4 * seqs * visible * heads * head_dim)


def gather_kv_work(context: int, kv_heads: int, head_dim: int) -> Work:
    """Keys and values are read once and written once."""
    tables = -(-context // BLOCK_SIZE) * INDEX_BYTES
    return Work(4 * context * kv_heads * head_dim * ITEM_BYTES + tables, 0)


def matmul_work(m: int, k: int, n: int) -> Work:
    return Work((m * k + k * n + m * n) * ITEM_BYTES, 2 * m * k * n)


WORK: Mapping[str, Callable[..., Work]] = {
    "rms_norm": add_rms_norm_work,
    "silu_mul": silu_mul_work,
    "embedding": embedding_work,
    "rope_write": rope_write_work,
    "sampling": sampling_work,
    "decode_attention": decode_attention_work,
    "prefill_attention": prefill_attention_work,
    "gather_kv": gather_kv_work,
    "matmul": matmul_work,
}

_HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}
_NO_CHANGE: Mapping[str, int] = {}
_SMALL_DECODE = {"seqs": 5, "context": 333}
_SMALL_PREFILL = {"seqs": 2, "query_len": 97, "context": 161}


def decode_workload(
    seqs: int, context: int, heads: Mapping[str, int] = _NO_CHANGE, target: str = ""
) -> Workload:
    """`heads`: what differs from _HEADS."""
    shape = {"seqs": seqs, "context": context, **_HEADS, **heads}
    label = _label({"b": seqs, "ctx": context, **heads})
    return Workload("decode_attention", label, shape, _SMALL_DECODE, target=target)


def prefill_workload(
    seqs: int, query_len: int, context: int, heads: Mapping[str, int] = _NO_CHANGE, target: str = ""
) -> Workload:
    """`heads`: what differs from _HEADS."""
    shape = {"seqs": seqs, "query_len": query_len, "context": context, **_HEADS, **heads}
    label = _label({"b": seqs, "q": query_len, "ctx": context, **heads})
    return Workload("prefill_attention", label, shape, _SMALL_PREFILL, "compute", target)


def _label(sizes: Mapping[str, int]) -> str:
    return "-".join(f"{name}{size}" for name, size in sizes.items())


WORKLOADS = (
    decode_workload(64, 4096, target="bandwidth"),
    prefill_workload(1, 8192, 8192, target="sdpa"),
    Workload("rms_norm", "t8192", {"rows": 8192, "width": 4096}, {"rows": 37}, target="bandwidth"),
    Workload("matmul", "t8192", {"m": 8192, "k": 4096, "n": 14336}, {"m": 64, "k": 64, "n": 64}, "compute"),
    *(
        Workload("matmul", f"t{rows}", {"m": rows, "k": 4096, "n": 14336}, {"m": 16, "k": 64, "n": 64})
        for rows in (64, 16)
    ),
    Workload("silu_mul", "t8192", {"rows": 8192, "width": 14336}, {"rows": 37}),
    Workload("rope_write", "t8192", {"rows": 8192, **_HEADS}, {"rows": 37}),
    decode_workload(8, 32768),
    decode_workload(32, 1024),
    prefill_workload(1, 2048, 32768),
    prefill_workload(4, 2048, 2048),
    decode_workload(64, 4096, {"block_size": 64}),
    prefill_workload(1, 8192, 8192, {"block_size": 64}),
    Workload("sampling", "b64", {"rows": 64, "vocab_size": 128256}, {"rows": 5, "vocab_size": 5003}),
    Workload(
        "embedding",
        "t8192",
        {"rows": 8192, "width": 4096, "vocab_size": 128256},
        {"rows": 37, "vocab_size": 101},
    ),
    decode_workload(64, 4096, {"head_dim": 64}),
    decode_workload(64, 2048, {"kv_heads": 4, "head_dim": 256}),
    prefill_workload(1, 8192, 8192, {"head_dim": 64}),
    prefill_workload(1, 4096, 4096, {"heads": 16, "kv_heads": 4, "head_dim": 256}),
    Workload("rms_norm", "t64", {"rows": 64, "width": 4096}, {"rows": 7}),
    Workload("silu_mul", "t64", {"rows": 64, "width": 14336}, {"rows": 7}),
    Workload("rope_write", "t64", {"rows": 64, **_HEADS}, {"rows": 7}),
    Workload("gather_kv", "ctx8192", {"context": 8192, "kv_heads": 8, "head_dim": 128}, {"context": 133}),
)
"""Most wanted first: what the time does not allow is left out from the end."""
