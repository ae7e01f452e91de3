"""Rotary position parameters of a checkpoint, in both spellings the field uses. No torch here."""

from typing import Any, cast

from semipd.checkpoints.fields import MOST, Fields
from semipd.core.errors import SemipdError
from semipd.network.config import RopeConfig, RopeKind

DEFAULT_THETA = 10_000.0

MIN_FACTOR, MAX_FACTOR = 1e-3, 1e6
"""By which a context becomes longer; beyond them nothing of the positions is left in 32-bit floats."""

MIN_SCALE, MAX_SCALE = 1e-3, 1e3
"""Of cos and sin; it enters the attention logits squared."""

MIN_BETA, MAX_BETA = 1e-3, 1e6
"""Turns over the original context."""

_UNSCALED = frozenset({"rope_theta", "partial_rotary_factor", "type", "rope_type"})
_READ = _UNSCALED | {
    "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast",
    "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim", "finetuned",
}  # fmt: skip


def parse_rope(
    fields: Fields, max_position_embeddings: int, default_theta: float = DEFAULT_THETA
) -> RopeConfig:
    """`rope_theta` + `rope_scaling` (with `type` or `rope_type`), or the newer `rope_parameters`.

    Raises:
        SemipdError: `unsupported_rope` for kinds other than default, linear, llama3 and yarn, and for partial
            rotation; `checkpoint_corrupt` for missing or malformed parameters.
    """
    values = _scaling(fields)
    kind = _kind(values)
    _refuse_unread(values)
    theta = values.number("rope_theta", fields.number("rope_theta", default_theta))
    if theta < 1.0 or (theta == 1.0 and kind == "yarn"):
        raise values.corrupt(f"rope_theta must be above 1, got {theta:g}")
    partial = values.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise SemipdError(
            "unsupported_rope", f"{fields.path}: partial_rotary_factor {partial} is not supported."
        )
    if kind == "default":
        return RopeConfig(kind, theta)
    if kind == "linear":
        return RopeConfig(kind, theta, _factor(values))
    original = fields.count(
        "original_max_position_embeddings",
        values.count("original_max_position_embeddings", max_position_embeddings),
    )
    if kind == "llama3":
        return _llama3(values, theta, original)
    return _yarn(values, theta, original, max_position_embeddings)


def _scaling(fields: Fields) -> Fields:
    given = {key: _object(fields, key) for key in ("rope_scaling", "rope_parameters")}
    said = {key: values for key, values in given.items() if values}
    if len(said) == 2 and said["rope_scaling"] != said["rope_parameters"]:
        raise fields.corrupt("rope_scaling and rope_parameters differ")
    key = next(iter(said), "rope_parameters")
    values = given[key]
    if any(isinstance(value, dict) for value in values.values()):
        raise SemipdError(
            "unsupported_rope", f"{fields.path}: {key} differs between layers, which is not supported."
        )
    return Fields(values, fields.path, prefix=f"{key}.")


def _object(fields: Fields, key: str) -> dict[str, Any]:
    values = fields.data.get(key)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise fields.corrupt(f"{key} must be an object, got {values!r:.100}")
    return values


def _kind(values: Fields) -> RopeKind:
    newer, older = values.text("rope_type"), values.text("type")
    if newer and older and newer != older:
        raise values.corrupt(f"{values.prefix}rope_type is {newer!r:.100}, type {older!r:.100}")
    if not (newer or older) and (scaled := values.data.keys() - _UNSCALED):
        raise values.corrupt(f"{values.prefix}rope_type is missing beside {', '.join(sorted(scaled))}")
    kind = newer or older or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise SemipdError(
            "unsupported_rope",
            f"{values.path}: rope type {kind!r:.100} is not supported.",
            "Supported: default, linear, llama3, yarn.",
        )
    return cast(RopeKind, kind)


def _refuse_unread(values: Fields) -> None:
    """What nobody reads might turn positions otherwise than we do."""
    unread = [key for key, value in values.data.items() if key not in _READ and value not in (None, False)]
    if unread:
        raise SemipdError(
            "unsupported_rope",
            f"{values.path}: {values.prefix}{unread[0]} is not supported.",
            f"Supported: {', '.join(sorted(_READ))}. Remove it if it has no effect.",
        )


def _llama3(values: Fields, theta: float, original: int) -> RopeConfig:
    low, high = values.number("low_freq_factor"), values.number("high_freq_factor")
    if low >= high:
        raise values.corrupt(f"{values.prefix}low_freq_factor {low} must be below high_freq_factor {high}")
    return RopeConfig("llama3", theta, _factor(values), original, low_freq_factor=low, high_freq_factor=high)


def _yarn(values: Fields, theta: float, original: int, max_position_embeddings: int) -> RopeConfig:
    def beta(key: str, default: float) -> float:
        return values.number(key, minimum=MIN_BETA, maximum=MAX_BETA) if values.data.get(key) else default

    def scale(key: str) -> float:
        return values.number(key, minimum=MIN_SCALE, maximum=MAX_SCALE)

    factor = _factor(values, max_position_embeddings / original)
    if factor * original > MOST:
        raise values.corrupt(
            f"{values.prefix}factor {factor:g} times an original context of {original} tokens exceeds {MOST}"
        )
    return RopeConfig(
        "yarn",
        theta,
        factor,
        original,
        beta_fast=beta("beta_fast", 32.0),
        beta_slow=beta("beta_slow", 1.0),
        truncate=values.flag("truncate", True),
        attention_factor=None if values.data.get("attention_factor") is None else scale("attention_factor"),
        mscale=scale("mscale") if values.data.get("mscale") else None,
        mscale_all_dim=scale("mscale_all_dim") if values.data.get("mscale_all_dim") else None,
    )


def _factor(values: Fields, default: float | None = None) -> float:
    return values.number("factor", default, minimum=MIN_FACTOR, maximum=MAX_FACTOR)
