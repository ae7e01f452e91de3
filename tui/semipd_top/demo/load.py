"""The demo's day: who sends what, and what goes wrong. Drawn from a seed."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

RAMP_S = 8.0
MAX_PROMPT_TOKENS = 28_000

Incident = Literal["override", "slow step", "engine death", "drain"]
INCIDENT_AFTER_S = 6.0
"""From the beginning of its episode."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Requests per second of each sort, for so long."""

    name: str
    seconds: float
    chat: float
    documents: float = 0.0
    reports: float = 0.0
    incident: Incident | None = None


FIRST_DAY = (
    Episode("the engine starts", 12, 0),
    Episode("morning", 30, 2.5),
    Episode("day", 30, 6),
    Episode("long prompts", 45, 4, documents=0.7),
    Episode("day", 20, 4),
    Episode("reports", 75, 3, documents=0.25, reports=1.15, incident="override"),
    Episode("evening", 30, 3, incident="slow step"),
    Episode("crash", 40, 4, incident="engine death"),
    Episode("rush", 10, 50),
    Episode("after the rush", 25, 3),
    Episode("maintenance", 35, 3, incident="drain"),
    Episode("night", 25, 0.4),
)
"""Long prompts move the split, reports fill the KV pool, the rush overloads."""

DRAIN_FOR_S = 14.0


class Draft(NamedTuple):
    """A request about to be sent. `output_tokens`: how many the model will have to say; `patience_s`: after
    that the client hangs up."""

    at_s: float
    sort: str
    key: str | None
    priority: str
    prompt_tokens: int
    shared_tokens: int
    output_tokens: int
    max_tokens: int
    patience_s: float


class Load:
    """Times are seconds since the demo began."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._days = self._episodes()
        self._before = self._episode = next(self._days)
        self._began_s = 0.0

    def between(self, from_s: float, to_s: float) -> tuple[list[Draft], list[Incident]]:
        """What comes in that time, by time, and the incidents that begin."""
        incidents: list[Incident] = []
        while to_s >= self._began_s + self._episode.seconds:
            self._began_s += self._episode.seconds
            self._before, self._episode = self._episode, next(self._days)
        due_s = self._began_s + INCIDENT_AFTER_S
        if self._episode.incident is not None and from_s < due_s <= to_s:
            incidents.append(self._episode.incident)
        ramp = min((to_s - self._began_s) / RAMP_S, 1.0)
        drafts: list[Draft] = []
        for sort in ("chat", "documents", "reports"):
            here, there = getattr(self._episode, sort), getattr(self._before, sort)
            num = self._poisson((there + (here - there) * ramp) * (to_s - from_s))
            drafts += [self._draft(sort, self._rng.uniform(from_s, to_s)) for _ in range(num)]
        return sorted(drafts), incidents

    def _episodes(self) -> Iterator[Episode]:
        yield from FIRST_DAY
        while True:
            day = list(FIRST_DAY[1:])
            self._rng.shuffle(day)
            for episode in day:
                yield self._varied(episode)

    def _varied(self, episode: Episode) -> Episode:
        rng = self._rng
        size = rng.uniform(0.75, 1.25)
        return replace(
            episode,
            seconds=episode.seconds * rng.uniform(0.8, 1.6),
            chat=episode.chat * size,
            documents=episode.documents * size,
            reports=episode.reports * size,
            incident=episode.incident if rng.random() < 0.6 else None,
        )

    def _draft(self, sort: str, at_s: float) -> Draft:
        rng = self._rng
        patience_s = rng.uniform(0.2, 4.0) if rng.random() < 0.03 else math.inf
        key, priority, shared = "webapp" if rng.random() < 0.8 else None, "interactive", 0
        match sort:
            case "documents":
                key, most = "search", 1024
                prompt, output = self._around(10_000, 0.35), self._around(350, 0.5)
            case "reports":
                key, priority, shared, most, patience_s = "reports", "batch", 512, 4096, math.inf
                prompt, output = self._around(2600, 0.5), self._around(2200, 0.35)
            case _:
                prompt, output, most = self._around(850, 0.7), self._around(190, 0.8), 512
                shared = int(prompt * rng.uniform(0.5, 0.9)) if rng.random() < 0.3 else 320
        return Draft(at_s, sort, key, priority, prompt, shared, min(output, most), most, patience_s)

    def _around(self, median: int, sigma: float) -> int:
        return min(max(int(median * math.exp(self._rng.gauss(0, sigma))), 8), MAX_PROMPT_TOKENS)

    def _poisson(self, mean: float) -> int:
        limit, product, num = math.exp(-mean), self._rng.random(), 0
        while product > limit:
            product *= self._rng.random()
            num += 1
        return num
