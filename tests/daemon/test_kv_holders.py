"""Who holds the KV blocks, as the daemon computes it from tokens, against the engine's own placements."""

import random
from pathlib import Path

import pytest
from support.daemon import running
from support.fake_engine import RANDOM_VOCAB, Run, random_request
from support.known import known

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, GetStatus, Inbound, Status, Submit
from semipd.core.plan import blocks_for
from semipd.core.request import Request, SeqId
from semipd.daemon.history.records import MAX_HOLDERS
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.table import RequestTable
from semipd.devices.fake import BLOCK_SIZE, FakeDevice
from semipd.system.clock import Clock


class Link:
    """What the table sends waits for the engine's next turn."""

    can_submit = True

    def __init__(self) -> None:
        self.inbox: list[Inbound] = []

    def check_accepting(self) -> None:
        pass

    def submit(self, request: Request) -> None:
        self.inbox.append(Submit(request))

    def cancel(self, seq: SeqId) -> None:
        self.inbox.append(Cancel(seq))

    def take(self) -> list[Inbound]:
        taken, self.inbox = self.inbox, []
        return taken


class Rig:
    """The daemon's table over a coordinator on the fake device, under a virtual clock."""

    def __init__(self, depth: int, num_blocks: int) -> None:
        device = FakeDevice(
            num_blocks=num_blocks, vocab_size=RANDOM_VOCAB, decode_depth=depth, prefill_depth=depth
        )
        settings = default_engine_settings(device="fake", prefill_chunk_tokens=24, max_num_seqs=8)
        self.run = Run(device, settings, check=False)
        self.link = Link()
        self.table = RequestTable(self.link, Clock(lambda: self.run.now_ns))
        self.table.history.block_size = device.info.block_size
        self.unread: list[LiveRequest] = []

    def admit(self, rng: random.Random) -> None:
        made = random_request(rng, 1, self.run.now_ns)
        self.unread.append(self.table.admit(made.request_id, made.prompt, made.params))

    def turn(self) -> None:
        num_told = len(self.run.messages)
        self.run.tick(self.link.take())
        for message in self.run.messages[num_told:]:
            self.table.on_message(message)

    def differences(self) -> list[int]:
        """Daemon's blocks minus the engine's, of every request that the engine has placed. Of all others, the
        daemon must say 0."""
        found = []
        for live in self.unread:
            sequence = self.run.coordinator.scheduler.sequences.get(live.request.seq)
            blocks = self.table.history.blocks_of(live.record)
            if sequence is None or sequence.phase not in ("prefilling", "decoding"):
                assert self.table.history.blocks_of(live.record) == 0, (
                    f"{live.record.state}, the engine: {sequence}"
                )
                continue
            assert live.record.state == sequence.phase
            assert sequence.placement is not None
            found.append(blocks - len(sequence.placement.blocks))
        return found


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_the_engines_within_one(depth: int, seed: int) -> None:
    rng = random.Random(seed)
    rig = Rig(depth, num_blocks=16)
    differences: list[int] = []
    num_admitted, num_unread = 0, 0
    while num_admitted < 60 or not rig.run.coordinator.scheduler.idle or rig.link.inbox:
        if num_admitted < 60 and rng.random() < 0.3:
            rig.admit(rng)
            num_admitted += 1
        rig.turn()
        differences += rig.differences()
        over = [live for live in rig.unread if live.is_over]
        num_unread += len(over)
        if over and rng.random() < 0.3:  # a slow client: it has ended in the engine, and lives on here
            rig.table.release(over[0])
            rig.unread.remove(over[0])
        if rig.unread and rng.random() < 0.02:
            rig.table.cancel(rng.choice(rig.unread))
            rig.turn()
    assert rig.run.coordinator.scheduler.num_preemptions > 0, "the load was too easy"
    assert num_unread > 0
    assert set(differences) <= {-1, 0, 1}
    assert differences.count(0) > 0.8 * len(differences) > 100


def test_a_dead_engine_holds_nothing() -> None:
    rig = Rig(1, num_blocks=64)
    rng = random.Random(1)
    for _ in range(3):
        rig.admit(rng)
    rig.turn()
    assert rig.table.history.holders()
    rig.table.history.engine_died("test", [live.record for live in rig.unread])
    assert rig.table.history.holders() == []
    assert [rig.table.history.blocks_of(live.record) for live in rig.unread] == [0, 0, 0]


def test_holders_are_the_largest_first() -> None:
    rig = Rig(1, num_blocks=2000)
    rng = random.Random(2)
    for _ in range(30):
        rig.admit(rng)
        rig.turn()
    placed = sorted((live.record.tokens for live in rig.unread if live.record.is_placed), reverse=True)
    assert len(rig.table.history.holders(limit=5)) == 5 < len(placed)
    assert [record.tokens for record in rig.table.history.holders()] == placed[:MAX_HOLDERS]


def test_the_reserve_stands_beside_running_work_only() -> None:
    rig = Rig(1, num_blocks=500)
    rig.link.inbox.append(GetStatus(1))
    rig.turn()
    rig.admit(random.Random(3))
    rig.turn()
    rig.link.inbox.append(GetStatus(2))
    rig.turn()
    reserved = [m.data["kv"]["reserved_blocks"] for m in rig.run.messages if isinstance(m, Status)]
    assert reserved == [0, 5], "1 % of the pool"


async def test_holders_in_frames_and_blocks_in_listings(tmp_path: Path) -> None:
    async with (
        running(tmp_path, fake=default_engine_settings(device="fake")) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
        client.subscribe(interval_ms=100) as states,
    ):
        assert known((await anext(states)).state["kv"])["holders"] == []
        long = client.generate([1] * 320, max_tokens=1500, ignore_eos=True, request_id="long")
        short = client.generate([2] * 32, max_tokens=1500, ignore_eos=True, request_id="short")
        await anext(long)
        await anext(short)
        kv = known((await anext(states)).state["kv"])
        while len(kv["holders"]) < 2:
            kv = known((await anext(states)).state["kv"])
        listed = await client.requests(state="live")
        busy = kv
        await long.cancel()
        await short.cancel()
        while kv["holders"] or kv["used_blocks"]:
            kv = known((await anext(states)).state["kv"])
        ended = await client.requests()
    assert [holder["id"] for holder in busy["holders"]] == ["long", "short"]
    for holder in busy["holders"]:
        assert holder["blocks"] == blocks_for(holder["tokens"], BLOCK_SIZE)
        assert (holder["state"], holder["priority"]) == ("decoding", "interactive")
    assert busy["holders"][0]["tokens"] > 320
    assert busy["reserved_blocks"] == 40
    assert all(
        row["blocks"] == blocks_for(row["prompt_tokens"] + row["output_tokens"], BLOCK_SIZE) > 0
        for row in listed
    )
    assert [row["blocks"] for row in ended] == [0, 0]
    assert kv["reserved_blocks"] == 0
