"""Both CUDA lanes against the CPU's decoder and sampler, under a driver that delays and reorders."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.cuda_rig import DEFAULTS, FAMILIES, Oracle, Rig
from support.cuda_serving import check_outputs, random_requests, serve
from support.happens_before import HOST, Drain, Op, Violation, Wait, explain, violations
from support.seeds import each_seed

from semipd.core.errors import SemipdError
from semipd.core.messages import Cancel, Inbound, SetPartition, Submit
from semipd.core.plan import Join, Segment, StepPlan, StepResult
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import SchedulerName
from semipd.core.split import LaneName, Split
from semipd.devices.cuda.driver.interface import Event, Graph, Stream
from semipd.devices.cuda.lane.executor import LaneExecutor
from semipd.devices.cuda.lane.graphs import GraphKey, GraphTable, batch_buckets, bucket_for
from semipd.devices.cuda.lane.launch_loop import GROUPS_AHEAD, STEP_LIMIT_NS
from semipd.devices.cuda.lane.step import LaneStep
from semipd.devices.cuda.rows.slots import Delta, SlotState
from semipd.devices.cuda.split.launch_split import split_to_use
from semipd.sampling.parameters import Column, float_bits
from semipd.sched.outbox import Outbox
from semipd.steps.residents import Resident


@each_seed(range(4), soak=range(4, 12))
def test_two_lanes_give_each_request_its_own_tokens(seed: int) -> None:
    """Every combination of family, depth, group and block size, with graphs or without, through live
    switches."""
    rig = Rig(
        seed,
        block_size=(16, 64)[seed // 2 % 2],
        family=list(FAMILIES)[seed % len(FAMILIES)],
        decode_depth=1 + seed % 3 // 2 + seed % 2,
        group_layers=1 + seed % 2,
        prefill_moves=seed % 3 > 0,
    )
    if seed % 4 == 3:
        rig.capture_all()
    requests = random_requests(rig.rng, 12, rig.config.vocab_size)
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)
    assert rig.cuda_lanes.switches["decode"].count > 3
    assert (rig.graphs.num_misses == 0) == (seed % 4 == 3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheduler", ["chunked", "prefill-first"])
def test_one_lane_schedulers_merge_steps(seed: int, scheduler: SchedulerName) -> None:
    settings = replace(DEFAULTS, scheduler=scheduler)
    rig = Rig(seed, settings=settings)
    requests = random_requests(rig.rng, 8, rig.config.vocab_size)
    serve(rig, requests)
    check_outputs(rig, requests)


@each_seed(range(1), soak=range(1, 4))
def test_preempted_sequences_give_up_blocks_only_when_nothing_reads_them(seed: int) -> None:
    rig = Rig(seed, num_blocks=12)
    requests = random_requests(rig.rng, 12, rig.config.vocab_size)
    requests = [replace(r, params=replace(r.params, stop_token_ids=(), max_tokens=40)) for r in requests]
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)
    assert rig.coordinator.scheduler.num_preemptions > 0


def test_nothing_is_pinned_while_serving() -> None:
    """With log-probabilities, prompts of every length and a burst of newcomers."""
    rig = Rig(3)
    requests = random_requests(rig.rng, 12, rig.config.vocab_size)
    rig.tick([Submit(request) for request in requests])
    serve(rig, requests[:0])
    assert rig.finished.keys() == {request.seq for request in requests}
    assert rig.staging.num_late == 0
    rig.staging.take(2**19)
    assert rig.staging.num_late == 1


@each_seed(range(2), soak=range(2, 8))
def test_requests_may_go_between_two_chunks_on_the_device(seed: int) -> None:
    """Cancelled or preempted while two chunks of a prompt are in flight; the others notice nothing, and a
    prompt whose blocks were taken away begins again."""
    rig = Rig(seed, settings=replace(DEFAULTS, prefill_chunk_tokens=8))
    greedy = SamplingParams(max_tokens=6, seed=1, temperature=0.0)
    requests = [
        Request(SeqId(n), f"r{n}", [rig.rng.randrange(61) for _ in range(60 + n)], greedy, 0)
        for n in range(1, 7)
    ]
    gone, num_ahead = set[SeqId](), 0
    inbox: list[Inbound] = [Submit(r) for r in requests]
    while rig.finished.keys() != {r.seq for r in requests}:
        rig.tick(inbox)
        inbox = []
        flights = rig.coordinator.prefill.inflight
        num_ahead += len(flights) == 2
        under_way = next((s for f in flights for s in f.sequences if s.phase == "prefilling"), None)
        if len(flights) == 2 and under_way is not None and rig.rng.random() < 0.2:
            if len(gone) < 2:
                inbox = [Cancel(under_way.seq)]
                gone.add(under_way.seq)
            elif under_way.num_preemptions == 0:
                rig.coordinator.scheduler._preempt(under_way, Outbox(0))
    rig.finish()
    assert num_ahead > 10
    assert len(gone) == 2
    check_outputs(rig, [r for r in requests if r.seq not in gone])
    assert all(rig.finished[seq].reason == "cancelled" for seq in gone)


@each_seed(range(1), soak=range(1, 3))
def test_modes_change_between_split_and_merged_steps(seed: int) -> None:
    rig = Rig(seed)
    requests = random_requests(rig.rng, 10, rig.config.vocab_size)
    waiting = list(requests)
    while waiting or not rig.finished.keys() >= {request.seq for request in requests}:
        inbox: list[Inbound] = [Submit(waiting.pop())] if waiting and rig.rng.random() < 0.3 else []
        if rig.rng.random() < 0.1:
            inbox.append(
                SetPartition(1, rig.rng.choice(["off", "fixed", "auto"]), "test", prefill_units=None)
            )
        rig.tick(inbox)
    rig.finish()
    check_outputs(rig, requests)


# ---- what the checks would find ---------------------------------------------------------------


def test_events_alone_order_what_crosses_between_the_lanes() -> None:
    """The host has seen that the other lane is done before it plans a join, which orders it too; so what the
    host knows is hidden from the model here."""
    rig = Rig(1, num_blocks=12)
    requests = random_requests(rig.rng, 16, rig.config.vocab_size)
    requests = [replace(r, params=replace(r.params, stop_token_ids=(), max_tokens=40)) for r in requests]
    serve(rig, requests, switches=True)
    without_host = without_what_the_host_knows(rig)
    races = kv_races(without_host)
    assert not races, explain(without_host, races[:5])
    assert kv_races([op for op in without_host if not isinstance(op, Wait)])


def test_a_block_that_decode_grows_into_is_waited_for() -> None:
    """It was another sequence's, in the other lane; nobody joins in the step that takes it."""
    rig = Rig(9)
    prefill, decode = rig.loop.lanes["prefill"], rig.loop.lanes["decode"]
    greedy = SamplingParams(max_tokens=60, seed=1, temperature=0.0)
    first, second = SeqId(1), SeqId(2)
    split = rig.device.info.splits[1]
    rig.pool[:, :, 1] = 0.0  # a context that nobody computed
    grown = Join(first, list(range(16)), 16, greedy, [1])
    rig.loop.inbox.append(("decode", StepPlan(1, split, (first,), joins=(grown,))))
    turn_until(rig, lambda: not decode.inflight)
    other = Join(second, [4, 5], 2, greedy, [2])
    segment = Segment(second, 0, 2, True)
    rig.loop.inbox.append(("prefill", StepPlan(2, split, segments=(segment,), joins=(other,))))
    turn_until(rig, lambda: not prefill.inflight)
    rig.loop.inbox.append(("decode", StepPlan(3, split, (first,), new_blocks=((first, (2,)),))))
    turn_until(rig, lambda: not decode.inflight)
    trace = without_what_the_host_knows(rig)
    assert not kv_races(trace)
    assert kv_races([op for op in trace if not isinstance(op, Wait)])


