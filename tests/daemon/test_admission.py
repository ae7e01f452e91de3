"""Who is let in: bounds of the waiting queue, when to come again, deadlines, priorities, what never fits."""

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running, until

from semipd.client import AsyncClient, GenerateStream
from semipd.config.config import default_engine_settings
from semipd.config.sections import AdmissionConfig
from semipd.core.errors import SemipdError
from semipd.core.events import ADMITTED, Event
from semipd.core.request import Priority, Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.daemon.access.classes import Service
from semipd.daemon.access.terms import Terms
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.history.records import RequestHistory
from semipd.daemon.requests.admission import MAX_RETRY_S, Admission, Reservation
from semipd.daemon.requests.schema import SamplingOptions
from semipd.system import clock


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """An admission, and a history that is told what happens to its requests."""

    def __init__(self, **config: Any) -> None:
        self.clock = Clock()
        self.history = RequestHistory(clock.Clock(lambda: int(self.clock.now_s * 1e9)))
        self.admission = Admission(AdmissionConfig(**config), self.history, self.clock)
        self.last = 0

    def arrives(self, num_tokens: int = 10, priority: Priority = "interactive") -> RequestRecord:
        self.last += 1
        params = SamplingParams(max_tokens=1, seed=1)
        arrival_ns = int(self.clock.now_s * 1e9)
        request = Request(SeqId(self.last), f"r{self.last}", [1] * num_tokens, params, arrival_ns)
        return self.history.arrived(
            request, Terms(service=Service("batch" if priority == "batch" else "default"))
        )

    def is_placed(self, record: RequestRecord) -> None:
        admitted = ADMITTED({"cached_tokens": 0, "tokens": record.prompt_tokens})
        self.history.noted(Event(int(self.clock.now_s * 1e9), admitted.kind, record.seq, "", admitted.data))

    def finishes(self, record: RequestRecord) -> None:
        self.history.finished(record, "length", None)

    def refused(self, **asked: Any) -> SemipdError:
        with pytest.raises(SemipdError) as refused:
            self.admission.enter(asked.pop("priority", "interactive"), **asked)
        assert refused.value.code == "overloaded"
        assert refused.value.retry_after_s is not None
        self.admission.check_integrity()
        return refused.value


def test_requests_wait_until_they_are_placed() -> None:
    desk = Desk(max_waiting_requests=2)
    first, _second = desk.arrives(), desk.arrives()
    assert "2 requests with 20 prompt tokens wait" in desk.refused().message
    desk.is_placed(first)
    with desk.admission.enter("interactive") as place:
        desk.refused()
        place.give_up()
        desk.arrives()
    desk.refused()


def test_a_place_counts_what_is_known_of_the_prompts() -> None:
    desk = Desk(max_waiting_tokens=100)
    with desk.admission.enter("interactive", 1, 0) as place:
        place.fill(1, 60)
        other = desk.admission.enter("interactive")
        with pytest.raises(SemipdError) as refused:
            other.fill(1, 41)
        assert refused.value.code == "overloaded"
        other.give_up()
        desk.refused(num_tokens=41)
        desk.admission.enter("interactive", 1, 40).give_up()
    assert desk.admission.waiting == (0, 0)


def test_a_prompt_that_alone_exceeds_a_bound_is_let_in_when_nobody_waits() -> None:
    desk = Desk(max_waiting_requests=4, max_waiting_tokens=100)
    with desk.admission.enter("interactive", 1, 5000):
        desk.refused()
    waiting = desk.arrives()
    desk.refused(num_tokens=5000)
    desk.finishes(waiting)
    desk.admission.enter("interactive", 1, 5000).give_up()


