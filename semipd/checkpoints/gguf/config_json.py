"""The metadata of a GGUF file as the config.json of the same model. No torch here."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semipd.checkpoints.gguf.header import GgufHeader
from semipd.checkpoints.gguf.names import ROPE_FREQS
from semipd.core.errors import SemipdError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

ROTATES_NEIGHBOURS = frozenset({"llama"})
"""The converter has reordered the rows of queries and keys: dimensions 2i and 2i + 1 of a head are a pair."""

_NEEDED = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "nextn_predict_layers": "num_nextn_predict_layers",
}
_UNREAD = frozenset({"vocab_size", "expert_used_count", "tensor_data_layout", "rope.dimension_count"})
"""Said elsewhere in the file too, or without effect."""

_SCALING = "rope.scaling."
_OF_SCALING = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "finetuned": "finetuned",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}

LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR = 1.0, 4.0
"""Of every Llama 3; the file has only what follows from them."""

_ORIGINAL_CONTEXTS = [2**power for power in range(6, 21)]
_FREQS_TOLERANCE = 1e-4


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def config_json(header: GgufHeader) -> dict[str, Any]:
    """In the keys that transformers gives the architecture. Keys of the file that have no counterpart keep
    their names. Raises SemipdError: `unsupported_architecture`, `unsupported_model`, `unsupported_rope`,
    `checkpoint_corrupt`."""
    kind = _architecture(header)
    own = {
        key.removeprefix(f"{kind}."): value
        for key, value in header.metadata.items()
        if key.startswith(f"{kind}.")
    }
    if missing := [key for key in _NEEDED if key not in own]:
        raise _corrupt(header, f"says no {kind}.{missing[0]}")
    config = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": _vocab_size(header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "dtype": _dtype(header),
        "eos_token_id": _end_ids(header),
    }
    for key, value in own.items():
        if key not in _UNREAD and not key.startswith(_SCALING):
            config[(_NEEDED | _OPTIONAL).get(key, f"{kind}.{key}")] = value
    return config | _partial_rotation(own, config) | _scaling(header, own, config)


def _architecture(header: GgufHeader) -> str:
    metadata = header.metadata
    kind = metadata.get("general.architecture")
    if metadata.get("general.type", "model") != "model":
        what = f"{header.path} holds {metadata['general.type']!r:.100}, not a model."
        raise SemipdError("unsupported_model", what, "Name the file of the model itself.")
    if metadata.get("split.count", 0) not in (0, 1):
        raise SemipdError(
            "unsupported_model",
            f"{header.path} is one of {metadata['split.count']} parts of a model.",
            "Join them: llama-gguf-split --merge FIRST_PART JOINED.gguf.",
        )
    if kind not in ARCHITECTURES:
        raise SemipdError(
            "unsupported_architecture",
            f"{header.path} names the architecture {kind!r:.100}.",
            f"Supported in GGUF: {', '.join(ARCHITECTURES)}.",
        )
    return str(kind)


def _vocab_size(header: GgufHeader) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise _corrupt(header, "has no table token_embd.weight")
    return table.shape[0]


def is_quantized(header: GgufHeader) -> bool:
    return _usual_kind(header) not in _DTYPES


def _dtype(header: GgufHeader) -> str:
    return _DTYPES.get(_usual_kind(header), "bfloat16")


def _usual_kind(header: GgufHeader) -> str:
    """What most of its numbers are."""
    sizes: Counter[str] = Counter()
    for info in header.tensors.values():
        sizes[info.kind.name] += math.prod(info.shape)
    return sizes.most_common(1)[0][0]


def _end_ids(header: GgufHeader) -> list[int]:
    given = (header.metadata.get(f"tokenizer.ggml.{name}") for name in _ENDS)
    return [token_id for token_id in given if token_id is not None]


def _partial_rotation(own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    rotated = own.get("rope.dimension_count")
    hidden_size, heads = config["hidden_size"], config["num_attention_heads"]
    if not all(type(count) is int and count > 0 for count in (rotated, hidden_size, heads)):
        return {}
    whole = config.get("head_dim", hidden_size // heads)
    return {} if rotated == whole else {"partial_rotary_factor": rotated / whole}


def _scaling(header: GgufHeader, own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling`, if there is one."""
    given = {key.removeprefix(_SCALING): own[key] for key in own if key.startswith(_SCALING)}
    kind = given.pop("type", "none")
    if kind != "none":
        return {
            "rope_scaling": {"rope_type": kind}
            | {_OF_SCALING.get(key, f"{_SCALING}{key}"): value for key, value in given.items()}
        }
    if ROPE_FREQS not in header.tensors:
        return {}
    return {"rope_scaling": _llama3_of(header, config)}


def _llama3_of(header: GgufHeader, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling whose divisors of the frequencies are those of the file."""
    theta, divisors = config.get("rope_theta", 10_000.0), header.floats(ROPE_FREQS)
    factor = max(divisors, default=1.0)
    for original in _ORIGINAL_CONTEXTS if isinstance(theta, float) and theta > 0 else ():
        if _are_close(divisors, llama3_divisors(theta, len(divisors), factor, original)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW_FREQ_FACTOR,
                "high_freq_factor": HIGH_FREQ_FACTOR,
                "original_max_position_embeddings": original,
            }
    raise SemipdError(
        "unsupported_rope",
        f"{header.path}: the divisors of the rotary frequencies in {ROPE_FREQS} are not those of a Llama 3.",
        "Use the model's safetensors release.",
    )


def llama3_divisors(theta: float, count: int, factor: float, original_context: int) -> list[float]:
    """Of the frequencies theta^(-i / count): 1 for short waves, `factor` for long ones, and between them one
    over the mean of both that Llama 3's reference code takes."""
    divisors = []
    for idx in range(count):
        turns = original_context * theta ** (-idx / count) / (2 * math.pi)
        smooth = (turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR)
        smooth = min(max(smooth, 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def _are_close(values: Sequence[float], others: Sequence[float]) -> bool:
    return all(
        math.isclose(value, other, rel_tol=_FREQS_TOLERANCE)
        for value, other in zip(values, others, strict=True)
    )


def _corrupt(header: GgufHeader, what: str) -> SemipdError:
    return SemipdError("checkpoint_corrupt", f"{header.path} {what}.", "Download the file again.")
