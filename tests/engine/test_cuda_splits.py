"""Splits as pairs of green contexts: shapes, life cycle, and what happens when the driver refuses."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from support.fake_cuda import FakeCuda
from support.fake_cuda_parts import Shape

from semipd.core.errors import SemipdError
from semipd.core.split import Split
from semipd.devices.cuda.driver.interface import (
    CudaError,
    GreenContext,
    SmResource,
    SmSplit,
    Stream,
    Versions,
)
from semipd.devices.cuda.split.green_contexts import check_versions, decode_group_counts
from semipd.devices.cuda.split.streams import Lanes

SHAPES = {
    "H100, groups that do not fill their GPCs": Shape(),
    "H200 as hoped": Shape(num_groups=16),
    "no remainder": Shape(num_sms=128, num_groups=16),
    "B200": Shape(num_sms=148, num_groups=18),
    "A100": Shape(num_sms=108, group_sms=4, num_groups=27, min_sms=4),
    "L4": Shape(num_sms=58, group_sms=4, num_groups=14, min_sms=4),
    "one group and a remainder": Shape(num_sms=12, num_groups=1),
    "two groups": Shape(num_sms=16, num_groups=2),
}


def bound(shape: Shape | None = None, versions: Versions | None = None) -> FakeCuda:
    cuda = FakeCuda(shape, versions=versions)
    cuda.bind_thread()
    return cuda


def sm_sets(cuda: FakeCuda, lanes: Lanes) -> dict[Split, tuple[frozenset[int], frozenset[int]]]:
    """Per split, the SMs of prefill and of decode."""
    return {
        split: (
            cuda.stream_sms(lanes.stream("prefill", split)),
            cuda.stream_sms(lanes.stream("decode", split)),
        )
        for split in lanes.splits
    }


def test_the_device_of_the_recipe_gets_the_splits_of_the_recipe() -> None:
    for num_groups in (15, 16):
        assert decode_group_counts(num_groups, True) == (2, 3, 4, 5, 6, 8, 10)


@pytest.mark.parametrize("num_groups", range(1, 65))
@pytest.mark.parametrize("has_remainder", [False, True])
def test_group_counts_leave_both_lanes_something(num_groups: int, has_remainder: bool) -> None:
    counts = decode_group_counts(num_groups, has_remainder)
    assert list(counts) == sorted(set(counts))
    assert len(counts) <= 9
    assert all(0 < count < num_groups + has_remainder for count in counts)
    assert bool(counts) == (num_groups + has_remainder > 1)


@pytest.mark.parametrize("can_merge", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_lanes_of_a_split_are_disjoint_and_cover_the_device(shape: Shape, can_merge: bool) -> None:
    cuda = bound(shape)
    cuda.partition.can_merge = can_merge
    lanes = Lanes.open(cuda)
    assert lanes.capability.can_partition, lanes.capability.reason
    assert lanes.splits == lanes.capability.splits
    assert list(lanes.splits) == sorted(set(lanes.splits), key=lambda split: split.decode_units)
    for split, (prefill, decode) in sm_sets(cuda, lanes).items():
        assert not prefill & decode
        assert prefill | decode == set(range(shape.num_sms))
        assert split == Split(len(prefill), len(decode))
    lanes.close()
    assert cuda.alive() == []


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_between_two_splits_only_the_groups_that_change_hands_overlap(shape: Shape) -> None:
    cuda = bound(shape)
    sets = sm_sets(cuda, Lanes.open(cuda))
    for before, (prefill, _) in sets.items():
        for after, (_, decode) in sets.items():
            assert len(prefill & decode) == max(0, after.decode_units - before.decode_units)
    assert cuda.partition.num_splits == 1


def test_solo_lanes_have_streams_of_the_whole_device() -> None:
    cuda = bound()
    lanes = Lanes.open(cuda)
    assert (lanes.solo_prefill, lanes.solo_decode) == (Split(132, 0), Split(0, 132))
    prefill, decode = lanes.stream("prefill", Split(132, 0)), lanes.stream("decode", Split(0, 132))
    assert prefill != decode
    assert cuda.stream_context(prefill) is cuda.stream_context(decode) is None
    with pytest.raises(KeyError):
        lanes.stream("decode", Split(132, 0))


def test_streams_are_made_decode_first_and_all_is_destroyed_in_reverse() -> None:
    cuda = bound(Shape(num_sms=24, num_groups=2))
    lanes = Lanes.open(cuda)
    made = [entry.removeprefix("create ") for entry in cuda.log if entry.startswith("create ")]
    made = [thing for thing in made if thing in cuda.alive()]
    split = lanes.splits[0]
    decode, prefill = (made.index(f"stream {lanes.stream(lane, split)}") for lane in ("decode", "prefill"))
    assert decode < prefill
    start = len(cuda.log)
    lanes.close()
    assert [entry.removeprefix("destroy ") for entry in cuda.log[start:]] == made[::-1]


def count_calls(call: str) -> int:
    """How often opening and closing the lanes makes this call."""
    cuda = bound()
    counted = 0
    original: Callable[..., object] = getattr(cuda, call)

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal counted
        counted += 1
        return original(*args, **kwargs)

    setattr(cuda, call, counting)
    Lanes.open(cuda).close()
    return counted


def opened_or_none(cuda: FakeCuda) -> Lanes | None:
    with suppress(CudaError):
        return Lanes.open(cuda)
    return None


OPENING_CALLS = [
    "sm_resource",
    "split_sms",
    "create_green_context",
    "green_context_sms",
    "create_stream",
    "stream_context",
    "placement",
    "occupy",
    "record_event",
    "event_done",
    "synchronize_event",
    "priority_range",
    "create_event",
]


@pytest.mark.parametrize("call", OPENING_CALLS)
def test_nothing_is_left_when_any_call_fails(call: str) -> None:
    """Each call once, at every place: either the device runs undivided and says why, or it does not open."""
    num_calls = count_calls(call)
    assert num_calls > 0
    for at in range(1, num_calls + 1):
        cuda = bound()
        cuda.fail(call, at=at)
        lanes = opened_or_none(cuda)
        if lanes is not None:
            assert "CUDA_ERROR_FAKE" in lanes.capability.reason, f"{call} number {at} failed unseen"
            assert lanes.splits == ()
            assert len([thing for thing in cuda.alive() if thing.startswith("stream")]) == 2
            lanes.close()
        assert cuda.alive() == [], f"{call} number {at} left something behind"


def test_an_undivided_device_still_has_its_solo_lanes() -> None:
    cuda = bound()
    cuda.fail("create_green_context", at=4)
    lanes = Lanes.open(cuda)
    assert lanes.splits == ()
    assert not lanes.capability.can_partition
    assert lanes.move("decode", Split(0, 132)) == lanes._current["decode"]
    assert lanes.capability.reason.startswith("create_green_context failed: CUDA_ERROR_FAKE (2).")


def test_a_device_that_fails_altogether_does_not_open() -> None:
    cuda = bound()
    cuda.fail("create_stream", times=1000)
    with pytest.raises(SemipdError, match="create_stream failed"):
        Lanes.open(cuda)
    assert cuda.alive() == []


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        (Versions(12080, "13.0.3"), r"supports CUDA 12\.8; dividing the SMs needs 13\.0\. Update the NVIDIA"),
        (Versions(13000, "12.9.1"), r"cuda-bindings is 12\.9\.1; .* pip install 'cuda-bindings==13\.0\.\*'"),
    ],
)
def test_versions_below_the_floor_are_named(versions: Versions, says: str) -> None:
    cuda = bound(versions=versions)
    with pytest.raises(SemipdError, match=says):
        check_versions(versions)
    lanes = Lanes.open(cuda)
    assert "[cuda_too_old]" in lanes.capability.reason
    assert cuda.partition.num_splits == 0
    lanes.close()


def test_newer_versions_are_taken() -> None:
    check_versions(Versions(13020, "13.5.0"))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (Shape(num_sms=8, num_groups=1), "too small for two lanes"),
        (Shape(num_sms=8, num_groups=0), "too small for two lanes"),
    ],
)
def test_a_device_too_small_says_so(shape: Shape, says: str) -> None:
    lanes = Lanes.open(bound(shape))
    assert says in lanes.capability.reason
    assert lanes.splits == ()


def lying(lie: Callable[[GreenContext | None, frozenset[int]], frozenset[int]]) -> tuple[FakeCuda, Lanes]:
    cuda = bound()
    cuda.placement_of = lie
    return cuda, Lanes.open(cuda)


def test_a_lane_that_leaves_its_sms_ends_the_partition() -> None:
    cuda, lanes = lying(lambda context, sms: sms | {131, 0})
    assert "[placement_failed]" in lanes.capability.reason
    assert "Both lanes of split 116+16 ran on 2 SMs: [0, 131]" in lanes.capability.reason
    lanes.close()
    assert cuda.alive() == []


def test_sms_that_nobody_else_has_are_a_note() -> None:
    """Two more than asked for, as loaded modules with device-side launches bring about on Hopper."""
    _, lanes = lying(lambda context, sms: sms | {132, 133} if len(sms) == 116 else sms)
    assert lanes.capability.can_partition, lanes.capability.reason
    note = "prefill lane of split 116+16 should have 116 SMs and ran on 118, none of them the other lane's"
    assert note in " ".join(lanes.capability.notes)
    assert lanes.num_sms("prefill", lanes.splits[0]) == 116


def test_a_lane_that_misses_sms_ends_the_partition() -> None:
    _, lanes = lying(lambda context, sms: frozenset(sorted(sms)[1:]))
    assert "prefill lane of split 116+16 should have 116 SMs and ran on 115" in lanes.capability.reason


def test_lanes_that_share_sms_end_the_partition() -> None:
    """The counts are right, but the SMs are not the lane's own."""
    _, lanes = lying(lambda context, sms: frozenset(range(len(sms))))
    assert "Both lanes of split 116+16 ran on 16 SMs: [0, 1," in lanes.capability.reason


