"""config.json of a checkpoint, read once into a frozen ModelConfig. No torch here."""

import json
from dataclasses import replace
from pathlib import Path

from semipd.checkpoints.config_keys import unhonoured
from semipd.checkpoints.families import FAMILIES, Family, answer
from semipd.checkpoints.fields import Fields
from semipd.checkpoints.gguf.config_json import ROTATES_NEIGHBOURS, config_json, is_gguf, is_quantized
from semipd.checkpoints.gguf.header import GgufHeader
from semipd.checkpoints.quantization import quantization
from semipd.checkpoints.rope_config import parse_rope
from semipd.checkpoints.shards import usual_dtype
from semipd.core.errors import SemipdError
from semipd.network.config import ITEM_BYTES, DTypeName, ModelConfig
from semipd.system.json_file import UnusableJson, read_json_object

MAX_LAYERS = 4096

_SPELLINGS = {
    "auto": "",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}


def load_model_config(model_dir: str | Path, max_model_len: int = 0) -> ModelConfig:
    """Read `model_dir`/config.json, or the metadata of the file `model_dir` if it is one of GGUF.

    Args:
        max_model_len: longest context that will be served, in tokens; 0: what the checkpoint says. A sliding
            window at least this long never takes effect, so the model is accepted.

    Raises:
        SemipdError: `model_not_found`, `checkpoint_corrupt`, `unsupported_architecture`, `unsupported_rope`,
            `unsupported_model`, or `invalid_value` when `max_model_len` exceeds the checkpoint's context.
    """
    path = Path(model_dir)
    header = GgufHeader.read(path) if is_gguf(path) else None
    fields = _read_config(path) if header is None else Fields(config_json(header), path)
    family = _family(fields)
    _refuse_unsupported(fields)
    config = _dense_config(fields, family)
    if header is not None:
        neighbours = family.name in ROTATES_NEIGHBOURS
        config = replace(config, interleaved_rope=neighbours, is_quantized=is_quantized(header))
    _refuse_unhonoured(fields, config, family)
    _check_context(fields, config, family, max_model_len)
    return config


def _read_config(model_dir: Path) -> Fields:
    path = model_dir / "config.json"
    if not path.is_file():
        what = "has no config.json" if model_dir.is_dir() else "is not a folder"
        raise SemipdError(
            "model_not_found",
            f"{model_dir} {what}.",
            "Point `model` at a checkpoint folder as Hugging Face publishes them.",
            param="model",
        )
    try:
        return Fields(read_json_object(path), path)
    except UnusableJson as error:
        raise SemipdError("checkpoint_corrupt", f"{path} {error}.", "Download or repair the file.") from error


def _family(fields: Fields) -> Family:
    names = fields.data.get("architectures")
    if isinstance(names, list):
        for name in names:
            if isinstance(name, str) and name in FAMILIES:
                return _agreed(fields, name)
    if names is None or names == []:
        for name, family in FAMILIES.items():
            if fields.data.get("model_type") == family.name:
                return _agreed(fields, name)
    shown = ", ".join(map(str, names)) if isinstance(names, list) and names else "none"
    raise SemipdError(
        "unsupported_architecture",
        f"{fields.path} names the architecture {shown} (model_type {fields.data.get('model_type')!r}).",
        f"Supported: {', '.join(FAMILIES)}.",
    )


def _agreed(fields: Fields, architecture: str) -> Family:
    """The family of `architecture`, if the file names no other one and no code of its own."""
    family, model_type = FAMILIES[architecture], fields.data.get("model_type")
    if model_type not in (None, "", family.name):
        raise SemipdError(
            "unsupported_architecture",
            f"{fields.path} names the architecture {architecture}, but model_type {model_type!r:.100}.",
            f"If it is a plain {family.name} model, set model_type to {family.name!r}.",
        )
    auto_map = fields.data.get("auto_map") or {}
    if not isinstance(auto_map, dict):
        raise fields.corrupt(f"auto_map must be an object, got {auto_map!r:.100}")
    if code := [auto_map[name] for name in auto_map if name.startswith("AutoModel")]:
        raise SemipdError(
            "unsupported_architecture",
            f"{fields.path}: code of the checkpoint's own, which is not run, computes the model "
            f"(auto_map: {code[0]!r:.100}).",
            f"If it is a plain {family.name} model, remove auto_map.",
        )
    return family


def _refuse_unhonoured(fields: Fields, config: ModelConfig, family: Family) -> None:
    if keys := unhonoured(fields.data, config, family):
        shown = ", ".join(f"{key}={json.dumps(fields.data[key])[:60]}" for key in keys[:5])
        raise SemipdError(
            "unsupported_model",
            f"{fields.path}: {shown}{', ...' if len(keys) > 5 else ''} may change what a {config.family} "
            "model computes, and this release does not know how.",
            "Use another checkpoint. If a key has no effect on the arithmetic, remove it from config.json.",
        )


