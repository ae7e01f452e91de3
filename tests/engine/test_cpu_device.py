"""Real workers on a tiny checkpoint."""

import gc
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.eventually import eventually_now
from support.patience import Patience
from support.step_tokens import one_each
from support.tiny_models import tiny_checkpoint

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.layout import plan_weights
from semipd.checkpoints.weights import load_weights, weight_views
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.plan import Join, Segment, StepPlan, StepResult
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings
from semipd.core.split import Split
from semipd.devices.contract import Lane
from semipd.devices.cpu.device import CpuDevice
from semipd.devices.cpu.math.network import CpuNetwork
from semipd.network.kv_layout import KvLayout
from semipd.steps.runner import StepRunner

PROMPT = [5, 9, 301, 44, 7] * 9
SEQ = SeqId(3)
WAIT_S = 60.0


def greedy() -> SamplingParams:
    return SamplingParams(max_tokens=64, seed=1, temperature=0.0)


def settings(folder: Path) -> EngineSettings:
    return default_engine_settings(model_dir=str(folder), dtype="float32", max_num_seqs=4)


def open_device(folder: Path) -> CpuDevice:
    return CpuDevice.open(settings(folder), lambda phase, limit_s: None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory, "llama")


@pytest.fixture(scope="module")
def device(checkpoint: Path) -> Iterator[CpuDevice]:
    device = open_device(checkpoint)
    yield device
    device.close()


@pytest.fixture(autouse=True)
def forget_residents(request: pytest.FixtureRequest) -> None:
    if "device" in request.fixturenames:
        device = request.getfixturevalue("device")
        device.prefill.rebuild([])
        device.decode.rebuild([])


def split_for(device: CpuDevice, lane: Lane) -> Split:
    if device.info.splits:
        return device.info.splits[0]
    return device.info.solo_prefill if lane.name == "prefill" else device.info.solo_decode


def wait(device: CpuDevice, lane: Lane) -> StepResult:
    patience = Patience(WAIT_S)
    while not patience.is_over():
        select.select(device.files(), [], [], 1.0)
        for result in lane.poll(0):
            return result
    raise AssertionError(f"no result of {lane.name} within {WAIT_S} s")


def run(device: CpuDevice, lane: Lane, plan: StepPlan) -> list[int]:
    assert lane.capacity() == 1
    lane.launch(plan, 0)
    assert lane.capacity() == 0
    tokens = one_each(wait(device, lane).tokens)
    assert lane.capacity() == 1
    return tokens


def prefill_plan(split: Split, blocks: list[int]) -> StepPlan:
    join = Join(SEQ, list(PROMPT), len(PROMPT), greedy(), blocks)
    return StepPlan(1, split, segments=(Segment(SEQ, 0, len(PROMPT), True),), joins=(join,))


def alone(checkpoint: Path, num_tokens: int) -> list[int]:
    """The same greedy continuation in this process."""
    config = load_model_config(checkpoint)
    layout = plan_weights(config, "float32")
    buffer = torch.zeros(layout.total_bytes, dtype=torch.uint8)
    load_weights(checkpoint, config, layout, buffer, lambda done, total: None)
    decoder = CpuNetwork(
        config, weight_views(layout, buffer), torch.zeros(KvLayout.of(config, 16).pool_shape(16))
    )
    runner = StepRunner(decoder, config.vocab_size, torch.device("cpu"))
    tokens = one_each(runner.execute(prefill_plan(Split(1, 1), list(range(1, 9)))).tokens)
    while len(tokens) < num_tokens:
        tokens += one_each(runner.execute(StepPlan(1, Split(1, 1), decode=(SEQ,))).tokens)
    return tokens


def test_decode_continues_on_the_kv_that_prefill_wrote(device: CpuDevice, checkpoint: Path) -> None:
    split = split_for(device, device.decode)
    blocks = [11, 4, 25, 8, 9, 17, 2]
    tokens = run(device, device.prefill, prefill_plan(split_for(device, device.prefill), blocks))
    join = Join(SEQ, PROMPT + tokens, len(PROMPT), greedy(), blocks)
    decode = (SEQ,)
    tokens += run(device, device.decode, StepPlan(2, split, decode=decode, joins=(join,)))
    while len(tokens) < 30:
        tokens += run(device, device.decode, StepPlan(len(tokens), split, decode=decode))
    device.decode.rebuild([Join(SEQ, PROMPT + tokens, len(PROMPT), greedy(), blocks)])
    while len(tokens) < 40:
        tokens += run(device, device.decode, StepPlan(len(tokens), split, decode=decode))
    assert tokens == alone(checkpoint, 40)


