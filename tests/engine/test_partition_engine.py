"""Partition control inside the coordinator, on the fake device: units move, tokens never change."""

import random
from dataclasses import replace
from typing import Any, cast

import pytest
from support.fake_engine import Run, request
from support.known import known

from semipd.config.config import default_engine_settings
from semipd.core.messages import GetPartition, GetStatus, SetPartition, SetSlo, Status, Submit
from semipd.core.plan import StepPlan
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.core.split import LaneName, Split
from semipd.devices.fake import NUM_UNITS, FakeDevice
from semipd.partition.interface import StepRecord

MS = 1_000_000


def narrow_decode(lane: LaneName, plan: StepPlan) -> int:
    """Both phases need units: a decode step takes 2 ms and 40 us per sequence on half the device, a prefill
    token 40 us on all of it."""
    units = plan.split.units_of(lane)
    chunk_tokens = sum(segment.length for segment in plan.segments)
    decode_ns = (500_000 + (1_500_000 + 40_000 * len(plan.decode)) * 8 / units) if plan.decode else 0
    return int(decode_ns + 40_000 * chunk_tokens * NUM_UNITS / units)


def settings(**kwargs: Any) -> EngineSettings:
    return default_engine_settings(device="fake", **{"prefill_chunk_tokens": 64, "merge_tokens": 0, **kwargs})


def answers(run: Run) -> dict[int, Status]:
    return {m.nonce: m for m in run.messages if isinstance(m, Status)}


def splits(run: Run) -> list[Split]:
    """Shared splits in the order in which they became effective."""
    changes = [Split(*cast(list[int], e.data["to"])) for e in run.events if e.kind == "split_changed"]
    return [split for split in changes if 0 not in split]


class Load:
    """Keeps both lanes busy: `decoding` sequences at a time, and prompts that follow one another."""

    def __init__(self, run: Run, seed: int = 0) -> None:
        self.run, self.rng = run, random.Random(seed)
        self.requests: dict[SeqId, Request] = {}

    def submit(self, prompt: int, output: int) -> Submit:
        seq = len(self.requests) + 1
        r = request(
            seq,
            [self.rng.randint(0, 999) for _ in range(prompt)],
            max_tokens=output,
            arrival_ns=self.run.now_ns,
        )
        self.requests[r.seq] = replace(r, targets=self.run.coordinator.control.slo.targets)
        return Submit(self.requests[r.seq])

    def keep(self, until_ns: int, decoding: int, prompt: int, waiting: int = 2) -> None:
        while self.run.now_ns < until_ns:
            scheduler = self.run.coordinator.scheduler
            inbox = []
            if scheduler.queue.num_waiting + len(scheduler.prefilling) < waiting:
                inbox.append(self.submit(prompt, 40 if len(scheduler.decoding) < decoding else 1))
            self.run.tick(inbox)

    def check(self) -> None:
        self.run.drain()
        for r in self.requests.values():
            assert self.run.tokens[r.seq] == self.run.expected(r)


def test_units_follow_a_changing_load_and_events_show_it() -> None:
    """Tight TPOT: with one sequence few units suffice, with forty they do not, and back."""
    run = Run(FakeDevice(latency=narrow_decode), settings(slo_tpot_ms=6.0, slo_ttft_ms=30.0), check=False)
    load = Load(run)
    load.keep(2_000 * MS, decoding=1, prompt=60)
    light = run.coordinator.control.status(run.now_ns)["shared"]["split"]
    load.keep(6_000 * MS, decoding=40, prompt=60)
    heavy = run.coordinator.control.status(run.now_ns)["shared"]["split"]
    load.keep(10_000 * MS, decoding=1, prompt=60)
    again = run.coordinator.control.status(run.now_ns)["shared"]["split"]
    assert light[1] < heavy[1]
    assert again[1] < heavy[1]
    seen = splits(run)
    assert {tuple(light), tuple(heavy), tuple(again)} <= set(seen)
    changes = [e for e in run.events if e.kind == "split_changed"]
    by_policy = [e for e in changes if e.data["rule"] == "policy predictive"]
    assert any("streams use" in str(e.data["reason"]) for e in by_policy)
    assert all(cast(float, e.data["switch_ms"]) >= 0 for e in changes)
    status = run.coordinator.control.full_status(run.now_ns)
    assert status["switch_ms"]["count"] == len(changes)
    assert known(status["prediction"]["steps"]["decode"]["error"]) < 0.1
    assert known(status["prediction"]["tpot_error"]) < 0.25
    assert status["prediction"]["ttft_error"] is not None
    load.check()


