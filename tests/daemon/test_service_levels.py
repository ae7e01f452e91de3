"""Service levels by class, against the definitions and slow oracles."""

import random
from dataclasses import dataclass, field, replace

import pytest
from support.history import MS, Told
from support.seeds import each_seed

from semipd.core.percentile import percentile
from semipd.core.slo import NO_TARGETS, Slo, Targets
from semipd.core.state.partition import Levels
from semipd.daemon.access.classes import Service
from semipd.daemon.history import slo
from semipd.daemon.history.gaps import TokenGaps
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.history.slo import ServiceLevels

CLASSES = {
    "default": Targets(100, 0.0, 10, 12),
    "long": Targets(100, 1000.0, None, None),
    "batch": NO_TARGETS,
}
OWN = Targets(50, tpot_ms=5)


@dataclass
class Seen:
    """What became of a request, with every inter-token time."""

    at_ns: int
    service: Service
    ttft_ms: float | None = None
    gaps_ms: list[float] = field(default_factory=list)
    uncached: int = 0
    end_ms: float = 0.0
    """From the last token to a message that only ends the answer: it is no gap, though TPOT counts it."""

    def meets(self, targets: Targets, pct: float) -> bool:
        if self.ttft_ms is None or self.ttft_ms > targets.ttft_limit_ms(self.uncached):
            return False
        tpot_ms = (sum(self.gaps_ms) + self.end_ms) / len(self.gaps_ms) if self.gaps_ms else 0.0
        itl_ms = percentile(sorted(self.gaps_ms), pct) or 0.0
        return tpot_ms <= (targets.tpot_ms or 1e9) and itl_ms <= (targets.itl_ms or 1e9)


class Rig:
    def __init__(self, seed: int, window_s: float = 5, itl_percentile: float = 90) -> None:
        self.rng = random.Random(seed)
        self.told = Told()
        base = Slo(100, 10, 90, window_s, itl_ms=12, itl_percentile=itl_percentile)
        self.targets = dict(CLASSES)
        self.levels = ServiceLevels(base, CLASSES, lambda code: code == "bad", self.told.clock)
        self.told.history.on_finished.append(self.levels.finished)
        self.told.history.on_refused.append(self.levels.refused)
        self.seen: list[Seen] = []

    def some(self, num: int) -> None:
        for _ in range(num):
            self.told.clock.advance(self.rng.choice([0, 30, 400]))
            kinds = ["served"] * 6 + ["cancelled", "error", "bad", "refused", "bad request"]
            self.one(self.rng.choice(kinds))

    def one(self, kind: str) -> None:
        name = self.rng.choice(list(CLASSES))
        own = self.rng.random() < 0.2
        service = Service(name, OWN if own else self.targets[name])
        if kind in ("refused", "bad request"):
            code = "bad" if kind == "bad request" else "overloaded"
            self.told.history.answered_with_error(code, "x", 0, name)
            if kind == "refused":
                self.seen.append(Seen(self.told.clock.now_ns, service))
            return
        record, seen = self.serve(service)
        codes = {"error": "engine_crashed", "bad": "bad"}
        reason = "error" if kind in codes else "cancelled" if kind == "cancelled" else "stop"
        self.told.history.finished(record, reason, codes.get(kind))  # type: ignore[arg-type]
        if kind == "served":
            self.seen.append(seen)
        elif kind == "error":
            self.seen.append(Seen(seen.at_ns, service))

    def serve(self, service: Service) -> tuple[RequestRecord, Seen]:
        """With messages of several tokens, and with text that is withheld for a while."""
        rng, told = self.rng, self.told
        record = told.arrive(prompt_tokens=200, service=service)
        cached = rng.choice([0, 100, 200])
        told.engine(record, "admitted", cached_tokens=cached, tokens=200)
        ttft_ms = rng.choice([50, 51, 100, 101, 199, 201])
        told.clock.advance(ttft_ms)
        told.send(record, 1)
        gaps_ms: list[float] = []
        withheld_ms = 0.0
        for _ in range(rng.choice([0, 1, 5, 9, 10, 11, 30])):
            gap_ms = rng.choice([4, 5, 9, 12]) if rng.random() < 0.9 else rng.choice([13, 40])
            told.clock.advance(gap_ms)
            if rng.random() < 0.1:
                told.send(record, 1, text=False)
                withheld_ms += gap_ms
                continue
            num_tokens = rng.choice([1, 1, 1, 3])
            told.send(record, num_tokens)
            num_held = record.sent_tokens - 1 - len(gaps_ms) - num_tokens
            gaps_ms += [gap_ms + withheld_ms] + [0.0] * (num_held + num_tokens - 1)
            withheld_ms = 0.0
        if record.sent_tokens - 1 > len(gaps_ms):  # the last ones leave with the end
            num_held = record.sent_tokens - 1 - len(gaps_ms)
            told.send(record, 0)
            gaps_ms += [withheld_ms] + [0.0] * (num_held - 1)
        end_ms = rng.choice([0, 0, 3, 50])
        if end_ms:
            told.clock.advance(end_ms)
            told.send(record, 0)
        return record, Seen(told.clock.now_ns, service, ttft_ms, gaps_ms, 200 - cached, end_ms)

    def check(self, levels: Levels, seen: list[Seen], met: list[bool]) -> None:
        num = len(met)
        assert levels["requests"] == num
        assert levels["attainment"] == (sum(met) / num if num else None)
        ttfts = sorted(one.ttft_ms for one in seen if one.ttft_ms is not None)
        assert levels["ttft_ms"]["p50"] == percentile(ttfts, 50)


