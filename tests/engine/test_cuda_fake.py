"""The fake driver keeps to the rules of the API: each of them broken once."""

import random
import threading
from collections.abc import Callable

import pytest
from support.fake_cuda import FakeCuda
from support.fake_cuda_parts import CudaMisuseError, Shape

from semipd.devices.cuda.driver.interface import CudaError, GreenContext, SmSplit, Stream


@pytest.fixture
def cuda() -> FakeCuda:
    cuda = FakeCuda()
    cuda.bind_thread()
    return cuda


@pytest.fixture
def groups(cuda: FakeCuda) -> SmSplit:
    return cuda.split_sms(cuda.sm_resource(), 16, 8)


@pytest.fixture
def context(cuda: FakeCuda, groups: SmSplit) -> GreenContext:
    return cuda.create_green_context(groups.groups[:2])


@pytest.fixture
def stream(cuda: FakeCuda) -> Stream:
    return cuda.create_stream(0, None)


def test_the_real_shape_of_an_h100(groups: SmSplit) -> None:
    assert [group.sm_count for group in groups.groups] == [8] * 15
    assert groups.remainder is not None
    assert groups.remainder.sm_count == 12


@pytest.mark.parametrize(
    ("num_groups", "min_sms", "made", "size", "rest"),
    [(2, 72, 1, 72, 60), (6, 11, 6, 16, 36), (2, 1, 2, 8, 116)],
)
def test_the_table_of_the_programming_guide(
    num_groups: int, min_sms: int, made: int, size: int, rest: int
) -> None:
    """For a GPU of 132 SMs (guide, section on green contexts), without flags."""
    cuda = FakeCuda(Shape(num_groups=16))
    cuda.bind_thread()
    groups, remainder = cuda.split_sms(cuda.sm_resource(), num_groups, min_sms)
    assert [group.sm_count for group in groups] == [size] * made
    assert remainder is not None
    assert remainder.sm_count == rest


def test_resources_of_two_split_calls_do_not_merge(cuda: FakeCuda, groups: SmSplit) -> None:
    others = cuda.split_sms(cuda.sm_resource(), 16, 8)
    with pytest.raises(CudaError, match=r"\(915\)"):
        cuda.create_green_context([groups.groups[0], others.groups[1]])


def test_an_output_of_a_split_cannot_be_split_again(cuda: FakeCuda, groups: SmSplit) -> None:
    with pytest.raises(CudaError, match="cuDevSmResourceSplitByCount"):
        cuda.split_sms(groups.groups[0], 1, 8)


def test_a_resource_goes_once_into_a_descriptor(cuda: FakeCuda, groups: SmSplit) -> None:
    with pytest.raises(CudaMisuseError, match="twice"):
        cuda.create_green_context([groups.groups[0], groups.groups[0]])


def test_a_thread_must_be_bound(cuda: FakeCuda) -> None:
    caught: list[CudaError] = []

    def unbound() -> None:
        try:
            cuda.create_event()
        except CudaError as error:
            caught.append(error)

    thread = threading.Thread(target=unbound)
    thread.start()
    thread.join()
    assert caught[0].status == 201


def test_streams_go_before_their_context(cuda: FakeCuda, context: GreenContext) -> None:
    stream = cuda.create_stream(0, context)
    with pytest.raises(CudaMisuseError, match="before its streams"):
        cuda.destroy_green_context(context)
    cuda.destroy_stream(stream)
    cuda.destroy_green_context(context)
    assert cuda.alive() == []


def test_graphs_go_before_their_stream(cuda: FakeCuda, context: GreenContext) -> None:
    stream = cuda.create_stream(0, context)
    graph = cuda.capture(stream, lambda: cuda.launch("kernel"))
    with pytest.raises(CudaMisuseError, match="before the graphs"):
        cuda.destroy_stream(stream)
    cuda.destroy_graph(graph)
    cuda.destroy_stream(stream)


