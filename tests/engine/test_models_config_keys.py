"""No key of a config.json is passed over that might change what the model computes."""

import json
from pathlib import Path
from typing import Any

import pytest

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.families import FAMILIES
from semipd.checkpoints.shards import find_shards
from semipd.core.errors import SemipdError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0",
        "use_cache": True,
    },
    "Mistral-7B": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
        "rope_theta": 1000000.0,
        "torch_dtype": "bfloat16",
    },
    "Qwen2.5": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_window_layers": 28,
        "rope_theta": 1000000,
        "sliding_window": 131072,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "Qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "max_window_layers": 3,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * 3,
    },
    "a fine-tuned one": {
        "_name_or_path": "somebody/llama",
        "_attn_implementation_autoset": True,
        "unsloth_version": "2025.3.19",
        "unsloth_fixed": True,
        "pad_token_id": 2,
        "model_max_length": 4096,
        "auto_map": {"AutoTokenizer": ["tokenization.Tokenizer", None]},
        "pruned_heads": {},
        "is_encoder_decoder": False,
        "temperature": 0.7,
        "quantization_config": None,
    },
    "the defaults of other families": {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1,
        "attention_multiplier": 0.25,
        "query_pre_attn_scalar": 16,
        "logits_scaling": 1.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "no_rope_layers": [1, 1, 1],
        "partial_rotary_factor": 1.0,
        "num_experts": 0,
        "hidden_activation": "silu",
        "is_causal": True,
        "qk_norm": False,
        "norm_eps": 1e-6,
    },
}


def load(folder: Path, **changes: Any) -> Any:
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return load_model_config(folder)


def refusal(folder: Path, **changes: Any) -> SemipdError:
    with pytest.raises(SemipdError) as caught:
        load(folder, **changes)
    return caught.value


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_load(tmp_path: Path, name: str) -> None:
    load(tmp_path, **PUBLISHED[name])


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_transformers_saves_loads(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig

    sizes = {key: value for key, value in LLAMA.items() if key not in ("architectures", "model_type")}
    family = FAMILIES[architecture].name
    whole = AutoConfig.for_model(family, **sizes).to_dict() | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert load_model_config(tmp_path).family == family


UNHONOURED: list[tuple[str, Any]] = [
    ("no_rope_layers", [1, 1, 0]),
    ("no_rope_layer_interval", 4),
    ("embedding_multiplier", 12.0),
    ("residual_multiplier", 0.22),
    ("attention_multiplier", 0.015625),
    ("logits_scaling", 8.0),
    ("logit_scale", 0.0625),
    ("attn_logit_softcapping", 50.0),
    ("final_logit_softcapping", 30.0),
    ("query_pre_attn_scalar", 256),
    ("use_qk_norm", True),
    ("clip_qkv", 8.0),
    ("attention_out_bias", True),
    ("use_bias", True),
    ("num_experts", 8),
    ("num_local_experts", 8),
    ("use_parallel_residual", True),
    ("parallel_attn", True),
    ("alibi", True),
    ("attention_chunk_size", 8192),
    ("attn_temperature_tuning", True),
    ("rotary_pct", 0.25),
    ("rotary_dim", 8),
    ("rope_interleave", True),
    ("hidden_activation", "gelu_pytorch_tanh"),
    ("position_embedding_type", "absolute"),
    ("is_causal", False),
    ("use_bidirectional_attention", True),
    ("is_encoder_decoder", True),
    ("add_cross_attention", True),
    ("pruned_heads", {"0": [1]}),
    ("layer_norm_eps", 1e-5),
    ("use_dynamic_ntk", True),
    ("use_logn_attn", True),
    ("per_layer_config", {"0": {"hidden_size": 32}}),
    ("text_config", {"hidden_size": 64}),
    ("vision_config", {"hidden_size": 64}),
    ("something_of_next_year", 0.5),
    ("zero_is_no_neutral_factor", 0),
]


@pytest.mark.parametrize(("key", "value"), UNHONOURED)
def test_what_might_change_the_arithmetic_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    error = refusal(tmp_path, **{key: value})
    assert error.code == "unsupported_model"
    assert f"{key}=" in error.message
    assert str(tmp_path / "config.json") in error.message
    assert load(tmp_path, **{key: None}).family == "llama"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_type": "granite"}, "unsupported_architecture", "granite"),
        ({"auto_map": {"AutoModelForCausalLM": "m.Llama"}}, "unsupported_architecture", "m.Llama"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "unsupported_model", "quantization"),
        (
            {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
            "unsupported_model",
            "linear",
        ),
        ({"layer_types": ["full_attention"]}, "checkpoint_corrupt", "layer_types"),
        ({"layer_types": ["sliding_attention"] * 3, "sliding_window": 8}, "unsupported_model", "8 tokens"),
        ({"rope_scaling": {"factor": 2.0}}, "checkpoint_corrupt", "rope_type"),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2}},
            "checkpoint_corrupt",
            "yarn",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [8, 4, 4]}},
            "unsupported_rope",
            "mrope_section",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 1e4}},
            "checkpoint_corrupt",
            "differ",
        ),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "checkpoint_corrupt", "float16"),
    ],
)
def test_contradictions_and_other_models_are_refused(
    tmp_path: Path, changes: dict[str, Any], code: str, words: str
) -> None:
    error = refusal(tmp_path, **changes)
    assert (error.code, words in error.message) == (code, True), error.message


