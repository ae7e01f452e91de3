"""A worker process as the engine sees it: started, listened to, ended."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from semipd.core.split import LaneName
from semipd.devices.contract import LaneFailed
from semipd.devices.cpu.messages import LANE_FRAME_BYTES, STEP_FAILED, Message
from semipd.system.children import module_command, module_environment, signals_held
from semipd.system.patience import StartPatience
from semipd.system.process_usage import ProcessUsage, tree_usage, waiting_time
from semipd.system.readiness import any_readable
from semipd.wire.channel import Channel

_STDERR_TAIL_BYTES = 2000
_EOF_GRACE_S = 1.0
_TERM_GRACE_S = 1.0
_KILL_GRACE_S = 30.0
_REAP_EVERY_S = 0.005
_OUT_OF_MEMORY = "If the kernel ran out of memory (see dmesg), lower kv_bytes, max_model_len or max_num_seqs."

_ENVIRONMENT = {
    # By default an idle libgomp thread spins for 10 to 20 ms after each parallel region (measured), on cores
    # that may by then belong to the other lane. A thousand turns are microseconds, and cost no step time.
    "GOMP_SPINCOUNT": "1000",
    "KMP_BLOCKTIME": "0",
    # We pin; the run-time must not.
    "OMP_PROC_BIND": "false",
    "KMP_AFFINITY": "disabled",
    # Activations come from a heap that keeps its pages instead of being mapped and faulted in every step:
    # sampling 16 rows of 150,000 logits took half the time (measured).
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended. `how` completes "the worker ..."; `signal` and `hint` may be empty; `code` is what
    LaneFailed says of it."""

    how: str
    signal: str
    hint: str
    code: str = "worker_died"


class Worker:
    """Owns the process, its channel and the end of its stderr. Start from the main thread only (the death
    signal follows the thread that spawns)."""

    def __init__(self, lane: LaneName, num_cores: int, shared_fds: Sequence[int]) -> None:
        self.lane = lane
        self._stderr_tail = b""
        self._failure = ""
        self._killed_why = ""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                self.process = _spawn(theirs.fileno(), num_cores, shared_fds)
            except BaseException:
                ours.close()
                raise
        assert self.process.stderr is not None
        self._stderr_fd: int | None = self.process.stderr.fileno()
        os.set_blocking(self._stderr_fd, False)
        self.channel = Channel(ours, LANE_FRAME_BYTES)
        self.channel.watch(self._stderr_fd)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_lost(self) -> bool:
        """Nothing more will come of it. It may still run."""
        return self.channel.peer_gone

    def receive(self) -> list[Message]:
        """Frames since the last call; never blocks.

        Raises LaneFailed when the worker has an answer instead of a result, such as `invalid_logits` when it
        warms up. Any other exception there is its death.
        """
        self._forward_stderr()
        messages = []
        for message in self.channel.receive():
            if message["op"] != "error":
                messages.append(message)
            elif message["code"] == STEP_FAILED:
                self._failure = message["message"]
            else:
                raise LaneFailed(
                    message["code"], f"{self.lane} worker: {message['message']}", message["hint"]
                )
        return messages

    def usage(self) -> ProcessUsage:
        """Of its process, so far."""
        return tree_usage(self.pid)

    def waiting_time(self) -> ProcessUsage:
        """Of its process, so far: no more than what it has waited for a core."""
        return waiting_time(self.pid)

    def first_word(self, op: str) -> Message | None:
        """What it says, which must be `op`; None: nothing yet. Raises LaneFailed, also when it has died."""
        for message in self.receive():
            assert message["op"] == op, f"{self.lane} worker said {message['op']}, not {op}"
            return message
        if self.is_lost:
            raise self._died_within(_KILL_GRACE_S)
        return None

    def kill(self, why: str) -> None:
        """Kill a worker that does not move. `why` completes "the worker ..."; it is lost soon after."""
        self._killed_why = why
        self.process.kill()

    def reap(self) -> Death | None:
        """How a lost worker ended; None: it is still on its way out. Never blocks."""
        # A process that is ending already keeps its exit status.
        self.process.kill()
        status = self.process.poll()
        if status is None:
            return None
        self._forward_stderr()
        self.channel.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return self._death(status)

    def end(self) -> None:
        """End-of-file, then SIGTERM, then SIGKILL, each with a bound. Idempotent."""
        self.channel.close()
        for grace_s, escalate in (
            (_EOF_GRACE_S, self.process.terminate),
            (_TERM_GRACE_S, self.process.kill),
            (_KILL_GRACE_S, None),
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
                break
            if escalate is not None:
                escalate()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _died_within(self, limit_s: float) -> LaneFailed:
        deadline_s = time.monotonic() + limit_s
        while (death := self.reap()) is None:
            if time.monotonic() > deadline_s:
                return unkillable(self)
            time.sleep(_REAP_EVERY_S)
        return LaneFailed(death.code, f"{self.lane} worker (pid {self.pid}) {death.how}.", death.hint)

    def _death(self, status: int) -> Death:
        ended_by = signal.Signals(-status).name if status < 0 else ""
        if self._killed_why:
            return Death(self._killed_why, ended_by, "")
        if self._failure:
            return Death(f"failed: {self._failure}", ended_by, "See the traceback above.", STEP_FAILED)
        last = self._stderr_tail.decode(errors="replace").strip().splitlines()[-3:]
        said = f"; it last said: {' | '.join(last)}" if last else ""
        how = f"was ended by {ended_by}" if ended_by else f"exited with status {status}"
        return Death(how + said, ended_by, _OUT_OF_MEMORY if ended_by == "SIGKILL" else "")

    def _forward_stderr(self) -> None:
        while self._stderr_fd is not None:
            try:
                data = os.read(self._stderr_fd, 2**16)
            except BlockingIOError:
                return
            if not data:
                self.channel.unwatch(self._stderr_fd)
                self._stderr_fd = None
                return
            self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL_BYTES:]
            sys.stderr.write(data.decode(errors="replace"))


