"""Requests that come too late, as clients and operators see them."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from support.daemon import running, until

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError

ONE_SEAT = default_engine_settings(device="fake", max_num_seqs=1, max_late_s=0.0, max_model_len=60_000)
TIGHT: dict[str, Any] = {"prompt": [98], "max_tokens": 1, "slo": {"ttft_ms": 1}}


async def test_late_is_said_at_every_door_before_any_byte_of_a_stream_and_counted(tmp_path: Path) -> None:
    async with running(tmp_path, fake=ONE_SEAT, settings={"classes.chat.ttft_ms": 5}) as daemon:
        holder = asyncio.create_task(
            daemon.post({"prompt": [97], "max_tokens": 50_000, "slo": {"ttft_ms": 0}})
        )
        history = daemon.services.history
        await until(lambda: [r.state for r in history.records("live")] == ["decoding"])
        patient = asyncio.create_task(daemon.complete(**TIGHT, accept_late=True))
        status, answer, response = await daemon.post(TIGHT)
        assert (status, answer["error"]["code"]) == (503, "late")
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        assert "admission.max_late_s" in answer["error"]["message"]
        status, answer, _ = await daemon.post(TIGHT | {"stream": True})
        assert (status, answer["error"]["code"]) == (503, "late"), "no stream has begun"
        async with await AsyncClient.connect(daemon.socket_path) as client:
            with pytest.raises(SemipdError) as refused:
                _ = [item async for item in client.generate([98], max_tokens=1, slo={"ttft_ms": 1})]
        assert (refused.value.code, (refused.value.retry_after_s or 0) >= 1) == ("late", True)
        await until(lambda: any(r.in_background and r.expected_start_ns for r in history.records("waiting")))
        (waiting,) = history.all_to_wire(history.records("waiting"))
        assert waiting["in_background"]
        assert (waiting["expected_start_s"] or 0) > waiting["arrived_at_s"]
        engine = await daemon.engine()
        metrics, _ = await daemon.services.exposition("")
        shown: Any = history.to_wire(history.records("waiting")[0], timeline=True)["events"]
        ended = [(r.finish_reason, r.error_code) for r in history.records("finished")]
        (running_id,) = {r.request_id for r in history.records("decoding")}
        daemon.services.table.cancel_named(running_id)
        assert (await holder)[0] == 499
        assert await patient
        levels = daemon.services.slo.snapshot(daemon.services.classes.targets)
    assert ended == [("error", "late")] * 3
    assert history.refused == {"late": 3}
    assert (engine["requests"]["waiting"], engine["requests"]["background"]) == (1, 1)
    assert re.search(r"^semipd:background_requests 1.0$", metrics.decode(), re.M)
    assert next(event["data"] for event in shown if event["kind"] == "to_background")["reason"] == "late"
    assert (levels["requests"], levels["attainment"]) == (4, 0.0), "the three are misses, as the patient one"
