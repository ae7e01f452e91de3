"""The thread that turns the launch loop, and how the coordinator hears of it."""

import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from semipd.checkpoints.progress import Report
from semipd.core.plan import StepResult
from semipd.core.split import LaneName
from semipd.devices.contract import LaneFailed
from semipd.devices.cuda.lane.launch_loop import Command, LaunchLoop

POLL_S = 20e-6
"""Between looks at the device while it works. Well below the time of a decode step, and the step in
flight behind it hides the rest."""

IDLE_WAIT_S = 0.25
"""Longest sleep without work; new work ends it at once."""

TURN_LIMIT_S = 120.0
"""A turn that takes longer hangs in the driver. Compiling kernels for a new shape takes seconds."""

JOIN_LIMIT_S = 10.0

_PR_SET_TIMERSLACK = 29
_SLACK_NS = 5_000

Diagnose = Callable[[BaseException], LaneFailed]


class Stage(NamedTuple):
    """A part of what the thread does before it serves: what is reported as it begins, and how long it may
    take."""

    words: str
    limit_s: float
    run: Callable[[], None]


class LaunchThread:
    """See lane.Runner. `bind` is called first in the thread; `diagnose` makes an answer of whatever failed.

    `fileno` becomes readable when there are results, or a failure.
    """

    def __init__(self, bind: Callable[[], None], diagnose: Diagnose) -> None:
        self._bind = bind
        self._diagnose = diagnose
        self._loop: LaunchLoop | None = None
        self._results: dict[LaneName, deque[StepResult]] = {"prefill": deque(), "decode": deque()}
        self._failure: LaneFailed | None = None
        self._turn_began_ns = 0
        self._signalled = False
        self._closing = False
        self._stages: list[tuple[Stage, threading.Event]] = []
        self._work = threading.Event()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="launch", daemon=True)

    def start(self, loop: LaunchLoop, stages: Sequence[Stage], report: Report) -> None:
        """Run the stages in the thread, each with a limit of its own, then serve. Returns when they have run.

        Raises LaneFailed: what a stage raised, or `start_up_timeout` after its limit.
        """
        self._loop = loop
        self._stages = [(stage, threading.Event()) for stage in stages]
        self._thread.start()
        for stage, done in self._stages:
            report(stage.words, stage.limit_s)
            if not done.wait(stage.limit_s):
                message = f"Start-up has not come past this within {stage.limit_s:g} s: {stage.words}."
                hint = "Look for Xid messages in the kernel log (dmesg)."
                raise LaneFailed("start_up_timeout", message, hint)
            if self._failure is not None:
                raise self._failure

    def deliver(self, lane: LaneName, result: StepResult) -> None:
        """For the loop: called in the thread."""
        self._results[lane].append(result)
        os.eventfd_write(self._eventfd, 1)
        self._signalled = True  # after the write: whoever sees it finds something to read

    def fileno(self) -> int:
        return self._eventfd

    def give(self, lane: LaneName, command: Command) -> None:
        assert self._loop is not None, "not started"
        self._loop.inbox.append((lane, command))
        self._work.set()

    def take(self, lane: LaneName) -> list[StepResult]:
        self._drain()
        if self._failure is not None:
            raise self._failure
        self._check_turn()
        queue, results = self._results[lane], list[StepResult]()
        while queue:
            results.append(queue.popleft())
        return results

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    @property
    def is_busy(self) -> bool:
        return self._loop is not None and self._loop.is_busy

    def stop(self) -> bool:
        """False when the thread does not come back from the driver in time."""
        self._closing = True
        self._work.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_LIMIT_S)
        return not self._thread.is_alive()

    def close(self) -> None:
        """After `stop`."""
        if self._eventfd >= 0:
            os.close(self._eventfd)
            self._eventfd = -1

    def _run(self) -> None:
        try:
            self._bind()
            _sharpen_sleep()
            for stage, done in self._stages:
                stage.run()
                done.set()
            while not self._closing:
                self._turn()
        except BaseException as error:
            self._failure = self._diagnose(error)
            for _, done in self._stages:
                done.set()
            os.eventfd_write(self._eventfd, 1)

    def _turn(self) -> None:
        loop, now_ns = self._loop, time.monotonic_ns()
        assert loop is not None
        self._work.clear()
        self._turn_began_ns = now_ns
        worked = loop.turn(now_ns) or loop.use_pause(now_ns)
        self._turn_began_ns = 0
        if worked:
            return
        if loop.is_busy:
            time.sleep(POLL_S)
        else:
            self._work.wait(IDLE_WAIT_S)

    def _check_turn(self) -> None:
        """The loop itself notices a stuck step, unless it hangs in a call."""
        began_ns = self._turn_began_ns
        if began_ns and time.monotonic_ns() - began_ns > TURN_LIMIT_S * 1e9:
            raise LaneFailed(
                "device_hangs",
                f"A call into the CUDA driver has not returned for {TURN_LIMIT_S:g} s.",
                "Look for Xid messages in the kernel log (dmesg).",
            )

    def _drain(self) -> None:
        """Asked twice a turn, mostly with nothing there: reading would then raise an exception."""
        if not self._signalled:
            return
        self._signalled = False
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)


def _sharpen_sleep() -> None:
    """Linux lets a thread oversleep by its timer slack, 50 us unless told otherwise."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