READ_AS_NUMBERS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
NONSENSE: list[Any] = ["400", -1, 0, 1e300, True, [], {}, float("nan"), float("inf"), 10**40]


@pytest.mark.parametrize("key", [*READ_AS_NUMBERS, "rope_theta", "max_position_embeddings", "head_dim"])
@pytest.mark.parametrize("value", NONSENSE, ids=repr)
def test_numbers_that_are_none(tmp_path: Path, key: str, value: Any) -> None:
    error = refusal(tmp_path, **{key: value})
    assert error.code == "checkpoint_corrupt"
    assert key in error.message
    assert str(tmp_path / "config.json") in error.message
    assert len(error.message) < 500


OTHERS: dict[str, list[Any]] = {
    "rope_scaling": ["linear", 5, [1], {"type": ["linear"]}, {"type": "linear", "factor": "2"}],
    "hidden_act": [5, ["silu"], None],
    "tie_word_embeddings": ["yes", 1, []],
    "layer_types": ["full", {}, [1, 2, 3]],
    "dtype": [16, ["bfloat16"], "int4"],
    "auto_map": [[1], "x"],
    "quantization_config": ["awq", [1], 4],
    "architectures": ["LlamaForCausalLM", [5], {}],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in OTHERS for value in OTHERS[key]], ids=repr
)
def test_other_values_of_a_wrong_kind(tmp_path: Path, key: str, value: Any) -> None:
    error = refusal(tmp_path, **{key: value})
    assert error.code.startswith(("checkpoint_corrupt", "unsupported_"))
    assert key in error.message or "architecture" in error.message or "rope" in error.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"vocab_size": 1, "vocab_size": 2}', "'vocab_size' more than once, and not the same"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("null", "NoneType"),
        ("", "cannot be read as JSON"),
    ],
)
def test_files_that_are_no_json_object(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    for read, name in ((load_model_config, "config.json"), (find_shards, "model.safetensors.index.json")):
        with pytest.raises(SemipdError) as caught:
            read(tmp_path)
        assert caught.value.code == "checkpoint_corrupt"
        assert f"{tmp_path / name}" in caught.value.message
        assert words in caught.value.message


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", ".", "x\0y"]
)
def test_an_index_names_files_of_its_folder_only(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(SemipdError) as caught:
        find_shards(tmp_path)
    assert caught.value.code == "checkpoint_corrupt"
