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
from fuzzlib.edges import Case, aliases, edge_frames, logit_numbers, multitudes, numbers, prompt_numbers
from fuzzlib.large import Bystander, deep_bodies, large_bodies, large_frames
from fuzzlib.talk import HttpTalker, SocketTalker, ViolationError
from fuzzlib.watch import Watch
from semipd.core.errors import SemipdError

KNOWN_LIMIT_S = 0.3
"""For what is left behind by a case that is a violation anyway."""

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
    """`shrinks`: a violation is reduced to a small example, unless each try is expensive."""

    name: str
    share: float
    cases: st.SearchStrategy[Any]
    send: Callable[[Any], None]
    shrinks: bool = True


def run_families(url: str, socket_path: Path, num_cases: int, seed: int) -> list[Outcome]:
    """At least `num_cases` together. A family ends with its first violation, reduced to a small example."""
    http, frame_counts = Counter[str](), Counter[str]()
    talker, socket_talker = HttpTalker(url, http), SocketTalker(socket_path, frame_counts)

    bystander = Bystander(url, socket_path, http, frame_counts)

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

    watched = Watched(talker, Watch(url))
    families = [
        Family("HTTP bodies", 0.25, http_bodies(), ask),
        Family("broken HTTP bodies", 0.1, broken_bodies(), ask),
        Family("HTTP requests as bytes", 0.15, raw_requests(), talker.send_raw),
        Family("socket frames", 0.15, frames(), say),
        Family("bytes on the socket", 0.1, raw_frames(), socket_talker.send_raw),
        Family(
            "numbers at the edges", 0.15, numbers() | numbers() | numbers() | prompt_numbers(), watched.ask
        ),
        Family("the same on the socket", 0.05, edge_frames(), watched.asking(socket_talker.ask)),
        Family("aliases of keys", 0.04, aliases(), watched.ask),
        Family("more than the queue", 0.01, multitudes(), watched.ask),
        Family("deep HTTP bodies", 0.01, deep_bodies(), bystander.ask),
        Family("large HTTP bodies", 0.015, large_bodies(), bystander.ask),
        Family("large socket frames", 0.005, large_frames, bystander.say),
    ]
    try:
        return _run(families, num_cases, seed, http, frame_counts, talker)
    finally:
        bystander.close()


def run_edges(url: str, num_cases: int, seed: int) -> list[Outcome]:
    """Numbers alone, for a device that computes logits: there they may do more harm than a refusal."""
    counts = Counter[str]()
    talker = HttpTalker(url, counts)
    watched = Watched(talker, Watch(url))
    families = [
        Family("what changes logits, on the CPU", 0.5, logit_numbers(), watched.ask, shrinks=False),
        Family("all numbers, on the CPU", 0.5, numbers(), watched.ask, shrinks=False),
    ]
    return _run(families, num_cases, seed, counts, Counter(), talker)


class Watched:
    """Sends a case and looks what it left behind."""

    def __init__(self, talker: HttpTalker, watch: Watch) -> None:
        self._talker = talker
        self._watch = watch

    def ask(self, case: Case) -> None:
        def send(case: Case) -> None:
            status = self._talker.ask(case.method, case.path, case.body)
            if case.refused and status < 400:
                raise ViolationError(f"status {status}, although {case.refused}")

        self.asking(send)(case)

    def asking(self, send: Callable[[Any], object]) -> Callable[[Any], None]:
        def watched(case: Any) -> None:
            wrong = []
            try:
                send(case)
            except ViolationError as error:
                wrong = [str(error)]
            wrong += self._watch.problems(KNOWN_LIMIT_S if wrong else None)
            if wrong:
                raise ViolationError("; ".join(wrong))

        return watched


def _run(
    families: list[Family],
    num_cases: int,
    seed: int,
    http: Counter[str],
    frame_counts: Counter[str],
    talker: HttpTalker,
) -> list[Outcome]:
    outcomes = list[Outcome]()
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
        phases=[Phase.generate, *([Phase.shrink] if family.shrinks else [])],
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
