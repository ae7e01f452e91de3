"""The CPU device's parts that need no worker: limits, cores, sizing, frames."""

import errno
import os
import random
import re
import select
import socket
import threading
from pathlib import Path

import pytest
import torch

from semipd.core.errors import SemipdError
from semipd.core.plan import Join, Segment, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split
from semipd.devices.cpu.cgroups import cpu_quota
from semipd.devices.cpu.cores import lane_cores, split_table, usable_cores
from semipd.devices.cpu.memory import Available, SharedMemory, available_memory
from semipd.devices.cpu.messages import (
    LANE_FRAME_BYTES,
    plan_from_wire,
    plan_to_wire,
    rebuild_from_wire,
    rebuild_to_wire,
    result_from_wire,
    result_to_wire,
)
from semipd.devices.cpu.sizing import DEFAULT_KV_BYTES, HostMemoryDemand
from semipd.steps.sizing import num_kv_blocks
from semipd.wire.channel import Channel
from semipd.wire.frames import FrameReader, encode_frame

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_memory_limit_of_cgroup_v2_counts_every_ancestor(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 9000000 kB\n",
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/memory.max": "5000000\n",
            "sys/fs/cgroup/outer/memory.current": "3000000\n",
            "sys/fs/cgroup/outer/memory.stat": "anon 1\ninactive_file 250000\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/inner/memory.current": "3000000\n",
        },
    )
    available = available_memory(root)
    assert available.num_bytes == 5_000_000 - 3_000_000 + 250_000
    assert available.source.endswith("sys/fs/cgroup/outer/memory.max")


def test_memory_limit_of_cgroup_v1_in_a_container(tmp_path: Path) -> None:
    """The path in /proc/self/cgroup does not exist below the container's mount."""
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 9000000 kB\n",
            "proc/self/cgroup": "4:memory:/docker/abc\n2:cpuacct,cpu:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "500\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert available_memory(root).num_bytes == 1500
    assert cpu_quota(root) == 2.5


def test_without_limits_only_the_machine_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 77 kB\n",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
    )
    assert available_memory(root) == Available(77 * 1024, "MemAvailable")
    assert cpu_quota(root) is None
    assert usable_cores(root) == tuple(sorted(os.sched_getaffinity(0)))


