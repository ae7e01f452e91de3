"""Modes, overrides, expiry, history, switch times: partition control under a clock that the test holds."""

import math
import random
from itertools import pairwise
from typing import Any, cast

import pytest
from support.partition import TABLE
from support.seeds import each_seed

from semipd.core.errors import SemipdError
from semipd.core.messages import SetPartition, SetSlo
from semipd.core.request import SeqId
from semipd.core.slo import Slo
from semipd.core.split import PartitionMode, Split
from semipd.partition.control import (
    DECIDE_AGAIN_NS,
    DECIDE_EVERY_NS,
    Choice,
    Control,
    ControlSettings,
    Switch,
)
from semipd.partition.interface import Prompt, StepRecord, Work
from semipd.partition.journal import BUCKETS_MS, Histogram
from semipd.partition.models import Models
from semipd.partition.window import CLOSE_AFTER_REQUESTS, SloWindow, percentile

MS = 1_000_000
SOLO_PREFILL, SOLO_DECODE = TABLE.solo_prefill, TABLE.solo_decode


def nothing() -> Work:
    return Work(4, 400, 0, 0, (Prompt(100, 0, 0.0),), (SeqId(7),), 0.0)


class Desk:
    """A control, its clock, and short words for what the coordinator does."""

    def __init__(self, taught: bool = False, **settings: Any) -> None:
        models = Models(16)
        if taught:
            teach(models)
        self.control = Control(TABLE, ControlSettings(**settings), models)
        self.now_ns = 1_000 * MS
        self.num_looks = 0

    def look(self) -> Work:
        self.num_looks += 1
        return nothing()

    def choose(self, prefill: bool = True, decode: bool = True, after_ms: float = 0) -> Choice:
        self.now_ns += int(after_ms * MS)
        return self.control.choose(self.now_ns, prefill, decode, self.look)

    def launch(self, prefill: bool = True, decode: bool = True, after_ms: float = 0) -> Switch | None:
        return self.control.launched(self.choose(prefill, decode, after_ms).split, self.now_ns)

    def switch(self, prefill: bool = True, decode: bool = True, after_ms: float = 0) -> Switch:
        switch = self.launch(prefill, decode, after_ms)
        assert switch is not None
        return switch

    def set(self, mode: str = "fixed", actor: str = "ann", **fields: Any) -> Any:
        wish = SetPartition(1, cast(PartitionMode, mode), actor, **fields)
        return self.control.set(wish, self.now_ns, self.look)[1]

    @property
    def history(self) -> list[tuple[str, str]]:
        return [(change.mode, change.actor) for change in self.control.journal.changes]


def teach(models: Models) -> None:
    """Decode: 2 ms and 12 ms / units; prefill: 0.5 ms and 0.08 ms x tokens / units."""
    for step in range(200):
        units, new = (2, 4, 8, 16)[step % 4], 10 + step
        models.record(
            StepRecord("prefill", units, 0, 0, 0, new, new * new / 2, int((0.5 + 0.08 * new / units) * MS)), 0
        )
        models.record(
            StepRecord("decode", units, 0, 1 + step % 9, 100 + step, 0, 0, int((2 + 12 / units) * MS)), 0
        )
    models.fit()


# ---- modes -----------------------------------------------------------------------------------------------


def test_an_idle_lane_lends_everything_in_auto_and_fixed() -> None:
    for mode in ("auto", "fixed"):
        desk = Desk(mode=mode, prefill_units=12)
        assert desk.choose(prefill=True, decode=False).split == SOLO_PREFILL
        assert desk.choose(prefill=False, decode=True).split == SOLO_DECODE
        assert desk.choose(prefill=False, decode=False).split == SOLO_DECODE
        assert desk.choose() == Choice(Split(12, 4), 0, *desk.choose()[2:])


def test_until_step_times_are_known_auto_holds_the_configured_split() -> None:
    desk = Desk(prefill_units=11)
    assert desk.choose().split == Split(11, 5)
    assert desk.num_looks == 1
    assert desk.choose(after_ms=100).reason.startswith("step times are not known yet")
    assert Desk().choose().split == Split(8, 8)