def test_merged_steps_replace_the_split_when_both_targets_are_easy() -> None:
    run = Run(
        FakeDevice(latency=narrow_decode),
        settings(merge_tokens=256, slo_tpot_ms=40.0, slo_ttft_ms=5000.0),
        check=False,
    )
    load = Load(run)
    load.keep(1_500 * MS, decoding=4, prompt=50)
    control = run.coordinator.control
    assert control.status(run.now_ns)["shared"]["merged_tokens"] == 256
    assert "no split needed" in control.status(run.now_ns)["shared"]["reason"]
    before = run.coordinator.prefill.num_steps
    load.keep(1_700 * MS, decoding=4, prompt=50)
    assert run.coordinator.prefill.num_steps == before, "the prefill lane rests"
    assert control.models.phases["merged"].confident
    run.tick([SetSlo(9, {"tpot_ms": 3.0}, "test")])
    load.keep(2_500 * MS, decoding=4, prompt=50)
    assert control.status(run.now_ns)["shared"]["merged_tokens"] == 0, "a merged step is too slow now"
    load.check()


@pytest.mark.parametrize(
    "change", [SetPartition(1, "off", "ann"), SetPartition(1, "fixed", "ann", decode_units=12)]
)
def test_streams_go_on_beside_a_long_chunk_when_the_split_changes(change: SetPartition) -> None:
    """The units that decode shall have are held by a step of 800 ms: until it ends it keeps those it has."""
    run = Run(
        FakeDevice(
            latency=lambda lane, plan: (800 if lane == "prefill" and plan.segments[0].length > 50 else 2) * MS
        ),
        settings(partition_mode="fixed", prefill_units=8),
        check=False,
    )
    run.tick([Submit(request(1, [7] * 5, max_tokens=900))])
    while not run.coordinator.scheduler.decoding:
        run.tick()
    run.tick([Submit(request(2, [9] * 60, max_tokens=5))])
    while not run.coordinator.prefill.inflight:
        run.tick()
    run.tick([change])
    before, began_ns = run.coordinator.decode.num_steps, run.now_ns
    while run.coordinator.prefill.inflight:
        run.tick()
    assert run.now_ns - began_ns > 700 * MS
    assert run.coordinator.decode.num_steps - before > 300


def test_an_override_takes_effect_between_two_steps_and_expires() -> None:
    run = Run(
        FakeDevice(latency=narrow_decode), settings(partition_mode="fixed", prefill_units=8), check=False
    )
    load = Load(run)
    load.keep(500 * MS, decoding=6, prompt=60)
    asked_ns = run.now_ns
    run.tick([SetPartition(1, "fixed", "ann", "test", prefill_units=3, expires_s=1.0)])
    load.keep(asked_ns + 900 * MS, decoding=6, prompt=60)
    held = [e for e in run.events if e.kind == "split_changed" and e.at_ns >= asked_ns]
    first = next(e for e in held if e.data["to"] == [3, 13])
    assert first.at_ns - asked_ns < 50 * MS
    assert (first.data["rule"], first.data["reason"]) == ("ann", "test")
    assert not [e for e in held if e.data["to"] == [8, 8]]
    load.keep(asked_ns + 1_100 * MS, decoding=6, prompt=60)
    ended = [e for e in run.events if e.kind == "partition_changed"]
    assert [(e.data["mode"], e.data["actor"]) for e in ended] == [("fixed", "ann"), ("auto", "expiry")]
    assert asked_ns + 1_000 * MS <= ended[1].at_ns < asked_ns + 1_050 * MS
    load.check()


def test_an_idle_engine_wakes_for_the_expiry() -> None:
    run = Run(FakeDevice(), settings())
    turn = run.coordinator.tick(0, [SetPartition(1, "fixed", "ann", prefill_units=3, expires_s=2.5)])
    assert turn.wake_at_ns == 2_500 * MS
    turn = run.coordinator.tick(2_500 * MS)
    assert run.coordinator.control.mode == "auto"
    assert turn.wake_at_ns is None