def test_nothing_is_used_or_destroyed_after_its_end(
    cuda: FakeCuda, context: GreenContext, stream: Stream
) -> None:
    event = cuda.create_event()
    graph = cuda.capture(stream, lambda: cuda.launch("kernel"))
    cuda.destroy_event(event)
    cuda.destroy_graph(graph)
    of_ended: list[Callable[[], object]] = [
        lambda: cuda.record_event(event, stream),
        lambda: cuda.destroy_event(event),
        lambda: cuda.launch_graph(graph, stream),
        lambda: cuda.destroy_graph(graph),
    ]
    for use in of_ended:
        with pytest.raises(CudaMisuseError, match="does not exist"):
            use()
    cuda.destroy_stream(stream)
    cuda.destroy_green_context(context)
    of_destroyed: list[Callable[[], object]] = [
        lambda: cuda.on(stream).__enter__(),
        lambda: cuda.synchronize_stream(stream),
        lambda: cuda.destroy_stream(stream),
        lambda: cuda.create_stream(0, context),
        lambda: cuda.destroy_green_context(context),
    ]
    for use in of_destroyed:
        with pytest.raises(CudaMisuseError, match="does not exist"):
            use()


def test_work_must_be_waited_for_before_its_stream_goes(cuda: FakeCuda, stream: Stream) -> None:
    with cuda.on(stream):
        cuda.launch("kernel")
    with pytest.raises(CudaMisuseError, match="nobody waited for"):
        cuda.destroy_stream(stream)
    cuda.synchronize_stream(stream)
    cuda.destroy_stream(stream)


def test_nothing_runs_on_the_default_stream(cuda: FakeCuda, stream: Stream) -> None:
    with pytest.raises(CudaMisuseError, match="default stream"):
        cuda.launch("kernel")
    with cuda.on(stream):
        cuda.launch("kernel")
    with pytest.raises(CudaMisuseError, match="default stream"):
        cuda.launch("kernel")


def test_waiting_for_an_event_without_a_record_is_a_mistake(cuda: FakeCuda, stream: Stream) -> None:
    event = cuda.create_event()
    for wait in (
        lambda: cuda.wait_event(stream, event),
        lambda: cuda.event_done(event),
        lambda: cuda.synchronize_event(event),
    ):
        with pytest.raises(CudaMisuseError, match="never recorded"):
            wait()


def test_priorities_outside_the_range_would_be_clamped(cuda: FakeCuda) -> None:
    with pytest.raises(CudaMisuseError, match="clamped"):
        cuda.create_stream(1, None)


def test_a_graph_is_launched_on_the_sms_it_was_captured_on(
    cuda: FakeCuda, context: GreenContext, stream: Stream
) -> None:
    own, twin = cuda.create_stream(0, context), cuda.create_stream(-1, context)
    graph = cuda.capture(own, lambda: cuda.launch("kernel", writes=["a"]))
    cuda.launch_graph(graph, own)
    cuda.launch_graph(graph, twin)
    with pytest.raises(CudaMisuseError, match="has the SMs of context"):
        cuda.launch_graph(graph, stream)


def test_a_capture_records_nothing_and_each_launch_everything(cuda: FakeCuda, stream: Stream) -> None:
    blocks = ["a"]

    def body() -> None:
        cuda.launch("write", writes=blocks)
        cuda.launch("read", reads=blocks)

    graph = cuda.capture(stream, body)
    assert cuda.trace == []
    cuda.launch_graph(graph, stream)
    blocks[0] = "b"
    cuda.launch_graph(graph, stream)
    assert [(op.label, *op.reads, *op.writes) for op in cuda.trace] == [  # type: ignore[union-attr]
        ("write", "a"),
        ("read", "a"),
        ("write", "b"),
        ("read", "b"),
    ]


def test_what_a_graph_froze_cannot_change(cuda: FakeCuda, stream: Stream) -> None:
    host = {"rows": 4, "twice": False}

    def body() -> None:
        cuda.launch("kernel", constants=(host["rows"],))
        if host["twice"]:
            cuda.launch("kernel", constants=(host["rows"],))

    graph = cuda.capture(stream, body)
    host["rows"] = 5
    with pytest.raises(
        CudaMisuseError, match=r"captured \('kernel', \(4,\)\), replayed \('kernel', \(5,\)\)"
    ):
        cuda.launch_graph(graph, stream)
    host |= {"rows": 4, "twice": True}
    with pytest.raises(CudaMisuseError, match="captured None"):
        cuda.launch_graph(graph, stream)


