"""A small share of scripts/fuzz.py; the whole runs in make soak."""

import asyncio
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzzlib.families import Family, run_families, run_family
from fuzzlib.talk import HttpTalker
from hypothesis import strategies as st
from support.daemon import running

from semipd.core.settings import EngineSettings

FAKE = EngineSettings(device="fake", max_model_len=128)
SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


async def test_nothing_that_is_sent_breaks_the_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, fake=FAKE) as daemon:
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
        family = Family(
            "test", 1.0, bodies, lambda body: talker.ask("POST", "/v1/completions", body) and None
        )
        outcome = await asyncio.to_thread(run_family, family, 50, 1)
        talker.close()
    assert "status 500" in outcome.violations[0]


@pytest.mark.soak
def test_the_script() -> None:
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), "--cases", "2000", "--no-schemathesis"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