def test_answers_and_refusals_come_with_their_nonce() -> None:
    run = Run(FakeDevice(), settings())
    run.tick(
        [
            SetPartition(1, "fixed", "ann", prefill_units=99),
            SetPartition(2, "fixed", "ann", prefill_units=5),
            SetSlo(3, {"percentile": 200.0}, "ann"),
            SetSlo(4, {"percentile": 95.0}, "ann"),
            GetPartition(5),
            GetStatus(6),
        ]
    )
    found = answers(run)
    assert found[1].refused is not None
    assert found[1].refused["code"] == "impossible_split"
    assert "15+1" in found[1].refused["hint"]
    assert tuple(found[2].data["granted"]) == (5, 11)
    assert found[3].refused is not None
    assert found[4].data["targets"]["percentile"] == 95.0
    assert [tuple(split) for split in found[5].data["possible"]] == list(run.device.info.splits)
    assert [change["actor"] for change in found[5].data["history"]] == ["configuration", "ann", "ann"]
    assert found[6].data["partition"]["mode"] == "fixed"
    assert {e.kind for e in run.events} == {"partition_changed", "slo_changed"}
    order = [m.nonce if isinstance(m, Status) else getattr(m, "kind", None) for m in run.messages]
    assert order.index("partition_changed") < order.index(2), "announced before it is answered"
    assert order.index("slo_changed") < order.index(4)


@pytest.mark.parametrize("policy", ["chunked", "prefill-first"])
def test_one_lane_schedulers_refuse_and_stay_whole(policy: SchedulerName) -> None:
    run = Run(FakeDevice(), settings(scheduler=policy))
    run.tick([SetPartition(1, "fixed", "ann", prefill_units=5)])
    refused = answers(run)[1].refused
    assert refused is not None
    assert refused["code"] == "scheduler_has_one_lane"
    load = Load(run)
    load.keep(200 * MS, decoding=4, prompt=50)
    assert not splits(run)
    load.check()


def test_ttft_and_tpot_of_a_single_request() -> None:
    """100 prompt tokens at 40 us, having waited for 10 ms; then 9 decode steps on the whole device."""
    run = Run(FakeDevice(latency=narrow_decode), settings())
    run.now_ns = 1_000 * MS
    r = request(1, list(range(100)), max_tokens=10, arrival_ns=990 * MS)
    run.tick([Submit(r)])
    run.drain()
    observed = run.coordinator.control.window.observed(run.now_ns, run.coordinator.control.slo)
    assert observed.ttft_ms == pytest.approx(10 + 100 * 0.04)
    assert observed.tpot_ms == pytest.approx(0.5 + 1.54 / 2)


def test_step_records_count_what_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plans: context is the length of each decoding sequence, pairs are counted one by one."""
    records: list[StepRecord] = []
    plans: list[tuple[LaneName, StepPlan]] = []

    def latency(lane: LaneName, plan: StepPlan) -> int:
        plans.append((lane, plan))
        return narrow_decode(lane, plan)

    run = Run(FakeDevice(latency=latency), settings(merge_tokens=128, slo_tpot_ms=40.0, slo_ttft_ms=5000.0))
    control = run.coordinator.control
    record_step = control.record

    def record(step: StepRecord, now_ns: int) -> None:
        records.append(step)
        record_step(step, now_ns)

    monkeypatch.setattr(control, "record", record)
    lengths: dict[int, int] = {}
    load = Load(run, seed=3)
    load.keep(800 * MS, decoding=5, prompt=90)
    load.check()
    by_lane = {lane: [plan for name, plan in plans if name == lane] for lane in ("prefill", "decode")}
    for lane, expected in by_lane.items():
        found = [step for step in records if step.lane == lane]
        assert len(found) == len(expected)
        for step, plan in zip(found, expected, strict=True):
            assert step.num_decodes == len(plan.decode)
            assert step.new_tokens == sum(segment.length for segment in plan.segments)
            pairs = sum(k + 1 for s in plan.segments for k in range(s.start, s.start + s.length))
            assert step.attended_tokens == pairs
            assert step.units == plan.split.units_of(step.lane)
    for name, plan in plans:
        for segment in plan.segments:
            if segment.sample:
                lengths[segment.seq] = segment.start + segment.length
        if name == "decode":
            step = next(s for s in records if s.lane == "decode")
            records.remove(step)
            for seq in plan.decode:
                lengths[seq] += 1
            assert step.context_tokens == sum(lengths[seq] for seq in plan.decode)
    assert any(plan.decode and plan.segments for _, plan in plans), "no merged step in this run"
