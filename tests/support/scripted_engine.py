"""An engine process for daemon tests: real frames over a real socketpair, and a script instead of a model.

It echoes: the tokens of a request are its prompt's, over and over. `python scripted_engine.py FD SCRIPT`.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from semipd.config.config import default_engine_settings
from semipd.core.messages import Cancel, Finished, GetStatus, Outbound, Status, StepTokens, Submit
from semipd.core.request import Request
from semipd.core.split import Split
from semipd.core.state.device import DeviceFacts
from semipd.core.state.engine import EngineStatus, LaneNumbers
from semipd.engine.launcher import EngineChild
from semipd.engine.step_sizes import StepSizeHistogram
from semipd.partition.control import Control
from semipd.partition.step_times.models import Models
from semipd.partition.table import SplitTable
from semipd.wire.engine_link import inbound_from_wire, outbound_to_wire
from semipd.wire.frames import FrameReader, encode_frame

VOCAB_SIZE = 400
MAX_MODEL_LEN = 4096

INFO: DeviceFacts = {
    "kind": "scripted",
    "name": "scripted",
    "unit": "unit",
    "num_units": 2,
    "splits": [[1, 1]],
    "solo_prefill": [2, 0],
    "solo_decode": [0, 2],
    "num_blocks": 300,
    "block_size": 16,
    "vocab_size": VOCAB_SIZE,
    "max_model_len": MAX_MODEL_LEN,
    "dtype": "none",
    "memory": {},
    "max_step_tokens": 0,
    "max_decode_tokens": 1,
    "prefill_moves": False,
}

_LANE: LaneNumbers = {
    "steps": 0,
    "slow_steps": 0,
    "step_sizes": StepSizeHistogram().to_wire(),
    "steps_in_flight": 0,
    "residents": 0,
    "prefill_tokens": 0,
    "decode_tokens": 0,
    "busy_ms": 0.0,
    "last_step_age_ms": None,
    "step_age_ms": None,
}

NUMBERS: EngineStatus = {
    "scheduler": "scripted",
    "split": {"prefill": 1, "decode": 1, "unit": "unit"},
    "requests": {"waiting": 0, "background": 0, "prefilling": 0, "decoding": 0, "oldest_waiting_ms": None},
    "kv": {
        "block_tokens": 16,
        "total_blocks": 99,
        "used_blocks": 0,
        "free_blocks": 99,
        "cached_blocks": 0,
        "reserved_blocks": 0,
    },
    "prefix": {"prompt_tokens": 0, "cached_tokens": 0},
    "preemptions": 0,
    "lanes": {"prefill": _LANE, "decode": {**_LANE}},
    "progress_age_ms": 0.0,
    "device": {},
    "partition": Control(
        SplitTable((Split(1, 1),), Split(2, 0), Split(0, 2), 2, "unit"), default_engine_settings(), Models(2)
    ).status(0),
}
"""As an engine's status has them; the script computes none of it."""


def scripted(**script: Any) -> Callable[[], EngineChild]:
    """A `spawn` for the supervisor. Keys of the script:

    phases: [[name, limit_s, seconds it sleeps], ...] before ready; with a fourth value, seconds of CPU time
        that it uses after that
    fail: a `failed` frame instead of ready; exit: an exit code instead of ready
    step_ms: time between steps (default 1); max_steps: requests get no tokens beyond that many (0: no bound)
    crash_on: a token; the engine kills itself before the fourth token of a prompt that starts with it
    garble_on: likewise, but it sends nonsense
    refuse_on: likewise, but it refuses the request
    step_age_ms: how long it says that its decode lane has been at one step
    silent: no answers to status questions
    stubborn: ignores SIGTERM and the end of the link
    dies_when_asked: once it is ready, the first message ends it
    """

    def spawn() -> EngineChild:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), json.dumps(script)],
                pass_fds=[theirs.fileno()],
                process_group=0,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )
        return EngineChild(process, ours)

    return spawn


