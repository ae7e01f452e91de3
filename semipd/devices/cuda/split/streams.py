"""The two lanes as streams: one stream per (lane, split), moved between by events, never by draining."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from semipd.core.errors import SemipdError
from semipd.core.split import LaneName, Split
from semipd.devices.cuda.driver.interface import Driver, Event, Stream
from semipd.devices.cuda.driver.owned import Owned
from semipd.devices.cuda.split.capability import Capability
from semipd.devices.cuda.split.green_contexts import (
    Division,
    LanePair,
    LaneStream,
    Priorities,
    build_pairs,
    check_versions,
    divide,
)
from semipd.devices.cuda.split.placement import check_pairs, check_solo, concurrent_pairs


@dataclass(slots=True)
class SwitchStats:
    """Host time that moves between splits took (record and wait, without the launch that follows)."""

    count: int = 0
    last_ns: int = 0
    max_ns: int = 0
    total_ns: int = 0

    def add(self, took_ns: int) -> None:
        self.count += 1
        self.last_ns = took_ns
        self.max_ns = max(self.max_ns, took_ns)
        self.total_ns += took_ns


class Lanes:
    """Streams of both lanes. One thread uses it at a time.

    Attributes:
        capability: what the device can do, for log and status.
        splits: with both lanes non-empty, by rising decode share; empty when the device cannot be divided.
        solo_prefill, solo_decode: one lane has every SM, on a stream of the whole device.
        switches: per lane.
    """

    def __init__(
        self, driver: Driver, owned: list[Owned], pairs: Sequence[LanePair], solo: LanePair, found: Capability
    ) -> None:
        """`owned` is what `close` destroys, last first; the last one takes events too. `solo`: both lanes on
        the whole device."""
        self.capability = found
        self.splits = tuple(pair.split for pair in pairs)
        self.solo_prefill = Split(solo.prefill.num_sms, 0)
        self.solo_decode = Split(0, solo.decode.num_sms)
        self.switches: dict[LaneName, SwitchStats] = {"prefill": SwitchStats(), "decode": SwitchStats()}
        self._driver = driver
        self._owned = owned
        self._streams: dict[LaneName, dict[Split, LaneStream]] = {
            "prefill": {pair.split: pair.prefill for pair in pairs} | {self.solo_prefill: solo.prefill},
            "decode": {pair.split: pair.decode for pair in pairs} | {self.solo_decode: solo.decode},
        }
        self._current: dict[LaneName, Stream] = {
            "prefill": solo.prefill.stream,
            "decode": solo.decode.stream,
        }
        self._moved: dict[LaneName, Event] = {"prefill": self._event(), "decode": self._event()}

    @classmethod
    def open(cls, driver: Driver, notes: Sequence[str] = ()) -> "Lanes":
        """Split the SMs, create the streams, count the SMs of each. `notes` go into the capability.

        Raises CudaError when the device cannot even run two plain streams. That it cannot be divided is no
        error: then only the solo splits exist, and `capability` says why.
        """
        partition, plain = Owned(driver), Owned(driver)
        num_sms = driver.sm_resource().sm_count
        priorities = _priorities(driver)
        bare = Capability(driver.device_name(), driver.versions(), num_sms, notes=tuple(notes))
        pairs, found = _partition(driver, partition, priorities, bare)
        try:
            decode, prefill = (
                LaneStream(plain.stream(priority, None), num_sms, None)
                for priority in (priorities.decode, priorities.prefill)
            )
            if found.can_partition:
                found = replace(found, notes=found.notes + check_solo(driver, decode.stream, num_sms))
            return cls(driver, [partition, plain], pairs, LanePair(prefill, decode), found)
        except BaseException as error:
            _close([partition, plain], error)
            raise

    def stream(self, lane: LaneName, split: Split) -> Stream:
        """Where the lane's work under this split goes: for capturing graphs and warming up. KeyError for a
        split that is not in the table, or gives the lane nothing."""
        return self._streams[lane][split].stream

    def num_sms(self, lane: LaneName, split: Split) -> int:
        """The lane's SMs under this split, as a launch argument of kernels."""
        return self._streams[lane][split].num_sms

    def move(self, lane: LaneName, split: Split) -> Stream:
        """The stream for the lane's next launches. Under another split than before they are ordered after
        all the lane has launched; nothing is drained and nothing blocks."""
        stream, before = self._streams[lane][split].stream, self._current[lane]
        if stream != before:
            started_ns = time.perf_counter_ns()
            # One event is enough: a wait keeps the record of its time.
            self._driver.record_event(self._moved[lane], before)
            self._driver.wait_event(stream, self._moved[lane])
            self._current[lane] = stream
            self.switches[lane].add(time.perf_counter_ns() - started_ns)
        return stream

    def _event(self) -> Event:
        return self._owned[-1].event()

    def close(self) -> None:
        """Wait for the streams, then destroy everything in reverse order. Graphs are gone before. Idempotent.

        Raises SemipdError(`cuda_release_failed`) with every error, after trying everything.
        """
        _close(self._owned, None)


def _priorities(driver: Driver) -> Priorities:
    """A lower number is more urgent. Decode's kernels are short and waited for."""
    least, greatest = driver.priority_range()
    return Priorities(prefill=least, decode=max(least - 1, greatest))


def _partition(
    driver: Driver, owned: Owned, priorities: Priorities, bare: Capability
) -> tuple[list[LanePair], Capability]:
    """The pairs and what was found. When something is not as it must be: no pairs, none left, a reason."""
    found = bare
    try:
        check_versions(bare.versions)
        division = divide(driver)
        found = _with_shape(bare, division)
        pairs = build_pairs(driver, division, priorities, owned)
        notes = check_pairs(driver, pairs, bare.num_sms)
        pairs, serialised = concurrent_pairs(driver, pairs)
    except SemipdError as error:
        _close([owned], error)
        return [], replace(found, reason=f"{error} [{error.code}]")
    splits = tuple(pair.split for pair in pairs)
    return pairs, replace(found, splits=splits, notes=found.notes + notes + serialised)


def _with_shape(bare: Capability, division: Division) -> Capability:
    return replace(
        bare,
        group_sms=division.group_sms,
        num_groups=len(division.smallest.groups),
        remainder_sms=division.remainder_sms,
    )


def _close(owned: Sequence[Owned], cause: BaseException | None) -> None:
    """Last first. The errors of all of them together, with what led here."""
    failed = []
    for part in reversed(owned):
        try:
            part.close()
        except SemipdError as error:
            failed.append(error)
    if failed:
        causes = [] if cause is None else [f"After: {cause}"]
        message = " ".join([*(error.message for error in failed), *causes])
        raise SemipdError("cuda_release_failed", message, failed[0].hint)
