"""The discrete-event simulator: conservation, determinism, figures against a slow oracle, the baselines."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.simulated import azure_case, azure_file

import semipd.sim.cases
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.messages import StepTokens
from semipd.core.request import Request, SeqId
from semipd.core.slo import Targets
from semipd.core.split import Split
from semipd.devices.sim.cost import CostModel, StepWork
from semipd.devices.sim.gpus import GPUS
from semipd.devices.sim.models import MODELS
from semipd.devices.sim.profile import Profile
from semipd.sim.cases import Cache, Case, Result, Simulated, build, run_case
from semipd.sim.disaggregated import LINK_LATENCY_NS, Disaggregated
from semipd.sim.group import Group
from semipd.sim.outcomes import Outcome
from semipd.sim.policies import PolicySpec, parse_policy, settings_for
from semipd.sim.simulator import Engine, Ledger, simulate
from semipd.sim.workloads.classes import ServiceClass
from semipd.sim.workloads.prompts import request_of
from semipd.sim.workloads.traces import Arrival, Row, Trace, read_trace, replay
from semipd.sim.worlds import WORLDS

ROOT = Path(__file__).parents[2]
POLICIES = ["prefill-first", "chunked:256", "fixed:64", "paper", "predictive", "1p1d", "2*predictive"]


def requests_of(case: Case) -> list[Request]:
    trace = read_trace(Path(case.trace), case.form)
    rate = case.rate * parse_policy(case.policy).num_gpus
    arrivals = replay(trace, rate, case.window_s, case.seed)
    return [request_of(trace, arrival, 128_256, case.slo) for arrival in arrivals]


def outcomes_of(case: Case) -> tuple[dict[SeqId, Outcome], list[Request], Simulated]:
    ledger = Ledger()
    system, _ = build(case, ledger, lambda event: None)
    requests = requests_of(case)
    assert simulate(system, iter(requests), ledger)
    return ledger.outcomes, requests, system


@pytest.mark.parametrize("policy", POLICIES)
def test_every_arrival_ends_once_with_all_its_tokens(tmp_path: Path, policy: str) -> None:
    outcomes, requests, system = outcomes_of(azure_case(tmp_path, policy))
    assert set(outcomes) == {request.seq for request in requests}
    for request in requests:
        outcome = outcomes[request.seq]
        assert outcome.done
        assert outcome.tokens == request.params.max_tokens
        assert request.arrival_ns < outcome.first_ns <= outcome.finished_ns
        assert (outcome.first_ns == outcome.finished_ns) == (outcome.tokens == 1)
    for coordinator in system.coordinators:
        assert coordinator.scheduler.idle
        coordinator.check_integrity()
        assert coordinator.scheduler.memory.pool.num_free == coordinator.scheduler.memory.pool.num_usable


@pytest.mark.parametrize("policy", POLICIES)
def test_same_case_same_result(tmp_path: Path, policy: str) -> None:
    case = azure_case(tmp_path, policy, rate=14.0, window_s=4.0)
    first, second = run_case(case), run_case(case)
    assert first.figures == second.figures
    assert (first.num_steps, first.split_held_s) == (second.num_steps, second.split_held_s)
    assert run_case(replace(case, rate=15.0)).figures != first.figures


def test_figures_agree_with_a_look_at_every_token(tmp_path: Path) -> None:
    """The oracle writes down the virtual time of each token as it leaves the coordinator."""
    case = azure_case(tmp_path, "fixed:32", rate=20.0)
    times: dict[SeqId, list[int]] = {}

    class Watched(Engine):
        def _read(self, outbox, now_ns):  # type: ignore[no-untyped-def]
            for message in outbox:
                if isinstance(message, StepTokens):
                    for seq in message.seqs:
                        times.setdefault(seq, []).append(now_ns)
            super()._read(outbox, now_ns)

    ledger = Ledger()
    plain, _ = build(case, ledger, lambda event: None)
    assert isinstance(plain, Engine)
    watched = Watched(plain.coordinator.device, plain.coordinator.settings, ledger)
    requests = requests_of(case)
    simulate(watched, iter(requests), ledger)
    met = 0
    for request in requests:
        own, outcome = times[request.seq], ledger.outcomes[request.seq]
        ttft_ms = (own[0] - request.arrival_ns) / 1e6
        tpot_ms = (own[-1] - own[0]) / 1e6 / (len(own) - 1) if len(own) > 1 else 0.0
        assert (outcome.ttft_ms, outcome.tpot_ms) == (ttft_ms, tpot_ms)
        met += ttft_ms <= case.ttft_ms and tpot_ms <= case.tpot_ms
    result = run_case(case)
    assert result.figures.attainment == pytest.approx(met / len(requests))
    assert result.figures.goodput_per_s == pytest.approx(met / case.window_s)


def test_a_lone_request_takes_what_its_steps_take(tmp_path: Path) -> None:
    """TTFT: the chunks of its prompt on the whole device; TPOT: decode steps alone, back to back."""
    azure_file(tmp_path, [(0.0, 700, 5), (1.0, 700, 5)])
    case = azure_case(tmp_path, "fixed:64", rate=0.5, window_s=1.0, prefill_chunk_tokens=512)
    outcomes, _, _ = outcomes_of(case)
    costs = CostModel(Profile(GPUS["h200"]), MODELS["llama-3-8b"])
    prompt_ns = (
        costs.step(StepWork(0, 0, ((0, 512),)), 132).ns + costs.step(StepWork(0, 0, ((512, 188),), 1), 132).ns
    )
    decode_ns = [costs.step(StepWork(1, 701 + idx), 132).ns for idx in range(4)]
    (outcome,) = outcomes.values()
    assert outcome.ttft_ms * 1e6 == pytest.approx(prompt_ns, abs=10)
    assert outcome.tpot_ms * 1e6 == pytest.approx(sum(decode_ns) / 4, abs=10)


def test_each_class_is_judged_by_its_own_targets(tmp_path: Path) -> None:
    """The same load with one target that all meet, one that nobody meets, and none."""
    classes = (
        ServiceClass("easy", Targets(ttft_ms=1e6), 0.5),
        ServiceClass("hard", Targets(ttft_ms=1e-3), 0.3),
        ServiceClass("batch", Targets(), 0.2),
    )
    case = azure_case(tmp_path, "chunked:512", rate=20.0, classes=classes)
    found = run_case(case).figures
    assert {name: row.attainment for name, row in found.by_class.items()} == {
        "batch": 1,
        "easy": 1,
        "hard": 0,
    }
    assert found.worst_attainment == 0.0
    num = {name: row.num_requests for name, row in found.by_class.items()}
    assert num["easy"] > num["hard"] > num["batch"] > 20
    assert found.by_class["hard"].num_late == num["hard"]
    assert found.attainment == pytest.approx(1 - num["hard"] / found.num_requests)
    again = run_case(replace(case, policy="fixed:64"))
    assert {name: row.num_requests for name, row in again.figures.by_class.items()} == num
    assert Result.from_json(json.loads(json.dumps(again.to_json()))) == again


def test_requests_that_cannot_fit_count_as_misses(tmp_path: Path) -> None:
    azure_file(tmp_path, [(0.0, 100, 5), (1.0, 5000, 5), (2.0, 100, 5)])
    result = run_case(azure_case(tmp_path, "chunked:512", rate=1.0, window_s=3.0, max_model_len=2048))
    assert (result.figures.num_requests, result.figures.num_failed) == (3, 1)
    assert result.figures.errors == {"context_length_exceeded": 1}
    assert result.figures.attainment == pytest.approx(2 / 3)


def test_a_hopeless_run_is_given_up_and_says_so(tmp_path: Path) -> None:
    case = azure_case(tmp_path, "chunked:512", rate=60.0, ttft_ms=20.0)
    whole, short = run_case(case), run_case(replace(case, stop_below=0.9))
    assert whole.figures.complete
    assert whole.figures.attainment < 0.9
    assert not short.figures.complete
    assert short.num_steps < whole.num_steps / 2
    easy = run_case(replace(case, rate=2.0, ttft_ms=500.0, stop_below=0.9))
    assert easy.figures.complete


def test_preemption_under_a_small_pool_loses_nobody(tmp_path: Path) -> None:
    azure_file(tmp_path, [(idx * 0.01, 200, 400) for idx in range(50)])
    case = azure_case(tmp_path, "fixed:64", rate=40.0, window_s=5.0, kv_frac=0.003)
    result = run_case(case)
    assert result.num_preemptions > 0
    assert result.figures.output_tokens == result.figures.num_requests * 400


def test_prefixes_of_a_trace_are_found(tmp_path: Path) -> None:
    """Three turns of one conversation: each finds the whole blocks of the turn before."""
    turns = [(0, 600, [0, 1]), (2000, 1100, [0, 2, 3]), (4000, 1500, [0, 2, 4])]
    lines = [
        json.dumps({"timestamp": at, "input_length": length, "output_length": 4, "hash_ids": ids})
        for at, length, ids in turns
    ]
    path = tmp_path / "moon.jsonl"
    path.write_text("\n".join(lines))
    case = azure_case(tmp_path, "fixed:64", rate=0.5, window_s=6.0)
    result = run_case(replace(case, trace=str(path), form="mooncake"))
    assert result.figures.num_requests == 3
    assert result.figures.cached_tokens == 512 + 1024


def test_more_contention_or_less_bandwidth_is_slower(tmp_path: Path) -> None:
    case = azure_case(tmp_path, "fixed:64", rate=14.0, window_s=4.0)
    plain = run_case(case).figures.mean_e2e_ms
    assert run_case(replace(case, contention=4.0)).figures.mean_e2e_ms > plain
    assert run_case(replace(case, contention=0.0)).figures.mean_e2e_ms < plain
    assert run_case(replace(case, bandwidth=0.7)).figures.mean_e2e_ms > plain * 1.1
    assert run_case(replace(case, bandwidth=1.3)).figures.mean_e2e_ms < plain


SLOWER, SAME, FASTER = 1, 0, -1
WORLD_EFFECTS = {  # on two lanes, on one
    "prefill^0.9": (FASTER, SAME),
    "prefill^0.8": (FASTER, SAME),
    "contention 30 %": (SLOWER, SAME),
    "chunked attention": (SLOWER, SLOWER),
    "host 2 ms": (SAME, SLOWER),
    "host 5 ms": (SAME, SLOWER),
    "drain": (SLOWER, SAME),
    "less KV": (SAME, SAME),
    "bandwidth -30 %": (SLOWER, SLOWER),
    "bandwidth +30 %": (FASTER, FASTER),
}


@pytest.mark.parametrize("policy", ["fixed:64", "chunked:256"])
def test_worlds_change_engines_as_they_say(tmp_path: Path, policy: str) -> None:
    case = azure_case(tmp_path, policy, rate=14.0, window_s=2.0, prefill_chunk_tokens=256)
    plain_ms = run_case(case).figures.mean_e2e_ms
    found = {}
    for world in WORLD_EFFECTS:
        changed_ms = run_case(replace(case, world=world)).figures.mean_e2e_ms
        found[world] = (changed_ms > plain_ms) - (changed_ms < plain_ms)
    assert found == {world: effect[policy != "fixed:64"] for world, effect in WORLD_EFFECTS.items()}
    assert set(WORLD_EFFECTS) == set(WORLDS) - {"default"}


def test_two_lanes_have_less_kv_where_they_cost_some(tmp_path: Path) -> None:
    blocks = {}
    for policy in ("fixed:64", "predictive", "chunked:512", "prefill-first"):
        for world in ("default", "less KV"):
            system, _ = build(azure_case(tmp_path, policy, world=world), Ledger(), lambda event: None)
            blocks[policy, world] = system.coordinators[0].device.info.num_blocks
    for policy in ("fixed:64", "predictive"):
        assert blocks[policy, "less KV"] == pytest.approx(0.94 * blocks[policy, "default"], rel=1e-3)
    for policy in ("chunked:512", "prefill-first"):
        assert blocks[policy, "less KV"] == blocks[policy, "default"]


def test_disaggregation_pays_for_the_transfer(tmp_path: Path) -> None:
    """One request: first token from the first GPU, then KV over the link, then decode on the second."""
    azure_file(tmp_path, [(0.0, 1000, 3), (1.0, 10, 1)])
    outcomes, _, system = outcomes_of(azure_case(tmp_path, "1p1d", rate=0.5, window_s=0.9))
    costs = CostModel(Profile(GPUS["h200"]), MODELS["llama-3-8b"])
    transfer_ns = LINK_LATENCY_NS + 1000 * 131_072 / 450e9 * 1e9
    decode_ns = costs.step(StepWork(1, 1001), 132).ns + costs.step(StepWork(1, 1002), 132).ns
    (outcome,) = outcomes.values()
    assert outcome.ttft_ms * 1e6 == pytest.approx(costs.step(StepWork(0, 0, ((0, 1000),), 1), 132).ns, abs=5)
    assert outcome.e2e_ms * 1e6 == pytest.approx(outcome.ttft_ms * 1e6 + transfer_ns + decode_ns, abs=10)
    assert isinstance(system, Disaggregated)
    assert system.link_busy_ns == pytest.approx(transfer_ns, abs=1)


def test_transfers_queue_for_the_link(tmp_path: Path) -> None:
    azure_file(tmp_path, [(idx * 1e-3, 4000, 2) for idx in range(4)])
    case = azure_case(tmp_path, "1p1d", rate=10.0, window_s=1.0)
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps({"gpu": {"link_bytes_per_s": 1e9}}))
    fast_result, slow_result = run_case(case), run_case(replace(case, profile=str(slow)))
    one_transfer_ms = 4000 * 131_072 / 1e9 * 1e3
    assert slow_result.figures.ttft_ms == fast_result.figures.ttft_ms
    last = slow_result.figures.num_requests
    assert slow_result.figures.e2e_ms["p99"] > one_transfer_ms * last - case.window_s * 1e3


def test_a_group_spreads_a_burst_and_keeps_a_conversation(tmp_path: Path) -> None:
    """Four prompts at once go to two engines by two; later turns go where their prefix is."""
    blocks = [(0,), (1,), (2,), (3,), (0, 4), (2, 5), (0, 4, 6), (2, 5, 7)]
    trace = Trace(
        "t", tuple(Row(max(idx - 3, 0) * 2.0, 512 * len(ids), 4, ids) for idx, ids in enumerate(blocks)), 512
    )
    requests = [
        request_of(trace, Arrival(round(row.at_s * 1e9), idx, 0, row), 128_256)
        for idx, row in enumerate(trace.rows)
    ]
    ledger = Ledger()
    group, _ = build(azure_case(tmp_path, "2*fixed:64"), ledger, lambda event: None)
    assert isinstance(group, Group)
    for request in requests[:4]:
        ledger.arrived(request)
    group.tick(0, requests[:4])
    assert [len(coordinator.scheduler.sequences) for coordinator in group.coordinators] == [2, 2]
    assert simulate(group, iter(requests[4:]), ledger)
    assert [ledger.outcomes[r.seq].cached_tokens for r in requests[4:]] == [512, 512, 1024, 1024]
    assert sum(coordinator.scheduler.num_prompt_tokens for coordinator in group.coordinators) == 14 * 512


def test_policies_by_name() -> None:
    assert parse_policy("chunked:512") == PolicySpec("chunked", 512)
    assert str(parse_policy("fixed:64")) == "fixed:64"
    assert parse_policy("1p1d").num_gpus == 2
    spec = parse_policy("2*chunked:1024+deadline")
    assert spec == PolicySpec("chunked", 1024, "deadline", 2)
    assert (str(spec), spec.num_gpus, spec.one_lane) == ("2*chunked:1024+deadline", 2, True)
    assert str(parse_policy("predictive+fcfs")) == "predictive"
    bad_orders = ("chunked:1024+", "predictive+lifo", "1*paper", "2*1p1d", "0*paper", "chunked:0", "+fcfs")
    for bad in ("chunked", "fixed:", "fixed:x", "paper:3", "magic", "", *bad_orders):
        with pytest.raises(SemipdError) as refused:
            parse_policy(bad)
        assert refused.value.code == "unknown_policy"


def test_a_policy_brings_its_order_and_only_fcfs_refuses_nobody() -> None:
    base = default_engine_settings(device="sim:h200", model_name="llama-3-8b")
    made = {
        text: settings_for(parse_policy(text), base, Targets(500.0, tpot_ms=25.0), GPUS["h200"])
        for text in ("chunked:512", "chunked:512+cost", "predictive+deadline", "fixed:64+fcfs")
    }
    assert [settings.order for settings in made.values()] == ["fcfs", "cost", "deadline", "fcfs"]
    late_s = base.max_late_s
    assert [settings.max_late_s for settings in made.values()] == [86_400.0, late_s, late_s, 86_400.0]


def test_a_fixed_policy_holds_its_split(tmp_path: Path) -> None:
    held = run_case(azure_case(tmp_path, "fixed:40", rate=20.0)).split_held_s
    assert set(held) <= {str(Split(92, 40)), str(Split(132, 0)), str(Split(0, 132))}
    assert held[str(Split(92, 40))] > 0.5


def test_an_impossible_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SemipdError) as refused:
        run_case(azure_case(tmp_path, "fixed:41"))
    assert refused.value.code == "impossible_split"


def test_the_cache_answers_equal_cases_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, case = Cache(tmp_path / "cache"), azure_case(tmp_path, window_s=3.0)
    stored = cache.run(case)
    ran: list[Case] = []

    def run(case: Case) -> Result:
        ran.append(case)
        return stored

    monkeypatch.setattr(semipd.sim.cases, "run_case", run)
    assert Cache(tmp_path / "cache").run(case) == stored
    assert ran == []
    changed = azure_file(tmp_path, [(0.0, 10, 1), (1.0, 10, 1)], "other.csv")
    others = [replace(case, seed=2), replace(case, bandwidth=0.7), replace(case, trace=str(changed))]
    for other in others:
        cache.run(other)
    assert ran == others


def test_time_that_stands_still_is_noticed(tmp_path: Path) -> None:
    class Stuck:
        wake_at_ns, idle = 5, False

        def tick(self, now_ns: int, requests: list[Request]) -> None:
            pass

    nobody: Iterator[Request] = iter(())
    with pytest.raises(AssertionError, match="time stands still at 5 ns"):
        simulate(Stuck(), nobody, Ledger())


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment, cwd=ROOT)


def test_simulate_prints_and_saves(tmp_path: Path) -> None:
    trace, saved = azure_file(tmp_path), tmp_path / "out.json"
    common = ("--trace", trace, "--format", "azure", "--duration", 4, "--json", saved)
    done = script("simulate.py", *common, "--policy", "fixed:64", "--rate", 5)
    assert done.returncode == 0, done.stderr
    assert "goodput" in done.stdout
    data = json.loads(saved.read_text())
    assert data["case"]["rate"] == 5
    arrivals = list(replay(read_trace(trace, "azure"), 5.0, 4.0))
    assert data["result"]["figures"]["num_requests"] == len(arrivals)
    refused = script("simulate.py", *common, "--policy", "magic")
    assert refused.returncode == 2
    assert "unknown_policy" in refused.stderr


def test_compare_policies_wants_its_traces_first(tmp_path: Path) -> None:
    done = script("compare_policies.py", "--traces", tmp_path, "--no-plots")
    assert done.returncode == 2
    assert "trace_not_found" in done.stderr
