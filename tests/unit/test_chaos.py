"""The parts of scripts/chaos.py: what it calls changed, lost, refused and left, and that it would notice."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from benchlib.checkpoint import text_of
from benchlib.procfs import process_tree
from chaoslib import operators
from chaoslib.clients import send
from chaoslib.clock import MachineClock
from chaoslib.jobs import Job, Outcome, Shape, draw_jobs
from chaoslib.judge import ExactJudge, Judge
from chaoslib.load import busy_loops
from chaoslib.models import CONTEXT_TOKENS, VOCAB_SIZE, save_weightless
from chaoslib.report import Result
from chaoslib.target import processes_with

from semipd.core.sampling import SamplingParams
from semipd.devices.fake import expected_tokens
from semipd.system.process_usage import ProcessUsage

SHAPE = Shape(VOCAB_SIZE, CONTEXT_TOKENS, 100, 50, is_greedy=False)
LIMIT_S = 20.0


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {"transport": "http-stream", "prompt": [1, 2, 3], "max_tokens": 9, "seed": 5}
    return Job(1, **fields | changes)


def right_answer(job: Job, index: int = 0) -> list[int]:
    params = SamplingParams(max_tokens=job.max_tokens, seed=job.seed + index)
    return expected_tokens(job.prompt, params, CONTEXT_TOKENS, VOCAB_SIZE)


def outcome(
    tokens: list[int], fate: Any = "finished", text: str | None = None, reason: str | None = "length"
) -> Outcome:
    made = Outcome(job(), fate=fate)
    made.add(0, tokens, " " + text_of(tokens) if text is None and tokens else text or "", reason)
    return made


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder = save_weightless(tmp_path_factory.mktemp("chaos") / "model")
    return Judge(ExactJudge(CONTEXT_TOKENS, VOCAB_SIZE), folder)


def test_a_right_answer_and_its_beginnings_are_accepted(judge: Judge) -> None:
    tokens = right_answer(job())
    assert judge.why_changed(outcome(tokens)) == ""
    for length in range(len(tokens)):
        for fate in ("left", "failed", "lost"):
            assert judge.why_changed(outcome(tokens[:length], fate, reason=None)) == ""


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda tokens: tokens[:4] + tokens[3:], "token 4 is"),
        (lambda tokens: tokens[:4] + tokens[5:], "token 4 is"),
        (lambda tokens: [*tokens[:-1], (tokens[-1] + 1) % VOCAB_SIZE], "token 8 is"),
        (lambda tokens: [*tokens, 7], "not the end"),
        (lambda tokens: tokens[:-1], "8 of 9 tokens"),
    ],
)
def test_repeated_missing_and_changed_tokens_are_found(
    judge: Judge, damage: Callable[[list[int]], list[int]], why: str
) -> None:
    assert why in judge.why_changed(outcome(damage(right_answer(job()))))


def test_text_reason_and_number_of_choices_are_looked_at(judge: Judge) -> None:
    tokens = right_answer(job())
    assert "is not" in judge.why_changed(outcome(tokens, text=text_of(tokens[1:])))
    assert "finish reason stop" in judge.why_changed(outcome(tokens, reason="stop"))
    two = outcome(tokens)
    two.add(1, right_answer(job(), 1), " " + text_of(right_answer(job(), 1)), "length")
    assert "2 of 1 choices" in judge.why_changed(two)


def test_what_makes_a_run_bad() -> None:
    def result(**fields: Any) -> Result:
        return Result("fake", 1, 1.0, "", **fields)

    assert result().problems == []
    bad = {"lost": ["x"], "changed": ["x"], "leaked_blocks": 1, "left": [1], "unrecovered": ["x"]}
    bad |= {"engine_failures": 1, "tracebacks": 1, "exit_code": None}
    for name, value in bad.items():
        assert len(result(**{name: value}).problems) == 1, name
    json.dumps(result(**bad).to_plain())
    assert "| requests accepted | 0 |" in result().text()


def test_a_seed_repeats_its_jobs() -> None:
    first, again, other = (list(islice(draw_jobs(random.Random(s), SHAPE), 200)) for s in (1, 1, 2))
    assert first == again != other
    assert {one.transport for one in first} == {"http", "http-stream", "socket"}
    assert {one.action for one in first} == {"stay", "cancel", "vanish"}
    assert all(len(one.prompt) + one.max_tokens <= CONTEXT_TOKENS for one in first)


def test_processes_of_a_run_are_found_by_their_mark() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        command, env={"MARK": "abc"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes_with("MARK", "abc") == [process.pid]
        assert processes_with("MARK", "ab") == []
        process.communicate(b"\n")
    assert processes_with("MARK", "abc") == []


class Machine:
    """Withholds a part of the time that passes."""

    def __init__(self, withheld_frac: float) -> None:
        self._began_s, self._withheld_frac = time.monotonic(), withheld_frac

    def __call__(self) -> ProcessUsage:
        return ProcessUsage(withheld_s=self._withheld_frac * (time.monotonic() - self._began_s))


async def test_limits_are_in_the_time_that_the_machine_grants() -> None:
    clock = MachineClock(Machine(withheld_frac=0.9))
    assert await clock.within(0.3, asyncio.sleep(1.0, "done")) == "done"
    with pytest.raises(TimeoutError):
        await clock.within(0.1, asyncio.sleep(60))
    assert "of" in clock.share()


def test_busy_loops_are_there_and_gone() -> None:
    with busy_loops(2):
        begun = {child.pid for child in process_tree(os.getpid()).values() if child.parent == os.getpid()}
        assert len(begun) >= 2
    assert not begun & set(process_tree(os.getpid()))


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        ("plain 400 invalid_value", "answered"),
        ("plain 503 overloaded", "answered"),
        ("plain 500 internal_error", "server error"),
        ("nothing", "no answer"),
    ],
)
async def test_how_poison_is_taken(answer: str, counted: str) -> None:
    counts: Counter[str] = Counter()
    said = answer.split()
    async with server(b"" if said == ["nothing"] else plain(int(said[1]), error(said[2]))) as url:
        await operators.poison(url, {"top_k": 1e30}, counts)
    assert counts == {counted: 1}


# ---- answers of a server that says what we want ----------------------------------------------------


@asynccontextmanager
async def server(answer: bytes, *, stays: bool = False) -> AsyncIterator[str]:
    """Says `answer` to one client, then closes the connection, or waits for the client to do so."""

    over = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if stays:
            with suppress(ConnectionError):
                await reader.read()
        writer.close()
        over.set()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with asyncio.timeout(LIMIT_S):
            await over.wait()


def plain(status: int, document: Any) -> bytes:
    body = json.dumps(document).encode()
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def stream(*events: str) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return head + b"".join(f"data: {event}\n\n".encode() for event in events)


def error(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": "why", "type": "x", "param": None}}


TOKEN = json.dumps({"choices": [{"index": 0, "text": " w1", "token_ids": [1], "finish_reason": None}]})
PARTIAL = error("engine_crashed") | {"partial": {"choices": [{"index": 0, "text": " w1", "token_ids": [1]}]}}


@pytest.mark.parametrize(
    ("transport", "answer", "fate", "code", "num_tokens"),
    [
        ("http", plain(503, error("overloaded")), "refused", "overloaded", 0),
        ("http", plain(500, PARTIAL), "failed", "engine_crashed", 1),
        ("http", plain(200, json.loads(TOKEN)), "finished", "", 1),
        ("http", plain(200, json.loads(TOKEN))[:-5], "lost", "connection_lost", 0),
        ("http", b"", "lost", "connection_lost", 0),
        ("http", plain(200, {}), "finished", "", 0),
        ("http-stream", plain(503, error("draining")), "refused", "draining", 0),
        ("http-stream", stream(TOKEN, TOKEN, "[DONE]"), "finished", "", 2),
        ("http-stream", stream(TOKEN, TOKEN), "lost", "no_end", 2),
        ("http-stream", stream(TOKEN, json.dumps(error("engine_crashed"))), "failed", "engine_crashed", 1),
        (
            "http-stream",
            stream(TOKEN, json.dumps(error("request_cancelled"))),
            "failed",
            "request_cancelled",
            1,
        ),
    ],
)
async def test_what_an_answer_means(
    transport: Any, answer: bytes, fate: str, code: str, num_tokens: int
) -> None:
    async with server(answer) as url:
        got = Outcome(job(transport=transport))
        await send(got, url, Path("/nowhere"), LIMIT_S, is_greedy=False)
    assert (got.fate, got.code) == (fate, code)
    assert got.meter.num_tokens == num_tokens


async def test_silence_and_a_server_that_is_gone_are_losses() -> None:
    async with server(stream(TOKEN), stays=True) as url:
        silent = Outcome(job())
        await send(silent, url, Path("/nowhere"), 0.3, is_greedy=False)
    gone = Outcome(job(transport="socket"))
    await send(gone, url, Path("/nowhere"), LIMIT_S, is_greedy=False)
    assert (silent.fate, silent.code, gone.fate, gone.code) == (
        "lost",
        "timeout",
        "lost",
        "daemon_not_running",
    )


async def test_a_client_that_hangs_up_has_left() -> None:
    async with server(stream(TOKEN), stays=True) as url:
        left = Outcome(job(action="vanish", leave_after=1))
        await send(left, url, Path("/nowhere"), LIMIT_S, is_greedy=False)
    assert left.fate == "left"
