"""The real engine process on the fake device, spoken to over its socketpair."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from support.eventually import eventually_now
from support.fake_engine import request
from support.patience import Patience

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, Finished, GetStatus, Inbound, Outbound, Status, StepTokens, Submit
from semipd.core.request import SeqId
from semipd.core.settings import EngineSettings
from semipd.devices.fake import expected_tokens
from semipd.engine.launcher import spawn_engine
from semipd.wire.engine_link import LINK_FRAME_BYTES, inbound_to_wire, outbound_from_wire
from semipd.wire.frames import FrameReader, encode_frame

M = TypeVar("M", bound=Outbound)


class Peer:
    """Plays the daemon."""

    def __init__(self, settings: EngineSettings) -> None:
        self.child = spawn_engine()
        self.child.link.settimeout(120)
        self.reader = FrameReader(LINK_FRAME_BYTES)
        self.pending: list[dict[str, Any]] = []
        self.child.link.sendall(encode_frame({"op": "start", "settings": settings.to_wire()}))

    def send(self, message: Inbound) -> None:
        self.child.link.sendall(encode_frame(inbound_to_wire(message)))

    def next_frame(self) -> dict[str, Any]:
        while not self.pending:
            data = self.child.link.recv(65536)
            assert data, "the engine closed its link"
            self.pending = self.reader.feed(data)
        return self.pending.pop(0)

    def next_of(self, kind: type[M]) -> M:
        while True:
            message = outbound_from_wire(self.next_frame())
            if isinstance(message, kind):
                return message

    def close(self) -> int:
        self.child.link.close()
        return self.child.process.wait(timeout=120)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer(default_engine_settings(device="fake"))
    yield peer
    peer.child.process.kill()
    peer.close()


def test_generates_reports_and_ends_with_the_link(peer: Peer) -> None:
    ready = peer.next_frame()
    assert (ready["op"], ready["scheduler"], ready["info"]["unit"]) == ("ready", "semipd", "unit")
    wanted = request(1, [1, 2, 3], max_tokens=20, seed=2**64 - 1)
    peer.send(Submit(wanted))
    tokens: list[int] = []
    while len(tokens) < 20:
        tokens += peer.next_of(StepTokens).tokens
    assert tokens == expected_tokens(wanted.prompt, wanted.params, 2048, 1000)
    assert peer.next_of(Finished).reason == "length"
    peer.send(GetStatus(7))
    status = peer.next_of(Status)
    assert status.nonce == 7
    assert status.data["kv"]["used_blocks"] == 0
    assert peer.close() == 0


def test_cancel_frees_blocks(peer: Peer) -> None:
    peer.next_frame()
    peer.send(Submit(request(1, [1] * 100, max_tokens=1900)))
    peer.next_of(StepTokens)
    peer.send(Cancel(SeqId(1)))
    assert peer.next_of(Finished).reason == "cancelled"
    patience = Patience(10)
    while True:
        peer.send(GetStatus(1))
        if peer.next_of(Status).data["kv"]["used_blocks"] == 0:
            break
        assert not patience.is_over()


def test_unknown_device_is_a_clear_failure() -> None:
    peer = Peer(default_engine_settings(device="abacus"))
    failed = peer.next_frame()
    assert (failed["op"], failed["code"]) == ("failed", "unknown_device")
    assert "abacus" in failed["message"]
    assert peer.close() == 1


def test_a_failure_is_told_although_the_device_cannot_be_closed() -> None:
    script = (
        "import sys, time; from semipd.core.errors import SemipdError\n"
        "from semipd.devices.fake import FakeDevice; from semipd.engine import process\n"
        "def fail(*args): raise SemipdError('device_lost', 'The device is gone.')\n"
        "process._host = fail; FakeDevice.close = lambda self: time.sleep(600)\n"
        "process.run_engine(int(sys.argv[1]))"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", script, str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as engine:
            ours.settimeout(120)
            ours.sendall(
                encode_frame({"op": "start", "settings": default_engine_settings(device="fake").to_wire()})
            )
            reader = FrameReader(LINK_FRAME_BYTES)
            frames: list[dict[str, Any]] = []
            while not frames or frames[-1]["op"] != "failed":
                frames += reader.feed(ours.recv(65536))
            assert frames[-1]["code"] == "device_lost"
            assert engine.poll() is None
            engine.kill()


def test_sigterm_ends_it_in_order(peer: Peer) -> None:
    peer.next_frame()
    peer.child.process.send_signal(signal.SIGTERM)
    assert peer.child.process.wait(timeout=120) == 0


def test_it_dies_with_its_parent() -> None:
    script = (
        "import sys, time; from semipd.engine.launcher import spawn_engine; child = spawn_engine();"
        "print(child.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    eventually_now(lambda: not _alive(pid), "the engine ends with its parent", 5)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
