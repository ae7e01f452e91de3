"""SwiGLU's activation against the decoder's own operations and a scalar oracle."""

import math

import pytest
import torch
from semipd_kernels.silu_mul import silu_mul
from semipd_kernels.silu_mul.reference import silu_mul_reference
from support.kernels import DTYPES, RELATIVE_LIMITS, Guarded, assert_close, randn, with_row_stride
from torch.nn import functional

from semipd.core.errors import SemipdError


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (3, 7), (2, 2048), (5, 2049), (2, 4864)])
def test_matches_the_decoder(num_rows: int, width: int, dtype: torch.dtype) -> None:
    gate_up = with_row_stride(randn((num_rows, 2 * width), dtype, seed=width, scale=4.0))
    gate, up = gate_up.chunk(2, dim=-1)
    out = Guarded((num_rows, width), dtype)
    assert silu_mul(gate_up, out.tensor) is out.tensor
    out.check()
    assert_close(out.tensor, functional.silu(gate).mul_(up))


def test_extreme_gates() -> None:
    gate_up = torch.tensor([[-1e30, -200.0, -0.0, 0.0, 90.0, 1e30, *[2.0] * 6]])
    assert silu_mul(gate_up).tolist() == [[0.0, 0.0, 0.0, 0.0, 180.0, pytest.approx(2e30)]]


def test_strided_output_and_no_rows() -> None:
    gate_up = randn((3, 60), torch.bfloat16, seed=1)
    out = with_row_stride(torch.zeros(3, 30, dtype=torch.bfloat16))
    silu_mul(gate_up, out)
    assert_close(out, silu_mul_reference(gate_up))
    assert out._base is not None
    assert out._base[:, 30:].isnan().all(), "written behind a row"
    assert silu_mul(gate_up[:0]).shape == (0, 30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_against_a_scalar_oracle(dtype: torch.dtype) -> None:
    gate_up = randn((2, 26), dtype, seed=2, scale=3.0)
    out = silu_mul_reference(gate_up)
    for row in range(2):
        for column in range(13):
            gate, up = float(gate_up[row, column]), float(gate_up[row, 13 + column])
            expected = gate / (1 + math.exp(-gate)) * up
            assert float(out[row, column]) == pytest.approx(expected, rel=RELATIVE_LIMITS[dtype])


@pytest.mark.parametrize(
    ("gate_up", "out"),
    [
        (torch.zeros(2, 9), None),
        (torch.zeros(2, 8, dtype=torch.int32), None),
        (torch.zeros(8, 2).t(), None),
        (torch.zeros(2, 8), torch.zeros(2, 5)),
        (torch.zeros(2, 8), torch.zeros(2, 4, dtype=torch.float16)),
        (torch.zeros(2, 8), torch.zeros(4, 2).t()),
    ],
)
def test_refuses_what_it_cannot_do(gate_up: torch.Tensor, out: torch.Tensor | None) -> None:
    with pytest.raises(SemipdError) as raised:
        silu_mul(gate_up, out)
    assert raised.value.code == "unsupported_kernel"
