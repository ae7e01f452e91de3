"""The policies that are compared, by name, and the engine settings that make each of them."""

from dataclasses import dataclass
from typing import Literal, get_args

from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.core.slo import Targets
from semipd.devices.sim.device import split_table
from semipd.devices.sim.gpus import Gpu

Kind = Literal["prefill-first", "chunked", "fixed", "paper", "predictive", "1p1d"]

WHOLE_PROMPTS = 8192
"""Tokens of one step of `prefill-first` and of the prefill instance of `1p1d`: whole prompts, batched."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """`value`: token budget of `chunked`, decode SMs of `fixed`, 0 for the others."""

    kind: Kind
    value: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}" if self.value else self.kind

    @property
    def num_gpus(self) -> int:
        return 2 if self.kind == "1p1d" else 1


def parse_policy(text: str) -> PolicySpec:
    """`chunked:512`, `fixed:64` (decode SMs), or a bare name. Raises SemipdError(`unknown_policy`)."""
    kind, colon, value = text.partition(":")
    needs_value = kind in ("chunked", "fixed")
    if kind not in get_args(Kind) or needs_value != bool(colon) or (colon and not value.isdigit()):
        raise SemipdError(
            "unknown_policy",
            f"{text!r} is no policy.",
            "Choose prefill-first, chunked:TOKENS, fixed:DECODE_SMS, paper, predictive or 1p1d.",
        )
    return PolicySpec(kind, int(value or 0))  # type: ignore[arg-type]


def settings_for(spec: PolicySpec, base: EngineSettings, slo: Targets, gpu: Gpu) -> EngineSettings:
    """`base` with what the policy changes. Every policy is told the same targets. Raises
    SemipdError(`impossible_split`)."""
    changes: dict[str, object] = {"slo_ttft_ms": slo.ttft_ms, "slo_tpot_ms": slo.tpot_ms}
    match spec.kind:
        case "prefill-first" | "1p1d":
            changes |= {"scheduler": "prefill-first", "step_token_budget": WHOLE_PROMPTS}
        case "chunked":
            changes |= {"scheduler": "chunked", "step_token_budget": spec.value}
        case "fixed":
            changes |= {"partition_mode": "fixed", "prefill_units": _prefill_sms(spec.value, gpu)}
        case "paper" | "predictive":
            changes |= {"partition_mode": "auto", "partition_policy": spec.kind}
    return EngineSettings.from_wire(base.to_wire() | changes)


def _prefill_sms(decode_sms: int, gpu: Gpu) -> int:
    """The control would round an odd wish to the table; a comparison must not do so unnoticed."""
    for split in split_table(gpu):
        if split.decode_units == decode_sms:
            return split.prefill_units
    possible = ", ".join(str(split.decode_units) for split in split_table(gpu))
    message = f"fixed:{decode_sms} is impossible: {gpu.label} offers {possible} SMs for decode."
    raise SemipdError("impossible_split", message, "Choose one of them.")
