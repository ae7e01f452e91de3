"""Configurations as they are published: accepted with transformers' values, or refused by the name of a key.

The table of docs/models.md is made here: SEMIPD_WRITE_TABLE=1 writes it anew.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from semipd.checkpoints.config import load_model_config
from semipd.core.errors import SemipdError
from semipd.daemon.model import files as model_files
from semipd.daemon.model.files import ModelFiles
from semipd.network.config import ModelConfig

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT.parent / "shared" / "configs"
DOCUMENT = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"

NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
}


def read(name: str, tmp_path: Path) -> ModelConfig | SemipdError:
    """All that is published beside the weights lies in the folder."""
    folder = shutil.copytree(CONFIGS / name, tmp_path / name)
    try:
        return load_model_config(folder)
    except SemipdError as error:
        error.message = error.message.replace(f"{folder}/", "")
        return error


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the configurations lie beside the repository")
def test_every_published_configuration(tmp_path: Path) -> None:
    rows = []
    for folder in sorted(path for path in CONFIGS.iterdir() if path.is_dir()):
        found = read(folder.name, tmp_path)
        if isinstance(found, ModelConfig):
            _check_values(folder / "config.json", found)
            said = f"served ({found.family}, {found.dtype})"
        else:
            assert "config.json" in found.message or "quant" in found.message
            said = f"`{found.code}`: {found.message}"
        rows.append(f"| {folder.name} | {said} |\n")
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    made = "| configuration | what happens |\n|---|---|\n" + "".join(rows)
    if os.environ.get("SEMIPD_WRITE_TABLE"):
        DOCUMENT.write_text(before + BEGIN + made + END + after)
        return
    assert table == made, "write it anew: SEMIPD_WRITE_TABLE=1 pytest tests/engine/test_real_configs.py"


def _check_values(path: Path, ours: ModelConfig) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(path.parent)
    for name, own_name in NAMES.items():
        assert getattr(ours, own_name) == getattr(theirs, name), (path, name)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.head_dim == getattr(theirs, "head_dim", None) or ours.hidden_size // ours.num_heads


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def load(folder: Path, **changes: Any) -> ModelConfig:
    config = {name: value for name, value in (LLAMA | changes).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_config(folder)


@pytest.mark.parametrize("architectures", ["absent", None, []])
def test_the_model_type_is_enough(architectures: object, tmp_path: Path) -> None:
    assert load(tmp_path, architectures=architectures).family == "llama"


@pytest.mark.parametrize(
    ("said", "dtype"),
    [("bf16", "bfloat16"), ("torch.bfloat16", "bfloat16"), ("half", "float16"), ("fp32", "float32")],
)
def test_spellings_of_dtypes(said: str, dtype: str, tmp_path: Path) -> None:
    for key in ("dtype", "torch_dtype"):
        assert load(tmp_path, **{key: said}).dtype == dtype


@pytest.mark.parametrize("said", ["auto", "absent", None])
def test_the_tensors_tell_the_dtype(said: object, tmp_path: Path) -> None:
    assert load(tmp_path, torch_dtype=said).dtype == "float32"
    head = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "norm": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]},
            "embed": {"dtype": "BF16", "shape": [400, 64], "data_offsets": [256, 51456]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    assert load(tmp_path, torch_dtype=said).dtype == "bfloat16"
    (tmp_path / "model.safetensors").write_bytes(b"no head")
    assert load(tmp_path, torch_dtype=said).dtype == "float32"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", {"quantization": {"bits": 4, "group_size": 64}}, "quantization: bits 4"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config: fp8"),
        ("config.json", {"text_config": {"quantization_config": {"quant_algo": "NVFP4"}}}, "NVFP4"),
        ("config.json", {"quantization_config": {"x": 1, "y": 2}}, "quantization_config: keys x, y"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "hf_quant_config.json"),
        ("quantize_config.json", {"bits": 4}, "bits 4"),
        ("quant_config.json", {"w_bit": 4}, "w_bit 4"),
    ],
)
def test_quantized_weights_are_recognised(
    file: str, content: dict[str, Any], says: str, tmp_path: Path
) -> None:
    if file != "config.json":
        (tmp_path / file).write_text(json.dumps(content))
        content = {}
    with pytest.raises(SemipdError) as caught:
        load(tmp_path, **content)
    assert caught.value.code == "unsupported_model"
    assert says in caught.value.message
    assert "quantized" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": "400"}, "vocab_size must be an integer"),
        ({"hidden_size": 66}, "must be a multiple of num_attention_heads (4)"),
        ({"torch_dtype": "int4"}, "dtype 'int4' is not supported"),
        ({"model_type": "mamba"}, "names the architecture none (model_type 'mamba')"),
        ({"model_type": "absent"}, "names the architecture none"),
    ],
)
def test_one_clear_sentence(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SemipdError) as caught:
        load(tmp_path, **changes)
    assert says in caught.value.message


def test_a_refusal_costs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the missing tokenizer told of first."""
    fetched: list[bool] = []

    def download(_name: str, *, weights: bool) -> Path:
        fetched.append(weights)
        return tmp_path

    monkeypatch.setattr(model_files, "download", download)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "mamba"}))
    with pytest.raises(SemipdError) as caught:
        ModelFiles.open("owner/model", load_model_config)
    assert caught.value.code == "unsupported_architecture"
    assert fetched == [False]