def test_a_quota_limits_the_usable_cores(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/cpu.max": "50000 100000\n"})
    assert usable_cores(root) == tuple(sorted(os.sched_getaffinity(0)))[:1]


@pytest.mark.parametrize("num_cores", [1, 2, 3, 16])
def test_splits_divide_the_cores_between_the_lanes(num_cores: int) -> None:
    cores = tuple(range(10, 10 + num_cores))
    table = split_table(num_cores)
    assert [split.decode_units for split in table] == list(range(1, num_cores))
    for split in table:
        prefill, decode = lane_cores(cores, "prefill", split), lane_cores(cores, "decode", split)
        assert prefill + decode == cores
        assert (len(prefill), len(decode)) == split
    assert lane_cores(cores, "prefill", Split(num_cores, 0)) == cores
    assert lane_cores(cores, "decode", Split(0, num_cores)) == cores


def demand(available: Available, **changes: int | float) -> HostMemoryDemand:
    base: dict[str, int | float] = {
        "weights_bytes": 4 * GIB,
        "worker_bytes": GIB,
        "block_size": 16,
        "block_bytes": 2**20,
        "max_model_len": 4096,
        "max_num_seqs": 8,
        "kv_bytes": 0,
        "kv_fraction": 0.5,
        "max_num_blocks": 0,
    }
    return HostMemoryDemand(available=available, **(base | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "available_gib", "expected"),
    [
        ({}, 100, 8 * 256 + 1),  # never more than all sequences can use
        ({"max_num_seqs": 64}, 100, DEFAULT_KV_BYTES // 2**20),  # the default cap
        ({"max_num_seqs": 64}, 9, 2 * 1024),  # half of the 4 GiB that are left
        ({"max_num_seqs": 64, "kv_bytes": 8 * GIB}, 100, 8 * 1024),
        ({"max_num_blocks": 300}, 100, 300),
        ({"max_model_len": 131072}, 100, 8192 + 1),  # one longest sequence may exceed the default cap
        ({"max_model_len": 16, "max_num_seqs": 1}, 100, 2),
    ],
)
def test_pool_size(changes: dict[str, int | float], available_gib: int, expected: int) -> None:
    assert num_kv_blocks(demand(Available(available_gib * GIB, "test"), **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "available_gib"),
    [
        ({"kv_bytes": 20 * GIB, "max_num_seqs": 999}, 15),
        ({"kv_bytes": 2**20}, 100),
        ({"max_model_len": 2**20}, 20),
        ({"max_num_blocks": 9}, 100),
        ({}, 5.1),
        ({"max_model_len": 20_000}, 6.5),
    ],
)
def test_too_little_memory_names_values_that_work(changes: dict[str, int], available_gib: float) -> None:
    available = Available(int(available_gib * GIB), "cgroup limit /x")
    with pytest.raises(SemipdError) as raised:
        num_kv_blocks(demand(available, **changes))
    error = raised.value
    assert error.code == "insufficient_memory"
    for row in (
        "weights 4.00 GiB",
        "two workers 1.00 GiB",
        "KV pool wanted",
        "cgroup limit /x",
    ):
        assert row in " ".join(error.message.split())
    options = error.hint.removeprefix("Set ").split(" or ")
    assert options
    for option in options:
        settings = {part.split()[0]: int(re.findall(r"\d+", part)[-1]) for part in option.split(" and ")}
        assert num_kv_blocks(demand(available, **(changes | settings))) >= 2, option


def test_nothing_fits_beside_the_weights() -> None:
    with pytest.raises(SemipdError, match="smaller model"):
        num_kv_blocks(demand(Available(4 * GIB, "test")))


def test_shared_memory_is_one_memory() -> None:
    memory = SharedMemory.reserve("test", 10_000)
    first, second = memory.tensor(), SharedMemory(os.dup(memory.fd), 10_000).tensor()
    first[5] = 77
    assert second[5] == 77
    assert os.fstat(memory.fd).st_blocks * 512 >= 10_000
    memory.close()
    memory.close()
    assert int(first.to(torch.int64).sum()) == 77


def test_the_kernel_refusing_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SemipdError, match="did not reserve 4096 bytes for the test") as raised:
        SharedMemory.reserve("test", 4096)
    assert raised.value.code == "insufficient_memory"
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open


def random_plan(rng: random.Random, decode: tuple[SeqId, ...]) -> StepPlan:
    def seq() -> SeqId:
        return SeqId(rng.getrandbits(40))

    def join() -> Join:
        params = SamplingParams(
            max_tokens=5,
            seed=rng.getrandbits(64),
            temperature=rng.random(),
            logit_bias=((3, -1.5),),
            allowed_token_ids=(3, 9),
            stop_token_ids=(1, 2),
            logprobs=rng.choice([None, 0, 4]),
        )
        tokens = [rng.randrange(150_000) for _ in range(rng.randrange(1, 50))]
        return Join(seq(), tokens, len(tokens), params, [rng.randrange(9999) for _ in range(4)])

    return StepPlan(
        step_id=rng.getrandbits(32),
        split=Split(rng.randrange(9), rng.randrange(9)),
        decode=decode,
        segments=tuple(Segment(seq(), 16, 9, rng.random() < 0.5, rng.choice([None, 3])) for _ in range(2)),
        joins=tuple(join() for _ in range(rng.randrange(3))),
        leaves=(seq(),),
        new_blocks=((seq(), (4, 5)), (seq(), ())),
    )


def through_frames(message: dict[str, object]) -> dict[str, object]:
    [arrived] = FrameReader(LANE_FRAME_BYTES).feed(encode_frame(message))
    return arrived


def test_plans_and_rebuilds_survive_the_wire() -> None:
    rng = random.Random(4)
    sent_decode: tuple[SeqId, ...] = ()
    received_decode: tuple[SeqId, ...] = ()
    for _ in range(50):
        decode = sent_decode if rng.random() < 0.5 else tuple(SeqId(rng.randrange(99)) for _ in range(5))
        plan = random_plan(rng, decode)
        message = plan_to_wire(plan, sent_decode)
        assert (message["decode"] is None) == (decode is sent_decode)
        arrived = plan_from_wire(through_frames(message), received_decode)
        assert arrived == plan
        if decode is sent_decode:
            assert arrived.decode is received_decode
        assert rebuild_from_wire(through_frames(rebuild_to_wire(plan.joins))) == list(plan.joins)
        sent_decode, received_decode = decode, arrived.decode


def test_results_survive_the_wire() -> None:
    entry = TokenLogprobs(3, -0.5, ((3, -0.5), (9, -2.0)), rank=1)
    for result in (
        StepResult(1, [(4,), (5, 6)], 123),
        StepResult(
            2, [(4,), (5, 3)], 123, [None, (entry, entry)], {SeqId(2**40): [entry, entry], SeqId(1): []}
        ),
        StepResult(3, [(4,), (-1,)], 123, failed={SeqId(2**40): "invalid_logits"}),
    ):
        assert result_from_wire(through_frames(result_to_wire(result))) == result


def test_a_large_frame_neither_blocks_nor_gets_lost() -> None:
    """Nobody reads at first; then epoll alone must bring everything through."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, LANE_FRAME_BYTES)
    sent = [{"numbers": list(range(300_000)), "i": i} for i in range(3)]
    for message in sent:
        channel.send(message)
    arrived: list[dict[str, object]] = []

    def read_all() -> None:
        reader = FrameReader(LANE_FRAME_BYTES)
        while len(arrived) < len(sent):
            arrived.extend(reader.feed(theirs.recv(65536)))
        theirs.sendall(encode_frame({"done": 1}))

    thread = threading.Thread(target=read_all)
    thread.start()
    answers: list[dict[str, object]] = []
    while not answers:
        readable, _, _ = select.select([channel.fileno()], [], [], 30)
        assert readable, "nothing happened for 30 s"
        answers = channel.receive()
    thread.join()
    assert arrived == sent
    assert answers == [{"done": 1}]
    assert not select.select([channel.fileno()], [], [], 0)[0], "idle, yet readable"
    theirs.close()
    assert channel.receive() == []
    assert channel.peer_gone
    channel.send({"into": "the void"})
    channel.close()
    channel.close()