def test_a_cpu_that_packs_no_matrices_computes_the_same(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semipd.devices.cpu.device.can_pack", lambda dtype: False)
    device = open_device(checkpoint)
    try:
        plan = prefill_plan(split_for(device, device.prefill), [1, 2, 3, 4])
        assert run(device, device.prefill, plan) == alone(checkpoint, 1)
    finally:
        device.close()


def test_one_lane_runs_while_the_other_stands_still(device: CpuDevice) -> None:
    split = split_for(device, device.decode)
    pid = device.stats()["workers"]["prefill"]["pid"]
    join = Join(SEQ, list(PROMPT), len(PROMPT), greedy(), [1, 2, 3, 4])
    os.kill(pid, signal.SIGSTOP)
    try:
        device.prefill.launch(prefill_plan(split_for(device, device.prefill), [5, 6, 7]), 0)
        segment = Segment(SEQ, 0, len(PROMPT), True)
        first = run(device, device.decode, StepPlan(7, split, segments=(segment,), joins=(join,)))
        for step_id in range(8, 12):
            run(device, device.decode, StepPlan(step_id, split, decode=(SEQ,)))
        assert device.prefill.poll(0) == []
        assert device.prefill.capacity() == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    assert one_each(wait(device, device.prefill).tokens) == first


def allowed_cores(pid: int) -> set[str]:
    statuses = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    lines = [line for status in statuses for line in status.splitlines()]
    return {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list")}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores to split")
def test_a_new_split_moves_every_thread(device: CpuDevice) -> None:
    """Ends with the undivided machine: the workers' OpenMP threads were started before."""
    pids = {lane: worker["pid"] for lane, worker in device.stats()["workers"].items()}
    cores = sorted(os.sched_getaffinity(0))[: device.info.num_units]
    whole = f"{cores[0]}-{cores[-1]}" if cores[-1] - cores[0] + 1 == len(cores) else ",".join(map(str, cores))
    divided = device.info.splits[-1]
    assert divided == Split(1, len(cores) - 1)
    run(device, device.prefill, StepPlan(1, divided))
    run(device, device.decode, StepPlan(1, divided))
    assert allowed_cores(pids["prefill"]) == {str(cores[0])}
    assert allowed_cores(pids["decode"]).isdisjoint({str(cores[0]), whole})
    for lane, solo in ((device.prefill, device.info.solo_prefill), (device.decode, device.info.solo_decode)):
        run(device, lane, prefill_plan(solo, [1, 2, 3]))
        assert allowed_cores(pids[lane.name]) == {whole}
        assert len(list(Path(f"/proc/{pids[lane.name]}/task").iterdir())) >= len(cores)
        run(device, lane, StepPlan(3, divided))
        assert whole not in allowed_cores(pids[lane.name])


def test_workers_yield_to_daemon_and_coordinator(device: CpuDevice) -> None:
    for worker in device.stats()["workers"].values():
        assert os.getpriority(os.PRIO_PROCESS, worker["pid"]) == min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + 5
        )
        assert worker["rss_bytes"] > 0


def test_closing_leaves_nothing_behind(checkpoint: Path) -> None:
    phases: list[str] = []
    device = CpuDevice.open(settings(checkpoint), lambda phase, limit_s: phases.append(phase))
    assert [phases[0], phases[-1]] == ["reading configuration", "warming up"]
    pids = [worker["pid"] for worker in device.stats()["workers"].values()]
    device.close()
    device.close()
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> set[str]:
    lists = [task / "children" for task in Path("/proc/self/task").iterdir()]
    return {pid for path in lists for pid in path.read_text().split()}


def test_a_corrupt_checkpoint_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    before, files_before = children(), num_open_files()
    with pytest.raises(SemipdError) as raised:
        open_device(broken)
    assert raised.value.code == "checkpoint_corrupt"
    assert children() == before
    del raised  # its traceback holds the mapping
    gc.collect()
    assert num_open_files() == files_before


def test_too_little_memory_is_refused_before_anything_starts(checkpoint: Path) -> None:
    before = children()
    too_much = default_engine_settings(model_dir=str(checkpoint), kv_bytes=2**50, max_num_seqs=2**30)
    with pytest.raises(SemipdError, match="KV pool wanted") as raised:
        CpuDevice.open(too_much, lambda phase, limit_s: None)
    assert raised.value.code == "insufficient_memory"
    assert children() == before


def test_workers_do_not_survive_their_parent(checkpoint: Path) -> None:
    program = (
        "import sys, time\n"
        "from semipd.devices.cpu.device import CpuDevice\n"
        "from semipd.config.config import default_engine_settings\n"
        "settings = default_engine_settings(model_dir=sys.argv[1], max_num_seqs=1)\n"
        "device = CpuDevice.open(settings, lambda phase, limit_s: None)\n"
        "print(*[worker['pid'] for worker in device.stats()['workers'].values()], flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(checkpoint)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        parent.kill()
        parent.wait()
        eventually_now(lambda: not any(map(is_alive, pids)), "workers end with their parent", WAIT_S)
