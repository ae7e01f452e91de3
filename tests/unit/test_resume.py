"""The order of submission after crashes, with a simulated engine that dies in every way there is."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from support.seeds import each_seed

from semipd.core.request import SeqId
from semipd.daemon.requests.resume import Resumption, Stage

MAX_CRASHES = 400
SEATS = 8


@dataclass
class Poison:
    """One request that kills the engine each time it runs: once it has that many tokens or, with `each_time`,
    that many more than when it was submitted."""

    seq: SeqId
    at_tokens: int
    each_time: bool = False


@dataclass
class Engine:
    """Each step gives every request one token; a prompt takes a few steps first. Tokens reach the daemon
    `lag` steps later; those under way are lost when it dies."""

    rng: random.Random
    poison: Poison | None
    lag: int
    running: dict[SeqId, int] = field(default_factory=dict)  # steps until its first token
    waiting: list[SeqId] = field(default_factory=list)
    began_with: dict[SeqId, int] = field(default_factory=dict)
    tokens: dict[SeqId, int] = field(default_factory=dict)
    under_way: list[list[SeqId]] = field(default_factory=list)

    def submit(self, seq: SeqId, num_tokens: int) -> None:
        self.waiting.append(seq)
        self.tokens[seq] = self.began_with[seq] = num_tokens

    def forget(self, seq: SeqId) -> None:
        self.running.pop(seq, None)
        if seq in self.waiting:
            self.waiting.remove(seq)

    def step(self) -> list[SeqId] | None:
        """Whose tokens arrive at the daemon; None: it dies."""
        while self.waiting and len(self.running) < SEATS:
            self.running[self.waiting.pop(0)] = self.rng.randint(0, 2)
        if self._is_poisoned():
            return None
        fresh = [seq for seq, left in self.running.items() if left == 0]
        for seq in fresh:
            self.tokens[seq] += 1
        self.running = {seq: max(left - 1, 0) for seq, left in self.running.items()}
        self.under_way.append(fresh)
        return self.under_way.pop(0) if len(self.under_way) > self.lag else []

    def _is_poisoned(self) -> bool:
        if self.poison is None or self.running.get(self.poison.seq) != 0:
            return False
        before = self.began_with[self.poison.seq] if self.poison.each_time else 0
        return self.tokens[self.poison.seq] >= before + self.poison.at_tokens

    def stage(self, seq: SeqId) -> Stage:
        if seq in self.waiting:
            return "waiting"
        return "decoding" if self.tokens[seq] else "prefilling"


class Simulation:
    """The daemon's part of it: a table of requests around a Resumption, checked after each step."""

    def __init__(
        self, seed: int, poison: Poison | None = None, kills_per_step: float = 0.0, lag: int = 0
    ) -> None:
        self.rng = random.Random(seed)
        self.poison = poison
        self.kills_per_step = kills_per_step
        self.lag = lag
        self.resumption = Resumption()
        self.engine = Engine(self.rng, poison, lag)
        self.wanted: dict[SeqId, int] = {}
        self.tokens: dict[SeqId, int] = {}
        self.failed: set[SeqId] = set()
        self.cancelled: set[SeqId] = set()
        self.crashes = 0

    @property
    def over(self) -> set[SeqId]:
        done = {seq for seq, num in self.tokens.items() if num >= self.wanted[seq]}
        return done | self.failed | self.cancelled

    def arrive(self, max_tokens: int) -> SeqId:
        seq = SeqId(len(self.wanted) + 1)
        self.wanted[seq], self.tokens[seq] = max_tokens, 0
        self.resumption.arrived(seq)
        return seq

    def cancel(self, seq: SeqId) -> None:
        self.cancelled.add(seq)
        self._forget(seq)

    def run(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        for step in range(20_000):
            on_step(step)
            self._submit()
            if len(self.over) == len(self.wanted):
                return
            out = self.engine.step()
            if out is None or self.rng.random() < self.kills_per_step:
                self._crash()
            else:
                self._advance(out)
            self._check()
        raise AssertionError(f"lost: {sorted(set(self.wanted) - self.over)}")

    def _submit(self) -> None:
        while (seq := self.resumption.next_due()) is not None:
            assert seq not in self.over, f"{seq} is submitted though it is over"
            self.engine.submit(seq, self.tokens[seq])

    def _advance(self, out: list[SeqId]) -> None:
        for seq in out:
            if seq in self.over:
                continue
            self.tokens[seq] += 1
            self.resumption.progressed(seq)
            if self.tokens[seq] >= self.wanted[seq]:
                self._forget(seq)

    def _forget(self, seq: SeqId) -> None:
        self.resumption.ended(seq)
        self.engine.forget(seq)

    def _crash(self) -> None:
        self.crashes += 1
        assert self.crashes < MAX_CRASHES, "the engine dies again and again"
        in_engine = [*self.engine.running, *self.engine.waiting]
        self.failed |= set(self.resumption.crashed({seq: self.engine.stage(seq) for seq in in_engine}))
        self.engine = Engine(self.rng, self.poison, self.lag)

    def _check(self) -> None:
        self.resumption.check_integrity()
        in_engine = {*self.engine.running, *self.engine.waiting}
        for seq in self.wanted:
            assert self.resumption.is_in_flight(seq) == (seq in in_engine)


@each_seed(range(60))
def test_one_poisonous_request_fails_alone(seed: int) -> None:
    """Whatever it has produced when it strikes, and however much of that gets lost."""
    rng = random.Random(seed)
    poison = Poison(SeqId(rng.randint(1, 12)), rng.choice([0, 0, 1, 5]))
    simulation = Simulation(seed, poison, lag=rng.choice([0, 0, 1, 3]))
    for _ in range(12):
        simulation.arrive(rng.randint(6, 30))

    def newcomers(step: int) -> None:
        if step in (3, 10, 11):
            simulation.arrive(rng.randint(1, 10))

    simulation.run(newcomers)
    assert simulation.failed == {poison.seq}
    assert simulation.crashes <= 3


@each_seed(range(40))
def test_a_poison_that_gains_tokens_each_time_harms_nobody_else(seed: int) -> None:
    """It is never caught for sure, but it gets on and so comes to its end."""
    rng = random.Random(seed)
    poison = Poison(SeqId(rng.randint(1, 8)), rng.randint(1, 4), each_time=True)
    simulation = Simulation(seed, poison, lag=rng.choice([0, 1, 2]))
    for _ in range(8):
        simulation.arrive(rng.randint(2, 25))
    simulation.run()
    assert simulation.failed <= {poison.seq}


@each_seed(range(40))
def test_an_engine_that_is_killed_at_random_loses_nothing(seed: int) -> None:
    """Guilty can only be who was alone in the engine, twice; cancelled ones do not come back."""
    rng = random.Random(seed)
    simulation = Simulation(seed, kills_per_step=0.02)
    for _ in range(20):
        simulation.arrive(rng.randint(1, 40))

    def cancels(step: int) -> None:
        living = sorted(set(simulation.wanted) - simulation.over)
        if step % 7 == 3 and len(living) > 15:
            simulation.cancel(rng.choice(living))

    simulation.run(cancels)
    assert len(simulation.over) == 20
    assert len(simulation.failed) <= 1 + simulation.crashes // 2


def test_suspects_come_one_at_a_time_and_newcomers_after_them() -> None:
    r = Resumption()
    for seq in (1, 2, 3):
        r.arrived(SeqId(seq))
    assert [r.next_due(), r.next_due(), r.next_due(), r.next_due()] == [1, 2, 3, None]
    assert r.crashed({SeqId(1): "decoding", SeqId(2): "decoding", SeqId(3): "decoding"}) == []
    r.arrived(SeqId(4))
    assert (r.next_due(), r.next_due()) == (1, None)
    r.progressed(SeqId(1))
    assert (r.next_due(), r.next_due()) == (2, None)
    r.ended(SeqId(2))
    assert (r.next_due(), r.next_due()) == (3, None)
    r.progressed(SeqId(1))
    assert r.next_due() is None, "somebody else's token clears nobody"
    r.progressed(SeqId(3))
    assert (r.next_due(), r.next_due()) == (4, None)
    assert r.num_suspects == 0


def test_a_request_that_only_waited_is_no_suspect() -> None:
    r = Resumption()
    r.arrived(SeqId(1))
    r.next_due()
    r.crashed({SeqId(1): "prefilling"})
    r.arrived(SeqId(2))
    assert r.next_due() == 1
    assert r.crashed({SeqId(1): "prefilling"}) == [1]
    assert r.num_suspects == 0
    assert r.next_due() == 2


def test_prompts_in_work_are_tried_first_the_newest_before_all() -> None:
    stages: list[Stage] = ["decoding", "waiting", "prefilling", "decoding", "prefilling", "waiting"]
    r = Resumption()
    for seq in range(len(stages)):
        r.arrived(SeqId(seq))
        r.next_due()
    r.crashed({SeqId(seq): stage for seq, stage in enumerate(stages)})
    tried = []
    while (due := r.next_due()) is not None:
        tried.append(due)
        r.progressed(due)
    assert tried == [4, 2, 0, 3, 1, 5]


def test_in_company_a_second_crash_proves_nothing_yet() -> None:
    r = Resumption()
    for seq in (1, 2):
        r.arrived(SeqId(seq))
        r.next_due()
    both: dict[SeqId, Stage] = {SeqId(1): "decoding", SeqId(2): "decoding"}
    r.crashed(both)
    r.next_due()
    r.progressed(SeqId(1))
    assert r.next_due() == 2
    assert r.crashed(both) == [], "1 may have been cleared too early"
    assert (r.next_due(), r.next_due()) == (2, None), "so it is tried first, and alone"
    assert r.crashed(both) == [2]
    assert r.next_due() == 1
