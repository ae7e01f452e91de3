"""The gather, and what ids outside the table do."""

import pytest
import torch
from semipd_kernels.embedding import embedding
from semipd_kernels.embedding.reference import embedding_reference
from support.kernels import DTYPES, Guarded, randn, with_row_stride
from torch.nn import functional

from semipd.core.errors import SemipdError


@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 61, 2048, 2500])
def test_gathers_the_rows(width: int, dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    table = with_row_stride(randn((37, width), dtype, seed=width))
    ids = torch.tensor([0, 36, 5, 5, 17], dtype=id_dtype)
    out = Guarded((5, width), dtype)
    assert embedding(ids, table, out.tensor) is out.tensor
    out.check()
    assert torch.equal(out.tensor, functional.embedding(ids, table))


@pytest.mark.parametrize("gather", [embedding, embedding_reference])
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32])
def test_ids_outside_the_table_give_zeros_and_read_nothing(gather, id_dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    memory = torch.full((12, 16), torch.nan)
    table = memory[4:8]
    table.copy_(randn((4, 16), torch.float32, seed=1))
    ids = torch.tensor([-1, 2, 4, 7, -4, 2**31 - 1, 3], dtype=id_dtype)
    out = gather(ids, table)
    assert torch.equal(out[[1, 6]], table[[2, 3]])
    assert not out[[0, 2, 3, 4, 5]].any()


def test_no_tokens() -> None:
    assert embedding(torch.zeros(0, dtype=torch.int64), torch.zeros(3, 8)).shape == (0, 8)


@pytest.mark.parametrize(
    ("ids", "table", "out"),
    [
        (torch.zeros(2), torch.zeros(3, 8), None),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3, 8), None),
        (torch.zeros(4, dtype=torch.int64)[::2], torch.zeros(3, 8), None),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.float64), None),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(8, 3).t(), None),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(3, 8), torch.zeros(2, 7)),
    ],
)
def test_refuses_what_it_cannot_do(ids: torch.Tensor, table: torch.Tensor, out: torch.Tensor | None) -> None:
    with pytest.raises(SemipdError) as raised:
        embedding(ids, table, out)
    assert raised.value.code == "unsupported_kernel"
