"""Packed matrices give the products of plain ones, and a whole model on them the same logits."""

import json
import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from support.paged import PagedModel, Sequence
from support.tiny_models import tiny_checkpoint
from torch import Tensor

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.layout import TensorSpec, WeightsLayout, plan_weights
from semipd.checkpoints.weights import TORCH_DTYPES, load_weights, weight_views
from semipd.devices.cpu.math.network import CpuNetwork
from semipd.devices.cpu.math.packing import can_pack, linear, pack_weights, packed_views
from semipd.network.config import DTypeName

EVERY_DTYPE: tuple[DTypeName, ...] = ("float32", "bfloat16")
DTYPES = [name for name in EVERY_DTYPE if can_pack(TORCH_DTYPES[name])]
needs_packing = pytest.mark.skipif(not DTYPES, reason="this torch or CPU cannot share packed matrices")
LIMITED = {"avx2": "AVX2", "default": "SSE41"}
"""ATEN_CPU_CAPABILITY and the ONEDNN_MAX_CPU_ISA that goes with it: CPUs that most people have."""


@needs_packing
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 64), (192, 128), (320, 64)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_those_of_plain_matrices(
    dtype: DTypeName, shape: tuple[int, int], with_bias: bool
) -> None:
    torch.manual_seed(0)
    num_bytes = shape[0] * shape[1] * TORCH_DTYPES[dtype].itemsize
    layout = WeightsLayout(dtype, (TensorSpec("layers.0.o", shape, 0, dtype, True),), num_bytes)
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


def filled(dtype: DTypeName, shape: tuple[int, int] = (7, 64)) -> tuple[WeightsLayout, Tensor]:
    layout = WeightsLayout(
        dtype,
        (TensorSpec("layers.0.o", shape, 0, dtype, True),),
        math.prod(shape) * TORCH_DTYPES[dtype].itemsize,
    )
    buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    weight_views(layout, buffer)["layers.0.o"].fill_(3)
    return layout, buffer


def is_untouched(layout: WeightsLayout, buffer: Tensor) -> bool:
    return bool(weight_views(layout, buffer)["layers.0.o"].eq(3).all())


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_a_matrix_is_packed_or_stays_as_it_was(dtype: DTypeName) -> None:
    """7 x 64 is packed with padding on some CPUs, without on others, and not at all on the rest."""
    layout, buffer = filled(dtype)
    packed = pack_weights(layout, buffer)
    assert not packed or can_pack(TORCH_DTYPES[dtype])
    if not packed:
        assert is_untouched(layout, buffer)
    x = torch.randn(3, 64).to(TORCH_DTYPES[dtype])
    weight = packed_views(layout, buffer, packed)["layers.0.o"]
    torch.testing.assert_close(
        linear(x, weight, None), linear(x, torch.full((7, 64), 3.0).to(x), None), rtol=2e-2, atol=0.5
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_whose_packed_form_is_larger_stays_plain(
    dtype: DTypeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, buffer = filled(dtype, (64, 64))
    monkeypatch.setattr(torch.ops.mkldnn, "_nbytes", lambda packed: 64 * 64 * packed.itemsize + 64)
    assert pack_weights(layout, buffer) == {}
    assert is_untouched(layout, buffer)


def test_a_matrix_that_onednn_refuses_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("bf16 path needs the cpu support")

    layout, buffer = filled("bfloat16", (64, 64))
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    assert pack_weights(layout, buffer) == {}
    assert is_untouched(layout, buffer)


LOOK = """
import json, torch
from semipd.devices.cpu.arithmetic import native_flags
from semipd.checkpoints.dtypes import BF16_FLAGS
from semipd.checkpoints.layout import TensorSpec, WeightsLayout
from semipd.devices.cpu.math.packing import can_pack, linear, pack_weights, packed_views
from semipd.checkpoints.weights import weight_views

torch.manual_seed(0)
for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
    spec = TensorSpec("layers.0.o", (64, 64), 0, name, True)
    layout = WeightsLayout(name, (spec,), spec.num_bytes)
    buffer = torch.empty(layout.total_bytes, dtype=torch.uint8)
    plain = weight_views(layout, buffer)["layers.0.o"].copy_(torch.randn(64, 64)).clone()
    packed = pack_weights(layout, buffer)
    assert bool(packed) == can_pack(dtype), (name, packed, can_pack(dtype))
    x = torch.randn(5, 64).to(dtype)
    got = linear(x, packed_views(layout, buffer, packed)["layers.0.o"], None)
    torch.testing.assert_close(got, linear(x, plain, None), rtol=2e-2, atol=0.2)
print(json.dumps({"packs": can_pack(torch.bfloat16), "native": bool(native_flags() & BF16_FLAGS)}))
"""


@pytest.mark.parametrize("capability", LIMITED)
def test_a_cpu_with_fewer_instructions(capability: str) -> None:
    """Whatever oneDNN then does with bfloat16: products are right, and `auto` does not choose a format that
    is emulated."""
    limits = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": LIMITED[capability]}
    done = subprocess.run(
        [sys.executable, "-c", LOOK], env=os.environ | limits, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if platform.machine() == "x86_64":  # elsewhere these limits mean nothing
        assert said == {"packs": False, "native": False}


@needs_packing
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_on_packed_weights_has_the_same_logits(
    tmp_path_factory: pytest.TempPathFactory, tied: bool
) -> None:
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
    other.decoder = CpuNetwork(config, packed_views(layout, buffer, packed), other.pool)
    tokens = torch.randint(0, 448, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    runs = [Sequence(tokens, [3, 1, 4, 5]) for _ in range(2)]
    for model, sequence in zip((plain, other), runs, strict=True):
        for length in (37, 1, 1, 20, 1):
            model.step([(sequence, length)])
    want, got = (torch.cat(sequence.logits) for sequence in runs)
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
