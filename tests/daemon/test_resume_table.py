"""What the request table keeps for the next engine, and what it does with the last words of a dead one."""

from dataclasses import dataclass, field
from typing import Any

from support.scripted_engine import INFO

from semipd.core.errors import SemipdError
from semipd.core.events import Event
from semipd.core.messages import Finished, PromptLogprobs, StepTokens
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.daemon.engine.ready import EngineReady
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.table import RequestTable

DEATH = SemipdError("engine_crashed", "The engine ended.")
READY = EngineReady({**INFO, "name": "another one"}, "semipd", (), "0")


@dataclass
class Engine:
    submitted: list[Request] = field(default_factory=list)
    cancelled: list[SeqId] = field(default_factory=list)
    can_submit: bool = True

    def check_accepting(self) -> None:
        pass

    def submit(self, request: Request) -> None:
        assert self.can_submit
        self.submitted.append(request)

    def cancel(self, seq: SeqId) -> None:
        self.cancelled.append(seq)


class Told:
    """A table, and what its engine says and does."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.table = RequestTable(self.engine)

    def admit(self, prompt: list[int] | None = None, **params: Any) -> LiveRequest:
        given = {"max_tokens": 10, "seed": 7} | params
        return self.table.admit("public", prompt or [1, 2, 3], SamplingParams(**given))

    def tokens(self, live: LiveRequest, *tokens: int, logprobs: bool = False) -> None:
        for token in tokens:
            entries: list[TokenLogprobs | None] | None
            entries = [TokenLogprobs(token, -1.0, (), 1)] if logprobs else None
            self.table.on_message(StepTokens((live.request.seq,), [token], entries))

    def dies(self) -> bool:
        self.engine.can_submit = False
        return self.table.engine_died(DEATH)

    def is_back(self) -> Request:
        """What the next engine is given first."""
        self.engine.can_submit = True
        self.table.engine_ready(READY, 0.5)
        return self.engine.submitted[-1]


def test_prompt_parameters_seed_arrival_and_tokens_are_submitted_again() -> None:
    told = Told()
    live = told.admit(temperature=0.5, min_tokens=4)
    told.tokens(live, 5, 6)
    told.dies()
    again = told.is_back()
    assert (again.prompt, again.params, again.arrival_ns) == (
        live.request.prompt,
        live.request.params,
        live.request.arrival_ns,
    )
    assert (again.emitted, again.seq) == ((5, 6), live.request.seq)
    told.tokens(live, 7)
    assert (live.tokens, live.record.output_tokens) == ([5, 6, 7], 3)


def test_an_end_that_got_lost_is_known_from_the_last_token() -> None:
    told = Told()
    stopped, full = told.admit(stop_token_ids=(9,)), told.admit(max_tokens=2)
    early = told.admit(stop_token_ids=(9,), min_tokens=3)
    for live in (stopped, full, early):
        told.tokens(live, 4, 9)
    told.dies()
    assert (stopped.finish_reason, stopped.stop_token) == ("stop", 9)
    assert (full.finish_reason, full.stop_token) == ("length", None)
    assert early.finish_reason is None, "a stop token before min_tokens is a token like any other"
    assert told.is_back().seq == early.request.seq
    assert len(told.engine.submitted) == 4


def test_log_probabilities_of_the_prompt_are_sent_once() -> None:
    told = Told()
    entries = [TokenLogprobs(token, -1.0, (), 1) for token in (2, 3)]
    part, complete, decoding = [told.admit(prompt_logprobs=1) for _ in range(3)]
    told.table.on_message(PromptLogprobs(part.request.seq, entries[:1]))
    for live in (complete, decoding):
        told.table.on_message(PromptLogprobs(live.request.seq, entries))
    told.tokens(decoding, 5, logprobs=True)
    told.dies()
    told.is_back()
    for live in (complete, decoding):  # lets the next suspect in
        told.tokens(live, 6, logprobs=True)
    told.tokens(part, 6, logprobs=True)
    again = {request.seq: request for request in told.engine.submitted[3:]}
    wanted = {seq: request.params.prompt_logprobs for seq, request in again.items()}
    assert wanted == {part.request.seq: 1, complete.request.seq: None, decoding.request.seq: None}
    assert part.prompt_logprobs == [], "they come again from the first one on"
    assert complete.prompt_logprobs == decoding.prompt_logprobs == entries
    assert [entry.token_id for entry in decoding.logprobs] == [5, 6]


def test_cached_tokens_are_those_of_the_first_admission() -> None:
    told = Told()
    live = told.admit(list(range(40)))
    for cached in (16, 32):
        data: dict[str, Any] = {"cached_tokens": cached, "tokens": 40}
        told.table.on_message(Event(1, "admitted", live.request.seq, "public", data))
        told.tokens(live, 5)
        if cached == 16:
            told.dies()
            told.is_back()
    told.table.on_message(Finished(live.request.seq, "length", cached_tokens=32))
    assert live.cached_tokens == live.record.cached_tokens == 16


def test_what_ends_during_the_outage_does_not_come_back() -> None:
    told = Told()
    left, cancelled, stays = told.admit(), told.admit(), told.admit()
    told.tokens(stays, 5)
    told.dies()
    told.table.release(left)
    told.table.cancel(cancelled)
    assert told.engine.cancelled == [], "there is no engine to tell"
    new = told.admit([8])
    assert len(told.engine.submitted) == 3
    assert told.is_back().seq == stays.request.seq
    assert len(told.engine.submitted) == 4
    told.tokens(stays, 6)
    assert told.engine.submitted[-1].seq == new.request.seq
    assert new.request.seq > stays.request.seq
    assert told.table.num_suspects == told.table.num_held == 0


def test_a_guilty_request_fails_with_its_name() -> None:
    told = Told()
    live = told.admit()
    assert not told.dies()
    told.is_back()
    assert told.dies(), "twice, and nothing else was in flight"
    assert live.error is not None
    assert (live.finish_reason, live.error.code) == ("error", "engine_crashed")
    assert "'public'" in live.error.message
    told.table.release(live)
    kinds = [entry.kind for entry in told.table.history.named("public")[0].timeline]
    assert kinds == ["arrived", "request_resumed", "finished"]


def test_a_congested_engine_gets_the_rest_later() -> None:
    told = Told()
    told.engine.can_submit = False
    lives = [told.admit() for _ in range(3)]
    assert (told.engine.submitted, told.table.num_held) == ([], 3)
    told.engine.can_submit = True
    told.table.on_message(Event(1, "split_changed", None, "", {}))
    assert [request.seq for request in told.engine.submitted] == [live.request.seq for live in lives]


def test_closing_fails_everybody_and_submits_nobody() -> None:
    told = Told()
    lives = [told.admit() for _ in range(3)]
    told.dies()
    told.engine.can_submit = True
    told.table.close(SemipdError("shutting_down", "Goodbye."))
    assert {live.error.code for live in lives if live.error} == {"shutting_down"}
    assert len(told.engine.submitted) == 3