def without_what_the_host_knows(rig: Rig) -> list[Op]:
    return [op for op in rig.driver.trace if isinstance(op, Drain) or op.stream != HOST]


def kv_races(trace: list[Op]) -> list[Violation]:
    found = violations(trace)
    return [v for v in found if v.kind == "race" and isinstance(v.resource, tuple) and v.resource[0] == "kv"]


def test_staging_given_back_too_early_changes_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LaneExecutor.launch_piece

    def early(self: LaneExecutor, split: Split) -> None:
        step = self.next_step
        assert step is not None
        real(self, split)
        self._shared.staging.give_back(step.buffers[1:])
        del step.buffers[1:]

    monkeypatch.setattr(LaneExecutor, "launch_piece", early)
    rig = Rig(2)
    requests = random_requests(rig.rng, 6, rig.config.vocab_size)

    def serve_and_check() -> None:
        serve(rig, requests)
        check_outputs(rig, requests)

    with pytest.raises((AssertionError, IndexError, RuntimeError, SemipdError)):
        serve_and_check()


def test_no_event_of_an_unfinished_prefill_is_waited_for() -> None:
    """Or decode would stand still for a whole prompt: what decode waits for, beside its own last split, is
    the end of a prefill step that had settled."""
    rig = Rig(5)
    settled: set[int] = set()
    lanes = rig.loop.lanes
    waits: list[int] = []
    real_wait, real_finish = rig.driver.wait_event, lanes["prefill"]._finish

    def finish(step: LaneStep) -> StepResult:
        assert step.finished is not None
        settled.add(step.finished)
        return real_finish(step)

    def wait(stream: Stream, event: Event) -> None:
        if stream in decode_streams and event not in rig.cuda_lanes._moved.values():
            waits.append(event)
            assert event in settled
        real_wait(stream, event)

    decode_streams = {lane.stream for lane in rig.cuda_lanes._streams["decode"].values()}
    rig.driver.wait_event = wait  # type: ignore[method-assign]
    lanes["prefill"]._finish = finish  # type: ignore[method-assign]
    serve(rig, random_requests(rig.rng, 8, rig.config.vocab_size), switches=True)
    assert waits


