"""Real workers that are killed, stopped or fail: weights and KV stay, only the worker is replaced."""

import os
import random
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from support.fake_engine import request
from support.live_engine import LiveRun
from support.oracle import GreedyOracle, Verdict
from support.patience import Patience
from support.tiny_models import tiny_checkpoint

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, Submit
from semipd.core.plan import Join, Segment, StepPlan
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import LaneName, Split
from semipd.devices.contract import LaneFailed, WorkerNews, WorkerReplacement
from semipd.devices.cpu.deaths import MAX_DEATHS, WINDOW_S, Deaths
from semipd.devices.cpu.device import CpuDevice
from semipd.devices.cpu.lane import Awaited, CpuLane
from semipd.devices.cpu.process import Death

LIMIT_S = 100.0
STEP_LIMIT_S = 4.0
NUM_STREAMS = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory, "llama")


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> GreedyOracle:
    return GreedyOracle(checkpoint)


def open_device(checkpoint: Path) -> CpuDevice:
    settings = default_engine_settings(
        model_dir=str(checkpoint),
        dtype="float32",
        max_num_seqs=NUM_STREAMS,
        max_num_blocks=400,
        worker_step_limit_s=STEP_LIMIT_S,
    )
    return CpuDevice.open(settings, lambda phase, limit_s: None)


@pytest.fixture(scope="module")
def shared(checkpoint: Path) -> Iterator[CpuDevice]:
    device = open_device(checkpoint)
    yield device
    device.close()


@pytest.fixture
def device(shared: CpuDevice) -> CpuDevice:
    """For tests that leave both lanes working. Deaths of other tests do not count."""
    for lane in (shared.prefill, shared.decode):
        lane._deaths = Deaths(lane.name)
        lane.rebuild([])
    return shared


@pytest.fixture
def doomed(checkpoint: Path) -> Iterator[CpuDevice]:
    device = open_device(checkpoint)
    yield device
    device.close()


def pid_of(device: CpuDevice, lane: LaneName) -> int:
    return device.stats()["workers"][lane]["pid"]


def streams(seed: int, max_tokens: int = 60) -> list[Request]:
    rng = random.Random(seed)
    prompts = [[rng.randrange(2, 400) for _ in range(rng.randint(3, 90))] for _ in range(NUM_STREAMS)]
    return [
        request(i, prompt, max_tokens=max_tokens, temperature=0.0)
        for i, prompt in enumerate(prompts, start=1)
    ]


def turn_until(run: LiveRun, condition: Callable[[], bool], inbox: list[object] | None = None) -> None:
    patience = Patience(LIMIT_S)
    run.turn(inbox or [])  # type: ignore[arg-type]
    while not condition():
        assert not patience.is_over(), f"not within {LIMIT_S} s"
        run.turn()


def happened(run: LiveRun, kind: str, lane: str) -> bool:
    return any(event.kind == kind and event.data["lane"] == lane for event in run.events)


def judge(run: LiveRun, requests: list[Request], oracle: GreedyOracle) -> Verdict:
    total = Verdict()
    for r in requests:
        assert run.finished[r.seq].reason == "length"
        assert len(run.tokens[r.seq]) == r.params.max_tokens, "something is repeated or missing"
        total += oracle.judge(r.prompt, run.tokens[r.seq])
    return total


def kill(device: CpuDevice, lane: LaneName) -> None:
    os.kill(pid_of(device, lane), signal.SIGKILL)


def stop(device: CpuDevice, lane: LaneName) -> None:
    os.kill(pid_of(device, lane), signal.SIGSTOP)


