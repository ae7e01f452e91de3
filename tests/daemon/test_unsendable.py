"""A request that cannot be handed to the engine fails alone, and nothing of it stays behind."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.daemon import running, until
from support.scripted_engine import INFO

from semipd.client import AsyncClient
from semipd.config.sections import AdmissionConfig
from semipd.core.errors import SemipdError
from semipd.core.messages import Finished, StepTokens
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.daemon.engine import link
from semipd.daemon.engine.ready import EngineReady
from semipd.daemon.requests.admission import Admission
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.table import RequestTable
from semipd.wire.engine_link import request_to_wire
from semipd.wire.frames import encode_frame

READY = EngineReady({**INFO, "name": "another one"}, "semipd", (), "0")
FRAME_BYTES = 2000


@dataclass
class Engine:
    """Takes what `encode` takes."""

    encode: Callable[[Request], object] = lambda request: encode_frame(request_to_wire(request))
    submitted: list[SeqId] = field(default_factory=list)
    can_submit: bool = True

    def check_accepting(self) -> None:
        pass

    def submit(self, request: Request) -> None:
        assert self.can_submit
        self.encode(request)
        self.submitted.append(request.seq)

    def cancel(self, seq: SeqId) -> None:
        pass


class Told:
    def __init__(self, **engine: Any) -> None:
        self.engine = Engine(**engine)
        self.table = RequestTable(self.engine)
        self.admission = Admission(AdmissionConfig(), self.table.history)

    def admit(self, request_id: str = "good", **params: Any) -> LiveRequest:
        return self.table.admit(
            request_id, [1, 2, 3], SamplingParams(**{"max_tokens": 9, "seed": 7} | params)
        )

    def lives(self, *lives: LiveRequest) -> None:
        """These do, and nothing else is kept of any request."""
        assert len(self.table) == len(lives) == len(self.table.history.records("live"))
        assert self.admission.waiting.requests == len(lives)
        self.admission.check_integrity()
        self.table._resumption.check_integrity()
        assert self.table.num_held + len(self.table._resumption._in_flight) == len(lives)


@pytest.mark.parametrize(
    ("params", "code"),
    [({"top_k": 10**30}, "cannot_be_sent"), ({"min_p": object()}, "cannot_be_sent")],
)
def test_what_has_no_msgpack_form_is_refused_and_forgotten(params: dict[str, Any], code: str) -> None:
    told = Told()
    good = told.admit()
    with pytest.raises(SemipdError) as refused:
        told.admit("bad", **params)
    assert refused.value.code == code
    told.lives(good)
    [record] = told.table.history.named("bad")
    assert (record.state, record.error_code) == ("finished", code)
    told.lives(good, told.admit())


@pytest.mark.parametrize("error", [OSError("no"), ZeroDivisionError(), AssertionError(), KeyError("x")])
def test_any_exception_undoes_an_admission(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def fails(_request: Request) -> None:
        raise error

    told = Told(encode=fails)
    with pytest.raises(SemipdError) as refused:
        told.admit()
    assert refused.value.code == "internal_error"
    assert "cannot be submitted" in caplog.text, "a fault of ours is in the log"
    told.lives()


def test_an_observer_that_fails_undoes_an_admission() -> None:
    told = Told()

    def fails(_record: object, _request: object) -> None:
        raise KeyboardInterrupt

    told.table.history.on_arrived.append(fails)
    with pytest.raises(KeyboardInterrupt):
        told.admit()
    told.lives()


def test_at_the_next_engine_too_it_fails_alone() -> None:
    told = Told()
    first, bad, last = told.admit(), told.admit("bad"), told.admit()
    for live in (first, bad, last):
        told.table.on_message(StepTokens((live.request.seq,), [5]))
    told.engine.can_submit = False
    told.table.engine_died(SemipdError("engine_crashed", "The engine ended."))
    bad.tokens.append(2**64)
    told.engine.can_submit = True
    told.table.engine_ready(READY, 0.5)
    for live in (first, last):  # one after the other, as suspects are
        told.table.on_message(StepTokens((live.request.seq,), [5]))
    assert bad.error is not None
    assert bad.error.code == "cannot_be_sent"
    told.table.release(bad)
    for live in (first, last):
        told.table.on_message(Finished(live.request.seq, "length"))
        assert live.error is None
        told.table.release(live)
    told.lives()


def test_who_comes_meanwhile_is_not_refused_for_another() -> None:
    told = Told()
    told.engine.can_submit = False
    bad = told.admit("bad", top_k=2**64)
    told.engine.can_submit = True
    good = told.admit()
    assert good.error is None
    assert bad.error is not None
    told.table.release(bad)
    told.lives(good)
    assert told.engine.submitted == [good.request.seq]


@pytest.fixture
def _short_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a frame of the engine's link held little: what is refused for it would be large else."""
    monkeypatch.setattr(link, "encode_frame", lambda message, _most: encode_frame(message, FRAME_BYTES))


@pytest.mark.usefixtures("_short_frames")
async def test_a_request_too_large_for_the_link_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        for n in (1, 3):
            status, answer, _ = await daemon.post({"prompt": [300] * 1000, "max_tokens": 3, "n": n})
            assert (status, answer["error"]["code"]) == (400, "cannot_be_sent"), answer
            assert f"a frame holds at most {FRAME_BYTES}" in answer["error"]["message"]
        with pytest.raises(SemipdError) as refused:
            await anext(client.generate([300] * 1000, max_tokens=3))
        assert refused.value.code == "cannot_be_sent"
        assert (await daemon.complete(prompt=[97], max_tokens=3))["choices"][0]["text"] == "aaa"
        assert len(daemon.services.table) == 0
        assert daemon.services.admission.waiting == (0, 0)
        assert (await daemon.engine())["live"] == 0


@pytest.mark.usefixtures("_short_frames")
async def test_a_request_that_has_grown_too_large_does_not_stop_the_next_engine(tmp_path: Path) -> None:
    async with running(tmp_path, max_steps=1500) as daemon:
        body = {"prompt": [97] * 500, "max_tokens": 3000, "ignore_eos": True}
        grown = asyncio.create_task(daemon.post(body))
        table = daemon.services.table
        await until(lambda: [len(live.tokens) for live in table._live.values()] == [1500])
        daemon.services.supervisor.kill()
        status, answer, _ = await grown
        assert (status, answer["error"]["code"]) == (400, "cannot_be_sent"), answer
        assert len(answer["partial"]["choices"][0]["token_ids"]) == 1500, "what there is is handed over"
        assert daemon.services.supervisor.num_restarts == 1
        await daemon.complete(prompt=[99], max_tokens=2)
        await until(lambda: len(table) == 0)
        assert daemon.services.admission.waiting == (0, 0)
