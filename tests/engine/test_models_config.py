"""config.json of every family, and every reason to refuse one."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import FAMILIES, tiny_checkpoint

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.dtypes import cpu_flags, resolve_dtype
from semipd.checkpoints.layout import ALIGNMENT_BYTES, plan_weights
from semipd.core.errors import SemipdError
from semipd.network.config import ModelConfig
from semipd.network.kv_layout import KvLayout
from semipd.network.params import model_params

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": None}


def load(folder: Path, config: dict[str, Any], max_model_len: int = 0) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_config(folder, max_model_len)


def refusal(folder: Path, config: dict[str, Any], max_model_len: int = 0) -> SemipdError:
    with pytest.raises(SemipdError) as caught:
        load(folder, config, max_model_len)
    return caught.value


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_transformers(tmp_path_factory: pytest.TempPathFactory, family: str) -> None:
    from transformers import AutoConfig

    folder = tiny_checkpoint(tmp_path_factory, family)
    ours, theirs = load_model_config(folder), AutoConfig.from_pretrained(folder)
    assert ours.family == family
    assert ours.num_layers == theirs.num_hidden_layers
    assert (ours.num_heads, ours.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.qk_norm == (family == "qwen3")
    assert ours.qkv_bias == (family in ("qwen2", "seed_oss", "ernie4_5"))


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, {key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"})
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 16, 1e-6)
    assert (config.rope.kind, config.rope.theta) == ("default", 10_000.0)
    assert not config.tie_word_embeddings
    assert config.dtype == "float32"
    assert load(tmp_path, LLAMA | {"architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


@pytest.mark.parametrize("value", ["bfloat16", "torch.bfloat16"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_both_spellings_of_dtype(tmp_path: Path, key: str, value: str) -> None:
    assert load(tmp_path, LLAMA | {key: value}).dtype == "bfloat16"


def test_attention_bias_covers_the_output_projection(tmp_path: Path) -> None:
    config = load(tmp_path, LLAMA | {"attention_bias": True, "mlp_bias": True})
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)
    config = load(tmp_path, QWEN2 | {"attention_bias": True})
    assert (config.qkv_bias, config.o_bias) == (True, False)


def test_yarn_extends_the_context(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert load(tmp_path, LLAMA | {"rope_scaling": yarn}, max_model_len=2048).max_position_embeddings == 2048
    assert load(tmp_path, LLAMA | {"rope_scaling": yarn | {"factor": None}}).rope.factor == 1.0


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such architecture": (
        {"architectures": ["GPT2LMHeadModel"]},
        "unsupported_architecture",
        "GPT2LMHeadModel",
    ),
    "no architecture": ({"architectures": None}, "unsupported_architecture", "none"),
    "a base model": ({"architectures": ["LlamaModel"]}, "unsupported_architecture", "LlamaModel"),
    "missing key": ({"hidden_size": None}, "checkpoint_corrupt", "hidden_size is missing"),
    "text where a number belongs": ({"vocab_size": "many"}, "checkpoint_corrupt", "vocab_size"),
    "negative layers": ({"num_hidden_layers": -1}, "checkpoint_corrupt", "num_hidden_layers"),
    "true is not 1": ({"num_hidden_layers": True}, "checkpoint_corrupt", "num_hidden_layers"),
    "number where true or false belongs": (
        {"tie_word_embeddings": 1},
        "checkpoint_corrupt",
        "tie_word_embeddings",
    ),
    "uneven groups": ({"num_key_value_heads": 3}, "checkpoint_corrupt", "multiple"),
    "odd head": ({"head_dim": 15}, "checkpoint_corrupt", "head_dim 15"),
    "infinite eps": ({"rms_norm_eps": math.inf}, "checkpoint_corrupt", "rms_norm_eps"),
    "gelu": ({"hidden_act": "gelu"}, "unsupported_model", "gelu"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "unsupported_model", "awq"),
    "float8": ({"dtype": "float8_e4m3fn"}, "unsupported_model", "float8_e4m3fn"),
    "dynamic rope": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "unsupported_rope", "dynamic"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope"}}, "unsupported_rope", "longrope"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "unsupported_rope", "0.5"),
    "rope by layer": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "unsupported_rope",
        "layers",
    ),
    "rope without factor": (
        {"rope_scaling": {"type": "linear"}},
        "checkpoint_corrupt",
        "rope_scaling.factor",
    ),
    "rope of text": ({"rope_scaling": "linear"}, "checkpoint_corrupt", "rope_scaling"),
    "llama3 band": (
        {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
        "checkpoint_corrupt",
        "low_freq_factor",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_file_and_cause(tmp_path: Path, case: str) -> None:
    change, code, cause = REFUSALS[case]
    error = refusal(tmp_path, LLAMA | change)
    assert error.code == code
    assert cause in error.message
    assert str(tmp_path / "config.json") in error.message


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SemipdError) as caught:
            load_model_config(folder)
        assert caught.value.code == "model_not_found"
        assert str(folder) in caught.value.message
    for content in (b'{"architectures": [', b"[1, 2]", b"\xff\xfe\x00"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(SemipdError) as caught:
            load_model_config(tmp_path)
        assert caught.value.code == "checkpoint_corrupt"


SLIDING: dict[str, dict[str, Any]] = {
    "mistral": MISTRAL | {"sliding_window": 256},
    "qwen2 upper layers": QWEN2 | {"use_sliding_window": True, "sliding_window": 256, "max_window_layers": 2},
    "qwen2 layer types": QWEN2
    | {
        "use_sliding_window": True,
        "sliding_window": 256,
        "max_window_layers": 99,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
}


@pytest.mark.parametrize("case", SLIDING)
def test_a_window_in_use_is_refused_until_the_context_fits_it(tmp_path: Path, case: str) -> None:
    error = refusal(tmp_path, SLIDING[case])
    assert error.code == "unsupported_model"
    assert "256" in error.hint
    assert refusal(tmp_path, SLIDING[case], max_model_len=257).code == "unsupported_model"
    load(tmp_path, SLIDING[case], max_model_len=256)


@pytest.mark.parametrize(
    "config",
    [
        MISTRAL,
        MISTRAL | {"sliding_window": 512},
        LLAMA | {"sliding_window": 16},
        QWEN2 | {"use_sliding_window": False, "sliding_window": 16},
        QWEN2 | {"use_sliding_window": True, "sliding_window": None},
        QWEN2 | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
        QWEN2 | {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 3},
    ],
)
def test_a_window_not_in_use_is_accepted(tmp_path: Path, config: dict[str, Any]) -> None:
    load(tmp_path, config)


def test_mistral_without_the_key_has_a_window_of_4096(tmp_path: Path) -> None:
    config = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    load(tmp_path, config)
    assert refusal(tmp_path, config | {"max_position_embeddings": 8192}).code == "unsupported_model"


def test_context_beyond_the_checkpoint_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, LLAMA, max_model_len=513)
    assert (error.code, error.param) == ("invalid_value", "max_model_len")
    assert "512" in error.hint


@pytest.mark.parametrize(
    ("requested", "checkpoint", "flags", "expected"),
    [
        ("auto", "bfloat16", {"avx512_bf16"}, "bfloat16"),
        ("auto", "float16", {"amx_bf16"}, "bfloat16"),
        ("auto", "float32", {"avx512_bf16"}, "float32"),
        ("auto", "bfloat16", {"avx2"}, "float32"),
        ("float32", "bfloat16", {"avx512_bf16"}, "float32"),
        ("bfloat16", "float32", set(), "bfloat16"),
        ("float16", "float16", {"avx512_fp16"}, "float16"),
        ("auto", "bfloat16", {"bf16"}, "bfloat16"),
        ("float16", "float16", {"asimdhp"}, "float16"),
    ],
)
def test_dtype(tmp_path: Path, requested: str, checkpoint: str, flags: set[str], expected: str) -> None:
    config = load(tmp_path, LLAMA | {"dtype": checkpoint})
    assert resolve_dtype(requested, config, frozenset(flags)) == expected


@pytest.mark.parametrize("requested", ["float16", "int8", ""])
def test_dtype_refusals(tmp_path: Path, requested: str) -> None:
    with pytest.raises(SemipdError) as caught:
        resolve_dtype(requested, load(tmp_path, LLAMA), frozenset({"avx512_bf16"}))
    assert (caught.value.code, caught.value.param) == ("invalid_value", "dtype")


def test_cpu_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx512_bf16"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert "bf16" in cpu_flags(cpuinfo)
    assert cpu_flags(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [LLAMA | {"attention_bias": True, "mlp_bias": True}, QWEN2, MISTRAL])
def test_layout_has_room_for_every_source_and_no_overlap(
    tmp_path: Path, config: dict[str, Any], tied: bool
) -> None:
    model = load(tmp_path, config | {"tie_word_embeddings": tied})
    layout = plan_weights(model, "bfloat16")
    rows = {param.name: sum(len(s.rows) for s in param.sources) for param in model_params(model)}
    assert rows.keys() == {spec.name for spec in layout.tensors}
    end = 0
    for spec in layout.tensors:
        assert rows[spec.name] == spec.shape[0]
        assert spec.offset_bytes % ALIGNMENT_BYTES == 0
        assert spec.offset_bytes >= end
        end = spec.offset_bytes + 2 * math.prod(spec.shape)
    assert layout.total_bytes >= end
    assert ("lm_head" in rows) != tied


def test_kv_block_bytes(tmp_path: Path) -> None:
    # 3 layers, keys and values, 16 tokens, 2 heads of 16, 2 bytes
    assert KvLayout.of(load(tmp_path, LLAMA), 16).block_bytes("bfloat16") == 3 * 2 * 16 * 2 * 16 * 2


def test_planning_memory_needs_no_torch() -> None:
    modules = "semipd.checkpoints.layout, semipd.network.params, semipd.checkpoints.shards"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"