def test_auto_follows_the_policy_at_most_every_few_milliseconds() -> None:
    desk = Desk(taught=True, merge_tokens=0, slo=Slo(500, 15))
    assert desk.choose().split == Split(14, 2)  # 2 + 12 / 2 = 8 <= 13.5; one unit would take 14
    assert desk.choose().rule == "policy predictive"
    for _ in range(10):
        desk.choose(after_ms=DECIDE_EVERY_NS / MS / 20)
    assert desk.num_looks == 1
    desk.choose(after_ms=DECIDE_EVERY_NS / MS)
    assert desk.num_looks == 2
    desk.choose(decode=False, after_ms=1)
    desk.choose(after_ms=DECIDE_AGAIN_NS / MS - 1)
    assert desk.num_looks == 3, "a lane that finds work asks again sooner"


def test_off_runs_merged_steps_whatever_is_busy() -> None:
    desk = Desk(mode="off", step_token_budget=300)
    for prefill in (True, False):
        assert desk.choose(prefill=prefill)[:2] == (SOLO_DECODE, 300)
    assert desk.num_looks == 0


def test_other_schedulers_are_off_and_stay_so() -> None:
    desk = Desk(scheduler="chunked", mode="auto")
    assert desk.control.mode == "off"
    with pytest.raises(SemipdError) as refused:
        desk.set(prefill_units=4)
    assert refused.value.code == "scheduler_has_one_lane"


def test_impossible_configuration_is_refused() -> None:
    with pytest.raises(SemipdError) as refused:
        Desk(prefill_units=16)
    assert refused.value.code == "impossible_split"


# ---- overrides -------------------------------------------------------------------------------------------


def test_an_override_holds_from_the_next_choice_and_is_effective_with_its_first_step() -> None:
    desk = Desk()
    assert desk.switch(decode=False).split == SOLO_PREFILL
    answer = desk.set(prefill_units=3, reason="night batch")
    assert (answer["granted"], answer["effective_at_ns"]) == (Split(3, 13), None)
    assert answer["takes_effect"].startswith("when both lanes have work")
    assert desk.launch(decode=False, after_ms=5) is None
    assert desk.control.status(0)["change"]["effective_at_ns"] is None
    switch = desk.switch(after_ms=5)
    assert (switch.split, switch.rule, switch.reason) == (Split(3, 13), "ann", "night batch")
    assert desk.control.status(0)["change"]["effective_at_ns"] == desk.now_ns
    assert desk.set(prefill_units=4)["takes_effect"] == "with the next step"


def test_a_dry_run_changes_nothing_and_forecasts() -> None:
    desk = Desk(taught=True, merge_tokens=0)
    before = desk.choose()
    answer = desk.set(prefill_units=4, dry_run=True)
    assert answer["granted"] == Split(4, 12)
    assert answer["forecast"]["tpot_ms"] == pytest.approx(2 + 12 / 12, rel=0.05)
    assert answer["forecast"]["ttft_ms"] == pytest.approx(0.5 + 0.08 * 100 / 4, rel=0.05)
    assert desk.choose() == before
    assert desk.history == [("auto", "configuration")]
    assert desk.set("auto", dry_run=True)["forecast"]["reason"]
    assert desk.set("off", dry_run=True)["forecast"]["tpot_ms"] > 0
    assert Desk().set(prefill_units=4, dry_run=True)["forecast"] is None


def test_expiry_goes_back_to_auto_by_itself() -> None:
    desk = Desk(prefill_units=8)
    desk.set(prefill_units=3, expires_s=10)
    assert desk.control.wake_at_ns == desk.now_ns + 10_000 * MS
    assert desk.control.expire(desk.now_ns + 10_000 * MS - 1) is None
    assert desk.choose().split == Split(3, 13)
    change = desk.control.expire(desk.now_ns + 10_000 * MS)
    assert change is not None
    assert (change.mode, change.actor) == ("auto", "expiry")
    assert desk.control.wake_at_ns is None
    assert desk.choose().split == Split(8, 8)
    assert desk.control.expire(desk.now_ns + 20_000 * MS) is None


def test_a_newer_override_replaces_an_expiry() -> None:
    desk = Desk()
    desk.set(prefill_units=3, expires_s=10)
    desk.set(prefill_units=5)
    assert desk.control.wake_at_ns is None
    assert desk.control.expire(desk.now_ns + 11_000 * MS) is None
    assert desk.choose().split == Split(5, 11)


