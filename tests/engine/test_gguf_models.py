"""Checkpoints as files of GGUF: the same models as their safetensors, but for what few bits lose."""

import random
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.gguf_files import write_gguf
from support.tiny_models import tiny_checkpoint

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.dtypes import BF16_FLAGS, resolve_dtype
from semipd.checkpoints.gguf.config_json import llama3_divisors
from semipd.checkpoints.gguf.header import KINDS, GgufHeader
from semipd.checkpoints.layout import plan_weights
from semipd.checkpoints.shards import check_weight_files
from semipd.checkpoints.weights import load_weights
from semipd.core.errors import SemipdError

FAMILIES = ("llama", "qwen2", "qwen3")

Folders = pytest.TempPathFactory


def loaded(model: Path) -> torch.Tensor:
    """Its weights, in the order of the network."""
    config = load_model_config(model)
    layout = plan_weights(config, "float32")
    buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    load_weights(model, config, layout, buffer, lambda _done, _total: None)
    return buffer.view(torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_the_same_as_its_safetensors(
    family: str, tmp_path_factory: Folders, tmp_path: Path
) -> None:
    for tied in (True, False):
        folder = tiny_checkpoint(tmp_path_factory, family, tie_word_embeddings=tied)
        path = write_gguf(folder, tmp_path / f"{tied}.gguf")
        check_weight_files(path)
        ours, theirs = load_model_config(path), load_model_config(folder)
        assert ours.rope.factor == pytest.approx(theirs.rope.factor)
        assert replace(ours.rope, factor=theirs.rope.factor) == theirs.rope
        assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)
        same = replace(ours, rope=theirs.rope, rms_norm_eps=theirs.rms_norm_eps, interleaved_rope=False)
        assert same == theirs
        assert torch.equal(loaded(path), loaded(folder))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_numbers_of_fewer_bits(kind: str, tmp_path_factory: Folders, tmp_path: Path) -> None:
    """As transformers reads the same file; and near what was written."""
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path_factory, "llama")
    path = write_gguf(folder, tmp_path / "m.gguf", kind)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    for name in ("is_quantized", "hf_quantizer"):
        setattr(read, name, None)
    vars(read.config).pop("quantization_config", None)
    read.save_pretrained(tmp_path / "theirs")
    ours = loaded(path)
    assert torch.equal(ours, loaded(tmp_path / "theirs"))
    steps = {"F16": 2**-10, "BF16": 2**-7, "Q8_0": 1 / 127, "Q5_0": 1 / 15, "Q5_1": 1 / 15}
    written = loaded(folder)
    # a number is off by half a step of its block's largest, whose scale is rounded too
    assert (ours - written).abs().max() <= steps.get(kind, 1 / 7) * 1.1 * written.abs().max()
    config = load_model_config(path)
    assert config.dtype == ("float16" if kind == "F16" else "bfloat16")
    assert resolve_dtype("auto", config, BF16_FLAGS) == ("bfloat16" if kind in ("F16", "BF16") else "float32")


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_super_blocks_by_the_definition(kind: str, tmp_path: Path) -> None:
    """One number after the other, as ggml-quants.c defines them."""
    oracle = {"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}[kind]
    drawn = random.Random(7)
    info = next(info for info in KINDS.values() if info.name == kind)
    for _ in range(3):
        block = bytearray(drawn.randbytes(info.block_bytes))
        at = info.block_bytes - 2 if kind == "Q6_K" else 0
        block[at : at + (2 if kind == "Q6_K" else 4)] = struct.pack(
            "<e" if kind == "Q6_K" else "<ee", *[0.5, 0.25][: 1 if kind == "Q6_K" else 2]
        )
        numbers = gguf.quants.dequantize(
            np.frombuffer(bytes(block), np.uint8)[None], gguf.GGMLQuantizationType[kind]
        )
        assert numbers[0].tolist() == pytest.approx(oracle(bytes(block)))


def _scales_k(block: bytes) -> list[tuple[float, float]]:
    """(scale, minimum) of the eight blocks of 32 of Q4_K and Q5_K: six bits each, in 12 bytes."""
    whole, least = struct.unpack("<ee", block[:4])
    packed, pairs = block[4:16], []
    for idx in range(8):
        if idx < 4:
            scale, minimum = packed[idx] & 63, packed[idx + 4] & 63
        else:
            scale = packed[idx + 4] & 15 | packed[idx - 4] >> 6 << 4
            minimum = packed[idx + 4] >> 4 | packed[idx] >> 6 << 4
        pairs.append((whole * scale, least * minimum))
    return pairs


def _q4_k(block: bytes) -> list[float]:
    pairs, quants = _scales_k(block), block[16:]
    return [
        pairs[idx // 32][0] * (quants[idx // 64 * 32 + idx % 32] >> 4 * (idx // 32 % 2) & 15)
        - pairs[idx // 32][1]
        for idx in range(256)
    ]


def _q5_k(block: bytes) -> list[float]:
    pairs, high, quants = _scales_k(block), block[16:48], block[48:]
    numbers = []
    for idx in range(256):
        low = quants[idx // 64 * 32 + idx % 32] >> 4 * (idx // 32 % 2) & 15
        number = low | (high[idx % 32] >> idx // 32 & 1) << 4
        numbers.append(pairs[idx // 32][0] * number - pairs[idx // 32][1])
    return numbers


def _q6_k(block: bytes) -> list[float]:
    low, high, scales = block[:128], block[128:192], struct.unpack("16b", block[192:208])
    (whole,) = struct.unpack("<e", block[208:])
    numbers = []
    for idx in range(256):
        half, within = divmod(idx, 128)
        part, column = divmod(within, 32)
        four = low[half * 64 + part % 2 * 32 + column] >> 4 * (part // 2) & 15
        two = high[half * 32 + column] >> 2 * part & 3
        numbers.append(whole * scales[idx // 16] * ((four | two << 4) - 32))
    return numbers


def test_kinds_are_those_of_the_library() -> None:
    for number, kind in KINDS.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert (kind.name, kind.block, kind.block_bytes) == (theirs.name, *gguf.GGML_QUANT_SIZES[theirs])


def test_the_head_says_what_the_library_reads(tmp_path_factory: Folders, tmp_path: Path) -> None:
    path = write_gguf(tiny_checkpoint(tmp_path_factory, "qwen2"), tmp_path / "m.gguf", "Q8_0")
    header, theirs = GgufHeader.read(path), gguf.GGUFReader(path)
    for key, value in header.metadata.items():
        said = theirs.fields[key].contents()
        assert (list(value) if isinstance(said, list) else value) == said, key
    assert {name: info.shape for name, info in header.tensors.items()} == {
        tensor.name: tuple(tensor.shape.tolist()[::-1]) for tensor in theirs.tensors
    }
    offsets = {tensor.name: tensor.data_offset for tensor in theirs.tensors}
    assert {name: info.offset_bytes for name, info in header.tensors.items()} == offsets


def test_a_damaged_file_is_one_sentence(tmp_path_factory: Folders, tmp_path: Path) -> None:
    whole = write_gguf(tiny_checkpoint(tmp_path_factory, "llama"), tmp_path / "whole.gguf").read_bytes()
    path, drawn = tmp_path / "m.gguf", random.Random(3)
    cut = [whole[: drawn.randrange(len(whole))] for _ in range(30)]
    flipped = [_flipped(whole, drawn) for _ in range(300)]
    said = [b"", b"version https://git-lfs.github.com/spec/v1", b"GGUF" + struct.pack(">I", 3) + bytes(16)]
    num_refused = 0
    for data in [*cut, *said, *flipped]:
        path.write_bytes(data)
        refusal = _refusal(path)
        assert refusal == "" or refusal.startswith(str(path))
        num_refused += bool(refusal)
    assert num_refused >= len(cut) + len(said)


def _refusal(path: Path) -> str:
    try:
        load_model_config(path)
    except SemipdError as error:
        return error.message
    return ""


def _flipped(whole: bytes, drawn: random.Random) -> bytes:
    """With four bytes of its head changed."""
    data = bytearray(whole)
    for _ in range(4):
        data[drawn.randrange(12000)] = drawn.randrange(256)
    return bytes(data)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"general.type": "adapter"}, "holds 'adapter', not a model"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.expert_count": 8}, "num_experts=8"),
        ({"llama.attention.clamp_kqv": 5}, "llama.attention.clamp_kqv=5"),
        ({"llama.rope.scaling.type": "longrope"}, "rope type 'longrope'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    extra: dict[str, object], says: str, tmp_path_factory: Folders, tmp_path: Path
) -> None:
    path = write_gguf(tiny_checkpoint(tmp_path_factory, "llama"), tmp_path / "m.gguf", extra=extra)
    with pytest.raises(SemipdError) as caught:
        load_model_config(path)
    assert says in caught.value.message


def test_divisors_of_llama_3() -> None:
    """Short waves stay, long ones are stretched by the whole factor."""
    divisors = llama3_divisors(500_000.0, 64, 8.0, 8192)
    assert divisors[0] == 1.0
    assert divisors[-1] == 8.0
    assert divisors == sorted(divisors)
