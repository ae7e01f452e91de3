"""Loading safetensors: what is read, how it is packed, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.paged import PagedModel, Sequence, loaded_weights
from support.tiny_models import FAMILIES, reference_logits, tiny_checkpoint
from torch import Tensor

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.layout import plan_weights
from semipd.checkpoints.weights import load_weights
from semipd.core.errors import SemipdError


def assert_same_logits(folder: Path) -> None:
    model = PagedModel(folder, num_blocks=8)
    sequence = Sequence(list(range(5, 45)), [3, 1, 5])
    model.step([(sequence, 40)])
    theirs = reference_logits(folder, sequence.token_ids)
    assert (sequence.logits[0] - theirs).abs().max() / theirs.abs().max() < 1e-4


def refusal(folder: Path) -> SemipdError:
    with pytest.raises(SemipdError) as caught:
        loaded_weights(folder, load_model_config(folder))
    return caught.value


@pytest.fixture
def copy(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single-file checkpoint to damage."""
    return shutil.copytree(tiny_checkpoint(tmp_path_factory, "llama"), tmp_path / "copy")


@pytest.fixture
def sharded(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several files to damage."""
    folder = tiny_checkpoint(tmp_path_factory, "llama", max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return shutil.copytree(folder, tmp_path / "sharded")


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "100KB"])
def test_logits(tmp_path_factory: pytest.TempPathFactory, family: str, tied: bool, shard_size: str) -> None:
    assert_same_logits(
        tiny_checkpoint(tmp_path_factory, family, tie_word_embeddings=tied, max_shard_size=shard_size)
    )


def test_every_bias(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert_same_logits(tiny_checkpoint(tmp_path_factory, "llama", attention_bias=True, mlp_bias=True))
    assert_same_logits(tiny_checkpoint(tmp_path_factory, "qwen3", attention_bias=True))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_16_bit_checkpoints(tmp_path_factory: pytest.TempPathFactory, stored: torch.dtype) -> None:
    assert_same_logits(tiny_checkpoint(tmp_path_factory, "llama", dtype=stored))


def test_converts_to_the_layout_dtype(copy: Path) -> None:
    config = load_model_config(copy)
    source = load_file(copy / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    packed = loaded_weights(copy, config, "bfloat16")["layers.1.gate_up"]
    assert torch.equal(packed[config.intermediate_size :], source.bfloat16())


def test_progress_reaches_the_total(copy: Path) -> None:
    config = load_model_config(copy)
    layout = plan_weights(config, "float32")
    calls: list[tuple[int, int]] = []
    buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    load_weights(copy, config, layout, buffer, lambda done, total: calls.append((done, total)))
    stored = sum(t.nbytes for t in load_file(copy / "model.safetensors").values())
    assert calls[-1] == (stored, stored)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_harmless_extras_are_ignored(copy: Path) -> None:
    rewrite(copy, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert_same_logits(copy)


def test_tied_checkpoint_with_a_second_copy(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tied = shutil.copytree(
        tiny_checkpoint(tmp_path_factory, "qwen2", tie_word_embeddings=True), tmp_path / "tied"
    )
    rewrite(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    loaded_weights(tied, load_model_config(tied))


def test_missing_tensor(copy: Path) -> None:
    rewrite(copy, lambda t: t.pop("model.layers.2.mlp.down_proj.weight"))
    error = refusal(copy)
    assert error.code == "checkpoint_corrupt"
    assert "model.layers.2.mlp.down_proj.weight" in error.message


def test_unexpected_tensor(copy: Path) -> None:
    rewrite(copy, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    error = refusal(copy)
    assert error.code == "checkpoint_corrupt"
    assert "q_proj.bias" in error.message
    assert "model.safetensors" in error.message


def test_wrong_shape(copy: Path) -> None:
    rewrite(copy, lambda t: t.update({"model.norm.weight": torch.ones(63)}))
    error = refusal(copy)
    assert error.code == "checkpoint_corrupt"
    assert "model.norm.weight has shape [63], config.json needs [64]" in error.message


def test_integer_tensor(copy: Path) -> None:
    rewrite(copy, lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    error = refusal(copy)
    assert error.code == "unsupported_model"
    assert "I8" in error.message


@pytest.mark.parametrize("keep", [0, 5, 100, 100_000])
def test_truncated_file(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    error = refusal(copy)
    assert error.code == "checkpoint_corrupt"
    assert str(path) in error.message


def test_garbage_file(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert refusal(copy).code == "checkpoint_corrupt"


def test_missing_shard(sharded: Path) -> None:
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    error = refusal(sharded)
    assert error.code == "checkpoint_corrupt"
    assert gone.name in error.message


def test_shard_without_a_promised_tensor(sharded: Path) -> None:
    path = sorted(sharded.glob("*.safetensors"))[0]
    tensors = load_file(path)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, path)
    error = refusal(sharded)
    assert error.code == "checkpoint_corrupt"
    assert path.name in error.message
    assert gone in error.message


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}']
)
def test_malformed_index(sharded: Path, index: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(index)
    error = refusal(sharded)
    assert error.code == "checkpoint_corrupt"
    assert "model.safetensors.index.json" in error.message


def test_the_same_tensor_in_two_shards(sharded: Path) -> None:
    """Which of the two is meant is unknown."""
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    doubled = load_file(second) | dict([next(iter(load_file(first).items()))])
    save_file(doubled, second)
    assert refusal(sharded).code == "checkpoint_corrupt"


def test_only_pickles(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    error = refusal(copy)
    assert error.code == "model_not_found"
    assert "pytorch_model.bin" in error.message
    assert "safetensors" in error.hint


def test_no_weights_at_all(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert refusal(copy).code == "model_not_found"


def test_index_is_read_when_there_is_no_single_file(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(sharded.glob("*.safetensors")))
    assert_same_logits(sharded)
