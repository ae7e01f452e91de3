"""Residents in slots of the device; what plans change about them, as deltas for it."""

from dataclasses import dataclass, field

from semipd.devices.cuda.rows.slots import Delta, SlotState
from semipd.sampling.parameters import PADDING_SLOT
from semipd.sampling.stages import needs_history
from semipd.steps.residents import Resident, Residents


@dataclass(slots=True)
class Changes:
    """What the device has to be told before the next step. `histories`: sequences whose penalties count
    tokens, or that may choose some tokens only."""

    delta: Delta = field(default_factory=dict)
    histories: list[Resident] = field(default_factory=list)


class SlotResidents(Residents):
    """Slots are handed out lowest first; slot 0 is padding."""

    def __init__(self, state: SlotState) -> None:
        super().__init__(state.block_size)
        self._state = state
        self._restricted: set[int] = set()
        self._free: list[int] = []
        self._changes = Changes()
        self.emptied()

    def take_changes(self) -> Changes:
        """Since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def joined(self, resident: Resident) -> None:
        assert self._free, f"sequence {resident.seq} joins, but all {len(self) - 1} slots are taken"
        resident.slot = self._free.pop()
        self._state.join(self._changes.delta, resident)
        self._note_history(resident)

    def grew(self, resident: Resident, start: int) -> None:
        self._state.add_blocks(self._changes.delta, resident, start)

    def left(self, resident: Resident) -> None:
        self._free.append(resident.slot)

    def emptied(self) -> None:
        self._changes = Changes()
        self._free = list(range(self._state.num_slots - 1, PADDING_SLOT, -1))

    def _note_history(self, resident: Resident) -> None:
        """The sampler reads the counts of every slot with edits: what the slot's last sequence was not
        allowed must be gone."""
        if needs_history(resident.params) or resident.slot in self._restricted:
            self._changes.histories.append(resident)
        self._restricted.discard(resident.slot)
        if resident.params.allowed_token_ids:
            self._restricted.add(resident.slot)
