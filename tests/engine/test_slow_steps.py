"""Slow steps on the fake device: a scripted one is told once, with its numbers; noise is not told."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.fake_engine import Run, request

from semipd.config.config import default_engine_settings
from semipd.core.events import Event
from semipd.core.messages import GetStatus, Status, Submit
from semipd.core.plan import StepPlan
from semipd.core.split import LaneName
from semipd.devices.fake import FakeDevice, FakeLane
from semipd.engine.slow_steps import MAX_EVENTS_PER_S, SLOW_FACTOR, SLOW_FLOOR_NS

MS = 1_000_000


def device_ms(lane: LaneName, plan: StepPlan) -> float:
    """As a GPU might: 8 ms and 0.05 a sequence, 0.05 a prompt token, in inverse proportion to the units."""
    units = plan.split.units_of(lane)
    chunk_tokens = sum(segment.length for segment in plan.segments)
    return (8 + 0.05 * len(plan.decode) + 0.05 * chunk_tokens) * 16 / units


@dataclass
class Script:
    """Latencies with noise, and now and then a stall: `stalls` are factors for the next steps of a lane."""

    noise: float = 0.0
    stalls: dict[LaneName, list[float]] = field(default_factory=dict)
    told: list[tuple[LaneName, StepPlan, float]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(7))

    def latency(self, lane: LaneName, plan: StepPlan) -> int:
        ms = device_ms(lane, plan) * self.rng.lognormvariate(0, self.noise)
        if self.stalls.get(lane):
            ms *= self.stalls[lane].pop()
            self.told.append((lane, plan, ms))
        return int(ms * MS)


class Serving:
    """Two or three sequences decode, and a prompt comes now and then."""

    def __init__(self, script: Script, **settings: Any) -> None:
        chosen = {"prefill_chunk_tokens": 64, "merge_tokens": 0, "slo_tpot_ms": 200.0} | settings
        device = FakeDevice(latency=script.latency, max_model_len=100_000, num_blocks=40_000)
        self.run = Run(device, default_engine_settings(device="fake", **chosen), check=False)
        self.rng = random.Random(5)
        self.num_requests = 0

    def serve(self, num_ticks: int) -> None:
        for _ in range(num_ticks):
            scheduler = self.run.coordinator.scheduler
            fresh = len(scheduler.sequences) < 4
            self.run.tick([self._request()] if fresh else [])

    def _request(self) -> Submit:
        self.num_requests += 1
        prompt = [self.rng.randint(0, 999) for _ in range(self.rng.choice([40, 60, 100]))]
        return Submit(request(self.num_requests, prompt, max_tokens=60, arrival_ns=self.run.now_ns))

    @property
    def slow(self) -> list[Event]:
        return [event for event in self.run.events if event.kind == "slow_step"]

    def counted(self) -> dict[str, int]:
        self.run.tick([GetStatus(1)])
        lanes = [m for m in self.run.messages if isinstance(m, Status)][-1].data["lanes"]
        return {name: lane["slow_steps"] for name, lane in lanes.items()}


@pytest.mark.parametrize("lane", ["prefill", "decode"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_scripted_slow_step_is_told_once_with_its_numbers(lane: LaneName, noise: float) -> None:
    script = Script(noise)
    serving = Serving(script)
    serving.serve(4000)
    assert serving.slow == []
    script.stalls[lane] = [20.0]
    serving.serve(1000)
    [(_, plan, ms)] = script.told
    [event] = serving.slow
    units = plan.split.units_of(lane)
    assert event.data == {
        "lane": lane,
        "step_id": plan.step_id,
        "busy_ms": pytest.approx(ms, abs=1e-3),
        "predicted_ms": pytest.approx(ms / 20, rel=0.5 if noise else 0.3),
        "units": units,
        "new_tokens": sum(segment.length for segment in plan.segments),
        "num_decodes": len(plan.decode),
    }
    assert serving.counted() == {"prefill": 0, "decode": 0, lane: 1}


@pytest.mark.parametrize("scheduler", ["semipd", "chunked"])
def test_noise_is_not_told(scheduler: str) -> None:
    serving = Serving(Script(noise=0.25), scheduler=scheduler)
    serving.serve(15_000)
    assert serving.run.coordinator.control.models.num_steps > 5000
    assert serving.slow == []
    assert serving.counted() == {"prefill": 0, "decode": 0}


def test_a_merged_step_is_judged_like_the_others() -> None:
    script = Script()
    serving = Serving(script, scheduler="chunked", step_token_budget=64)
    serving.serve(3000)
    script.stalls["decode"] = [30.0] * 12
    serving.serve(600)
    assert [plan for _, plan, _ in script.told if plan.segments], "no merged step was stalled"
    assert serving.slow[0].data["num_decodes"]


def test_nothing_is_told_before_something_is_learned() -> None:
    script = Script(stalls={"prefill": [50.0, 1.0, 50.0], "decode": [50.0] * 5})
    serving = Serving(script)
    serving.serve(30)
    assert len(script.told) == 8
    assert not serving.run.coordinator.control.models.confident
    assert serving.slow == []


def test_a_step_of_a_size_never_seen_is_not_judged() -> None:
    """What the model says of it is extrapolated: 64 tokens at most have been seen, then come 2,048."""
    script = Script()
    serving = Serving(script, prefill_chunk_tokens=2048)
    serving.serve(4000)
    script.stalls["prefill"] = [20.0]
    long = request(99_999, [1] * 2048, max_tokens=2, arrival_ns=serving.run.now_ns)
    while serving.run.coordinator.scheduler.has_prefill_work() or serving.run.coordinator.prefill.inflight:
        serving.run.tick()
    serving.run.tick([Submit(long)])
    serving.serve(300)
    [(_, plan, _)] = script.told
    assert sum(segment.length for segment in plan.segments) > 1000
    assert serving.slow == []


def test_a_step_that_ran_under_two_splits_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    serving = Serving(script)
    serving.serve(4000)
    poll = FakeLane.poll
    monkeypatch.setattr(FakeLane, "poll", lambda *args: [r._replace(mixed=True) for r in poll(*args)])
    script.stalls["decode"] = [20.0]
    serving.serve(500)
    assert len(script.told) == 1
    assert serving.counted() == {"prefill": 0, "decode": 0}


def test_short_steps_are_not_told_however_slow() -> None:
    """20 times 0.5 ms is below the floor."""
    script = Script()
    serving = Serving(script)
    fast = script.latency
    lanes = serving.run.device.prefill, serving.run.device.decode
    for lane in lanes:
        lane.latency = lambda name, plan: fast(name, plan) // 32
    serving.serve(4000)
    script.stalls["decode"] = [20.0]
    serving.serve(500)
    [(_, _, ms)] = script.told
    assert SLOW_FACTOR * device_ms("decode", script.told[0][1]) < ms < 32 * SLOW_FLOOR_NS / MS
    assert serving.slow == []


def test_events_are_bounded_and_the_count_is_not() -> None:
    """Every fifth step stalls: more slow steps a second than may be told."""
    script = Script()
    serving = Serving(script)
    serving.serve(4000)
    script.stalls["decode"] = [10.0, 1.0, 1.0, 1.0, 1.0] * 40
    serving.serve(2000)
    times_s = [event.at_ns / 1e9 for event in serving.slow]
    assert serving.counted()["decode"] > len(times_s) > 3 * MAX_EVENTS_PER_S
    for time_s in times_s:
        assert sum(1 for other_s in times_s if time_s <= other_s < time_s + 1) <= MAX_EVENTS_PER_S
