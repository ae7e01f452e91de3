"""The scenarios that are compared: workloads, models and targets, each with its window."""

from dataclasses import dataclass
from pathlib import Path

from semipd.core.slo import Targets
from semipd.sim.cases import GENERATED
from semipd.sim.workloads.classes import ServiceClass

BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
"""Tokens of a merged step that are tried for the scheduler chunked."""

SMALL_BUDGETS = (64, 128, 256, 512, 1024, 2048)
"""Where a step must be short beside what it reads."""

SPLITS = (16, 24, 32, 40, 48, 64, 80)
"""Decode SMs of the fixed splits: those that the CUDA recipe builds."""

# semi-PD (arXiv 2504.19867, section 7, Llama3-8B, the tight ones): for ShareGPT, and for LongBench
SHAREGPT_SLO = Targets(300.0, tpot_ms=150.0)
LONGBENCH_SLO = Targets(2250.0, tpot_ms=130.0)
TIGHT_SLO = Targets(500.0, tpot_ms=25.0)

CODE = ("azure2023_code_all8819.csv", "azure")
CONV = ("azure2023_conv_first5000.csv", "azure")
SHAREGPT = ("sharegpt_8k_lengths_first5000.csv", "sharegpt")
MOONCAKE = ("mooncake_conversation_first3000.jsonl", "mooncake")
LONG = (MOONCAKE[0], "mooncake-long")

MIXED = (
    ServiceClass("chat", Targets(500.0, tpot_ms=25.0, itl_ms=50.0), 0.5),
    ServiceClass("assistant", Targets(2000.0, tpot_ms=50.0), 0.3),
    ServiceClass("batch", Targets(), 0.2),
)
"""Half the requests in a hurry, a third less so, and a fifth that may wait."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload with targets.

    Attributes:
        source: file and format, or the name of a generated workload and "generated".
        targets: of every request, or what the engine is told where `classes` have their own.
        first_rate: requests per second and GPU at which searches begin.
        window_s: of arrivals: long enough that bursts do not decide. The report shows what both halves of
            it say.
        divide: merged steps of a useful size would break the targets, so dividing the GPU should pay.
    """

    name: str
    source: tuple[str, str]
    targets: Targets
    first_rate: float
    window_s: float
    model: str = "llama-3-8b"
    classes: tuple[ServiceClass, ...] = ()
    divide: bool = False
    budgets: tuple[int, ...] = BUDGETS
    splits: tuple[int, ...] = SPLITS

    @property
    def is_generated(self) -> bool:
        return self.source[1] == GENERATED

    def trace(self, folder: Path) -> str:
        return self.source[0] if self.is_generated else str(folder / self.source[0])


def _growing(ttft_ms: float, per_1k_ms: float, tpot_ms: float) -> Targets:
    return Targets(ttft_ms, per_1k_ms, tpot_ms)


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("code-loose", CODE, SHAREGPT_SLO, 1.0, 7200.0),
        Scenario("code", CODE, TIGHT_SLO, 1.0, 7200.0),
        Scenario("conv-loose", CONV, SHAREGPT_SLO, 20.0, 300.0),
        Scenario("conv", CONV, TIGHT_SLO, 20.0, 300.0),
        Scenario("conv-gaps", CONV, Targets(500.0, tpot_ms=25.0, itl_ms=50.0), 19.0, 300.0),
        Scenario("sharegpt-loose", SHAREGPT, SHAREGPT_SLO, 8.0, 600.0),
        Scenario("sharegpt", SHAREGPT, TIGHT_SLO, 7.5, 600.0),
        Scenario("sharegpt-15", SHAREGPT, Targets(500.0, tpot_ms=15.0), 6.0, 600.0, divide=True),
        Scenario("mooncake", MOONCAKE, LONGBENCH_SLO, 0.4, 2400.0),
        Scenario("long", LONG, _growing(500.0, 100.0, 25.0), 0.12, 4800.0, budgets=SMALL_BUDGETS),
        Scenario(
            "long-15", LONG, _growing(500.0, 100.0, 15.0), 0.08, 4800.0, divide=True, budgets=SMALL_BUDGETS
        ),
        Scenario("agents", ("agents", GENERATED), Targets(1000.0, tpot_ms=25.0), 2.5, 900.0, divide=True),
        Scenario("reasoning", ("reasoning", GENERATED), Targets(500.0, tpot_ms=15.0), 0.7, 900.0),
        Scenario(
            "70b", CONV, Targets(2000.0, tpot_ms=50.0), 2.0, 1800.0, "llama-3-70b-w8", divide=True,
            budgets=SMALL_BUDGETS,
        ),
        Scenario("moe", SHAREGPT, TIGHT_SLO, 16.0, 300.0, "deepseek-v2-lite"),
        Scenario("mixed", CONV, TIGHT_SLO, 20.0, 300.0, classes=MIXED),
    )
}  # fmt: skip


def described(scenario: Scenario) -> str:
    """Targets as text: "500/25 ms"; with gaps "500/25 ms, gaps 50 ms"; growing "500+100/1k/25 ms"."""
    if scenario.classes:
        return "; ".join(f"{of.name} {of.share:.0%} {_targets(of.targets)}" for of in scenario.classes)
    return _targets(scenario.targets)


def _targets(targets: Targets) -> str:
    if targets.ttft_ms is None:
        return "no targets"
    grows = f"+{targets.ttft_ms_per_1k_tokens:g}/1k" if targets.ttft_ms_per_1k_tokens else ""
    gaps = f", gaps {targets.itl_ms:g} ms" if targets.itl_ms else ""
    return f"{targets.ttft_ms:g}{grows}/{targets.tpot_ms:g} ms{gaps}"
