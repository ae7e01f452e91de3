"""Modes, overrides, expiry, history, switch times: partition control under a clock that the test holds."""

import math
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
from support.partition import TABLE
from support.seeds import each_seed

from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.messages import SetPartition, SetSlo
from semipd.core.percentile import percentile
from semipd.core.request import SeqId
from semipd.core.slo import Slo
from semipd.core.split import PartitionMode, Split
from semipd.partition.control import Control, Switch
from semipd.partition.deciding import DECIDE_AGAIN_NS, DECIDE_EVERY_NS
from semipd.partition.decision_log import BUCKETS_MS, SwitchTimeHistogram
from semipd.partition.interface import StepRecord, Streams, WaitingPrompt, Work
from semipd.partition.latency_window import CLOSE_AFTER_REQUESTS, LatencyWindow
from semipd.partition.modes import SplitChoice
from semipd.partition.step_times.models import Models

MS = 1_000_000
SOLO_PREFILL, SOLO_DECODE = TABLE.solo_prefill, TABLE.solo_decode


def nothing() -> Work:
    """A prompt with 2.5 ms left beside four sequences that are in time."""
    streams = (Streams(15.0, None, (0.0,) * 4),)
    return Work(4, 400, 0, 0, (WaitingPrompt(100, 0, 0.0, 2.5),), (SeqId(7),), 0.0, streams)


class Bench:
    """A control, its clock, and short words for what the coordinator does."""

    def __init__(self, taught: bool = False, **settings: Any) -> None:
        models = Models(16)
        if taught:
            teach(models)
        self.control = Control(TABLE, default_engine_settings(**settings), models)
        self.now_ns = 1_000 * MS
        self.num_looks = 0

    def look(self) -> Work:
        self.num_looks += 1
        return nothing()

    def choose(self, prefill: bool = True, decode: bool = True, after_ms: float = 0) -> SplitChoice:
        self.now_ns += int(after_ms * MS)
        return self.control.choose(self.now_ns, prefill, decode, self.look)

    def launch(self, prefill: bool = True, decode: bool = True, after_ms: float = 0) -> Switch | None:
        return self.control.launched(self.choose(prefill, decode, after_ms).split, self.now_ns)

    def switch(self, prefill: bool = True, decode: bool = True, after_ms: float = 0) -> Switch:
        switch = self.launch(prefill, decode, after_ms)
        assert switch is not None
        return switch

    def set(self, mode: str = "fixed", actor: str = "ann", **fields: Any) -> Any:
        request = SetPartition(1, cast(PartitionMode, mode), actor, **fields)
        return self.control.set(request, self.now_ns, self.look)[1]

    @property
    def history(self) -> list[tuple[str, str]]:
        return [(change.mode, change.actor) for change in self.control.log.changes]


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
        bench = Bench(partition_mode=mode, prefill_units=12)
        assert bench.choose(prefill=True, decode=False).split == SOLO_PREFILL
        assert bench.choose(prefill=False, decode=True).split == SOLO_DECODE
        assert bench.choose(prefill=False, decode=False).split == SOLO_DECODE
        assert bench.choose() == SplitChoice(Split(12, 4), 0, *bench.choose()[2:])


def test_until_step_times_are_known_auto_holds_the_configured_split() -> None:
    bench = Bench(prefill_units=11)
    assert bench.choose().split == Split(11, 5)
    assert bench.num_looks == 1
    assert bench.choose(after_ms=100).reason.startswith("step times are not known yet")
    assert Bench().choose().split == Split(8, 8)


def test_auto_follows_the_policy_at_most_every_few_milliseconds() -> None:
    bench = Bench(taught=True, merge_tokens=0, slo_tpot_ms=15.0)
    # of 15 ms a decode step needs 2 + 12 / 3 = 6, of 2.5 ms the prompt 0.5 + 8 / 13: 40 and 45 %
    assert bench.choose().split == Split(13, 3)
    assert bench.choose().rule == "policy predictive"
    for _ in range(10):
        bench.choose(after_ms=DECIDE_EVERY_NS / MS / 20)
    assert bench.num_looks == 1
    bench.choose(after_ms=DECIDE_EVERY_NS / MS)
    assert bench.num_looks == 2
    bench.choose(decode=False, after_ms=1)
    bench.choose(after_ms=DECIDE_AGAIN_NS / MS - 1)
    assert bench.num_looks == 3, "a lane that finds work asks again sooner"


def test_off_runs_merged_steps_whatever_is_busy() -> None:
    bench = Bench(partition_mode="off", step_token_budget=300)
    for prefill in (True, False):
        assert bench.choose(prefill=prefill)[:2] == (SOLO_DECODE, 300)
    assert bench.num_looks == 0


def test_other_schedulers_are_off_and_stay_so() -> None:
    bench = Bench(scheduler="chunked", partition_mode="auto")
    assert bench.control.mode == "off"
    with pytest.raises(SemipdError) as refused:
        bench.set(prefill_units=4)
    assert refused.value.code == "scheduler_has_one_lane"