@each_seed(range(40))
def test_attainment_of_each_class_and_of_all_like_the_definitions(seed: int) -> None:
    """The oracle keeps every inter-token time of every request."""
    rig = Rig(seed)
    began_ns = rig.told.clock.now_ns
    rig.some(rig.rng.randrange(60))
    now_ns, pct = rig.told.clock.now_ns, rig.levels.slo.itl_percentile
    recent = [one for one in rig.seen if one.at_ns >= now_ns - 5e9]
    met = [one.meets(one.service.targets, pct) for one in recent]
    state = rig.levels.snapshot(rig.targets.__getitem__)
    rig.check(state, recent, met)
    seconds = min(5.0, max((now_ns - began_ns) / 1e9, 1.0))
    assert state["goodput_rps"] == pytest.approx(sum(met) / seconds)
    for name, levels in state["classes"].items():
        own = [one.service.service_class == name for one in recent]
        rig.check(
            levels,
            [one for one, is_own in zip(recent, own, strict=True) if is_own],
            [one for one, is_own in zip(met, own, strict=True) if is_own],
        )
        assert levels["targets"] == rig.targets[name].to_wire()
    every = [one.meets(one.service.targets, pct) for one in rig.seen]
    assert (rig.levels.all.num_judged, rig.levels.all.num_met) == (len(every), sum(every))
    assert sum(window.num_met for window in rig.levels.by_class.values()) == sum(every)


@each_seed(range(20))
def test_new_targets_of_a_class_judge_the_window_anew(seed: int) -> None:
    """Who brought targets keeps them; other classes do not change; counters never go back."""
    rig = Rig(seed)
    rig.some(rig.rng.randrange(60))
    name = rig.rng.choice(["default", "long"])
    after = Targets(rig.rng.choice([50, 200, None]), 0.0, rig.rng.choice([None, 7]))
    counted = [(window.num_judged, window.num_met) for window in rig.levels.by_class.values()]
    rig.levels.retarget(name, rig.targets[name], after)
    before, rig.targets[name] = rig.targets[name], after
    state = rig.levels.snapshot(rig.targets.__getitem__)
    recent = [one for one in rig.seen if one.at_ns >= rig.told.clock.now_ns - 5e9]
    for one in recent:
        if one.service == Service(name, before):
            one.service = replace(one.service, targets=after)
    met = [one.meets(one.service.targets, rig.levels.slo.itl_percentile) for one in recent]
    rig.check(state, recent, met)
    ours = [is_met for one, is_met in zip(recent, met, strict=True) if one.service.service_class == name]
    assert state["classes"][name]["attainment"] == (sum(ours) / len(ours) if ours else None)
    assert counted == [(window.num_judged, window.num_met) for window in rig.levels.by_class.values()]


@each_seed(range(20))
def test_a_full_window_covers_the_latest_outcomes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slo, "MAX_OUTCOMES", 8)
    rig = Rig(seed, window_s=1000)
    while len(rig.seen) < 12:
        rig.some(1)
    latest = rig.seen[-8:]
    met = [one.meets(one.service.targets, rig.levels.slo.itl_percentile) for one in latest]
    rig.check(rig.levels.snapshot(rig.targets.__getitem__), latest, met)


@each_seed(range(60))
def test_gaps_are_judged_exactly_and_shown_to_a_few_percent(seed: int) -> None:
    rng = random.Random(seed)
    limit_ms = rng.choice([None, 0.3, 20.0, 3000.0])
    pct = rng.choice([1, 50, 90, 99, 100])
    gaps, exact_ms, num_tokens = TokenGaps(limit_ms), list[float](), rng.choice([1, 2])
    gaps.add(0, num_tokens)
    exact_ms += [0.0] * (num_tokens - 1)
    for _ in range(rng.choice([0, 1, 2, 99, 100, 101, 300])):
        gap_ns = int(rng.choice([0, 10**4, 3 * 10**5, 20 * MS, rng.lognormvariate(16, 3)]))
        together = rng.choice([1, 1, 1, 4])
        num_tokens += together
        gaps.add(gap_ns, num_tokens)
        exact_ms += [gap_ns / 1e6] + [0.0] * (together - 1)
    true_ms, shown_ms = percentile(sorted(exact_ms), pct), gaps.percentile_ms(pct)
    if true_ms is None or shown_ms is None:
        assert true_ms == shown_ms
        return
    assert true_ms <= shown_ms <= max(true_ms * 1.0443, 0.1)
    if limit_ms is not None:
        assert (shown_ms <= limit_ms) == (true_ms <= limit_ms), (true_ms, shown_ms, limit_ms)
