"""What one forward pass computes: a flattened batch of query tokens over the paged KV pool."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchInput:
    """T query tokens of S sequences, laid end to end; R of the T rows want logits.

    Sequences with one query token (decode) and longer ones (prefill chunks) mix in any order. A block may
    stand in several block tables (prefix hits), but not the blocks this step writes to.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64; consecutive within a sequence, the last one is kv_lens - 1.
        slot_mapping: [T] int64, block * 16 + offset: where each row's KV is written.
        query_lens: S lengths, each at least 1, that sum to T; sequence s owns the rows after those of s - 1.
        kv_lens: S context lengths in tokens, this step's tokens included.
        block_tables: [S, W] int64, W * 16 >= max(kv_lens); entries past the context are ignored.
        logit_rows: [R] int64 rows whose logits are wanted, in the order wanted.
        unsound: [T] bool, false, or None: not asked. The pass sets it in every row whose attention is not
            finite: in each layer a row attends to itself, so in all others the KV that was written is.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    query_lens: list[int]
    kv_lens: list[int]
    block_tables: Tensor
    logit_rows: Tensor
    unsound: Tensor | None = None