def test_of_concurrent_overrides_the_last_wins_and_both_are_in_the_history() -> None:
    desk = Desk()
    desk.set(prefill_units=3, actor="ann", reason="a")
    desk.set(prefill_units=12, actor="bob", reason="b")
    assert desk.choose().split == Split(12, 4)
    assert desk.history == [("auto", "configuration"), ("fixed", "ann"), ("fixed", "bob")]
    desk.launch()
    first, second = list(desk.control.journal.changes)[1:]
    assert (first.effective_at_ns, second.effective_at_ns) == (None, desk.now_ns), "ann's never ran a step"


def test_a_refused_override_changes_nothing() -> None:
    desk = Desk()
    desk.set(prefill_units=3)
    with pytest.raises(SemipdError):
        desk.set(prefill_units=99)
    assert desk.choose().split == Split(3, 13)
    assert len(desk.history) == 2


@each_seed(range(20))
def test_random_overrides_against_a_simple_model(seed: int) -> None:
    """The model: a mode, a split, an expiry; what is chosen follows from these alone."""
    rng, desk = random.Random(seed), Desk(prefill_units=8, merge_tokens=0)
    mode, split, expires_ns = "auto", Split(8, 8), None
    for _ in range(300):
        desk.now_ns += rng.randint(0, 400) * MS
        desk.control.expire(desk.now_ns)
        if expires_ns is not None and desk.now_ns >= expires_ns:
            mode, split, expires_ns = "auto", Split(8, 8), None
        if rng.random() < 0.3:
            mode = rng.choice(["auto", "fixed", "off"])
            expires_s = None if mode == "auto" else rng.choice([None, 1.0])
            units: dict[str, Any] = {"prefill_units": rng.randint(1, 15)} if mode == "fixed" else {}
            desk.set(mode, expires_s=expires_s, **units)
            split = Split(units["prefill_units"], 16 - units["prefill_units"]) if units else Split(8, 8)
            expires_ns = None if expires_s is None else desk.now_ns + 1_000 * MS
        prefill, decode = rng.random() < 0.7, rng.random() < 0.7
        chosen = desk.choose(prefill, decode)
        if mode == "off":
            assert chosen[:2] == (SOLO_DECODE, 512)
        elif prefill and decode:
            assert chosen[:2] == (split, 0)
        else:
            assert chosen[:2] == (SOLO_PREFILL if prefill else SOLO_DECODE, 0)


# ---- switches, targets, windows --------------------------------------------------------------------------


def test_switch_time_runs_from_the_wish_to_the_first_step() -> None:
    desk = Desk(prefill_units=8)
    assert desk.launch(prefill=False) is None, "the device starts with decode alone"
    desk.choose()
    desk.choose(after_ms=4)  # units are still held by a step in flight
    switch = desk.switch(after_ms=3)
    assert (switch.previous, switch.split) == (SOLO_DECODE, Split(8, 8))
    assert switch.ms == pytest.approx(7)
    plain = desk.control.status(0)["switch_ms"]
    assert plain["count"] == 1
    assert plain["sum_ms"] == pytest.approx(7)


def test_histogram_against_counting() -> None:
    rng, histogram = random.Random(1), Histogram()
    values = [10 ** rng.uniform(-2, 4) for _ in range(500)] + list(BUCKETS_MS)
    for value in values:
        histogram.add(value)
    bounds = [-math.inf, *BUCKETS_MS, math.inf]
    expected = [sum(low < v <= high for v in values) for low, high in pairwise(bounds)]
    assert histogram.to_plain() == {
        "bounds_ms": list(BUCKETS_MS),
        "counts": expected,
        "sum_ms": pytest.approx(sum(values)),
        "count": len(values),
    }


def test_targets_change_live_within_bounds() -> None:
    desk = Desk()
    answer = desk.control.set_slo(SetSlo(1, {"ttft_ms": 300.0}, "ann", "demo"), desk.now_ns)
    assert answer["targets"] == {"ttft_ms": 300.0, "tpot_ms": 50.0, "percentile": 90.0, "window_s": 60.0}
    assert desk.control.journal.changes[-1].slo == answer["targets"]
    for targets in (
        {"ttft_ms": 0.0},
        {"percentile": 101.0},
        {"color": 1.0},
        {"tpot_ms": 10.0, "window_s": 0.0},
    ):
        with pytest.raises(SemipdError) as refused:
            desk.control.set_slo(SetSlo(1, targets, "ann"), desk.now_ns)
        assert refused.value.code == "invalid_value"
    assert desk.control.slo == Slo(300.0, 50.0, 90.0, 60.0)
    desk.control.set_slo(SetSlo(1, {}, "ann"), desk.now_ns)
    assert len(desk.history) == 2, "asking is no change"