class TestDuring16Streams:
    @pytest.mark.parametrize(
        ("lane", "fault", "how"),
        [
            pytest.param("prefill", kill, "was ended by SIGKILL", marks=pytest.mark.soak),
            ("decode", kill, "was ended by SIGKILL"),
            ("decode", stop, f"did not finish step .* within {STEP_LIMIT_S:g} s and was killed"),
        ],
    )
    def test_a_lost_worker_is_replaced_and_no_token_changes(
        self,
        device: CpuDevice,
        oracle: GreedyOracle,
        lane: LaneName,
        fault: Callable[[CpuDevice, LaneName], None],
        how: str,
    ) -> None:
        run = LiveRun(device, default_engine_settings(max_num_seqs=NUM_STREAMS, prefill_chunk_tokens=16))
        other: LaneName = "decode" if lane == "prefill" else "prefill"
        before, kept = pid_of(device, lane), pid_of(device, other)
        requests = streams(seed=1)
        turn_until(run, lambda: len(run.tokens) >= 4, [Submit(r) for r in requests])
        state = run.coordinator.prefill if lane == "prefill" else run.coordinator.decode
        turn_until(run, lambda: bool(state.inflight))
        fault(device, lane)
        turn_until(run, lambda: len(run.finished) == NUM_STREAMS)
        died, restarted = (e for e in run.events if e.kind in ("worker_died", "worker_restarted"))
        assert (died.data["lane"], died.data["pid"], died.data["signal"]) == (lane, before, "SIGKILL")
        assert restarted.data["pid"] == pid_of(device, lane) != before
        assert 0 < cast(float, restarted.data["seconds"]) < LIMIT_S
        assert pid_of(device, other) == kept
        assert re.search(how, str(died.data["how"]))
        verdict = judge(run, requests, oracle)
        print(f"{verdict.num_tokens} tokens, {verdict.num_deviations} decided by the tolerance")
        run.coordinator.check_integrity()
        assert run.coordinator.scheduler.memory.pool.num_free == device.info.num_blocks - 1


def test_the_other_lane_serves_and_cancels_work_meanwhile(device: CpuDevice, oracle: GreedyOracle) -> None:
    """A prompt is lost in mid-chunk; streams go on, and what is cancelled gives back its blocks."""
    run = LiveRun(
        device, default_engine_settings(max_num_seqs=NUM_STREAMS, prefill_chunk_tokens=16, merge_tokens=0)
    )
    going, lost, cancelled = streams(seed=2, max_tokens=300)[:3]
    turn_until(run, lambda: going.seq in run.tokens, [Submit(going)])
    stop(device, "prefill")
    turn_until(run, lambda: bool(run.coordinator.prefill.inflight), [Submit(lost), Submit(cancelled)])
    kill(device, "prefill")
    turn_until(run, lambda: happened(run, "worker_died", "prefill"))
    seen = len(run.tokens[going.seq])
    turn_until(run, lambda: cancelled.seq in run.finished, [Cancel(cancelled.seq)])
    turn_until(run, lambda: len(run.tokens[going.seq]) > seen + 3)
    assert not happened(run, "worker_restarted", "prefill"), "too late to see anything"
    turn_until(run, lambda: len(run.finished) == 3)
    judge(run, [going, lost], oracle)
    assert run.coordinator.scheduler.memory.pool.num_free == device.info.num_blocks - 1


def test_draws_are_the_same_after_the_step_has_run_again(device: CpuDevice) -> None:
    """One stream alone, so that the arithmetic is the same; its seed decides every token."""
    drawn = request(1, [7, 8, 9], max_tokens=40, temperature=1.0, seed=5)
    expected = LiveRun(device, default_engine_settings()).run([drawn])[drawn.seq]
    run = LiveRun(device, default_engine_settings())
    turn_until(run, lambda: len(run.tokens.get(drawn.seq, [])) > 5, [Submit(drawn)])
    stop(device, "decode")
    turn_until(run, lambda: bool(run.coordinator.decode.inflight))
    kill(device, "decode")
    turn_until(run, lambda: drawn.seq in run.finished)
    assert happened(run, "worker_restarted", "decode")
    assert run.tokens[drawn.seq] == expected


# ---- lanes by themselves ---------------------------------------------------------------------------

PROMPT = list(range(2, 40))
SEQ = SeqId(3)


def chunk(device: CpuDevice, step_id: int) -> StepPlan:
    join = Join(
        SEQ, list(PROMPT), len(PROMPT), SamplingParams(max_tokens=8, seed=1, temperature=0.0), [1, 2, 3]
    )
    split = device.info.solo_prefill
    return StepPlan(step_id, split, segments=(Segment(SEQ, 0, len(PROMPT), True),), joins=(join,))


def news_of(device: CpuDevice, lane: CpuLane) -> list[WorkerNews]:
    news: list[WorkerNews] = []
    patience = Patience(LIMIT_S)
    while not any(isinstance(item, WorkerReplacement) for item in news):
        assert not patience.is_over()
        select.select(device.files(), [], [], 0.05)
        lane.poll(time.monotonic_ns())
        news += lane.worker_news()
    return news