@pytest.mark.parametrize(
    ("priority", "asked", "numbers"),
    [
        ("interactive", (51, 100), "has 51 sequences (prompts times n) with 100 prompt tokens"),
        ("interactive", (2, 501), "one request may have 50 with 500 (admission.max_request_share=0.5 of"),
        ("batch", (31, 31), "one request may have 30 with 300 (admission.batch_share=0.3 of"),
    ],
)
def test_a_request_may_not_exceed_a_share_of_the_queue(
    priority: Priority, asked: tuple[int, int], numbers: str
) -> None:
    desk = Desk(max_waiting_requests=100, max_waiting_tokens=1000, batch_share=0.3)
    place = desk.admission.enter(priority)
    for ask in (place.fill, lambda *asked: desk.admission.enter(priority, *asked)):
        with pytest.raises(SemipdError) as refused:
            ask(*asked)
        assert (refused.value.code, refused.value.param) == ("request_too_large", "n")
        assert refused.value.retry_after_s is None, "it will never do"
        assert numbers in refused.value.message
    place.give_up()
    assert desk.admission.waiting == (0, 0)
    desk.admission.check_integrity()


def test_a_sequence_counts_once_when_it_is_handed_over() -> None:
    desk = Desk(max_waiting_requests=16)
    with desk.admission.enter("interactive", 4, 40) as place:
        for _ in range(2):
            desk.arrives(10)
            place.hand_over(10)
            assert desk.admission.waiting == (4, 40)
            desk.admission.check_integrity()
    assert desk.admission.waiting == (2, 20), "the other two have never come"


def test_batch_requests_leave_room_for_the_others() -> None:
    desk = Desk(max_waiting_requests=10, batch_share=0.3)
    for _ in range(3):
        desk.arrives(priority="batch")
    error = desk.refused(priority="batch")
    assert "batch_share=0.3" in error.message
    for _ in range(7):
        desk.admission.enter("interactive").give_up()
        desk.arrives()
    desk.refused()


def test_retry_after_comes_from_the_measured_rate_and_spreads_who_is_refused() -> None:
    desk = Desk(max_waiting_requests=1)
    for _ in range(20):  # one every two seconds
        record = desk.arrives()
        desk.is_placed(record)
        desk.clock.now_s += 2
        desk.finishes(record)
    desk.arrives()
    retries = [desk.refused().retry_after_s for _ in range(3)]
    assert retries == pytest.approx([2.0, 4.0, 6.0])
    desk.clock.now_s += 2
    assert desk.refused().retry_after_s == pytest.approx(6.0, rel=0.05)
    for _ in range(40):
        last = desk.refused()
    assert last.retry_after_s == MAX_RETRY_S


def test_what_is_not_known_of_a_request_is_not_said() -> None:
    desk = Desk(max_waiting_requests=100)
    with pytest.raises(SemipdError) as refused:
        desk.admission.enter("interactive", 60)
    assert "60 sequences (prompts times n); one request may have 50 (admission." in refused.value.message


def test_retry_after_by_tokens() -> None:
    desk = Desk(max_waiting_tokens=1000)
    for _ in range(40):  # 500 tokens a second
        record = desk.arrives(500)
        desk.is_placed(record)
        desk.clock.now_s += 1
        desk.finishes(record)
    desk.arrives(1000)
    assert desk.refused(num_tokens=2000).retry_after_s == pytest.approx(4.0)


def test_retry_after_is_sensible_before_anything_was_measured() -> None:
    desk = Desk(max_waiting_requests=1)
    desk.arrives()
    assert desk.refused().retry_after_s == 1.0
    desk.clock.now_s += 20  # nothing has been completed while the first in line waits
    assert desk.refused().retry_after_s == pytest.approx(20.0)


def test_an_old_rate_is_forgotten() -> None:
    desk = Desk(max_waiting_requests=1)
    for _ in range(100):
        desk.finishes(desk.arrives())
    desk.clock.now_s += 1
    desk.arrives()
    assert desk.admission.to_wire()["completed_per_s"] == 100
    desk.clock.now_s += 40
    assert desk.admission.to_wire()["completed_per_s"] is None
    assert desk.refused().retry_after_s == pytest.approx(40.0)


