"""The families of cases, each run by Hypothesis until it has had its share."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from fuzzlib.cases import broken_bodies, frames, http_bodies, raw_frames, raw_requests
from fuzzlib.talk import HttpTalker, SocketTalker, ViolationError
from semipd.core.errors import SemipdError

ROUND = 2000
"""Examples of one run of Hypothesis; a family has as many rounds as it needs, each with another seed."""


@dataclass
class Outcome:
    """`note` stands for the answers where there are none."""

    name: str
    cases: int = 0
    seconds: float = 0.0
    tally: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Family:
    name: str
    share: float
    cases: st.SearchStrategy[Any]
    send: Callable[[Any], None]


def run_families(url: str, socket_path: Path, num_cases: int, seed: int) -> list[Outcome]:
    """At least `num_cases` together. A family ends with its first violation, reduced to a small example."""
    http, frame_counts, outcomes = Counter[str](), Counter[str](), list[Outcome]()
    talker, socket_talker = HttpTalker(url, http), SocketTalker(socket_path, frame_counts)

    def ask(case: tuple[str, str, bytes]) -> None:
        talker.ask(*case)
        if case[1] == "/v1/drain":
            talker.ask("DELETE", "/v1/drain", b"{}")

    def say(requests: list[dict[str, Any]]) -> None:
        try:
            socket_talker.ask(requests)
        finally:
            if any(request["op"] == "drain" for request in requests):
                talker.ask("DELETE", "/v1/drain", b"{}")

    families = [
        Family("HTTP bodies", 0.35, http_bodies(), ask),
        Family("broken HTTP bodies", 0.15, broken_bodies(), ask),
        Family("HTTP requests as bytes", 0.2, raw_requests(), talker.send_raw),
        Family("socket frames", 0.2, frames(), say),
        Family("bytes on the socket", 0.1, raw_frames(), socket_talker.send_raw),
    ]
    for family in families:
        before = http + frame_counts
        outcome = run_family(family, -int(-num_cases * family.share // 1), seed)
        outcome.tally = (http + frame_counts) - before
        outcomes.append(outcome)
    talker.close()
    return outcomes


def run_family(family: Family, num_cases: int, seed: int) -> Outcome:
    outcome = Outcome(family.name)
    began_s = time.monotonic()
    while outcome.cases < num_cases and not outcome.violations:
        _run_round(family, min(num_cases - outcome.cases, ROUND), seed + outcome.cases, outcome)
    outcome.seconds = time.monotonic() - began_s
    return outcome


def _run_round(family: Family, num_cases: int, seed: int, outcome: Outcome) -> None:
    @seeded(seed)
    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(case=family.cases)
    def send(case: Any) -> None:
        outcome.cases += 1
        family.send(case)

    try:
        send()
    except (ViolationError, SemipdError, OSError, EOFError) as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        outcome.violations.append(f"{type(error).__name__}: {error}\n{notes}")