# ---- switching ----------------------------------------------------------------------------------


def test_a_prefill_under_way_makes_room_for_a_growing_decode() -> None:
    """Decode goes on, on its old SMs, until the prefill has moved; the prefill moves between two layers."""
    rig = Rig(3, family="biased")
    prefill, decode = rig.loop.lanes["prefill"], rig.loop.lanes["decode"]
    narrow, wide = rig.device.info.splits[0], rig.device.info.splits[-1]
    greedy = SamplingParams(max_tokens=60, seed=1, temperature=0.0)
    first, second = SeqId(1), SeqId(2)
    rig.loop.inbox.append(
        ("decode", StepPlan(1, narrow, (first,), joins=(Join(first, [5], 1, greedy, [1]),)))
    )
    turn_until(rig, lambda: not decode.inflight)
    rig.driver.max_run = 0
    prompt = Join(second, list(range(20)), 20, greedy, [2, 3])
    chunk = StepPlan(2, narrow, segments=(Segment(second, 0, 20, True),), joins=(prompt,))
    rig.loop.inbox.append(("prefill", chunk))
    turns(rig, 5)
    assert (prefill.num_marks, prefill.split) == (GROUPS_AHEAD, narrow)
    step = prefill.inflight[0]
    rig.loop.inbox.append(("decode", StepPlan(3, wide, (first,))))
    turns(rig, 5)
    assert (decode.split, prefill.split) == (narrow, narrow)
    assert decode.inflight[0].is_mixed
    rig.driver.max_run = 1
    turn_until(rig, lambda: prefill.split == wide)
    turn_until(rig, lambda: not prefill.inflight and not decode.inflight)
    assert step.is_mixed
    rig.loop.inbox.append(("decode", StepPlan(4, wide, (first,))))
    turns(rig, 1)
    assert decode.split == wide
    turn_until(rig, lambda: not decode.inflight)
    rig.driver.check_order()
    oracle = Oracle(rig.config, rig.weights)
    assert next(iter(decode.residents)).token_ids[1:] == oracle.generate(_request([5], 3))[0]
    assert next(iter(prefill.residents)).token_ids[20:] == oracle.generate(_request(list(range(20)), 1))[0]


