"""A small share of scripts/fuzz.py; the whole runs in make soak."""

import asyncio
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzzlib import watch
from fuzzlib.edges import MAX_WAITING, Case
from fuzzlib.families import Family, Watched, run_families, run_family
from fuzzlib.talk import HttpTalker, ViolationError
from fuzzlib.watch import Watch
from hypothesis import strategies as st
from support.daemon import running

from semipd.config.config import default_engine_settings

FAKE = default_engine_settings(device="fake", max_model_len=128)
SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


async def test_nothing_that_is_sent_breaks_the_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"admission.max_waiting_requests": MAX_WAITING}
    async with running(tmp_path, fake=FAKE, settings=settings) as daemon:
        outcomes = await asyncio.to_thread(run_families, daemon.url, daemon.socket_path, 400, 7)
        async with daemon.http.get(f"{daemon.url}/ready") as response:
            assert response.status == 200
        await daemon.engine_says(lambda seen: seen["kv"]["used_blocks"] == 0)
        daemon.services.admission.check_integrity()
        assert daemon.services.admission.waiting == (0, 0)
    assert not [violation for outcome in outcomes for violation in outcome.violations]
    assert sum(outcome.cases for outcome in outcomes) >= 400
    statuses = sum((outcome.tally for outcome in outcomes), Counter())
    assert statuses["200"] > 20, "not everything is refused, so more than the first check was reached"
    assert statuses["400"] > 20
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]


async def test_the_fuzzer_sees_a_500(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
        monkeypatch.setattr(daemon.services, "check_model", lambda name: [][0])
        talker = HttpTalker(daemon.url, Counter())
        bodies = st.sampled_from([b"{}", b'{"prompt": "a", "max_tokens": 1}'])

        def post(body: bytes) -> None:
            talker.ask("POST", "/v1/completions", body)

        family = Family("test", 1.0, bodies, post)
        outcome = await asyncio.to_thread(run_family, family, 50, 1)
        talker.close()
    assert "status 500" in outcome.violations[0]


async def test_the_fuzzer_sees_what_no_status_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    monkeypatch.setattr(watch, "SETTLE_LIMIT_S", 0.2)
    async with running(tmp_path, fake=FAKE) as daemon:
        talker = HttpTalker(daemon.url, Counter())
        watched = await asyncio.to_thread(lambda: Watched(talker, Watch(daemon.url)))

        async def wrong(refused: str = "") -> str:
            case = Case("POST", "/v1/completions", body, refused)
            try:
                await asyncio.to_thread(watched.ask, case)
            except ViolationError as error:
                return str(error)
            return ""

        assert await wrong() == ""
        assert await wrong("it is too much") == "status 200, although it is too much"
        with monkeypatch.context() as patch:
            patch.setattr(daemon.services.table, "release", lambda _live: None)
            assert await wrong() == "1 request(s) stay behind after the answer"
        assert await wrong() == "", "one fault is reported once"
        daemon.services.supervisor.kill()
        assert "the engine died 1 time(s) of it" in await wrong()
        assert await wrong() == ""
        talker.close()


@pytest.mark.soak
def test_the_script() -> None:
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), "--cases", "2000", "--no-schemathesis"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