def lose_at_step(lane: CpuLane, plan: StepPlan) -> None:
    """The worker dies with the step in its hands."""
    os.kill(lane.worker.pid, signal.SIGSTOP)
    lane.launch(plan, time.monotonic_ns())
    os.kill(lane.worker.pid, signal.SIGKILL)


def test_a_worker_that_dies_while_it_starts_is_replaced_too(device: CpuDevice) -> None:
    lane = device.decode
    kill(device, "decode")
    patience = Patience(LIMIT_S)
    while lane.state != "starting":
        assert not patience.is_over()
        lane.poll(time.monotonic_ns())
    kill(device, "decode")
    kinds = [type(item).__name__ for item in news_of(device, lane)]
    assert kinds == ["WorkerDeath", "WorkerDeath", "WorkerReplacement"]
    lane.rebuild([])
    lane.launch(StepPlan(1, device.info.solo_decode), time.monotonic_ns())
    while not lane.poll(time.monotonic_ns()):
        assert not patience.is_over()


def test_a_second_death_in_the_same_step_ends_the_lane_with_a_diagnosis(doomed: CpuDevice) -> None:
    lane = doomed.prefill
    lane.rebuild([])
    lose_at_step(lane, chunk(doomed, 17))
    assert lane.capacity() == 0
    died, _ = news_of(doomed, lane)
    assert (died.signal, died.step_id) == ("SIGKILL", 17)  # type: ignore[union-attr]
    assert lane.capacity() == 1
    pid = lane.worker.pid
    lane.rebuild([])
    lose_at_step(lane, chunk(doomed, 17))
    said = f"prefill worker (pid {pid}) was ended by SIGKILL in step 17 (prefill of sequences {SEQ})"
    with pytest.raises(LaneFailed, match=re.escape(said)) as raised:
        news_of(doomed, lane)
    assert raised.value.code == "worker_died"


def test_an_exception_is_a_death_and_a_start_has_a_limit_with_a_subject(doomed: CpuDevice) -> None:
    plan = StepPlan(9, doomed.info.solo_decode, decode=(SeqId(404),))
    doomed.decode.launch(plan, time.monotonic_ns())
    died, _ = news_of(doomed, doomed.decode)
    assert died.how == "failed: KeyError: 404"  # type: ignore[union-attr]
    doomed.decode.launch(plan, time.monotonic_ns())
    with pytest.raises(LaneFailed, match=r"KeyError: 404 in step 9 \(decode of sequences 404\)") as raised:
        news_of(doomed, doomed.decode)
    assert raised.value.code == "step_failed"

    doomed.prefill._start_words = (Awaited("attached", "attach", 0.3),)
    kill(doomed, "prefill")
    while doomed.prefill.state != "starting":
        doomed.prefill.poll(time.monotonic_ns())
    stop(doomed, "prefill")
    with pytest.raises(LaneFailed, match=r"prefill worker did not attach within 0.3 s") as raised:
        news_of(doomed, doomed.prefill)
    assert raised.value.code == "worker_timeout"


def test_too_many_deaths_of_idle_workers() -> None:
    deaths, killed = Deaths("decode"), Death("was ended by SIGKILL", "SIGKILL", "dmesg")
    for number in range(3 * MAX_DEATHS):
        deaths.count(1, killed, None, number * (WINDOW_S / MAX_DEATHS + 1))
    deaths = Deaths("decode")
    for number in range(MAX_DEATHS):
        deaths.count(1, killed, None, float(number))
    with pytest.raises(LaneFailed, match=rf"{MAX_DEATHS + 1} have ended within {WINDOW_S:g} s"):
        deaths.count(1, killed, None, WINDOW_S - 1)


def test_a_step_that_has_settled_is_forgotten() -> None:
    deaths, killed = Deaths("decode"), Death("was ended by SIGKILL", "SIGKILL", "")
    step = StepPlan(5, Split(1, 1), decode=(SEQ,))
    deaths.count(1, killed, step, 0.0)
    deaths.settled()
    deaths.count(1, killed, step, 1.0)
    with pytest.raises(LaneFailed):
        deaths.count(1, killed, step, 2.0)