def _request(prompt: list[int], max_tokens: int) -> Request:
    return Request(SeqId(1), "", prompt, SamplingParams(max_tokens=max_tokens, seed=1, temperature=0.0), 0)


def turns(rig: Rig, count: int) -> None:
    for _ in range(count):
        rig.loop.turn(time.monotonic_ns())


def turn_until(rig: Rig, reached: Callable[[], bool]) -> None:
    for _ in range(1000):
        turns(rig, 1)
        if reached():
            return
    raise AssertionError("never reached")


@pytest.mark.parametrize(
    ("lane", "wanted", "current", "held", "used"),
    [
        ("decode", Split(84, 48), Split(116, 16), [], Split(84, 48)),
        ("decode", Split(84, 48), Split(116, 16), [116], Split(116, 16)),
        ("decode", Split(84, 48), Split(116, 16), [116, 84], Split(116, 16)),
        ("decode", Split(84, 48), Split(116, 16), [84], Split(84, 48)),
        ("decode", Split(84, 48), Split(0, 132), [132], Split(84, 48)),
        ("prefill", Split(116, 16), Split(84, 48), [48], Split(84, 48)),
        ("prefill", Split(116, 16), Split(84, 48), [16], Split(116, 16)),
        ("prefill", Split(84, 48), Split(132, 0), [48], Split(84, 48)),
    ],
)
def test_the_lane_that_grows_waits_on_its_old_units(
    lane: LaneName, wanted: Split, current: Split, held: list[int], used: Split
) -> None:
    assert split_to_use(lane, wanted, current, held, 132) == used


def test_metadata_that_outgrows_its_buffer_gets_another() -> None:
    rig = Rig(8)
    for lane in rig.loop.lanes.values():
        memory = lane._work._memory
        memory.metadata = memory.metadata[:8].clone()
    requests = random_requests(rig.rng, 8, rig.config.vocab_size)
    serve(rig, requests)
    check_outputs(rig, requests)
    assert all(lane._work._memory.retired for lane in rig.loop.lanes.values())


# ---- deltas --------------------------------------------------------------------------------------


def test_rebuild_equals_the_deltas() -> None:
    """A lane that is given its state anew goes on as if nothing had been."""
    rig = Rig(4, decode_depth=1)
    requests = random_requests(rig.rng, 10, rig.config.vocab_size)
    rebuilt = 0
    launch = rig.coordinator._launch

    def rebuild_then_launch(out: Outbox) -> None:
        nonlocal rebuilt
        for state in (rig.coordinator.prefill, rig.coordinator.decode):
            if not state.inflight and rig.rng.random() < 0.5:
                state.rebuild(rig.coordinator.scheduler.sequences)
                rebuilt += bool(state.residents)
        launch(out)

    rig.coordinator._launch = rebuild_then_launch  # type: ignore[method-assign]
    serve(rig, requests)
    check_outputs(rig, requests)
    assert rebuilt > 5


def test_slots_hold_what_the_deltas_say() -> None:
    state = SlotState(4, 5, 16, torch.device("cpu"))
    params = SamplingParams(max_tokens=9, seed=2**63 + 5, temperature=0.5, top_p=0.25, min_tokens=2)
    delta: Delta = {}
    resident = Resident(SeqId(1), [7, 8, 9], 2, params, [11, 12], 16, 3, slot=2)
    state.join(delta, resident)
    resident.block_table.append(13)
    state.add_blocks(delta, resident, 2)
    state.apply(
        torch.tensor(list(delta), dtype=torch.int32), torch.tensor(list(delta.values()), dtype=torch.int32)
    )
    assert state.tables.tolist() == [[0] * 5, [0] * 5, [11, 12, 13, 0, 0], [0] * 5]
    column = state.columns[:, 2].tolist()
    assert (column[Column.TOKEN], column[Column.POSITION]) == (9, 2)
    assert column[Column.TEMPERATURE_BITS] == float_bits(0.5)
    low, high = (column[c] % 2**32 for c in (Column.SEED_LOW_BITS, Column.SEED_HIGH_BITS))
    assert (high << 32) | low == params.seed
    state.advance(torch.tensor([2]), torch.tensor([40], dtype=torch.int32))
    assert state.columns[:2, 2].tolist() == [40, 3]
    assert not state.columns[:, [0, 1, 3]].any()


