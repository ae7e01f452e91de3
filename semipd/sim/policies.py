"""The policies that are compared, by name, and the engine settings that make each of them."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings, OrderName
from semipd.core.slo import Targets
from semipd.devices.sim.device import split_table
from semipd.devices.sim.gpus import Gpu

Kind = Literal["prefill-first", "chunked", "fixed", "paper", "predictive", "1p1d"]

WHOLE_PROMPTS = 8192
"""Tokens of one step of `prefill-first` and of the prefill instance of `1p1d`: whole prompts, batched."""


NOBODY_REFUSED_S = 86_400.0
"""First come, first served as other engines do it: everybody waits for as long as it takes."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """`value`: token budget of `chunked`, decode SMs of `fixed`, 0 for the others. `replicas`: engines of
    this kind behind one door."""

    kind: Kind
    value: int = 0
    order: OrderName = "fcfs"
    replicas: int = 1

    def __str__(self) -> str:
        group = f"{self.replicas}*" if self.replicas > 1 else ""
        value = f":{self.value}" if self.value else ""
        return f"{group}{self.kind}{value}" + (f"+{self.order}" if self.order != "fcfs" else "")

    @property
    def num_gpus(self) -> int:
        return 2 * self.replicas if self.kind == "1p1d" else self.replicas

    @property
    def one_lane(self) -> bool:
        """Its engines run every step on the whole device."""
        return self.kind in ("prefill-first", "chunked", "1p1d")


_POLICY = re.compile(
    r"(?:(?P<replicas>[2-9]|[1-9]\d+)\*)?(?P<kind>[^:+*]+)(?::(?P<value>\d+))?(?:\+(?P<order>\w+))?"
)


def parse_policy(text: str) -> PolicySpec:
    """`chunked:512`, `fixed:64` (decode SMs), or a bare name; behind it `+deadline` or another order, before
    it `2*` for two engines behind one door. Raises SemipdError(`unknown_policy`)."""
    found = _POLICY.fullmatch(text)
    spec = found and _spec(found)
    if spec is None:
        raise SemipdError(
            "unknown_policy",
            f"{text!r} is no policy.",
            "Choose prefill-first, chunked:TOKENS, fixed:DECODE_SMS, paper, predictive or 1p1d, with +ORDER "
            f"({', '.join(get_args(OrderName))}) behind it or N* before it.",
        )
    return spec


def _spec(found: re.Match[str]) -> PolicySpec | None:
    kind, value, order = found["kind"], int(found["value"] or 0), found["order"] or "fcfs"
    replicas = int(found["replicas"] or 1)
    right = kind in get_args(Kind) and (kind in ("chunked", "fixed")) == bool(value)
    if not right or order not in get_args(OrderName) or (kind == "1p1d" and replicas > 1):
        return None
    return PolicySpec(kind, value, order, replicas)  # type: ignore[arg-type]


def settings_for(spec: PolicySpec, base: EngineSettings, slo: Targets, gpu: Gpu) -> EngineSettings:
    """`base` with what the policy changes. Every policy is told the same targets. Raises
    SemipdError(`impossible_split`)."""
    changes: dict[str, object] = {
        "slo_ttft_ms": slo.ttft_ms,
        "slo_tpot_ms": slo.tpot_ms,
        "order": spec.order,
    }
    if spec.order == "fcfs":
        changes["max_late_s"] = NOBODY_REFUSED_S
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
