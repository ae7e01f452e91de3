"""Packed matrices give the products of plain ones, and a whole model on them the same logits."""

import pytest
import torch
from support.paged import PagedModel, Sequence
from support.tiny_models import tiny_checkpoint

from semipd.models.config import load_model_config
from semipd.models.decoder import DenseDecoder
from semipd.models.layout import TensorSpec, WeightsLayout, plan_weights
from semipd.models.packing import can_pack, linear, pack_weights, packed_views
from semipd.models.weights import TORCH_DTYPES, load_weights, weight_views

DTYPES = [name for name in ("float32", "bfloat16") if can_pack(TORCH_DTYPES[name])]
pytestmark = pytest.mark.skipif(not DTYPES, reason="this torch or CPU cannot share packed matrices")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 64), (192, 128), (320, 64)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_those_of_plain_matrices(dtype, shape, with_bias):
    torch.manual_seed(0)
    num_bytes = shape[0] * shape[1] * TORCH_DTYPES[dtype].itemsize
    layout = WeightsLayout(dtype, (TensorSpec("layers.0.o", shape, 0),), num_bytes)
    buffer = torch.empty(num_bytes, dtype=torch.uint8)
    plain = weight_views(layout, buffer)["layers.0.o"].copy_(torch.randn(shape)).clone()
    packed = packed_views(layout, buffer, pack_weights(layout, buffer))["layers.0.o"]
    assert packed.is_mkldnn
    bias = torch.randn(shape[0]).to(plain.dtype) if with_bias else None
    for rows in (1, 2, 7, 8, 33, 200):
        x = torch.randn(rows, shape[1]).to(plain.dtype)
        want = linear(x.double(), plain.double(), None if bias is None else bias.double())
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        torch.testing.assert_close(
            linear(x, packed, bias).double(), want, rtol=tolerance, atol=tolerance * 10
        )


def test_a_matrix_whose_packed_form_is_larger_stays_plain():
    layout = WeightsLayout("bfloat16", (TensorSpec("layers.0.o", (7, 64), 0),), 7 * 64 * 2)
    buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    weight_views(layout, buffer)["layers.0.o"].fill_(3)
    if pack_weights(layout, buffer):
        pytest.skip("oneDNN packs 7 x 64 without padding here")
    assert weight_views(layout, buffer)["layers.0.o"].eq(3).all()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_on_packed_weights_has_the_same_logits(tmp_path_factory, tied):
    """Sizes are multiples of 64, so that every matrix really is packed."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 448, "head_dim": 32}
    folder = tiny_checkpoint(tmp_path_factory, "qwen3", tie_word_embeddings=tied, **sizes)
    config = load_model_config(folder)
    layout = plan_weights(config, "float32", packed=True)
    buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    load_weights(folder, config, layout, buffer, lambda done, total: None)
    packed = pack_weights(layout, buffer)
    assert {name.rpartition(".")[2] for name in packed} == {"qkv", "o", "gate_up", "down", "lm_head"}

    plain = PagedModel(folder)
    other = PagedModel(folder)
    other.decoder = DenseDecoder(config, packed_views(layout, buffer, packed), other.pool)
    tokens = torch.randint(0, 448, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    runs = [Sequence(tokens, [3, 1, 4, 5]) for _ in range(2)]
    for model, sequence in zip((plain, other), runs, strict=True):
        for length in (37, 1, 1, 20, 1):
            model.step([(sequence, length)])
    want, got = (torch.cat(sequence.logits) for sequence in runs)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
