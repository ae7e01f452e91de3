"""Starting, losing and stopping an engine process."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import running
from support.eventually import eventually
from support.known import known
from support.scripted_engine import scripted

from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.daemon.engine import run as engine_run
from semipd.daemon.engine.run import describe_exit
from semipd.daemon.engine.supervisor import Supervisor
from semipd.daemon.model.files import DEMO_FOLDER
from semipd.engine.launcher import EngineChild


def make(settings: EngineSettings | None = None, **script: Any) -> Supervisor:
    return Supervisor(settings or default_engine_settings(), scripted(**script))


def engine_is_gone(supervisor: Supervisor) -> bool:
    """The process has ended and was waited for."""
    assert supervisor._run is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor._run.pid, 0)
        return False
    return True


async def failed_start(settings: EngineSettings | None = None, **script: Any) -> SemipdError:
    supervisor = make(settings, **script)
    with pytest.raises(SemipdError) as failed:
        await supervisor.start()
    assert engine_is_gone(supervisor)
    return failed.value


async def test_phases_make_the_timeline() -> None:
    supervisor = make(phases=[["reading", 30, 0.5], ["thinking", 30, 0]])
    ready = await supervisor.start()
    assert [phase.name for phase in supervisor.timeline] == [
        "starting the engine process",
        "reading",
        "thinking",
    ]
    assert supervisor.timeline[1].seconds > 0.1
    assert (ready.vocab_size, ready.max_model_len, ready.scheduler) == (400, 4096, "scripted")
    await supervisor.stop()
    assert engine_is_gone(supervisor)


async def test_a_phase_that_takes_too_long() -> None:
    error = await failed_start(phases=[["loading weights", 0.1, 30]])
    assert error.code == "engine_start_timeout"
    assert "within 0.1 s: loading weights" in error.message
    assert "supervision.start_patience" in error.hint


async def test_a_phase_that_is_at_work_is_waited_for() -> None:
    supervisor = make(phases=[["importing", 1, 0, 1.6]])
    await supervisor.start()
    assert supervisor.timeline[-1].seconds > 1.5
    await supervisor.stop()


@contextlib.contextmanager
def crowded_machine() -> Iterator[None]:
    """Two busy loops for every core."""
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(10_000))"
    cores = len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(2 * cores)]
    try:
        yield
    finally:
        for process in loops:
            process.kill()
            process.wait()


async def test_a_start_on_a_crowded_machine() -> None:
    niceness = os.getpriority(os.PRIO_PROCESS, 0)

    def spawn() -> EngineChild:
        child = scripted(phases=[["importing", 1, 0, 0.15]])()
        os.setpriority(os.PRIO_PROCESS, child.process.pid, min(19, niceness + 3))
        return child

    with crowded_machine():
        supervisor = Supervisor(default_engine_settings(start_patience=0.02), spawn)
        await supervisor.start()
    await supervisor.stop()


@pytest.mark.soak
async def test_a_real_engine_may_take_longer_than_its_limits() -> None:
    """A fiftieth of them: importing torch takes longer anywhere."""
    settings = default_engine_settings(
        model_dir=str(DEMO_FOLDER), device="cpu", start_patience=0.02, kv_bytes=2**24, max_model_len=256
    )
    supervisor = Supervisor(settings)
    try:
        await supervisor.start()
        names = {phase.name: phase.seconds for phase in supervisor.timeline}
        assert names["starting workers"] > 60 * 0.02
    finally:
        await supervisor.stop()


async def test_a_start_that_is_stopped_is_found() -> None:
    supervisor = make(phases=[["importing", 0.5, 0, 1000]])
    start = asyncio.create_task(supervisor.start())
    await eventually(lambda: "importing" in str(supervisor.report()["phase"]), "the phase is named")
    assert supervisor._run is not None
    os.kill(supervisor._run.pid, signal.SIGSTOP)
    with pytest.raises(SemipdError, match=r"within 0.5 s: importing \(in .* s of CPU time, read") as failed:
        await start
    assert failed.value.code == "engine_start_timeout"
    assert engine_is_gone(supervisor)


async def test_patience_lengthens_the_limit_of_the_first_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_run, "PROCESS_START_LIMIT_S", 0.001)
    error = await failed_start()
    assert "within 0.001 s: starting the engine process" in error.message
    supervisor = make(default_engine_settings(start_patience=50_000))
    await supervisor.start()
    await supervisor.stop()


async def test_a_start_reports_the_phase_it_waits_for() -> None:
    supervisor = make(phases=[["loading weights", 30, 20]])
    assert supervisor.report()["state"] == "starting"
    start = asyncio.create_task(supervisor.start())
    await eventually(lambda: "loading" in str(supervisor.report()["phase"]), "the phase is named")
    phase = known(supervisor.report()["phase"])
    assert phase["limit_s"] == 30 > phase["seconds"] >= 0
    with pytest.raises(SemipdError, match=r"loading weights \(.* s of at most 30 s\)"):
        await supervisor.status()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start


async def test_the_engines_own_error_is_shown() -> None:
    fail = {"code": "kv_too_small", "message": "KV needs 18 GiB.", "hint": "Lower kv.fraction."}
    error = await failed_start(fail=fail)
    assert (error.code, error.message, error.hint) == tuple(fail.values())


async def test_an_engine_that_just_ends() -> None:
    error = await failed_start(phases=[["reading", 30, 0]], exit=7)
    assert error.code == "engine_start_failed"
    assert "with exit code 7 in the phase: reading" in error.message


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    supervisor = make(phases=[["reading", 60, 60]])
    start = asyncio.create_task(supervisor.start())
    await asyncio.sleep(0.1)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert engine_is_gone(supervisor)


async def test_an_engine_deaf_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_run, "TERMINATE_LIMIT_S", 0.1)
    supervisor = make(stubborn=True)
    await supervisor.start()
    await supervisor.stop()
    assert engine_is_gone(supervisor)
    assert supervisor._run is not None
    assert supervisor._run._child.process.returncode == -9
    await supervisor.stop()


async def test_nonsense_from_the_engine_is_its_end(tmp_path: Path) -> None:
    """And if the same request makes the next one talk nonsense too, the request's."""
    async with running(tmp_path, garble_on=9) as daemon:
        status, answer, _ = await daemon.post({"prompt": [9], "max_tokens": 4000})
        assert (status, answer["error"]["code"]) == (500, "engine_crashed")
        assert "cannot be handled" in answer["error"]["message"]
        assert daemon.services.history.engine_deaths == 2


@pytest.mark.parametrize(("age_ms", "stalls"), [(9_000, True), (1_000, False)])
async def test_an_engine_that_stands_still_is_not_ready(tmp_path: Path, age_ms: int, stalls: bool) -> None:
    given = {"supervision.stall_s": 5, "supervision.interval_s": 0.05}
    async with running(tmp_path, settings=given, step_age_ms=age_ms) as daemon:
        run = daemon.services.supervisor._run
        await eventually(lambda: run is not None and run.last_status, "the engine has been asked")
        async with daemon.http.get(f"{daemon.url}/ready") as response:
            status, answer = response.status, await response.json()
        lamp = (await daemon.services.state(0))["lamps"]["progress"]
    assert (status, lamp["ok"]) == ((503, False) if stalls else (200, True))
    if stalls:
        assert answer["error"]["code"] == "engine_stalled"
        assert "decode lane has worked on one step for 9" in answer["error"]["message"]
        assert "supervision.stall_s=5" in answer["error"]["message"]


def test_exit_codes_in_words() -> None:
    assert describe_exit(3) == "with exit code 3"
    assert describe_exit(-15) == "on signal SIGTERM"
    assert "memory" in describe_exit(-9)
    assert describe_exit(-77) == "on signal 77"
