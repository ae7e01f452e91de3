"""When a start is given up, what counts against a step's limit, and what processes have used."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semipd.system.patience import BUSY_FACTOR, LEAST_SHARE, LONGEST_FACTOR, StartPatience, StepClock
from semipd.system.process_usage import NOTHING, ProcessUsage, tree_usage

LIMIT_S = 10.0
LOOK_S = 0.5


def looks_until_out(
    patience: StartPatience | StepClock, used: ProcessUsage, most: int = 100_000
) -> tuple[int, str]:
    """The number of looks, half a second apart, if `used` is used between two of them."""
    for number in range(1, most):
        total = ProcessUsage(used.cpu_s * number, used.read_bytes * number, used.withheld_s * number)
        if why := patience.looked(LOOK_S, total):
            return number, why
    raise AssertionError("never")


@pytest.mark.parametrize(
    ("used", "seconds", "words"),
    [
        (NOTHING, LIMIT_S, "within 10 s"),
        (ProcessUsage(cpu_s=0.0001, read_bytes=10), LIMIT_S, "within 10 s"),
        (ProcessUsage(withheld_s=0.25), 2 * LIMIT_S, "within 10 s"),
        (ProcessUsage(withheld_s=0.5), LIMIT_S / LEAST_SHARE, "within 10 s"),
        (ProcessUsage(cpu_s=0.5), BUSY_FACTOR * LIMIT_S, "within 100 s of CPU time"),
        (ProcessUsage(cpu_s=32.0), BUSY_FACTOR * LIMIT_S, "within 100 s of CPU time"),
        (ProcessUsage(cpu_s=0.01), LONGEST_FACTOR * LIMIT_S, "within 600 s"),
        (ProcessUsage(read_bytes=2**20), LONGEST_FACTOR * LIMIT_S, "within 600 s"),
    ],
)
def test_when_a_start_is_given_up(used: ProcessUsage, seconds: float, words: str) -> None:
    patience = StartPatience(LIMIT_S, NOTHING)
    looks, why = looks_until_out(patience, used)
    assert looks * LOOK_S == pytest.approx(seconds, abs=2 * LOOK_S)
    assert why == words
    assert f"in {patience._waited_s:.1f} s it used" in patience.account()


def test_a_start_may_rest_between_two_pieces_of_work() -> None:
    patience, used = StartPatience(LIMIT_S, NOTHING), ProcessUsage()
    for _ in range(20):
        for _ in range(int(LIMIT_S / LOOK_S) - 1):
            assert patience.looked(LOOK_S, used) is None
        used = ProcessUsage(used.cpu_s + 1)
        assert patience.looked(LOOK_S, used) is None


def test_who_was_stopped_himself_accuses_nobody() -> None:
    assert StartPatience(LIMIT_S, NOTHING).looked(3600, NOTHING) is None
    assert StepClock(LIMIT_S, NOTHING).looked(3600, NOTHING) is None


def test_a_step_has_its_limit_of_granted_time() -> None:
    for used, seconds in ((NOTHING, 10), (ProcessUsage(cpu_s=0.5), 10), (ProcessUsage(withheld_s=0.25), 20)):
        looks, why = looks_until_out(StepClock(LIMIT_S, NOTHING), used)
        assert (looks * LOOK_S, why) == (seconds, "within 10 s")


def test_a_wait_for_a_core_is_told_when_it_is_over() -> None:
    clock, waited = StepClock(LIMIT_S, NOTHING), NOTHING
    for look in range(90):
        if look % 10 == 9:
            waited = ProcessUsage(withheld_s=waited.withheld_s + 10 * 0.9 * LOOK_S)
        assert clock.looked(LOOK_S, waited) is None, look


BUSY = "import os, sys, time; print(os.getpid(), flush=True)\nwhile time.process_time() < 0.3: pass\n"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY + 'input()'!r}])"


def test_what_a_tree_has_used() -> None:
    """A process that only waits for its child is at work."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    try:
        assert parent.stdout is not None
        parent.stdout.readline()
        deadline_s = time.monotonic() + 60
        while (usage := tree_usage(parent.pid)).cpu_s < 0.25:
            assert time.monotonic() < deadline_s, usage
            time.sleep(0.05)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()
    assert tree_usage(parent.pid) == NOTHING


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_kernels_that_tell_less(tmp_path: Path) -> None:
    """No list of children, no statistics of the scheduler, no reading of another user's I/O."""
    ticks = os.sysconf("SC_CLK_TCK")
    for pid, parent in ((7, 1), (8, 7), (9, 8), (10, 1)):
        write(
            tmp_path / str(pid) / "stat",
            f"{pid} (a) b) S {parent} " + "0 " * 9 + f"{ticks} {ticks} 0 0 20",
        )
    assert tree_usage(7, tmp_path) == ProcessUsage(cpu_s=6.0)
    write(tmp_path / "9" / "io", "rchar: 5\nread_bytes: 4096\n")
    write(tmp_path / "8" / "schedstat", "1 2500000000 7\n")
    assert tree_usage(7, tmp_path) == ProcessUsage(6.0, 4096, 2.5)