# ---- failures ------------------------------------------------------------------------------------


def test_a_stuck_step_is_named() -> None:
    rig = Rig(6)
    rig.tick([Submit(random_requests(rig.rng, 1, 61)[0])])
    while not rig.loop.is_busy:
        rig.tick()
    rig.loop.turn(time.monotonic_ns())
    with pytest.raises(
        SemipdError, match=r"Step 1 of the prefill lane has not finished within 60 s"
    ) as raised:
        rig.loop.turn(time.monotonic_ns() + STEP_LIMIT_NS + 1)
    assert raised.value.code == "step_stuck"


def test_logits_that_are_not_numbers_end_their_sequences() -> None:
    rig = Rig(7)
    rig.weights["norm"].fill_(torch.nan)
    serve(rig, random_requests(rig.rng, 3, 61))
    assert [end.code for end in rig.finished.values()] == ["invalid_logits"] * 3
    assert not rig.tokens


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (StepPlan(7, Split(132, 0), leaves=(SeqId(9),)), "sequence 9 leaves but is not resident"),
        (StepPlan(7, Split(132, 0), decode=(SeqId(1),)), "20 tokens, 16 slots"),
        (StepPlan(7, Split(132, 0), segments=(Segment(SeqId(1), 10, 11, False),)), "does not fit 20 tokens"),
        (StepPlan(7, Split(132, 0), segments=(Segment(SeqId(1), 0, 16, True),)), "before the newest of 20"),
        (StepPlan(7, Split(132, 0), segments=(Segment(SeqId(1), 0, 20, True),)), "20 tokens, 16 slots"),
    ],
)
def test_illegal_plans_are_our_bugs(plan: StepPlan, message: str) -> None:
    lane = Rig(0).loop.lanes["prefill"]
    greedy = SamplingParams(max_tokens=5, seed=1, temperature=0.0)
    lane.begin(StepPlan(1, Split(132, 0), joins=(Join(SeqId(1), list(range(20)), 20, greedy, [2]),)))
    with pytest.raises(AssertionError, match=message):
        lane.begin(plan)


# ---- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 5, 8, 9, 64, 65, 100, 256])
def test_buckets_hold_every_batch_and_waste_at_most_half(max_num_seqs: int) -> None:
    buckets = batch_buckets(max_num_seqs)
    assert buckets[-1] == max_num_seqs
    assert list(buckets) == sorted(set(buckets))
    for rows in range(1, max_num_seqs + 1):
        assert rows <= bucket_for(buckets, rows) < 2 * rows


def test_the_graph_asked_for_in_vain_is_captured_next() -> None:
    table = GraphTable([Split(0, 132), Split(84, 48)], (1, 4, 8))
    assert table.next_missing() == GraphKey(Split(0, 132), 8)
    for key in [GraphKey(Split(84, 48), 4)] * 2 + [GraphKey(Split(0, 132), 1)]:
        assert table.find(key) is None
    assert table.next_missing() == GraphKey(Split(84, 48), 4)
    table.add(GraphKey(Split(84, 48), 4), Graph(3))
    assert table.find(GraphKey(Split(84, 48), 4)) == 3
    assert table.next_missing() == GraphKey(Split(0, 132), 1)
    assert (len(table), table.num_missing, table.num_hits, table.num_misses) == (1, 5, 1, 3)