def test_a_placement_check_is_repeated_for_sms_that_other_work_held() -> None:
    cuda = bound()
    asked: list[int] = []
    original = cuda.placement

    def busy(stream: Stream, num_ctas: int, spin_ns: int) -> frozenset[int]:
        asked.append(spin_ns)
        seen = original(stream, num_ctas, spin_ns)
        return seen if len(asked) > 1 else frozenset(sorted(seen)[1:])

    cuda.placement = busy  # type: ignore[method-assign]
    lanes = Lanes.open(cuda)
    assert lanes.capability.can_partition
    assert asked[1] > asked[0]


def test_splits_that_are_not_nested_are_noted() -> None:
    """Without merging nobody promises that a larger group contains a smaller one."""

    def rotated(context: GreenContext | None, sms: frozenset[int]) -> frozenset[int]:
        size = min(len(sms), 132 - len(sms))
        is_decode = 0 in sms
        shifted = {(sm + 7 * size) % 132 for sm in range(size)}
        return frozenset(shifted) if is_decode else frozenset(set(range(132)) - shifted)

    cuda = bound(Shape(num_sms=132, num_groups=8))
    cuda.placement_of = lambda context, sms: sms if context is None else rotated(context, sms)
    lanes = Lanes.open(cuda)
    assert lanes.capability.can_partition, lanes.capability.reason
    assert any("SMs that the next larger one has not" in note for note in lanes.capability.notes)