def test_counts_agree_with_a_count_from_nothing_whatever_happens() -> None:
    rng = random.Random(5)
    desk = Desk(max_waiting_requests=20, max_waiting_tokens=2000)
    places: list[Reservation] = []
    live: list[RequestRecord] = []
    for _ in range(3000):
        desk.clock.now_s += rng.random()
        priority: Priority = rng.choice(["interactive", "batch"])
        match rng.randrange(6):
            case 0 | 1:
                with suppress(SemipdError):
                    places.append(desk.admission.enter(priority, rng.randint(1, 4), rng.randint(0, 300)))
            case 2 if places:
                place = places.pop(rng.randrange(len(places)))
                num, length = rng.randint(1, 4), rng.randint(1, 200)
                with place:
                    try:
                        place.fill(num, num * length)
                    except SemipdError:
                        continue
                    for _ in range(rng.randint(0, num)):
                        live.append(desk.arrives(length, place.priority))
                        place.hand_over(length)
                        desk.admission.check_integrity()
            case 3 if live:
                desk.is_placed(rng.choice(live))
            case _ if live:
                desk.finishes(live.pop(rng.randrange(len(live))))
        desk.admission.check_integrity()
    for place in places:
        place.give_up()
    for record in live:
        desk.finishes(record)
    assert desk.admission.waiting == (0, 0)


# ---- over HTTP and the socket ------------------------------------------------------------------------


async def fill(daemon: Running, num: int) -> list[asyncio.Task[Any]]:
    """Requests that the scripted engine never finishes."""
    tasks = [asyncio.create_task(daemon.post({"prompt": [97], "max_tokens": 100})) for _ in range(num)]
    await until(lambda: len(daemon.services.table) == num)
    return tasks


async def collect(stream: GenerateStream, into: list[int]) -> None:
    async for item in stream:
        into += item.token_ids


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_full_queue_answers_503_before_it_tokenizes(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, max_steps=2, settings={"admission.max_waiting_requests": 3}) as daemon:
        tasks = await fill(daemon, 3)
        tokenizer = daemon.services.generation.model.tokenizer
        monkeypatch.setattr(type(tokenizer), "encode", lambda *_args, **_kwargs: pytest.fail("tokenized"))
        body = {"prompt": "x" * 50_000, "messages": [{"role": "user", "content": "x"}]}
        status, answer, response = await daemon.post(body, path)
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert int(response.headers["Retry-After"]) >= 1
        async with await AsyncClient.connect(daemon.socket_path) as client:
            with pytest.raises(SemipdError) as refused:
                await anext(client.generate("x"))
            shown = (await client.status())["admission"]
        assert (refused.value.code, refused.value.retry_after_s is not None) == ("overloaded", True)
        assert (shown["waiting_requests"], shown["max_waiting_requests"]) == (3, 3)
        assert daemon.services.history.refused["overloaded"] == 2
        await end(tasks)
        await until(lambda: daemon.services.admission.waiting == (0, 0))
        daemon.services.admission.check_integrity()


async def test_a_burst_of_long_texts_cannot_pass_the_bound_while_they_are_tokenized(tmp_path: Path) -> None:
    async with running(tmp_path, max_steps=2, settings={"admission.max_waiting_requests": 4}) as daemon:
        bodies = [{"prompt": "x" * 4000, "max_tokens": 50} for _ in range(20)]
        tasks = [asyncio.create_task(daemon.post(body)) for body in bodies]
        await until(lambda: sum(task.done() for task in tasks) == 16)
        assert {task.result()[0] for task in tasks if task.done()} == {503}
        assert len(daemon.services.table) == 4
        await end(tasks)


async def test_accepted_choices_are_never_refused_half_way(tmp_path: Path) -> None:
    settings = {"admission.max_waiting_requests": 16, "admission.max_request_share": 1}
    async with running(tmp_path, settings=settings) as daemon:
        answer = await daemon.complete(prompt=[97], n=16, max_tokens=3)
        many = await daemon.complete(prompt=[[97], [98], [99], [100]], n=4, max_tokens=3)
    assert len(answer["choices"]) == 16
    assert len(many["choices"]) == 16


