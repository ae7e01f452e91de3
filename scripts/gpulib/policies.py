"""The policies that `gpu_bench.py` compares, as engine settings, and the rates that each one bears."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.core.slo import Targets
from semipd.core.split import Split
from semipd.sim.outcomes import Figures

ENOUGH = 0.9
"""Attainment that a rate must reach to count."""

HOPELESS = 0.5
"""Below it no higher rate is tried."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`family`: what the best member is chosen from."""

    name: str
    family: str
    changes: dict[str, object]

    def settings(self, base: EngineSettings, slo: Targets) -> EngineSettings:
        targets = {"slo_ttft_ms": slo.ttft_ms, "slo_tpot_ms": slo.tpot_ms}
        return replace(base, **targets, **self.changes)  # type: ignore[arg-type]


def policies(
    families: Iterable[str], budgets: Iterable[int], splits: Sequence[Split], whole_prompts: int
) -> list[Policy]:
    """Members of the families. `splits`: the device's; `fixed` takes every one. Raises
    SemipdError(`unknown_policy`)."""
    known: dict[str, list[Policy]] = {
        "prefill-first": [
            Policy(
                "prefill-first",
                "prefill-first",
                {"scheduler": "prefill-first", "step_token_budget": whole_prompts},
            )
        ],
        "chunked": [
            Policy(f"chunked {budget}", "chunked", {"scheduler": "chunked", "step_token_budget": budget})
            for budget in budgets
        ],
        "fixed": [
            Policy(
                f"fixed {split}",
                "fixed",
                {"partition_mode": "fixed", "prefill_units": split.prefill_units},
            )
            for split in splits
        ],
        "paper": [Policy("paper", "paper", {"partition_policy": "paper"})],
        "predictive": [Policy("predictive", "predictive", {"partition_policy": "predictive"})],
    }
    chosen: list[Policy] = []
    for family in families:
        if family not in known:
            raise SemipdError("unknown_policy", f"{family!r} is no policy.", f"Choose of {', '.join(known)}.")
        chosen += known[family]
    return chosen


@dataclass(slots=True)
class Climb:
    """Runs at rising rates until it is hopeless. `best_rate`: highest with enough attainment; 0: none."""

    rows: list[dict[str, Any]]
    best_rate: float = 0.0


def climb(rates: Sequence[float], run: Callable[[float], Figures]) -> Climb:
    found = Climb([])
    for rate in sorted(rates):
        figures = run(rate)
        found.rows.append({"rate": rate} | flat(figures))
        if figures.attainment >= ENOUGH:
            found.best_rate = rate
        if figures.attainment < HOPELESS:
            break
    return found


def flat(figures: Figures) -> dict[str, Any]:
    """One row of a table."""
    values = asdict(figures)
    row: dict[str, Any] = {
        "attainment": round(figures.attainment, 3),
        "goodput_per_s": round(figures.goodput_per_s, 3),
    }
    for name in ("ttft_ms", "tpot_ms"):
        for key in ("p50", "p90", "p99"):
            if key in values[name]:
                row[f"{name[:-3]}_{key}_ms"] = round(values[name][key], 2)
    return row | {"requests": figures.num_requests, "failed": figures.num_failed}


def best_of_families(found: dict[str, tuple[str, float]]) -> list[dict[str, Any]]:
    """`found`: policy to (family, best rate). One row per family with its best member, and how it stands to
    the best `chunked`."""
    best: dict[str, tuple[str, float]] = {}
    for policy, (family, rate) in found.items():
        if family not in best or rate > best[family][1]:
            best[family] = (policy, rate)
    reference = best.get("chunked", ("", 0.0))[1]
    return [
        {
            "family": family,
            "best member": policy,
            "rate": rate,
            "over tuned chunked": round(rate / reference, 2) if reference else "",
        }
        for family, (policy, rate) in best.items()
    ]