@pytest.mark.parametrize("sizes", [[8, 8, 16], [8, 8, 8]], ids=["unequal", "too few"])
def test_a_division_that_does_not_add_up_is_refused(sizes: list[int]) -> None:
    cuda = bound(Shape(num_sms=32, num_groups=4))

    def split(whole: SmResource, num_groups: int, min_sms: int) -> SmSplit:
        return SmSplit(tuple(SmResource(size, 8, None) for size in sizes), None)

    cuda.split_sms = split  # type: ignore[method-assign]
    assert "does not add up" in Lanes.open(cuda).capability.reason


def test_a_context_smaller_than_its_resources_is_refused() -> None:
    cuda = bound()
    cuda.green_context_sms = lambda context: 14  # type: ignore[method-assign]
    assert "A green context of 16 SMs has 14" in Lanes.open(cuda).capability.reason
    assert len(cuda.alive()) == 4  # two plain streams, two events


def test_without_merging_a_group_of_another_size_is_refused() -> None:
    """Asked for 16 SMs at once, this driver gives 24."""
    cuda = bound(Shape(num_sms=60, num_groups=7))
    cuda.partition.can_merge = False
    original = cuda.split_sms

    def split(whole: SmResource, num_groups: int, min_sms: int) -> SmSplit:
        return original(whole, num_groups, min_sms if num_groups > 1 else 24)

    cuda.split_sms = split  # type: ignore[method-assign]
    assert "Asked for a group of 8 SMs, the driver gave [24]" in Lanes.open(cuda).capability.reason


