"""The two lanes as streams: one stream per (lane, split), moved between by events, never by draining."""

from dataclasses import dataclass

from semipd.core.split import Split
from semipd.devices.contract import LaneName
from semipd.devices.cuda.capability import Capability
from semipd.devices.cuda.driver import Driver, Event, Stream


@dataclass(slots=True)
class SwitchStats:
    """Host time that moves between splits took (record and wait, without the launch that follows)."""

    count: int = 0
    last_ns: int = 0
    max_ns: int = 0
    total_ns: int = 0


class Lanes:
    """Streams of both lanes. One thread uses it at a time.

    Attributes:
        capability: what the device can do, for log and status.
        splits: with both lanes non-empty, by rising decode share; empty when the device cannot be divided.
        solo_prefill, solo_decode: one lane has every SM, on a stream of the whole device.
        switches: per lane.
    """

    capability: Capability
    splits: tuple[Split, ...]
    solo_prefill: Split
    solo_decode: Split
    switches: dict[LaneName, SwitchStats]

    @classmethod
    def open(cls, driver: Driver) -> "Lanes":
        """Split the SMs, create the streams, count the SMs of each.

        Raises CudaError when the device cannot even run two plain streams. That it cannot be divided is no
        error: then only the solo splits exist, and `capability` says why.
        """
        raise NotImplementedError

    def stream(self, lane: LaneName, split: Split) -> Stream:
        """Where the lane's work under this split goes: for capturing graphs and warming up. Raises KeyError."""
        raise NotImplementedError

    def num_sms(self, lane: LaneName, split: Split) -> int:
        """The lane's SMs under this split, as a launch argument of kernels."""
        raise NotImplementedError

    def move(self, lane: LaneName, split: Split) -> Stream:
        """The stream for the lane's next launches. Under another split than before they are ordered after
        all the lane has launched; nothing is drained and nothing blocks."""
        raise NotImplementedError

    def current(self, lane: LaneName) -> Stream:
        """What `move` returned last; before that, the lane's solo stream."""
        raise NotImplementedError

    def mark(self, lane: LaneName) -> Event:
        """An event for all the lane has launched so far. Give it back with `release`."""
        raise NotImplementedError

    def wait(self, lane: LaneName, event: Event) -> None:
        """The lane's next launches wait for the event."""
        raise NotImplementedError

    def release(self, event: Event) -> None:
        """`mark` may hand the event out again. Waits already enqueued keep what they wait for."""
        raise NotImplementedError

    def close(self) -> None:
        """Wait for the streams, then destroy everything in reverse order. Graphs are gone before. Idempotent.

        Raises SemipdError(`cuda_release_failed`) with every error, after trying everything.
        """
        raise NotImplementedError
