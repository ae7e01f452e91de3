"""The contract between the coordinator and whatever executes plans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from semipd.core.errors import SemipdError
from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.split import LaneName, Split
from semipd.core.state.device import DeviceStats


class LaneFailed(SemipdError):  # noqa: N818
    """A lane cannot go on (worker died, step failed, out of memory). The engine process ends with this."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Facts fixed at start-up.

    Attributes:
        name: for people, e.g. "cpu: AMD EPYC, 2 cores".
        unit: what a split counts.
        splits: every split with both lanes non-empty, by rising decode share; empty when the device
            cannot be divided (then only the one-lane schedulers run).
        solo_prefill, solo_decode: one lane has every unit.
        num_blocks: size of the KV pool, block 0 (padding) included.
        block_size: tokens per KV block.
        memory: bytes by purpose, for the start-up table.
        max_step_tokens: most tokens of one step that its memory was sized for; 0: what the settings allow.
        max_decode_tokens: most tokens that one decode step gives a sequence.
        prefill_moves: a prefill step in flight follows the split of a decode step launched beside it, within
            a few layers; so decode need not wait until the prefill has given up its units.
    """

    kind: str
    name: str
    unit: str
    num_units: int
    splits: tuple[Split, ...]
    solo_prefill: Split
    solo_decode: Split
    num_blocks: int
    block_size: int
    vocab_size: int
    max_model_len: int
    dtype: str
    memory: dict[str, int]
    max_step_tokens: int = 0
    max_decode_tokens: int = 1
    prefill_moves: bool = False


class Lane(Protocol):
    """An asynchronous executor of plans, in order, with a small number in flight.

    A lane keeps the sequences that joined it *resident*: token history, block table, sampling
    parameters. Plans carry only changes (see StepPlan). Nothing here blocks.
    """

    @property
    def name(self) -> LaneName: ...

    def capacity(self) -> int:
        """How many more plans `launch` takes right now."""

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        """Start a step. The caller has checked `capacity() > 0` and that no step in flight on the
        other lane uses units of `plan.split`'s share for this lane, save a prefill that moves
        (`DeviceInfo.prefill_moves`). Raises LaneFailed."""

    def poll(self, now_ns: int) -> list[StepResult]:
        """Steps finished since the last call, oldest first. Raises LaneFailed."""

    def rebuild(self, residents: Sequence[Join]) -> None:
        """Forget every resident and take these. Must equal any sequence of deltas leading there.
        Only while no step is in flight."""


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """A lane's executor is gone, and with it the residents and every step in flight. Weights and KV are not.

    `how`: what completes "the worker ..."; `signal`: such as "SIGKILL", empty if none ended it; `step_id`:
    the oldest step it was at, None: it was idle.
    """

    pid: int
    how: str
    signal: str
    step_id: int | None


@dataclass(frozen=True, slots=True)
class WorkerReplacement:
    """The lane has a new executor, which knows nothing. `seconds`: since the death was noticed."""

    pid: int
    seconds: float


WorkerNews = WorkerDeath | WorkerReplacement


@runtime_checkable
class WorkerLane(Lane, Protocol):
    """A lane whose executor may die while the KV lives on, and is then replaced; a lane that is only a Lane
    fails instead.

    Between the two news `capacity()` is 0 and `poll` brings nothing. After WorkerReplacement the caller owes
    the lane a `rebuild` and then, oldest first and with their step ids, `launch` of the steps that were in
    flight: their writes are idempotent, their residents those of the rebuild. `poll` raises LaneFailed when
    another executor is no remedy.
    """

    def worker_news(self) -> list[WorkerNews]:
        """What `poll` has found out since the last call, oldest first."""


class Device(Protocol):
    """Both lanes, their shared weights and KV pool. Owned by the engine process."""

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def prefill(self) -> Lane: ...

    @property
    def decode(self) -> Lane: ...

    def files(self) -> Sequence[int]:
        """File descriptors that become readable when a step may have finished."""

    def wake_at_ns(self) -> int | None:
        """Time of the next internal event, for devices driven by timers instead of files."""

    def stats(self) -> DeviceStats:
        """Numbers of this moment."""

    def close(self) -> None:
        """Release everything; no process or memory stays behind. Idempotent."""