class _Echo:
    def __init__(self, script: dict[str, Any], send: Callable[[Outbound], None]) -> None:
        self.script = script
        self.send = send
        self.live: dict[int, tuple[Request, int]] = {}
        self.submitted: list[dict[str, Any]] = []
        self.cancelled: list[int] = []

    def receive(self, frame: dict[str, Any]) -> None:
        match inbound_from_wire(frame):
            case Submit(request):
                self._submit(request)
            case Cancel(seq):
                self.cancelled.append(seq)
                if self.live.pop(seq, None):
                    self.send(Finished(seq, "cancelled"))
            case GetStatus(nonce) if not self.script.get("silent"):
                seen = {"submitted": self.submitted, "cancelled": self.cancelled, "live": len(self.live)}
                self.send(Status(nonce, NUMBERS | seen | self._progress()))

    def _progress(self) -> dict[str, Any]:
        if "step_age_ms" not in self.script:
            return {}
        age_ms = self.script["step_age_ms"]
        busy = _LANE | {"step_age_ms": age_ms, "steps_in_flight": 1}
        return {"lanes": {"prefill": _LANE, "decode": busy}, "progress_age_ms": age_ms}

    def _submit(self, request: Request) -> None:
        first = request.prompt[0]
        params = request.params
        self.submitted.append(
            {"seq": request.seq, "prompt": request.prompt, "namespace": request.namespace}
            | {name: getattr(params, name) for name in ("seed", "temperature", "top_k", "max_tokens")}
            | {
                "service_class": request.service_class,
                "targets": list(astuple(request.targets)),
                "accept_late": request.accept_late,
                "stop_token_ids": list(params.stop_token_ids),
                "logit_bias": [list(p) for p in params.logit_bias],
            }
        )
        if first == self.script.get("refuse_on"):
            self.send(Finished(request.seq, "error", code="kv_too_small", message="The pool is too small."))
            return
        self.live[request.seq] = (request, len(request.emitted))

    def step(self) -> None:
        for request, _count in self.live.values():
            if request.prompt[0] == self.script.get("crash_on") and _count >= 3:
                os.kill(os.getpid(), signal.SIGKILL)
        bound = self.script.get("max_steps", 0)
        ready = [(r, n) for r, n in self.live.values() if not bound or n < bound]
        if not ready:
            return
        tokens = [request.prompt[count % len(request.prompt)] for request, count in ready]
        self.send(StepTokens(tuple(request.seq for request, _ in ready), tokens))
        for (request, count), token in zip(ready, tokens, strict=True):
            self.live[request.seq] = (request, count + 1)
            if token in request.params.stop_token_ids and count + 1 >= request.params.min_tokens:
                self._finish(Finished(request.seq, "stop", stop_token=token, cached_tokens=16))
            elif count + 1 >= request.params.max_tokens:
                self._finish(Finished(request.seq, "length", cached_tokens=16))

    def _finish(self, message: Finished) -> None:
        self.send(message)
        del self.live[message.seq]


def _start(script: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    for name, limit_s, seconds, *busy_s in script.get("phases", []):
        write({"op": "phase", "name": name, "limit_s": limit_s})
        time.sleep(seconds)
        done_s = time.process_time() + sum(busy_s)
        while time.process_time() < done_s:
            pass
    if "fail" in script:
        write({"op": "failed", **script["fail"]})
        sys.exit(1)
    if "exit" in script:
        sys.exit(script["exit"])
    write({"op": "ready", "info": INFO, "scheduler": "scripted", "notes": ["a note"], "version": "0"})


def main() -> None:
    link, script = socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2])
    if script.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def write(frame: dict[str, Any]) -> None:
        link.sendall(encode_frame(frame))

    reader = FrameReader()
    assert reader.feed(link.recv(65536))[0]["op"] == "start"
    _start(script, write)
    echo = _Echo(script, lambda message: write(outbound_to_wire(message)))
    while True:
        if select.select([link], [], [], script.get("step_ms", 1) / 1e3)[0]:
            data = link.recv(2**20)
            if not data and script.get("stubborn"):
                time.sleep(3600)
            if not data:
                return
            if script.get("dies_when_asked"):
                sys.exit(3)
            for frame in reader.feed(data):
                echo.receive(frame)
                if frame.get("op") == "submit" and frame["request"]["prompt"][0] == script.get("garble_on"):
                    link.sendall(b"\x00\x00\x00\x01\xc1")
        echo.step()


if __name__ == "__main__":
    main()
