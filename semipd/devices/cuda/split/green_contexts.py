"""Pairs of disjoint green contexts, one pair a split, from one division of the SMs.

The driver is asked once for its smallest groups; a lane gets several of them in one descriptor, which is
allowed for outputs of one call. Decode takes the first groups, prefill the others and the remainder, so that
between two splits only the groups that change hands overlap. A driver that refuses to merge is asked once per
split for a decode group, and prefill gets the remainder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from semipd.core.errors import SemipdError
from semipd.core.split import Split
from semipd.devices.cuda.driver.interface import (
    INVALID_RESOURCE_CONFIGURATION,
    INVALID_RESOURCE_TYPE,
    CudaError,
    Driver,
    GreenContext,
    SmResource,
    SmSplit,
    Stream,
    Versions,
    cuda_version,
)
from semipd.devices.cuda.driver.owned import Owned

MIN_DRIVER = 13000
"""CUDA 13.0 (driver 580): there sizes and alignment of SM groups can be asked for."""

BINDINGS_MAJOR = "13"


class Priorities(NamedTuple):
    prefill: int
    decode: int


class Division(NamedTuple):
    """How the driver divides the whole device into its smallest groups."""

    whole: SmResource
    smallest: SmSplit

    @property
    def group_sms(self) -> int:
        return self.smallest.groups[0].sm_count

    @property
    def remainder_sms(self) -> int:
        return self.smallest.remainder.sm_count if self.smallest.remainder else 0


class _Parts(NamedTuple):
    prefill: list[SmResource]
    decode: list[SmResource]


@dataclass(frozen=True, slots=True)
class LaneStream:
    """A lane under one split: a stream, and the context that confines it (None: the whole device)."""

    stream: Stream
    num_sms: int
    context: GreenContext | None


@dataclass(frozen=True, slots=True)
class LanePair:
    prefill: LaneStream
    decode: LaneStream

    @property
    def split(self) -> Split:
        return Split(self.prefill.num_sms, self.decode.num_sms)


def check_versions(versions: Versions) -> None:
    """Raises SemipdError(`cuda_too_old`)."""
    need = cuda_version(MIN_DRIVER)
    if versions.driver < MIN_DRIVER:
        message = f"The driver supports CUDA {cuda_version(versions.driver)}; dividing the SMs needs {need}."
        raise SemipdError("cuda_too_old", message, "Update the NVIDIA driver to 580 or newer.")
    if versions.bindings.split(".")[0] != BINDINGS_MAJOR:
        message = f"cuda-bindings is {versions.bindings}; dividing the SMs is written for {BINDINGS_MAJOR}."
        raise SemipdError("cuda_too_old", message, f"pip install 'cuda-bindings=={need}.*'")


def divide(driver: Driver) -> Division:
    """Raises SemipdError(`cannot_partition`) when two lanes cannot be made of what the driver returns."""
    whole = driver.sm_resource()
    smallest_sms = max(whole.min_sms, 1)
    smallest = driver.split_sms(whole, whole.sm_count // smallest_sms, smallest_sms)
    sizes = [group.sm_count for group in smallest.groups]
    rest = smallest.remainder.sm_count if smallest.remainder else 0
    counts = f"{whole.sm_count} SMs: {len(sizes)} groups of {sorted(set(sizes))} and {rest} left over"
    if len(set(sizes)) > 1 or sum(sizes) + rest != whole.sm_count:
        raise SemipdError(
            "cannot_partition", f"The driver's division of the device does not add up. {counts}."
        )
    if len(sizes) + bool(rest) < 2:
        raise SemipdError("cannot_partition", f"The device is too small for two lanes. {counts}.")
    return Division(whole, smallest)


def decode_group_counts(num_groups: int, has_remainder: bool) -> tuple[int, ...]:
    """How many groups decode gets, split by split: every count from an eighth of the device on, then in wider
    steps up to two thirds. (2, 3, 4, 5, 6, 8, 10) of 15 or 16: about seven, because each split costs two
    hardware queues and a set of graphs."""
    count = max(1, round(num_groups / 8))
    largest = max(1, num_groups * 2 // 3)
    counts = []
    while count <= largest and count < num_groups + has_remainder:
        counts.append(count)
        count += max(1, count // 3)
    return tuple(counts)


def build_pairs(driver: Driver, division: Division, priorities: Priorities, owned: Owned) -> list[LanePair]:
    """Contexts and streams of every split, by rising decode share; `owned` has them, also after an error."""
    pairs = []
    for parts in _parts(driver, division):
        # Always decode first: which hardware queue a stream gets depends on the order.
        decode = _lane(driver, parts.decode, priorities.decode, owned)
        prefill = _lane(driver, parts.prefill, priorities.prefill, owned)
        pairs.append(LanePair(prefill, decode))
    return pairs


def _parts(driver: Driver, division: Division) -> Iterator[_Parts]:
    counts = decode_group_counts(len(division.smallest.groups), division.smallest.remainder is not None)
    merges = _can_merge(driver, division)
    for count in counts:
        yield _merged(division, count) if merges else _direct(driver, division, count)


def _can_merge(driver: Driver, division: Division) -> bool:
    """Try it with the whole device, in a context that is gone again."""
    trial = Owned(driver)
    try:
        trial.green_context(_merged(division, 0).prefill)
    except CudaError as error:
        if error.status not in (INVALID_RESOURCE_TYPE, INVALID_RESOURCE_CONFIGURATION):
            raise
        return False
    trial.close()
    return True


def _merged(division: Division, decode_groups: int) -> _Parts:
    groups, remainder = division.smallest
    rest = [] if remainder is None else [remainder]
    return _Parts([*groups[decode_groups:], *rest], list(groups[:decode_groups]))


def _direct(driver: Driver, division: Division, decode_groups: int) -> _Parts:
    decode_sms = decode_groups * division.group_sms
    groups, remainder = driver.split_sms(division.whole, 1, decode_sms)
    if len(groups) != 1 or remainder is None or groups[0].sm_count != decode_sms:
        sizes = [group.sm_count for group in groups]
        raise SemipdError(
            "cannot_partition", f"Asked for a group of {decode_sms} SMs, the driver gave {sizes}."
        )
    return _Parts([remainder], [groups[0]])


def _lane(driver: Driver, resources: list[SmResource], priority: int, owned: Owned) -> LaneStream:
    want = sum(resource.sm_count for resource in resources)
    context = owned.green_context(resources)
    got = driver.green_context_sms(context)
    if got != want:
        message = f"A green context of {want} SMs has {got} by the driver's own account."
        raise SemipdError("cannot_partition", message)
    stream = owned.stream(priority, context)
    if driver.stream_context(stream) != context:
        raise SemipdError(
            "cannot_partition", f"A stream of a {want}-SM green context is not in that context."
        )
    return LaneStream(stream, want, context)