def _spawn(link_fd: int, num_cores: int, shared_fds: Sequence[int]) -> subprocess.Popen[bytes]:
    with signals_held():
        return subprocess.Popen(
            [*module_command("semipd.devices.cpu.worker"), str(os.getpid()), str(link_fd)],
            pass_fds=[link_fd, *shared_fds],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=module_environment() | _ENVIRONMENT | {"OMP_NUM_THREADS": str(num_cores)},
            process_group=0,
        )


def wait_for_all(workers: Sequence[Worker], op: str, what: str, limit_s: float) -> list[Message]:
    """Block until every worker says `op`; none may stand still for `limit_s` meanwhile. `what` completes
    "... did not".

    Raises LaneFailed, `worker_timeout` among others.
    """
    said: dict[Worker, Message] = {}
    patience = {worker: StartPatience(limit_s, worker.usage()) for worker in workers}
    looked_s = time.monotonic()
    while waiting := [worker for worker in workers if worker not in said]:
        any_readable([worker.channel.fileno() for worker in waiting], patience[waiting[0]].look_every_s)
        elapsed_s, looked_s = time.monotonic() - looked_s, time.monotonic()
        for worker in waiting:
            if (message := worker.first_word(op)) is not None:
                said[worker] = message
            elif why := patience[worker].looked(elapsed_s, worker.usage()):
                raise worker_timeout(worker.lane, what, why, patience[worker])
    return [said[worker] for worker in workers]


def worker_timeout(lane: LaneName, what: str, why: str, patience: StartPatience) -> LaneFailed:
    message = f"{lane} worker did not {what} {why} ({patience.account()})."
    hint = "Look for a hung disk or process; on a very slow machine raise supervision.start_patience."
    return LaneFailed("worker_timeout", message, hint)


def unkillable(worker: Worker) -> LaneFailed:
    message = f"{worker.lane} worker (pid {worker.pid}) closed its link but cannot be killed."
    return LaneFailed("worker_died", message, "Look for a hung disk or device.")
