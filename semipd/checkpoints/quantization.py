"""How a checkpoint says that its weights are quantised: in config.json, in a file beside it, or by names of
tensors. No torch here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semipd.checkpoints.fields import Fields
from semipd.system.json_file import UnusableJson, read_json_object

_KEYS = ("quantization_config", "compression_config", "quantization")
_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Of ModelOpt, GPTQ and AWQ: there may be nothing in config.json."""

_METHODS = ("quant_method", "quant_algo", "quant_library", "load_in_4bit", "load_in_8bit", "bits", "w_bit")

QUANTIZED_TENSORS = (".qweight", ".qzeros", ".scales", "_scale", ".weight_packed", ".absmax", ".g_idx")
"""Ends of tensors' names."""


def quantization(fields: Fields) -> tuple[Path, str] | None:
    """Which file says so, and what; None: nothing does."""
    for path, key, said in _given(fields):
        if said:
            return path, f"{key}: {_method(said)}"
    return None


def _given(fields: Fields) -> Iterator[tuple[Path, str, Any]]:
    text = fields.data.get("text_config")
    for data in (fields.data, text if isinstance(text, dict) else {}):
        for key in _KEYS:
            yield fields.path, key, data.get(key)
    if fields.path.name != "config.json":
        return
    for name in _FILES:
        path = fields.path.with_name(name)
        try:
            yield path, "quantization", read_json_object(path)
        except FileNotFoundError:
            continue
        except UnusableJson as error:
            yield path, "quantization", f"the file {error}"


def _method(said: object) -> str:
    if not isinstance(said, dict):
        return str(said)[:100]
    inner = said.get("quantization")
    for values in (said, inner if isinstance(inner, dict) else {}):
        for key in _METHODS:
            if values.get(key):
                return str(values[key])[:100] if key in _METHODS[:3] else f"{key} {values[key]}"[:100]
    return f"keys {', '.join(list(said)[:3])}"[:100]
