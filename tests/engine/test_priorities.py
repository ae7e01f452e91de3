"""Requests with a delay: behind the others in the queue, first to give up blocks, never starved."""

import dataclasses
import math

import msgpack
import pytest
from support.fake_engine import Run, request

from semipd.config.config import default_engine_settings
from semipd.core.messages import Submit
from semipd.core.request import Request
from semipd.core.slo import NO_TARGETS, Targets
from semipd.devices.fake import FakeDevice
from semipd.wire.engine_link import request_from_wire, request_to_wire

DELAY_NS = 1_000


def batch(seq: int, prompt: list[int], *, arrival_ns: int, **params: int) -> Request:
    return dataclasses.replace(request(seq, prompt, arrival_ns=arrival_ns, **params), delay_ns=DELAY_NS)


def events(run: Run, kind: str) -> list[int]:
    return [event.seq for event in run.events if event.kind == kind and event.seq is not None]


def test_a_delayed_request_lets_the_others_pass_but_only_for_so_long() -> None:
    run = Run(FakeDevice(), default_engine_settings(device="fake", max_num_seqs=1))
    waiting = [
        batch(1, [1] * 20, arrival_ns=10),
        request(2, [2] * 20, arrival_ns=500),
        request(3, [3] * 20, arrival_ns=10 + DELAY_NS - 1),
        request(4, [4] * 20, arrival_ns=10 + DELAY_NS + 1),
    ]
    run.tick([Submit(r) for r in waiting])
    run.drain()
    assert events(run, "admitted") == [2, 3, 1, 4]
    assert all(run.tokens[r.seq] == run.expected(r) for r in waiting)


def test_a_delayed_request_passes_nobody_by_its_cached_prefix() -> None:
    run = Run(FakeDevice(), default_engine_settings(device="fake", max_num_seqs=1))
    run.tick([Submit(request(1, [7] * 400, arrival_ns=1))])
    run.drain()
    run.tick(
        [
            Submit(request(2, [2] * 400, arrival_ns=10)),
            Submit(batch(3, [7] * 400, arrival_ns=11)),
            Submit(request(4, [7] * 400, arrival_ns=12)),
        ]
    )
    run.drain()
    assert events(run, "admitted") == [1, 4, 2, 3], "4 is cached too, and has no delay"


def test_a_delayed_request_is_preempted_first_though_it_came_first() -> None:
    run = Run(FakeDevice(num_blocks=12), default_engine_settings(device="fake", prefill_chunk_tokens=16))
    first = batch(1, [1] * 20, arrival_ns=1, max_tokens=100)
    others = [request(seq, [seq] * 20, arrival_ns=seq, max_tokens=60) for seq in (2, 3)]
    run.tick([Submit(first)])
    run.tick([Submit(r) for r in others])
    run.drain()
    assert set(events(run, "preempted")) == {1}
    assert all(run.tokens[r.seq] == run.expected(r) for r in (first, *others))


def test_the_oldest_wait_is_of_the_oldest_not_of_the_head() -> None:
    run = Run(FakeDevice(), default_engine_settings(device="fake", max_num_seqs=1))
    blocker = request(1, [1], arrival_ns=1)
    run.tick([Submit(r) for r in (blocker, batch(2, [2], arrival_ns=2), request(3, [3], arrival_ns=3))])
    assert [s.seq for s in run.coordinator.scheduler.waiting] == [3, 2]
    assert run.coordinator.scheduler.waiting.oldest_arrival_ns() == 2


@pytest.mark.parametrize("targets", [NO_TARGETS, Targets(300, 120.5, None, 40)])
def test_the_terms_survive_the_link(targets: Targets) -> None:
    sent = dataclasses.replace(
        batch(1, [1], arrival_ns=1), service_class="reports", targets=targets, accept_late=True
    )
    wire = msgpack.unpackb(msgpack.packb(request_to_wire(sent)))
    assert request_from_wire(wire) == sent


def test_a_target_for_the_first_token_grows_with_what_is_not_cached() -> None:
    growing = Targets(ttft_ms=300, ttft_ms_per_1k_tokens=200)
    assert [growing.ttft_limit_ms(uncached) for uncached in (0, 500, 16000)] == [300, 400, 3500]
    assert growing.due_ns(7_000_000, 500) == 407_000_000
    assert NO_TARGETS.ttft_limit_ms(16000) == math.inf
    assert NO_TARGETS.due_ns(7, 16000) is None