def test_a_split_whose_lanes_wait_for_each_other_is_not_used() -> None:
    """Either lane behind the other, in one hardware queue."""
    for waiting in ("prefill", "decode"):
        cuda = bound()
        sizes = {"prefill": 92, "decode": 40}

        def share_a_queue(busy: Stream, other: Stream, cuda: FakeCuda, num_sms: int) -> bool:
            return busy == other or len(cuda.stream_sms(other)) == num_sms

        cuda.serialises = partial(share_a_queue, cuda=cuda, num_sms=sizes[waiting])
        lanes = Lanes.open(cuda)
        assert Split(92, 40) not in lanes.splits
        assert len(lanes.splits) == 6
        (note,) = lanes.capability.notes
        assert note == "Split 92+40 is not used: its lanes wait for each other in a queue."
        with pytest.raises(KeyError):
            lanes.stream("decode", Split(92, 40))
        lanes.close()
        assert cuda.alive() == []


def test_a_device_whose_lanes_all_wait_is_not_divided() -> None:
    cuda = bound()
    cuda.serialises = lambda busy, other: True
    lanes = Lanes.open(cuda)
    assert "[lanes_serialised]" in lanes.capability.reason
    assert "CUDA_DEVICE_MAX_CONNECTIONS=32" in lanes.capability.reason
    lanes.close()
    assert cuda.alive() == []


def test_a_host_that_was_held_up_once_changes_nothing() -> None:
    cuda = bound()
    asked = 0

    def sometimes(busy: Stream, other: Stream) -> bool:
        nonlocal asked
        asked += busy != other
        return busy == other or asked % 3 != 0

    cuda.serialises = sometimes
    assert len(Lanes.open(cuda).splits) == 7


def test_decode_is_more_urgent_than_prefill() -> None:
    cuda = bound()
    lanes = Lanes.open(cuda)
    for split in lanes.splits:
        urgency = [cuda.priorities[lanes.stream(lane, split)] for lane in ("prefill", "decode")]
        assert urgency == [0, -1]
    cuda = bound()
    cuda.priority_range = lambda: (0, 0)  # type: ignore[method-assign]
    assert Lanes.open(cuda).capability.can_partition


def test_a_solo_lane_that_misses_sms_is_noted() -> None:
    _, lanes = lying(lambda context, sms: sms if context is not None else frozenset(range(100)))
    assert lanes.capability.can_partition
    assert lanes.capability.notes == (
        "A stream of the whole device ran on 100 of 132 SMs: other work may hold the rest.",
    )


def test_notes_of_the_caller_stay() -> None:
    assert Lanes.open(bound(), ["a note"]).capability.notes == ("a note",)
