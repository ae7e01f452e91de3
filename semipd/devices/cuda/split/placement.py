"""At start-up: on which SMs each lane's kernels really run, and whether the lanes run at the same time."""

from collections.abc import Sequence
from itertools import pairwise

from semipd.core.errors import SemipdError
from semipd.devices.cuda.driver.interface import Driver, Stream
from semipd.devices.cuda.driver.owned import Owned
from semipd.devices.cuda.split.green_contexts import LanePair, LaneStream

CTAS_PER_SM = 4
SPINS_NS = (200_000, 2_000_000)
"""How long each CTA stays. The second only where the first left SMs out: other work may have held them."""

BUSY_NS = 5_000_000
BUSY_LAUNCHES = 4
"""One kernel would leave its hardware queue as soon as it runs; those behind it fill the queue."""

TRIES = 3
"""A host that was held up while the busy lane ran sees the same as if the lanes waited for each other."""


def check_pairs(driver: Driver, pairs: Sequence[LanePair], num_sms: int) -> tuple[str, ...]:
    """Count the SMs of every lane. Returns what an operator should know though it stops nothing.

    Raises SemipdError(`placement_failed`) when a lane has fewer SMs than it should have, or two lanes of a
    split share one; CudaError.
    """
    notes: list[str] = []
    decode_sms: list[frozenset[int]] = []
    for pair in pairs:
        prefill, decode = (
            _count_lane(driver, pair, lane, num_sms, notes) for lane in (pair.prefill, pair.decode)
        )
        if shared := sorted(prefill & decode):
            raise _failed(f"Both lanes of split {pair.split} ran on {len(shared)} SMs: {shared}.")
        decode_sms.append(decode)
    for (pair, smaller), (_, larger) in pairwise(zip(pairs, decode_sms, strict=True)):
        if missing := sorted(smaller - larger):
            notes.append(
                f"The decode lane of split {pair.split} has {len(missing)} SMs that the next larger one has "
                "not: while the one replaces the other they overlap with prefill more than need be."
            )
    return tuple(notes)


def concurrent_pairs(driver: Driver, pairs: Sequence[LanePair]) -> tuple[list[LanePair], tuple[str, ...]]:
    """The pairs whose lanes run at the same time, and a note for each of the others: two streams that share a
    hardware queue wait for each other, whatever their SMs.

    Raises SemipdError(`lanes_serialised`) when no pair is left; CudaError.
    """
    clean: list[LanePair] = []
    notes: list[str] = []
    for pair in pairs:
        if _waits(driver, pair.prefill, pair.decode) or _waits(driver, pair.decode, pair.prefill):
            notes.append(f"Split {pair.split} is not used: its lanes wait for each other in a queue.")
        else:
            clean.append(pair)
    if pairs and not clean:
        raise SemipdError(
            "lanes_serialised",
            f"In all {len(pairs)} splits one lane waits for the other although their SMs are disjoint.",
            "Set CUDA_DEVICE_MAX_CONNECTIONS=32 and run without a profiler or debugger.",
        )
    return clean, tuple(notes)


def _waits(driver: Driver, busy: LaneStream, other: LaneStream) -> bool:
    """Whether a small kernel on `other` ends only after much work on `busy`, every time it is tried."""
    owned = Owned(driver)
    try:
        event = owned.event()
        for _ in range(TRIES):
            for _ in range(BUSY_LAUNCHES):
                driver.occupy(busy.stream, busy.num_sms, BUSY_NS)
            driver.record_event(event, busy.stream)
            driver.placement(other.stream, 1, SPINS_NS[0])
            is_running = not driver.event_done(event)
            driver.synchronize_event(event)
            if is_running:
                return False
        return True
    finally:
        owned.close()


def check_solo(driver: Driver, stream: Stream, num_sms: int) -> tuple[str, ...]:
    """A note for the operator if a stream of the whole device does not reach every SM."""
    seen = len(_count(driver, stream, num_sms, num_sms))
    if seen == num_sms:
        return ()
    return (f"A stream of the whole device ran on {seen} of {num_sms} SMs: other work may hold the rest.",)


def _count_lane(
    driver: Driver, pair: LanePair, lane: LaneStream, num_sms: int, notes: list[str]
) -> frozenset[int]:
    """SMs beyond its own are no harm as long as the other lane has not got them: with device-side launches in
    a loaded module, GPUs of compute capability 9.x give a green context two more."""
    seen = _count(driver, lane.stream, lane.num_sms, num_sms)
    if len(seen) != lane.num_sms:
        name = "prefill" if lane is pair.prefill else "decode"
        message = (
            f"The {name} lane of split {pair.split} should have {lane.num_sms} SMs and ran on {len(seen)}"
        )
        if len(seen) < lane.num_sms:
            raise _failed(f"{message}: {sorted(seen)}.")
        notes.append(f"{message}, none of them the other lane's.")
    return seen


def _count(driver: Driver, stream: Stream, want: int, num_sms: int) -> frozenset[int]:
    """CTAs enough for the whole device, so that a lane that is not confined shows it."""
    seen = frozenset[int]()
    for spin_ns in SPINS_NS:
        seen = driver.placement(stream, CTAS_PER_SM * num_sms, spin_ns)
        if len(seen) >= want:
            break
    return seen


def _failed(message: str) -> SemipdError:
    return SemipdError("placement_failed", message)
