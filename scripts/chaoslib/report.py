"""The table at the end, and whether it is good."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from chaoslib.jobs import Fate


@dataclass(slots=True)
class Result:
    """What happened in a run. `changed` and `lost` describe each such request; `engine_failures` are engines
    that gave up by themselves, for instance because their own check of the KV blocks failed."""

    device: str
    seed: int
    seconds: float
    method: str
    fates: Counter[Fate] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    leaked_blocks: int = 0
    left: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    garbage: Counter[str] = field(default_factory=Counter)
    unrecovered: list[str] = field(default_factory=list)
    engine_deaths: int = 0
    worker_deaths: int = 0
    requests_resumed: int = 0
    engine_failures: int = 0
    tracebacks: int = 0
    exit_code: int | None = 0
    busy_loops: int = 0
    machine_time: str = ""

    @property
    def num_accepted(self) -> int:
        return self.fates.total() - self.fates["refused"]

    @property
    def problems(self) -> list[str]:
        """Empty when the run was good."""
        found = {
            "requests lost": len(self.lost),
            "streams changed": len(self.changed),
            "blocks leaked": self.leaked_blocks,
            "processes left": len(self.left),
            "faults not recovered from": len(self.unrecovered),
            "engines that failed by themselves": self.engine_failures,
            "tracebacks in the log": self.tracebacks,
            "garbage without an answer": self.garbage["no answer"],
            "garbage answered with an internal error": self.garbage["server error"],
        }
        problems = [f"{name}: {count}" for name, count in found.items() if count]
        if self.exit_code != 0:
            problems.append(f"the daemon ended with {self.exit_code}")
        return problems

    def rows(self) -> list[tuple[str, int]]:
        fates = self.fates
        return [
            ("requests accepted", self.num_accepted),
            ("finished", fates["finished"]),
            ("refused with an answer", fates["refused"]),
            ("failed with an answer", fates["failed"]),
            ("left by their client", fates["left"]),
            ("lost", len(self.lost)),
            ("streams changed", len(self.changed)),
            ("blocks leaked", self.leaked_blocks),
            ("processes left", len(self.left)),
        ]

    def to_plain(self) -> dict[str, Any]:
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return known | {"accepted": self.num_accepted, "problems": self.problems}

    def text(self) -> str:
        """Markdown, as docs/reliability.md has it."""
        lines = [
            f"device {self.device}, seed {self.seed}, {self.seconds:.0f} s under load, "
            f"{self.num_tokens} tokens delivered",
            f"beside {self.busy_loops} busy loops; the machine granted {self.machine_time}",
            f"engines replaced: {self.engine_deaths}, workers replaced: {self.worker_deaths}, "
            f"requests taken up again: {self.requests_resumed}",
            f"faults: {_counts(self.faults)}",
            f"malformed input: {_counts(self.garbage)}",
            f"errors answered: {_counts(self.codes)}",
            f"streams judged by {self.method}",
            "",
            "| outcome | count |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in self.rows()),
        ]
        for name, details in (("lost", self.lost), ("changed", self.changed), ("not back", self.unrecovered)):
            lines += [f"{name}: {detail}" for detail in details[:20]]
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()) if count) or "none"