def test_impossible_configuration_is_refused() -> None:
    with pytest.raises(SemipdError) as refused:
        Bench(prefill_units=16)
    assert refused.value.code == "impossible_split"


# ---- overrides -------------------------------------------------------------------------------------------


def test_an_override_holds_from_the_next_choice_and_is_effective_with_its_first_step() -> None:
    bench = Bench()
    assert bench.switch(decode=False).split == SOLO_PREFILL
    answer = bench.set(prefill_units=3, reason="night batch")
    assert (answer["granted"], answer["effective_at_ns"]) == (Split(3, 13), None)
    assert answer["takes_effect"].startswith("when both lanes have work")
    assert bench.launch(decode=False, after_ms=5) is None
    assert bench.control.status(0)["change"]["effective_at_ns"] is None
    switch = bench.switch(after_ms=5)
    assert (switch.split, switch.rule, switch.reason) == (Split(3, 13), "ann", "night batch")
    assert bench.control.status(0)["change"]["effective_at_ns"] == bench.now_ns
    assert bench.set(prefill_units=4)["takes_effect"] == "with the next step"


def test_a_dry_run_changes_nothing_and_forecasts() -> None:
    bench = Bench(taught=True, merge_tokens=0)
    before = bench.choose()
    answer = bench.set(prefill_units=4, dry_run=True)
    assert answer["granted"] == Split(4, 12)
    assert answer["forecast"]["tpot_ms"] == pytest.approx(2 + 12 / 12, rel=0.05)
    assert answer["forecast"]["ttft_ms"] == pytest.approx(0.5 + 0.08 * 100 / 4, rel=0.05)
    assert bench.choose() == before
    assert bench.history == [("auto", "configuration")]
    assert bench.set("auto", dry_run=True)["forecast"]["reason"]
    assert bench.set("off", dry_run=True)["forecast"]["tpot_ms"] > 0
    assert Bench().set(prefill_units=4, dry_run=True)["forecast"] is None


def test_expiry_goes_back_to_auto_by_itself() -> None:
    bench = Bench(prefill_units=8)
    bench.set(prefill_units=3, expires_s=10)
    assert bench.control.wake_at_ns == bench.now_ns + 10_000 * MS
    assert bench.control.expire(bench.now_ns + 10_000 * MS - 1) is None
    assert bench.choose().split == Split(3, 13)
    change = bench.control.expire(bench.now_ns + 10_000 * MS)
    assert change is not None
    assert (change.mode, change.actor) == ("auto", "expiry")
    assert bench.control.wake_at_ns is None
    assert bench.choose().split == Split(8, 8)
    assert bench.control.expire(bench.now_ns + 20_000 * MS) is None


def test_a_newer_override_replaces_an_expiry() -> None:
    bench = Bench()
    bench.set(prefill_units=3, expires_s=10)
    bench.set(prefill_units=5)
    assert bench.control.wake_at_ns is None
    assert bench.control.expire(bench.now_ns + 11_000 * MS) is None
    assert bench.choose().split == Split(5, 11)


def test_of_concurrent_overrides_the_last_wins_and_both_are_in_the_history() -> None:
    bench = Bench()
    bench.set(prefill_units=3, actor="ann", reason="a")
    bench.set(prefill_units=12, actor="bob", reason="b")
    assert bench.choose().split == Split(12, 4)
    assert bench.history == [("auto", "configuration"), ("fixed", "ann"), ("fixed", "bob")]
    bench.launch()
    first, second = list(bench.control.log.changes)[1:]
    assert (first.effective_at_ns, second.effective_at_ns) == (None, bench.now_ns), "ann's never ran a step"


def test_a_refused_override_changes_nothing() -> None:
    bench = Bench()
    bench.set(prefill_units=3)
    with pytest.raises(SemipdError):
        bench.set(prefill_units=99)
    assert bench.choose().split == Split(3, 13)
    assert len(bench.history) == 2


@each_seed(range(20))
def test_random_overrides_against_a_simple_model(seed: int) -> None:
    """The model: a mode, a split, an expiry; what is chosen follows from these alone."""
    rng, bench = random.Random(seed), Bench(prefill_units=8, merge_tokens=0)
    mode, split, expires_ns = "auto", Split(8, 8), None
    for _ in range(300):
        bench.now_ns += rng.randint(0, 400) * MS
        bench.control.expire(bench.now_ns)
        if expires_ns is not None and bench.now_ns >= expires_ns:
            mode, split, expires_ns = "auto", Split(8, 8), None
        if rng.random() < 0.3:
            mode = rng.choice(["auto", "fixed", "off"])
            expires_s = None if mode == "auto" else rng.choice([None, 1.0])
            units: dict[str, Any] = {"prefill_units": rng.randint(1, 15)} if mode == "fixed" else {}
            bench.set(mode, expires_s=expires_s, **units)
            split = Split(units["prefill_units"], 16 - units["prefill_units"]) if units else Split(8, 8)
            expires_ns = None if expires_s is None else bench.now_ns + 1_000 * MS
        prefill, decode = rng.random() < 0.7, rng.random() < 0.7
        chosen = bench.choose(prefill, decode)
        if mode == "off":
            assert chosen[:2] == (SOLO_DECODE, 512)
        elif prefill and decode:
            assert chosen[:2] == (split, 0)
        else:
            assert chosen[:2] == (SOLO_PREFILL if prefill else SOLO_DECODE, 0)


