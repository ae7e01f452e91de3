"""Starting, losing and stopping an engine process."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from support.daemon import running
from support.scripted_engine import scripted

from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.daemon import supervisor as supervisor_module
from semipd.daemon.supervisor import Supervisor, describe_exit


def make(**script: Any) -> Supervisor:
    return Supervisor(EngineSettings(), lambda message: None, scripted(**script))


def engine_is_gone(supervisor: Supervisor) -> bool:
    """The process has ended and was waited for."""
    child = supervisor._child
    assert child is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.process.pid, 0)
        return False
    return True


async def failed_start(**script: Any) -> SemipdError:
    supervisor = make(**script)
    with pytest.raises(SemipdError) as failed:
        await supervisor.start()
    assert engine_is_gone(supervisor)
    return failed.value


async def test_phases_make_the_timeline() -> None:
    supervisor = make(phases=[["reading", 30, 0.05], ["thinking", 30, 0]])
    ready = await supervisor.start()
    assert [phase.name for phase in supervisor.timeline] == [
        "starting the engine process",
        "reading",
        "thinking",
    ]
    assert supervisor.timeline[1].seconds >= 0.04
    assert (ready.vocab_size, ready.max_model_len, ready.scheduler) == (400, 4096, "scripted")
    await supervisor.stop()
    assert engine_is_gone(supervisor)


async def test_a_phase_that_takes_too_long() -> None:
    error = await failed_start(phases=[["loading weights", 0.1, 30]])
    assert error.code == "engine_start_timeout"
    assert "within 0.1 s: loading weights" in error.message


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
    monkeypatch.setattr(supervisor_module, "TERMINATE_LIMIT_S", 0.1)
    supervisor = make(stubborn=True)
    await supervisor.start()
    await supervisor.stop()
    assert engine_is_gone(supervisor)
    assert supervisor._child is not None
    assert supervisor._child.process.returncode == -9
    await supervisor.stop()


async def test_death_after_ready_is_noticed_and_described(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        supervisor = daemon.services.supervisor
        supervisor.kill()
        error = await supervisor.died()
        assert (error.code, supervisor.state) == ("engine_crashed", "dead")
        assert "on signal SIGKILL" in error.message
        with pytest.raises(SemipdError) as refused:
            await supervisor.status()
        assert refused.value.code == "engine_not_ready"


async def test_nonsense_from_the_engine_is_its_end(tmp_path: Path) -> None:
    async with running(tmp_path, garble_on=9) as daemon:
        supervisor = daemon.services.supervisor
        asking = asyncio.create_task(daemon.post({"prompt": [9], "max_tokens": 4000}))
        error = await supervisor.died()
        daemon.services.table.close(error)
        status, answer, _ = await asking
        assert (status, answer["error"]["code"]) == (500, "engine_crashed")
        await supervisor.stop()
        assert engine_is_gone(supervisor)


def test_exit_codes_in_words() -> None:
    assert describe_exit(3) == "with exit code 3"
    assert describe_exit(-15) == "on signal SIGTERM"
    assert "memory" in describe_exit(-9)
    assert describe_exit(-77) == "on signal 77"