def _refuse_unsupported(fields: Fields) -> None:
    """What would change the arithmetic and is not implemented is refused, never ignored."""
    if said := quantization(fields):
        raise SemipdError(
            "unsupported_model",
            f"{said[0]} says that the weights are quantized ({said[1]}).",
            "Use the checkpoint's unquantized (bfloat16, float16 or float32) release.",
        )
    activation = fields.data.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise SemipdError(
            "unsupported_model",
            f"{fields.path}: hidden_act is {activation!r:.100}; only 'silu' is supported.",
        )


def _dense_config(fields: Fields, family: Family) -> ModelConfig:
    hidden_size = fields.count("hidden_size")
    num_heads = fields.count("num_attention_heads")
    context = fields.count("max_position_embeddings")
    rope = parse_rope(fields, context, family.theta)
    config = ModelConfig(
        family=family.name,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.count("num_hidden_layers", maximum=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=fields.count("num_key_value_heads", num_heads),
        head_dim=fields.count("head_dim", family.head_dim or hidden_size // num_heads),
        intermediate_size=fields.count("intermediate_size"),
        rms_norm_eps=fields.number("rms_norm_eps", family.rms_norm_eps, maximum=1.0),
        rope=rope,
        max_position_embeddings=rope.context_tokens(context),
        tie_word_embeddings=answer(family.tied, fields),
        qkv_bias=answer(family.qkv_bias, fields),
        o_bias=answer(family.o_bias, fields),
        mlp_bias=answer(family.mlp_bias, fields),
        qk_norm=family.qk_norm,
        dtype=_checkpoint_dtype(fields),
        interleaved_rope=family.interleaved_rope,
    )
    if config.num_heads % config.num_kv_heads:
        raise fields.corrupt(
            f"num_attention_heads ({config.num_heads}) must be a multiple of "
            f"num_key_value_heads ({config.num_kv_heads})"
        )
    if hidden_size % num_heads and fields.data.get("head_dim") is None and family.head_dim is None:
        raise fields.corrupt(
            f"hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({num_heads}) where "
            "head_dim is missing"
        )
    if config.head_dim % 2:
        raise fields.corrupt(f"head_dim {config.head_dim} is odd, which rotary positions exclude")
    return config


def _checkpoint_dtype(fields: Fields) -> DTypeName:
    """Where the file does not say, that of the tensors, as far as they are there."""
    first, second = (_dtype_name(fields.text(key)) for key in ("dtype", "torch_dtype"))
    if first and second and first != second:
        raise fields.corrupt(f"dtype is {first!r:.100}, torch_dtype {second!r:.100}")
    name = first or second or usual_dtype(fields.path.parent) or "float32"
    if name not in ITEM_BYTES:
        raise SemipdError(
            "unsupported_model",
            f"{fields.path}: dtype {name!r:.100} is not supported.",
            "Use a bfloat16, float16 or float32 release of the checkpoint.",
        )
    return name


def _dtype_name(said: str) -> str:
    """Empty: the file leaves it to the tensors."""
    name = said.removeprefix("torch.")
    return _SPELLINGS.get(name, name)


def _check_context(fields: Fields, config: ModelConfig, family: Family, max_model_len: int) -> None:
    if max_model_len > config.max_position_embeddings:
        raise SemipdError(
            "invalid_value",
            f"max_model_len is {max_model_len}; {fields.path} allows {config.max_position_embeddings}.",
            f"Set max_model_len to {config.max_position_embeddings} or less.",
            param="max_model_len",
        )
    context = max_model_len or config.max_position_embeddings
    window = _sliding_window(fields, config, family)
    if window is not None and window < context:
        raise SemipdError(
            "unsupported_model",
            f"{fields.path}: sliding-window attention over {window} tokens is in use, context {context}.",
            f"Set max_model_len to {window} or less, where the window has no effect.",
            param="max_model_len",
        )


def _sliding_window(fields: Fields, config: ModelConfig, family: Family) -> int | None:
    """Tokens of the window that some layer really applies, or None."""
    types = _layer_types(fields, config)
    # In transformers an absent key means 4096; null means no window.
    if fields.data.get("sliding_window", 4096) is None:
        return None
    if family.window == "no layer" and "sliding_attention" not in types:
        return None
    if family.window == "use_sliding_window" and not (
        fields.flag("use_sliding_window") and _some_layer_slides(fields, config, types)
    ):
        return None
    return fields.count("sliding_window", 4096)


def _layer_types(fields: Fields, config: ModelConfig) -> list[str]:
    """Empty when the file does not say. Raises `unsupported_model` for other kinds of layers."""
    types = fields.data.get("layer_types")
    if types is None:
        return []
    if not isinstance(types, list) or len(types) != config.num_layers:
        raise fields.corrupt(f"layer_types must be a list of {config.num_layers} names, got {types!r:.200}")
    if others := [name for name in types if name not in ("full_attention", "sliding_attention")]:
        raise SemipdError(
            "unsupported_model",
            f"{fields.path}: layer_types names {others[0]!r:.100}; supported are full and sliding attention.",
        )
    return types


def _some_layer_slides(fields: Fields, config: ModelConfig, types: list[str]) -> bool:
    if types:
        return "sliding_attention" in types
    return fields.count("max_window_layers", 28, minimum=0) < config.num_layers