# ---- switches, targets, windows --------------------------------------------------------------------------


def test_switch_time_runs_from_the_request_to_the_first_step() -> None:
    bench = Bench(prefill_units=8)
    assert bench.launch(prefill=False) is None, "the device starts with decode alone"
    bench.choose()
    bench.choose(after_ms=4)  # units are still held by a step in flight
    switch = bench.switch(after_ms=3)
    assert (switch.previous, switch.split) == (SOLO_DECODE, Split(8, 8))
    assert switch.ms == pytest.approx(7)
    plain = bench.control.status(0)["switch_ms"]
    assert plain["count"] == 1
    assert plain["sum_ms"] == pytest.approx(7)


def test_histogram_against_counting() -> None:
    rng, histogram = random.Random(1), SwitchTimeHistogram()
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
    bench = Bench()
    answer = bench.control.set_slo(SetSlo(1, {"ttft_ms": 300.0}, "ann", "demo"), bench.now_ns)
    assert answer["targets"] == replace(default_engine_settings().slo, ttft_ms=300.0).to_wire()
    assert bench.control.log.changes[-1].slo == answer["targets"]
    for targets in (
        {"ttft_ms": 0.0},
        {"percentile": 101.0},
        {"color": 1.0},
        {"tpot_ms": 10.0, "window_s": 0.0},
    ):
        with pytest.raises(SemipdError) as refused:
            bench.control.set_slo(SetSlo(1, targets, "ann"), bench.now_ns)
        assert refused.value.code == "invalid_value"
    assert bench.control.slo == Slo(300.0, 50.0, 90.0, 60.0)
    bench.control.set_slo(SetSlo(1, {}, "ann"), bench.now_ns)
    assert len(bench.history) == 2, "asking is no change"


@each_seed(range(30))
def test_observed_percentiles_against_sorting(seed: int) -> None:
    rng, window = random.Random(seed), LatencyWindow()
    slo = Slo(500.0, 50.0, rng.choice([50.0, 90.0, 99.0]), 5.0)
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
    bench = Bench(partition_policy="paper", prefill_units=8, slo_ttft_ms=100.0)
    bench.control.arrived(bench.now_ns)
    for number in range(CLOSE_AFTER_REQUESTS):
        assert bench.choose(after_ms=20).split == Split(8, 8)
        bench.control.record(StepRecord("prefill", 8, 8, 0, 0, 50, 1250.0, 5 * MS), bench.now_ns)
        bench.control.first_token(SeqId(number), bench.now_ns, 180.0)
        bench.control.finished(bench.now_ns, 12.0, 10)
    chosen = bench.choose(after_ms=1)
    assert chosen.split.prefill_units > 8
    assert chosen.rule == "policy paper"
    assert bench.num_looks == 1
    assert bench.choose(after_ms=500) == chosen
    assert bench.num_looks == 1


# ---- outcomes --------------------------------------------------------------------------------------------


def test_outcomes_of_decisions_become_errors() -> None:
    bench = Bench(taught=True, merge_tokens=0, slo_tpot_ms=15.0)
    bench.choose()
    decision = bench.control.log.outcomes[-1].decision
    assert decision.predicted_ttft_ms is not None
    assert decision.predicted_tpot_ms is not None
    assert decision.predicted_tpot_ms == pytest.approx(6, rel=0.05)
    for _ in range(4):
        bench.control.record(StepRecord("decode", 3, 13, 4, 400, 0, 0, 10 * MS), bench.now_ns)
        bench.control.record(
            StepRecord("decode", 16, 0, 4, 400, 0, 0, 3 * MS), bench.now_ns
        )  # solo: not its step
    bench.control.first_token(SeqId(6), bench.now_ns, 999.0)  # not the prompt it watched
    bench.control.first_token(SeqId(7), bench.now_ns, decision.predicted_ttft_ms * 2)
    bench.choose(after_ms=2000)
    first = bench.control.full_status(bench.now_ns)["decisions"][0]
    assert first["observed_tpot_ms"] == pytest.approx(10)
    assert first["observed_ttft_ms"] == pytest.approx(decision.predicted_ttft_ms * 2)
    errors = bench.control.status(bench.now_ns)["prediction"]
    assert errors["tpot_error"] == pytest.approx(10 / decision.predicted_tpot_ms - 1)
    assert errors["ttft_error"] == pytest.approx(1.0)


def test_logs_are_bounded() -> None:
    bench = Bench(taught=True)
    for number in range(1000):
        bench.set(prefill_units=1 + number % 15)
        bench.set("auto")
        bench.choose(after_ms=10)
    status = bench.control.full_status(bench.now_ns)
    assert len(status["history"]) == 128
    assert len(status["decisions"]) <= 128
