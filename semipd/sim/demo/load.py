"""The demo's day: who sends what, and what goes wrong. Drawn from a seed."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from semipd.core.slo import BATCH_CLASS, DEFAULT_CLASS

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
    Episode("morning", 20, 1.3),
    Episode("day", 30, 2.8),
    Episode("long prompts", 45, 1.4, documents=0.2),
    Episode("evening", 25, 1.0, incident="slow step"),
    Episode("crash", 40, 1.3, incident="engine death"),
    Episode("reports", 75, 1.0, documents=0.05, reports=0.75, incident="override"),
    Episode("rush", 10, 25),
    Episode("after the rush", 25, 1.0),
    Episode("maintenance", 35, 1.2, incident="drain"),
    Episode("night", 25, 0.3),
)
"""Long prompts move the split, reports fill the KV pool, the rush overloads."""

DRAIN_FOR_S = 14.0
DOCUMENTS = "documents"
"""The service class of long prompts."""


class Draft(NamedTuple):
    """A request about to be sent. `shared_tokens`: of the prompt's beginning, that others of its sort have
    too, or of the conversation that it goes on with. `output_tokens`: how many the model will have to say.
    `patience_s`: after that the client hangs up. `read_tokens`: after that it reads nothing more."""

    at_s: float
    sort: str
    key: str | None
    service_class: str
    prompt_tokens: int
    shared_tokens: int
    follows_up: bool
    output_tokens: int
    max_tokens: int
    patience_s: float
    read_tokens: float


class DemoLoad:
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
        read_tokens = rng.uniform(5, 50) if rng.random() < 0.01 else math.inf
        key, shared, follows_up = "webapp" if rng.random() < 0.8 else None, 0, False
        service_class = DEFAULT_CLASS
        match sort:
            case "documents":
                key, service_class, most = "search", DOCUMENTS, 1024
                prompt, output = self._around(10_000, 0.35), self._around(350, 0.5)
            case "reports":
                key, service_class, shared, most, patience_s = "reports", BATCH_CLASS, 512, 4096, math.inf
                prompt, output = self._around(2600, 0.5), self._around(2200, 0.35)
            case _:
                prompt, output, most = self._around(850, 0.7), self._around(190, 0.8), 512
                follows_up = rng.random() < 0.3
                shared = int(prompt * rng.uniform(0.5, 0.9)) if follows_up else min(320, prompt - 1)
        output = min(output, most)
        return Draft(
            at_s,
            sort,
            key,
            service_class,
            prompt,
            shared,
            follows_up,
            output,
            most,
            patience_s,
            read_tokens,
        )

    def _around(self, median: int, sigma: float) -> int:
        return min(max(int(median * math.exp(self._rng.gauss(0, sigma))), 8), MAX_PROMPT_TOKENS)

    def _poisson(self, mean: float) -> int:
        limit, product, num = math.exp(-mean), self._rng.random(), 0
        while product > limit:
            product *= self._rng.random()
            num += 1
        return num
