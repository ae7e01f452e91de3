"""The norm against the decoder's own and against a scalar oracle."""

import math

import pytest
import torch
from semipd_kernels.rms_norm import add_rms_norm, rms_norm
from semipd_kernels.rms_norm import launch as launches
from semipd_kernels.rms_norm.reference import rms_norm_reference
from support.kernels import DTYPES, RELATIVE_LIMITS, Guarded, assert_close, randn, with_row_stride
from torch import Tensor
from torch.nn import functional

from semipd.core.errors import SemipdError

SIZES = [(1, 1), (3, 64), (2, 100), (5, 896), (1, 5120), (4, 4097)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "hidden_size"), SIZES)
def test_matches_the_decoders_norm(num_rows: int, hidden_size: int, dtype: torch.dtype) -> None:
    x = with_row_stride(randn((num_rows, hidden_size), dtype, seed=hidden_size))
    weight = randn((hidden_size,), dtype, seed=1)
    out = Guarded((num_rows, hidden_size), dtype)
    before = x.clone()
    assert rms_norm(x, weight, 1e-6, out.tensor) is out.tensor
    out.check()
    assert torch.equal(x, before)
    assert_close(out.tensor, functional.rms_norm(x, (hidden_size,), weight, 1e-6))


def check_sum(residual: Tensor, expected: Tensor) -> None:
    """Equal bits, but Triton's interpreter truncates where a GPU rounds to bf16."""
    if residual.dtype == torch.bfloat16:
        assert int((residual.view(torch.int16) - expected.view(torch.int16)).abs().max()) <= 1
    else:
        assert torch.equal(residual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "hidden_size"), SIZES)
def test_adds_to_the_residual_as_the_decoder_does(
    num_rows: int, hidden_size: int, dtype: torch.dtype
) -> None:
    x = with_row_stride(randn((num_rows, hidden_size), dtype, seed=2))
    residual = with_row_stride(randn((num_rows, hidden_size), dtype, seed=3), padding=16)
    weight = randn((hidden_size,), torch.float32, seed=4)
    expected = residual.clone().add_(x)
    out = add_rms_norm(x, residual, weight, 1e-5)
    check_sum(residual, expected)
    assert residual._base is not None
    assert residual._base[:, hidden_size:].isnan().all(), "written behind a row"
    assert_close(out, rms_norm_reference(residual, weight, 1e-5))


@pytest.mark.parametrize("add", [False, True])
def test_rows_longer_than_a_tile(add: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "MAX_TILE", 64)
    for hidden_size in (65, 128, 300):
        x = with_row_stride(randn((3, hidden_size), torch.bfloat16, seed=5))
        weight = randn((hidden_size,), torch.bfloat16, seed=6)
        residual = randn((3, hidden_size), torch.bfloat16, seed=7)
        expected = residual.clone().add_(x) if add else residual.clone()
        out = add_rms_norm(x, residual, weight, 1e-6) if add else rms_norm(x, weight, 1e-6)
        assert_close(out, rms_norm_reference(residual if add else x, weight, 1e-6))
        check_sum(residual, expected)


def test_in_place_and_without_rows() -> None:
    x, weight = randn((4, 48), torch.float32, seed=8), randn((48,), torch.float32, seed=9)
    expected = rms_norm_reference(x, weight, 1e-6)
    assert_close(rms_norm(x, weight, 1e-6, out=x), expected)
    assert rms_norm(x[:0], weight, 1e-6).shape == (0, 48)
    assert add_rms_norm(x[:0], x[:0].clone(), weight, 1e-6).shape == (0, 48)


def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight = randn((6, 1000), torch.float32, seed=10), randn((1000,), torch.float32, seed=11)
    together = rms_norm(x, weight, 1e-6)
    x[0] = math.nan
    for row in range(1, 6):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-6)[0], together[row])
    assert torch.equal(rms_norm(x, weight, 1e-6)[1:], together[1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_against_a_scalar_oracle(dtype: torch.dtype) -> None:
    x, weight, eps = randn((3, 17), dtype, seed=12), randn((17,), dtype, seed=13), 1e-3
    out = rms_norm_reference(x, weight, eps)
    for row in range(3):
        values = [float(value) for value in x[row]]
        scale = 1 / math.sqrt(sum(value * value for value in values) / 17 + eps)
        for column in range(17):
            expected = values[column] * scale * float(weight[column])
            assert float(out[row, column]) == pytest.approx(expected, rel=RELATIVE_LIMITS[dtype])


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(2, 8, dtype=torch.float64), torch.zeros(8)),
        (torch.zeros(2, 3, 8), torch.zeros(8)),
        (torch.zeros(8, 2).t(), torch.zeros(8)),
        (torch.zeros(2, 8), torch.zeros(9)),
        (torch.zeros(2, 8), torch.zeros(16)[::2]),
        (torch.zeros(2, 0), torch.zeros(0)),
    ],
)
def test_refuses_what_it_cannot_do(x: Tensor, weight: Tensor) -> None:
    with pytest.raises(SemipdError) as raised:
        rms_norm(x, weight, 1e-6)
    assert raised.value.code == "unsupported_kernel"


def test_refuses_a_residual_of_another_dtype_or_shape() -> None:
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    for residual in (torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(3, 8)):
        with pytest.raises(SemipdError, match="one 16- or 32-bit float dtype"):
            add_rms_norm(x, residual, weight, 1e-6)
