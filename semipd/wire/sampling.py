"""SamplingParams to and from a plain map."""

from dataclasses import fields
from typing import Any

from semipd.core.sampling import SamplingParams

_FIELDS = tuple(f.name for f in fields(SamplingParams))


def sampling_to_wire(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in _FIELDS}


def sampling_from_wire(data: dict[str, Any]) -> SamplingParams:
    """Inverse of sampling_to_wire: lists become the tuples that a frozen record needs."""
    return SamplingParams(
        **data
        | {
            "logit_bias": tuple((token, bias) for token, bias in data["logit_bias"]),
            "allowed_token_ids": tuple(data["allowed_token_ids"]),
            "stop_token_ids": tuple(data["stop_token_ids"]),
        }
    )