def test_a_capture_refuses_what_capturing_forbids(cuda: FakeCuda, stream: Stream) -> None:
    other, event = cuda.create_stream(0, None), cuda.create_event()
    cuda.record_event(event, other)
    cuda.synchronize_stream(other)

    def on_another_stream() -> None:
        with cuda.on(other):
            cuda.launch("kernel")

    with pytest.raises(CudaMisuseError, match="while stream"):
        cuda.capture(stream, on_another_stream)
    with pytest.raises(CudaMisuseError, match="inside a graph"):
        cuda.capture(stream, lambda: cuda.wait_event(stream, event))
    with pytest.raises(CudaMisuseError, match="empty graph"):
        cuda.capture(stream, lambda: None)
    for forbidden in (lambda: cuda.synchronize_stream(stream), lambda: cuda.synchronize_event(event)):
        with pytest.raises(CudaError, match=r"\(900\)"):
            cuda.capture(stream, forbidden)


def test_a_capture_needs_an_idle_device(cuda: FakeCuda, stream: Stream) -> None:
    other = cuda.create_stream(0, None)
    with cuda.on(other):
        cuda.launch("kernel")
    with pytest.raises(CudaMisuseError, match="may still run"):
        cuda.capture(stream, lambda: cuda.launch("kernel"))


def test_seeing_an_event_done_is_seeing_all_before_it_done() -> None:
    """Progress is random, but never out of order, also across streams."""
    for seed in range(200):
        cuda = FakeCuda(random_progress=random.Random(seed))
        cuda.bind_thread()
        first, second = cuda.create_stream(0, None), cuda.create_stream(0, None)
        events = [cuda.create_event() for _ in range(4)]
        cuda.record_event(events[0], first)
        cuda.record_event(events[1], first)
        cuda.wait_event(second, events[1])
        cuda.record_event(events[2], second)
        cuda.record_event(events[3], first)
        order = {0: [], 1: [0], 2: [0, 1], 3: [0, 1]}
        for _ in range(4):
            asked = random.Random(seed).randrange(4)
            if cuda.event_done(events[asked]):
                assert all(cuda.event_done(events[before]) for before in order[asked])


def test_progress_is_sometimes_slow_and_never_stops() -> None:
    cuda = FakeCuda(random_progress=random.Random(0))
    cuda.bind_thread()
    stream, event = cuda.create_stream(0, None), cuda.create_event()
    asked: list[int] = []
    for _ in range(50):
        cuda.record_event(event, stream)
        tries = 1
        while not cuda.event_done(event):
            tries += 1
        asked.append(tries)
    assert min(asked) == 1
    assert 3 < max(asked) < 100


def test_times_need_timing_and_done_events(cuda: FakeCuda, stream: Stream) -> None:
    start, end, plain = cuda.create_event(timing=True), cuda.create_event(timing=True), cuda.create_event()
    cuda.record_event(start, stream)
    cuda.record_event(plain, stream)
    cuda.record_event(end, stream)
    with pytest.raises(CudaMisuseError, match="not known to be done"):
        cuda.elapsed_ms(start, end)
    cuda.synchronize_event(end)
    assert cuda.elapsed_ms(start, end) > 0
    with pytest.raises(CudaMisuseError, match="without timing"):
        cuda.elapsed_ms(start, plain)


def test_a_placement_check_sees_only_the_sms_of_its_context(
    cuda: FakeCuda, context: GreenContext, stream: Stream
) -> None:
    confined = cuda.create_stream(0, context)
    assert cuda.placement(confined, 528, 200_000) == set(range(16))
    assert len(cuda.placement(stream, 528, 200_000)) == 132
    assert len(cuda.placement(stream, 528, 0)) == 1
