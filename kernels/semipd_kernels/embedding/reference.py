"""What the gather means, in plain torch."""

from torch import Tensor


def embedding_reference(token_ids: Tensor, table: Tensor) -> Tensor:
    valid = (token_ids >= 0) & (token_ids < table.shape[0])
    rows = table[token_ids.where(valid, 0)]
    return rows.masked_fill(~valid[:, None], 0.0)
