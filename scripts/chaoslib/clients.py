"""Sends a job and says what became of it. No exception leaves here but cancellation."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchlib.load.http_parser import EventSplitter

from chaoslib.clock import MachineClock
from chaoslib.http import HttpExchange, cancel
from chaoslib.jobs import Job, Outcome
from semipd.client import AsyncClient
from semipd.core.errors import SemipdError

REFUSALS = {
    "overloaded",
    "late",
    "rate_limited",
    "too_many_connections",
    "engine_not_ready",
    "engine_silent",
    "draining",
    "shutting_down",
}
"""Codes that say: nothing has been done, come again."""

_NO_ANSWER = {"connection_lost", "daemon_silent", "daemon_not_running", "malformed_response"}
"""What our side says when there is none."""

_PLAIN_TOKEN_S = 0.002
"""An answer in one piece shows no tokens: its client acts after so long for each."""


class Gone(Exception):  # noqa: N818
    """The client has hung up."""


async def send(
    outcome: Outcome,
    url: str,
    socket_path: Path,
    limit_s: float,
    *,
    is_greedy: bool,
    clock: MachineClock | None = None,
) -> None:
    """Fill in the outcome of its job. `limit_s`: without an end by then it is lost; by `clock`, if given."""
    job = outcome.job
    how = {"http": _plain, "http-stream": _stream, "socket": _socket}[job.transport]
    try:
        doing = how(outcome, str(socket_path) if job.transport == "socket" else url, is_greedy)
        await (asyncio.wait_for(doing, limit_s) if clock is None else clock.within(limit_s, doing))
    except Gone:
        outcome.end("left")
    except TimeoutError:
        outcome.end("lost", "timeout", f"no end within {limit_s:g} s")
    except SemipdError as error:
        _note_error(outcome, error.code, str(error))
    except (OSError, EOFError, ValueError, KeyError) as error:
        outcome.end("lost", type(error).__name__, str(error))


def _fields(job: Job, is_greedy: bool) -> dict[str, Any]:
    sampling = {"temperature": 0} if is_greedy else {"seed": job.seed}
    return {"prompt": job.prompt, "max_tokens": job.max_tokens, "ignore_eos": True, **sampling}


def _body(job: Job, is_greedy: bool) -> dict[str, Any]:
    return _fields(job, is_greedy) | {
        "n": job.num_choices,
        "stream": job.transport == "http-stream",
        "return_token_ids": True,
        "logprobs": job.logprobs,
    }


def _note_error(outcome: Outcome, code: str, detail: str) -> None:
    if code in _NO_ANSWER:
        outcome.end("lost", code, detail)
    elif code == "request_cancelled" and outcome.job.action == "cancel":
        outcome.end("left", code)
    else:
        outcome.end("refused" if code in REFUSALS else "failed", code, detail)


async def _plain(outcome: Outcome, url: str, is_greedy: bool) -> None:
    job = outcome.job
    exchange = await HttpExchange.open(
        url, "POST", "/v1/completions", _body(job, is_greedy), job.request_id, job.pause_s
    )
    acting = asyncio.create_task(_act_later(job, url, exchange), name=f"act {job.number}")
    try:
        status, answer = await exchange.json()
    except (OSError, SemipdError) as error:
        if acting.done() and job.action == "vanish":
            raise Gone from error
        raise
    finally:
        acting.cancel()
        exchange.hang_up()
    _take_answer(outcome, status, answer)


async def _act_later(job: Job, url: str, exchange: HttpExchange) -> None:
    if job.action == "stay":
        return
    await asyncio.sleep(job.leave_after * _PLAIN_TOKEN_S)
    if job.action == "vanish":
        exchange.hang_up()
    else:
        await cancel(url, job.request_id)


def _take_answer(outcome: Outcome, status: int, answer: dict[str, Any]) -> None:
    error = answer.get("error")
    for choice in (answer.get("partial") or answer).get("choices", ()):
        _add(outcome, choice)
    if status == 200 and error is None:
        outcome.end("finished")
    elif error is not None:
        _note_error(outcome, error["code"], f"HTTP {status}: {error['message']}")
    else:
        outcome.end("lost", f"http_{status}", "an answer that is neither choices nor an error")


async def _stream(outcome: Outcome, url: str, is_greedy: bool) -> None:
    job, splitter, plain, is_done = outcome.job, EventSplitter(), b"", False
    exchange = await HttpExchange.open(
        url, "POST", "/v1/completions", _body(job, is_greedy), job.request_id, job.pause_s
    )
    actor = Actor(outcome, exchange.hang_up, lambda: cancel(url, job.request_id))
    try:
        await actor.look()
        async for piece in exchange.body():
            if not exchange.parser.headers.get("content-type", "").startswith("text/event-stream"):
                plain += piece
                continue
            for event in splitter.feed(piece):
                if event == b"[DONE]":
                    is_done = True
                else:
                    _take_event(outcome, json.loads(event))
            await actor.look()
    finally:
        exchange.hang_up()
        await actor.close()
    if plain:
        _take_answer(outcome, exchange.parser.status, json.loads(plain))
    elif is_done:
        outcome.end("finished")
    elif not outcome.code:
        outcome.end("lost", "no_end", "the stream ended without [DONE] and without an error")


def _take_event(outcome: Outcome, event: dict[str, Any]) -> None:
    if "error" in event:
        _note_error(outcome, event["error"]["code"], event["error"]["message"])
    for choice in event.get("choices", ()):
        _add(outcome, choice)


def _add(outcome: Outcome, choice: dict[str, Any]) -> None:
    tokens, reason = choice.get("token_ids") or [], choice.get("finish_reason")
    outcome.add(choice["index"], tokens, choice["text"], reason)


class Actor:
    """Does what the job's client does in mid-answer, once."""

    def __init__(
        self, outcome: Outcome, hang_up: Callable[[], None], cancel_it: Callable[[], Awaitable[object]]
    ) -> None:
        self._outcome = outcome
        self._hang_up = hang_up
        self._cancel_it = cancel_it
        self._cancelling: asyncio.Task[object] | None = None

    async def look(self) -> None:
        """Raises Gone when the client has hung up."""
        job = self._outcome.job
        arrived = sum(len(choice.tokens) for choice in self._outcome.choices.values())
        if job.action == "stay" or arrived < job.leave_after or self._cancelling is not None:
            return
        if job.action == "vanish":
            self._hang_up()
            raise Gone
        self._cancelling = asyncio.create_task(self._do_cancel(), name=f"cancel {job.number}")

    async def _do_cancel(self) -> object:
        try:
            return await self._cancel_it()
        except SemipdError as error:
            return error  # the answer to the request itself says what happened

    async def close(self) -> None:
        if self._cancelling is not None:
            self._cancelling.cancel()
            await asyncio.wait([self._cancelling])


async def connected(path: str) -> AsyncClient:
    """Greeted. A daemon that stands still greets late, which is no loss: nothing was asked yet."""
    while True:
        try:
            return await AsyncClient.connect(path)
        except SemipdError as error:
            if error.code != "daemon_silent":
                raise


async def _socket(outcome: Outcome, path: str, is_greedy: bool) -> None:
    job = outcome.job
    client = await connected(path)
    try:
        stream = client.generate(request_id=job.request_id, **_fields(job, is_greedy))
        actor = Actor(outcome, lambda: None, stream.cancel)
        try:
            await actor.look()
            async for item in stream:
                outcome.add(0, item.token_ids, item.text, item.finish_reason)
                await actor.look()
                if job.pause_s:
                    await asyncio.sleep(job.pause_s)
        finally:
            await actor.close()
    finally:
        await client.close()
    reason = outcome.choices[0].finish_reason if outcome.choices else None
    if reason is None:
        outcome.end("lost", "no_end", "the items ended without a finish reason")
    else:
        outcome.end("left" if reason == "cancelled" and job.action == "cancel" else "finished")