@each_seed(range(30))
def test_observed_percentiles_against_sorting(seed: int) -> None:
    rng, window = random.Random(seed), SloWindow()
    slo = Slo(percentile=rng.choice([50.0, 90.0, 99.0]), window_s=5.0)
    ttfts, tpots, arrivals, now_ns = list[tuple[int, float]](), list[tuple[int, float]](), list[int](), 0
    for _ in range(400):
        now_ns += rng.randint(1, 200) * MS
        window.arrived(now_ns)
        arrivals.append(now_ns)
        ttfts.append((now_ns, rng.uniform(1, 1000)))
        window.first_token(*ttfts[-1])
        if rng.random() < 0.7:
            tpots.append((now_ns, rng.uniform(1, 50)))
            window.finished(*tpots[-1], 10, Split(8, 8), slo)
    horizon = now_ns - 5_000 * MS
    window.forget_cached()
    observed = window.observed(now_ns, slo)

    def naive(samples: list[tuple[int, float]]) -> float:
        values = sorted(ms for at, ms in samples if at >= horizon)
        return next(v for v in values if sum(w <= v for w in values) >= slo.percentile / 100 * len(values))

    assert observed.ttft_ms == naive(ttfts)
    assert observed.tpot_ms == naive(tpots)
    assert observed.arrivals_per_s == pytest.approx(sum(at >= horizon for at in arrivals) / 5)


def test_percentile_of_nothing() -> None:
    assert percentile([], 90) is None
    assert percentile([3.0], 1) == percentile([3.0], 100) == 3.0


def test_the_policy_paper_decides_once_per_closed_window() -> None:
    desk = Desk(policy="paper", prefill_units=8, slo=Slo(ttft_ms=100, tpot_ms=50))
    desk.control.arrived(desk.now_ns)
    for number in range(CLOSE_AFTER_REQUESTS):
        assert desk.choose(after_ms=20).split == Split(8, 8)
        desk.control.record(StepRecord("prefill", 8, 8, 0, 0, 50, 1250.0, 5 * MS), desk.now_ns)
        desk.control.first_token(SeqId(number), desk.now_ns, 180.0)
        desk.control.finished(desk.now_ns, 12.0, 10)
    chosen = desk.choose(after_ms=1)
    assert chosen.split.prefill_units > 8
    assert chosen.rule == "policy paper"
    assert desk.num_looks == 1
    assert desk.choose(after_ms=500) == chosen
    assert desk.num_looks == 1


# ---- outcomes --------------------------------------------------------------------------------------------


def test_outcomes_of_decisions_become_errors() -> None:
    desk = Desk(taught=True, merge_tokens=0, slo=Slo(500, 15))
    desk.choose()
    decision = desk.control.journal.outcomes[-1].decision
    assert decision.predicted_ttft_ms is not None
    assert decision.predicted_tpot_ms is not None
    assert decision.predicted_tpot_ms == pytest.approx(8, rel=0.05)
    for _ in range(4):
        desk.control.record(StepRecord("decode", 2, 14, 4, 400, 0, 0, 10 * MS), desk.now_ns)
        desk.control.record(
            StepRecord("decode", 16, 0, 4, 400, 0, 0, 3 * MS), desk.now_ns
        )  # solo: not its step
    desk.control.first_token(SeqId(6), desk.now_ns, 999.0)  # not the prompt it watched
    desk.control.first_token(SeqId(7), desk.now_ns, decision.predicted_ttft_ms * 2)
    desk.choose(after_ms=2000)
    first = desk.control.full_status(desk.now_ns)["decisions"][0]
    assert first["observed_tpot_ms"] == pytest.approx(10)
    assert first["observed_ttft_ms"] == pytest.approx(decision.predicted_ttft_ms * 2)
    errors = desk.control.status(desk.now_ns)["prediction"]
    assert errors["tpot_error"] == pytest.approx(10 / decision.predicted_tpot_ms - 1)
    assert errors["ttft_error"] == pytest.approx(1.0)


def test_logs_are_bounded() -> None:
    desk = Desk(taught=True)
    for number in range(1000):
        desk.set(prefill_units=1 + number % 15)
        desk.set("auto")
        desk.choose(after_ms=10)
    status = desk.control.full_status(desk.now_ns)
    assert len(status["history"]) == 128
    assert len(status["decisions"]) <= 128
