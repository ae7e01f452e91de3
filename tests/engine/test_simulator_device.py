"""The simulated device under the real coordinator: tokens, timing, contention, opening."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_engine import Cancel, Run, request, submit

from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.messages import PromptLogprobs, StepTokens, Submit
from semipd.core.plan import Join, Segment, StepPlan
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split
from semipd.devices.sim.contention import slowdown
from semipd.devices.sim.cost import StepWork
from semipd.devices.sim.device import SimDevice
from semipd.devices.sim.gpus import GPUS
from semipd.devices.sim.models import MODELS
from semipd.devices.sim.profile import Profile
from semipd.devices.sim.tokens import made_up_tokens
from semipd.engine.process import open_device

SETTINGS = default_engine_settings(device="sim:h200", model_name="llama-3-8b", max_num_seqs=16)
H200 = Profile(GPUS["h200"])
LLAMA = MODELS["llama-3-8b"]
SHARED = Split(68, 64)


def device(num_blocks: int = 4096, **kwargs: object) -> SimDevice:
    return SimDevice(H200, LLAMA, num_blocks=num_blocks, **kwargs)  # type: ignore[arg-type]


def join(seq: int, num_tokens: int, **params: object) -> Join:
    sampling = SamplingParams(max_tokens=100, seed=seq, **params)  # type: ignore[arg-type]
    return Join(seq, list(range(num_tokens)), num_tokens, sampling, [])  # type: ignore[arg-type]


def test_allowed_tokens_are_all_that_is_made_up() -> None:
    run = Run(device(), SETTINGS)
    sent = [
        request(1, [5] * 40, max_tokens=60, allowed_token_ids=(7, 100, 2000)),
        request(2, [6] * 40, max_tokens=60),
    ]
    run.tick([Submit(r) for r in sent])
    run.drain()
    assert set(run.tokens[sent[0].seq]) == {7, 100, 2000}
    assert run.tokens[sent[1].seq] == made_up_tokens(2, LLAMA.vocab_size, 40, 60)


@pytest.mark.parametrize("scheduler", ["semipd", "chunked", "prefill-first"])
@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_the_engine_does_changes_a_token(scheduler: str, depth: int) -> None:
    """A pool that forces preemption, shared prefixes, cancels: each stream is the undisturbed one."""
    chance = random.Random(depth)
    sim = device(num_blocks=80, decode_depth=depth)
    run = Run(sim, replace(SETTINGS, scheduler=scheduler))  # type: ignore[arg-type]
    wanted = {}
    for seq in range(1, 41):
        prompt = [5] * chance.choice([16, 64]) + [seq] * chance.randint(1, 200)
        wanted[seq] = request(seq, prompt, max_tokens=chance.randint(1, 250), seed=chance.getrandbits(64))
        run.tick([Submit(wanted[seq])])
        if seq % 9 == 0:
            run.tick([Cancel(SeqId(seq - 1))])
        for _ in range(chance.randint(0, 15)):
            run.tick()
    run.drain()
    assert run.coordinator.scheduler.num_preemptions > 0
    assert run.coordinator.scheduler.num_cached_tokens > 0
    for seq, made in wanted.items():
        got = run.tokens.get(seq, [])
        expected = made_up_tokens(
            made.params.seed, LLAMA.vocab_size, len(made.prompt), made.params.max_tokens
        )
        assert got == expected[: len(got)]
        assert len(got) == made.params.max_tokens or run.finished[seq].reason == "cancelled"


def test_rebuild_equals_deltas() -> None:
    by_delta, rebuilt = device().decode, device().decode
    by_delta.launch(StepPlan(1, SHARED, decode=(1, 2), joins=(join(1, 5), join(2, 9))), 0)  # type: ignore[arg-type]
    first = by_delta.poll(10**12)[0].tokens
    by_delta.launch(StepPlan(2, SHARED, decode=(2, 3), joins=(join(3, 4),), leaves=(1,)), 10**12)  # type: ignore[arg-type]
    second = by_delta.poll(2 * 10**12)[0]
    history = [*range(9), *first[1]]
    kept = Join(2, history, 9, SamplingParams(max_tokens=100, seed=2), [])  # type: ignore[arg-type]
    rebuilt.rebuild([kept, join(3, 4)])
    rebuilt.launch(StepPlan(2, SHARED, decode=(2, 3)), 0)  # type: ignore[arg-type]
    again = rebuilt.poll(10**12)[0]
    assert (again.tokens, again.busy_ns) == (second.tokens, second.busy_ns)


def test_a_step_costs_what_the_roofline_says() -> None:
    sim = device()
    plan = StepPlan(
        1,
        SHARED,
        decode=(1, 2),  # type: ignore[arg-type]
        segments=(Segment(3, 16, 100, True),),  # type: ignore[arg-type]
        joins=(join(1, 50), join(2, 70), join(3, 116)),
    )
    sim.decode.launch(plan, 1000)
    cost = sim.costs.step(StepWork(2, 120, ((16, 100),), 1), 64)
    assert sim.wake_at_ns() == 1000 + round(cost.ns)
    (result,) = sim.decode.poll(1000 + round(cost.ns))
    assert result.busy_ns == round(cost.ns)
    assert len(result.tokens) == 3
    sim.decode.launch(StepPlan(2, SHARED, decode=(1, 2)), 10**10)  # type: ignore[arg-type]
    assert sim.wake_at_ns() == 10**10 + round(sim.costs.step(StepWork(2, 122), 64).ns)
    sim.decode.poll(10**11)
    sim.decode.launch(StepPlan(3, Split(0, 132), decode=(1, 2)), 10**12)  # type: ignore[arg-type]
    switched = sim.costs.step(StepWork(2, 124), 132).ns + H200.kernels.switch_ns
    assert sim.wake_at_ns() == 10**12 + round(switched)


def both_lanes(sim: SimDevice) -> tuple[float, float]:
    """Start a decode step and a longer prefill step at 0; their times alone."""
    sim.decode.launch(StepPlan(1, SHARED, decode=(1,), joins=(join(1, 8000),)), 0)  # type: ignore[arg-type]
    sim.prefill.launch(
        StepPlan(2, SHARED, segments=(Segment(2, 0, 512, False),), joins=(join(2, 999),)),  # type: ignore[arg-type]
        0,
    )
    return sim.costs.step(StepWork(1, 8000), 64).ns, sim.costs.step(StepWork(0, 0, ((0, 512),)), 68).ns


def test_lanes_slow_each_other_only_while_both_run() -> None:
    """By hand: the decode step is slowed for its whole time, the prefill step until decode ends."""
    sim = device()
    decode_ns, prefill_ns = both_lanes(sim)
    decode_cost, prefill_cost = (
        sim.costs.step(StepWork(1, 8000), 64),
        sim.costs.step(StepWork(0, 0, ((0, 512),)), 68),
    )
    decode_factor = slowdown(decode_cost, prefill_cost, sim.costs.hbm_rate, 1.0)
    prefill_factor = slowdown(prefill_cost, decode_cost, sim.costs.hbm_rate, 1.0)
    assert min(decode_factor, prefill_factor) > 1.0
    decode_end = decode_ns * decode_factor
    prefill_end = decode_end + prefill_ns - decode_end / prefill_factor
    assert prefill_end > decode_end
    assert sim.decode.poll(10**9)[0].busy_ns == pytest.approx(decode_end, abs=2)
    assert sim.prefill.poll(10**9)[0].busy_ns == pytest.approx(prefill_end, abs=2)


def test_how_often_anybody_looks_changes_nothing() -> None:
    seldom, often = device(), device()
    both_lanes(seldom)
    both_lanes(often)
    seen = [
        result.busy_ns
        for now_ns in range(0, 40_000_000, 10_000)
        for result in [*often.decode.poll(now_ns), *often.prefill.poll(now_ns)]
    ]
    assert seen == [seldom.decode.poll(10**9)[0].busy_ns, seldom.prefill.poll(10**9)[0].busy_ns]


def test_steps_of_a_lane_follow_each_other_without_a_gap() -> None:
    sim = device()
    assert (sim.decode.capacity(), sim.prefill.capacity()) == (2, 1)
    sim.decode.launch(StepPlan(1, SHARED, decode=(1,), joins=(join(1, 100),)), 0)  # type: ignore[arg-type]
    sim.decode.launch(StepPlan(2, SHARED, decode=(1,)), 50)  # type: ignore[arg-type]
    assert sim.decode.capacity() == 0
    first, second = sim.costs.step(StepWork(1, 100), 64).ns, sim.costs.step(StepWork(1, 101), 64).ns
    results = sim.decode.poll(10**10)
    assert [result.step_id for result in results] == [1, 2]
    assert [result.busy_ns for result in results] == [round(first), round(second)]


def test_log_probabilities_have_the_shapes_of_the_contract() -> None:
    run = Run(device(), SETTINGS)
    run.tick(
        [submit(1, [1, 2, 3], max_tokens=2, logprobs=2, prompt_logprobs=1), submit(2, [4], max_tokens=2)]
    )
    run.drain()
    steps = [message for message in run.messages if isinstance(message, StepTokens)]
    for step in steps:
        for seq, token, logprobs in zip(step.seqs, step.tokens, step.logprobs or [], strict=False):
            assert (logprobs is None) == (seq == 2)
            assert logprobs is None or (logprobs.token_id, len(logprobs.top)) == (token, 2)
    (prompt,) = [message for message in run.messages if isinstance(message, PromptLogprobs)]
    assert [entry.token_id for entry in prompt.entries] == [2, 3]


def test_prompts_that_arrive_cost_one_token() -> None:
    sim = device(prompts_arrive=True)
    segments = (Segment(1, 0, 700, True), Segment(2, 0, 300, False))  # type: ignore[arg-type]
    plan = StepPlan(1, Split(0, 132), segments=segments, joins=(join(1, 700), join(2, 900)))
    sim.decode.launch(plan, 0)
    assert sim.decode.poll(10**10)[0].busy_ns == round(sim.costs.step(StepWork(1, 700), 132).ns)


def test_opening_takes_the_named_rows_and_the_tokenizers_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 4096}))
    settings = replace(SETTINGS, model_dir=str(tmp_path), kv_fraction=0.5)
    sim = open_device(settings, lambda phase, limit_s: None)
    info = sim.info
    assert (info.vocab_size, info.max_model_len, info.num_units, info.unit) == (4096, 8192, 132, "SM")
    assert "Llama" not in info.name
    assert "H200" in info.name
    assert "made-up" in info.name
    assert sum(info.memory.values()) < 141e9
    assert isinstance(sim, SimDevice)
    run = Run(sim, settings)
    run.tick([submit(1, [1] * 20, max_tokens=30)])
    run.drain()
    assert run.tokens[1] == made_up_tokens(1, 4096, 20, 30)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"device": "sim:b1"}, "unknown_device", "h200, h100, a100"),
        ({"model_name": "demo"}, "unknown_model", "llama-3-8b"),
        ({"dtype": "float32"}, "unsupported_dtype", "bfloat16"),
        ({"sim_profile": "/nowhere.json"}, "invalid_profile", "/nowhere.json"),
        ({"device": "cpu", "sim_profile": "x.json"}, "conflicting_options", "sim_profile"),
        ({"model_name": "llama-3-70b"}, "out_of_memory", "141.1 GB of weights"),
        ({"model_dir": "/nowhere"}, "checkpoint_corrupt", "/nowhere/config.json"),
    ],
)
def test_refusals_name_what_is_possible(changes: dict[str, str], code: str, says: str) -> None:
    with pytest.raises(SemipdError) as refused:
        open_device(replace(SETTINGS, **changes), lambda phase, limit_s: None)  # type: ignore[arg-type]
    assert refused.value.code == code
    assert says in refused.value.message


@pytest.mark.parametrize("drain", [0, 1])
def test_a_switch_waits_for_the_other_lane_only_where_switches_drain(drain: int) -> None:
    """A decode step moves to fewer SMs while a longer prefill step runs; the wait is no busy time."""
    sim = SimDevice(
        replace(H200, kernels=replace(H200.kernels, drain_on_switch=drain)), LLAMA, num_blocks=4096
    )
    sim.decode.launch(StepPlan(1, SHARED, decode=(1,), joins=(join(1, 500),)), 0)  # type: ignore[arg-type]
    sim.prefill.launch(
        StepPlan(2, SHARED, segments=(Segment(2, 0, 2048, False),), joins=(join(2, 4000),)),  # type: ignore[arg-type]
        0,
    )
    first_end = sim.wake_at_ns()
    assert first_end is not None
    sim.decode.poll(first_end)
    sim.decode.launch(StepPlan(3, Split(92, 40), decode=(1,)), first_end)  # type: ignore[arg-type]
    prefill_end = sim.prefill.queue[0].finish_ns
    alone = sim.costs.step(StepWork(1, 501), 40).ns + H200.kernels.switch_ns
    second_end = sim.decode.queue[0].finish_ns
    assert prefill_end > first_end + 3 * alone
    if drain:
        assert sim.decode.poll(prefill_end) == []
        assert sim.decode.queue[0].finish_ns == prefill_end + round(alone)
    else:
        assert second_end < prefill_end
    assert sim.decode.poll(10**12)[0].busy_ns == pytest.approx(alone, rel=0.001 if drain else 0.2)