async def test_choices_that_are_not_begun_hold_their_place(tmp_path: Path) -> None:
    settings = {"admission.max_waiting_requests": 16}
    async with running(tmp_path, fake=default_engine_settings(device="fake"), settings=settings) as daemon:
        admission, run = daemon.services.admission, daemon.services.supervisor._run
        assert run is not None
        os.kill(run.pid, signal.SIGSTOP)
        body = {"prompt": [[97] * 5, [98] * 7], "n": 4, "max_tokens": 5, "ignore_eos": True}
        asking = asyncio.create_task(daemon.post(body))
        await until(lambda: len(daemon.services.table) == 2)
        assert admission.waiting == (8, 48), "two are begun, and six will be"
        with admission.enter("interactive", 5):
            status, refused, _ = await daemon.post({"prompt": [99], "n": 4, "max_tokens": 1})
        assert (status, refused["error"]["code"]) == (503, "overloaded")
        admission.check_integrity()
        os.kill(run.pid, signal.SIGCONT)
        status, answer, _ = await asking
        assert (status, len(answer["choices"])) == (200, 8)
        await until(lambda: admission.waiting == (0, 0))
        admission.check_integrity()


async def test_many_choices_of_many_prompts_are_refused_for_good(tmp_path: Path) -> None:
    async with running(tmp_path, fake=default_engine_settings(device="fake")) as daemon:
        prompts = [[5]] * 32
        for path, body in (
            ("/v1/completions", {"prompt": prompts, "n": 128, "max_tokens": 1}),
            ("/v1/completions", {"prompt": ["x"] * 513, "max_tokens": 1}),
            ("/v1/completions", {"prompt": [[5] * 1500] * 8, "n": 60, "max_tokens": 1}),
        ):
            status, answer, response = await daemon.post(body, path)
            assert (status, answer["error"]["code"]) == (400, "request_too_large"), answer
            assert "Retry-After" not in response.headers
            assert "max_request_share=0.5" in answer["error"]["message"]
        many = await daemon.complete(prompt=[5], n=128, max_tokens=2, ignore_eos=True)
        batch = await daemon.complete(prompt=[[5, 6]] * 512, max_tokens=1, ignore_eos=True)
        await until(lambda: daemon.services.admission.waiting == (0, 0))
        daemon.services.admission.check_integrity()
    assert (len(many["choices"]), len(batch["choices"])) == (128, 512)


async def test_a_request_never_waits_with_more_than_was_counted(tmp_path: Path) -> None:
    """Whatever becomes of the first choices, those that follow them have been counted from the beginning."""
    fake = default_engine_settings(device="fake", max_num_seqs=2)
    async with running(tmp_path, fake=fake, settings={"admission.max_waiting_requests": 64}) as daemon:
        admission, most = daemon.services.admission, 0
        body = {"prompt": [[5], [6]], "n": 8, "max_tokens": 3, "ignore_eos": True}
        tasks = [asyncio.create_task(daemon.post(body)) for _ in range(12)]
        while not all(task.done() for task in tasks):
            most = max(most, int(admission.waiting.requests))
            admission.check_integrity()
            await asyncio.sleep(0.001)
        statuses = [task.result()[0] for task in tasks]
        await until(lambda: admission.waiting == (0, 0))
    assert most <= 64
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 4


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_a_request_and_hands_back_what_there_is(tmp_path: Path, stream: bool) -> None:
    async with running(tmp_path, max_steps=3) as daemon:
        body = {"prompt": list(b"abcdef"), "max_tokens": 50, "timeout_ms": 400, "stream": stream}
        async with daemon.http.post(f"{daemon.url}/v1/completions", json=body) as response:
            status, text = response.status, await response.text()
        await daemon.engine_says(lambda seen: seen["live"] == 0)
        [record] = daemon.services.history.records()
    assert record.error_code == "deadline_exceeded"
    assert "timeout_ms=400; 3 tokens were generated" in text
    if stream:
        assert status == 200
        assert text.index('"text": "') < text.index("deadline_exceeded")
        assert "[DONE]" not in text
    else:
        assert status == 504
        assert '"partial": {"choices": [{"index": 0, "text": "abc", "token_ids": [97, 98, 99]}]' in text


