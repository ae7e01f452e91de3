"""What a lane has on the device, and what both lanes share."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from semipd.devices.cuda.driver.interface import Driver
from semipd.devices.cuda.driver.matmul_sms import AimMatmuls, leave_matmuls
from semipd.devices.cuda.driver.stream_work import Submit
from semipd.devices.cuda.driver.timing_events import EventPool
from semipd.devices.cuda.rows.padded import PaddedRows
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.rows.slots import SlotState
from semipd.devices.cuda.rows.staging import Staging
from semipd.devices.cuda.sampler.sampler import Sampler
from semipd.devices.cuda.split.streams import Lanes
from semipd.network.activations import Activations
from semipd.network.network import Network
from semipd.sampling.history import TokenHistory


@dataclass(frozen=True, slots=True)
class Shared:
    """What both lanes of a device have in common."""

    driver: Driver
    lanes: Lanes
    submit: Submit
    network: Network
    staging: Staging
    events: EventPool
    device: torch.device
    aim_matmuls: AimMatmuls = leave_matmuls


PROMPT_ROWS_AT_ONCE = 64
"""Bounds the logits of a prompt whose log-probabilities are wanted: a chunk can have thousands of rows."""


@dataclass(slots=True)
class LaneMemory:
    """Everything a lane keeps on the device, at addresses that graphs may hold on to.

    Attributes:
        sampler: with whatever memory it works in.
        slots: int32 [buckets[-1]], of the decode batch; padded with the padding slot.
        sampled_slots: int32 [buckets[-1]]: `slots` if a decode pass samples this batch, else padding.
        tokens: int32 [max_num_seqs], of rows that were sampled without the host.
        metadata, delta: int32, where uploads go. history_tokens: int32, the history of one sequence and the
            tokens that it may choose.
        padded: rows of captured passes over chunks; None: there are none.
        context: see ChunkRows; None: attention reads the pool.
        workspace: see DecodeRows.
    """

    state: SlotState
    history: TokenHistory
    activations: Activations
    logits: Tensor
    slots: Tensor
    sampled_slots: Tensor
    tokens: Tensor
    metadata: Tensor
    delta: Tensor
    history_tokens: Tensor
    sampler: Sampler
    padded: PaddedRows | None = None
    context: Tensor | None = None
    workspace: tuple[Tensor, ...] = ()
    retired: list[Tensor] = field(default_factory=list)

    @classmethod
    def reserve(
        cls,
        size: LaneSize,
        activations: Activations,
        sampler: Sampler,
        device: torch.device,
        padded: PaddedRows | None = None,
        context: Tensor | None = None,
        workspace: tuple[Tensor, ...] = (),
    ) -> "LaneMemory":
        num_slots = size.max_num_seqs + 1
        state = SlotState(num_slots, size.max_blocks_per_seq, size.block_size, device)

        def ints(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        # Rows come four times (token, position, slot, wanted), sequences a few times; logit bias and stop
        # tokens beyond the rest make the buffer grow.
        metadata = ints(8 * size.max_rows + 64 * num_slots + 2**16)
        return cls(
            state,
            TokenHistory(num_slots, size.vocab_size, device),
            activations,
            # Every sequence may sample in one step; prompt rows come in blocks.
            torch.empty(max(size.max_num_seqs, PROMPT_ROWS_AT_ONCE), size.vocab_size, device=device),
            ints(size.buckets[-1]),
            ints(size.buckets[-1]),
            ints(size.max_num_seqs),
            metadata,
            ints(2 * state.max_delta),
            ints(size.max_tokens_per_seq + size.vocab_size),
            sampler,
            padded,
            context,
            workspace,
        )

    def load_batch(self, slots: Tensor, *, samples: bool) -> None:
        """The decode batch, int32 on the device; `samples`: its decode passes do."""
        self.slots.zero_()
        self.slots[: len(slots)].copy_(slots)
        self.sampled_slots.copy_(self.slots) if samples else self.sampled_slots.zero_()

    def grow_metadata(self, num_elements: int) -> None:
        """The device may still read the old buffer, so it is kept; doubling bounds what that costs."""
        self.retired.append(self.metadata)
        self.metadata = self.metadata.new_empty(num_elements)

    @property
    def num_bytes(self) -> int:
        rows = (self.slots, self.sampled_slots, self.tokens)
        uploads = (self.metadata, self.delta, self.history_tokens)
        tensors = (self.state.flat, self.logits, *rows, *uploads, *self.workspace)
        rows_bytes = 0 if self.padded is None else self.padded.num_bytes
        context_bytes = 0 if self.context is None else self.context.nbytes
        activations_bytes = self.activations.num_bytes + self.history.counts.nbytes
        sampler_bytes = self.sampler.num_bytes
        return sum(t.nbytes for t in tensors) + activations_bytes + rows_bytes + context_bytes + sampler_bytes