async def test_a_deadline_over_the_socket_and_by_configuration(tmp_path: Path) -> None:
    async with (
        running(tmp_path, max_steps=3, settings={"admission.timeout_ms": 300}) as daemon,
        await AsyncClient.connect(daemon.socket_path) as client,
    ):
        began_s = time.monotonic()
        deadlines: list[dict[str, Any]] = [{}, {"timeout_ms": 200}]
        for asked in deadlines:
            items: list[int] = []
            with pytest.raises(SemipdError) as ended:
                await collect(client.generate([97], max_tokens=50, **asked), items)
            assert (ended.value.code, items) == ("deadline_exceeded", [97] * 3)
        assert time.monotonic() - began_s > 0.4


async def test_who_waits_too_long_never_reaches_the_engine(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        service = daemon.services.generation
        [prompt] = await service.prompts.of(["abc"])
        prepared = service.prepare(prompt, SamplingOptions(timeout_ms=50, max_tokens=5))
        with pytest.raises(SemipdError) as expired:
            service.admit("late", prepared, time.monotonic_ns() - 60_000_000)
        assert expired.value.code == "deadline_exceeded"
        assert (await daemon.engine())["submitted"] == []


async def test_blocks_of_expired_requests_are_free(tmp_path: Path) -> None:
    async with running(tmp_path, fake=default_engine_settings(device="fake")) as daemon:
        body = {"prompt": [5] * 40, "max_tokens": 1900, "ignore_eos": True, "timeout_ms": 300}
        answers = await asyncio.gather(*(daemon.post(body) for _ in range(4)))
        await daemon.engine_says(lambda seen: seen["kv"]["used_blocks"] == 0)
    assert {answer[0] for answer in answers} == {504}
    assert all(answer[1]["partial"]["usage"]["completion_tokens"] > 0 for answer in answers)


async def test_priorities(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for priority in (None, 0, "interactive", "batch"):
            await daemon.complete(prompt=[97], max_tokens=1, priority=priority)
        status, answer, _ = await daemon.post({"prompt": "a", "priority": 3})
        shown = [daemon.services.history.to_wire(r)["priority"] for r in daemon.services.history.records()]
    assert (status, answer["error"]["param"]) == (400, "priority")
    assert shown == ["batch", "interactive", "interactive", "interactive"]


async def test_interactive_requests_pass_batch_requests(tmp_path: Path) -> None:
    fake = default_engine_settings(device="fake", max_num_seqs=1)
    async with running(tmp_path, fake=fake) as daemon:
        order: list[str] = []

        async def ask(name: str, priority: str, tokens: int) -> None:
            body = {"prompt": [7], "max_tokens": tokens, "ignore_eos": True, "priority": priority}
            await daemon.complete(**body)
            order.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask("first", "interactive", 600))
            await daemon.engine_says(lambda seen: seen["requests"]["decoding"] == 1)
            for name in ("batch 1", "batch 2"):
                group.create_task(ask(name, "batch", 5))
            await daemon.engine_says(lambda seen: seen["requests"]["waiting"] == 2)
            group.create_task(ask("second", "interactive", 5))
    assert order == ["first", "second", "batch 1", "batch 2"]


async def test_what_can_never_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    small = default_engine_settings(device="fake", max_num_blocks=12)  # 11 usable
    async with running(tmp_path, fake=small) as daemon:
        over, told, _ = await daemon.post({"prompt": [5] * 100, "max_tokens": 80})
        long, too_long, _ = await daemon.post({"prompt": [5] * 200, "max_tokens": 1})
        default = await daemon.complete("/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
        async with await AsyncClient.connect(daemon.socket_path) as client:
            with pytest.raises(SemipdError) as refused:
                await anext(client.generate([5] * 100, max_tokens=80))
        assert daemon.services.history.records(state="live") == []
    assert (over, told["error"]["code"]) == (400, "request_too_large")
    assert "180 tokens, which need 12 KV blocks of 16; the whole pool has 11" in told["error"]["message"]
    assert "Lower max_tokens to 76" in told["error"]["message"]
    assert refused.value.code == "request_too_large"
    assert (long, too_long["error"]["param"]) == (400, "prompt")
    assert default["usage"]["total_tokens"] <= 11 * 16
