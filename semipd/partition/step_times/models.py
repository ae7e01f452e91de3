"""The step times of a device: one model per phase, fed with finished steps, read by the policies."""

from typing import Any

from semipd.core.split import LaneName
from semipd.core.state.partition import Phase, PhaseModel
from semipd.partition.interface import Line, StepRecord
from semipd.partition.step_times.step_model import StepModel

FIT_EVERY_NS = 200_000_000
"""Between two fits of a phase; the running ratios follow every step."""


class Models:
    """Implements partition.interface.StepTimes.

    Features (after the constant): prefill: new tokens, attended tokens; decode: sequences, context tokens;
    merged: those four, on the whole device. Milliseconds.
    """

    def __init__(self, num_units: int) -> None:
        self.num_units = num_units
        self._prefill, self._decode = StepModel(3), StepModel(3)
        self._merged = StepModel(5, scales=False)
        self._fit_due_ns = 0
        self._next_phase = 0
        self._prompt_ms = 0.0
        self._prompt_tokens = 0

    @property
    def phases(self) -> dict[Phase, StepModel]:
        return {"prefill": self._prefill, "decode": self._decode, "merged": self._merged}

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.phases.values())

    @property
    def confident(self) -> bool:
        return self._prefill.confident and self._decode.confident

    def record(self, step: StepRecord, now_ns: int) -> float | None:
        """Learn from a finished step; now and then fit one phase anew. Returns the milliseconds that had been
        predicted for it; None: no prediction that can be trusted."""
        ms = step.busy_ns / 1e6
        if ms <= 0:
            return None
        if step.new_tokens and not self.confident:
            self._prompt_ms += ms
            self._prompt_tokens += step.new_tokens
        if step.lane == "prefill":
            predicted_ms = self._prefill.observe(step.units, (1, step.new_tokens, step.attended_tokens), ms)
        elif step.new_tokens:
            x = (1, step.new_tokens, step.attended_tokens, step.num_decodes, step.context_tokens)
            predicted_ms = self._merged.observe(step.units, x, ms)
        else:
            predicted_ms = self._decode.observe(step.units, (1, step.num_decodes, step.context_tokens), ms)
        if now_ns >= self._fit_due_ns:
            self._fit_one(now_ns)
        return predicted_ms

    def fit(self) -> None:
        for phase in self.phases.values():
            phase.fit()

    def prefill(self, units: int) -> Line:
        return Line(*self._prefill.line(units))

    def decode(self, units: int) -> Line:
        return Line(*self._decode.line(units))

    def merged(self, num_decodes: float, context_tokens: float) -> Line:
        """Until merged steps have been seen often enough: a prefill step and a decode step in turn, which
        a merged step beats because it reads the weights once."""
        if self._merged.confident:
            constant, new, attended, decode, context = self._merged.line(self.num_units)
            return Line(constant + decode * num_decodes + context * context_tokens, new, attended)
        line = self.prefill(self.num_units)
        decode_ms = self.decode(self.num_units).ms(num_decodes, context_tokens)
        return line._replace(constant_ms=line.constant_ms + decode_ms)

    @property
    def knows_merged(self) -> bool:
        return self._merged.confident or self.confident

    @property
    def unfitted_prompt(self) -> Line | None:
        """Of steps with a prompt, from the token counts of those seen until models are confident; None: none
        was seen."""
        if not self._prompt_tokens:
            return None
        return Line(0.0, self._prompt_ms / self._prompt_tokens, 0.0)

    def smallest_tried(self, lane: LaneName) -> int | None:
        return (self._prefill if lane == "prefill" else self._decode).smallest_tried()

    def status(self) -> dict[Phase, PhaseModel]:
        """Per phase: steps seen, whether predictions are trusted, and how far off the last ones were."""
        return {
            name: {
                "steps": phase.num_steps,
                "confident": phase.confident,
                "error": phase.error if phase.confident else None,
                "correction": phase.running_ratio,
            }
            for name, phase in self.phases.items()
        }

    def to_plain(self) -> dict[Phase, list[list[float]]]:
        return {name: phase.to_plain() for name, phase in self.phases.items()}

    def load_plain(self, data: Any) -> None:
        """Take what `to_plain` gave. Raises ValueError, KeyError or TypeError on anything else; then
        nothing has changed."""
        read = {name: phase.read_plain(data[name]) for name, phase in self.phases.items()}
        for name, phase in self.phases.items():
            phase.adopt(read[name])

    def _fit_one(self, now_ns: int) -> None:
        """The phases take turns, so that no turn of the coordinator pays for all."""
        phases = list(self.phases.values())
        self._next_phase = (self._next_phase + 1) % len(phases)
        phase = phases[self._next_phase]
        if phase.stale:
            phase.fit()
        self._fit_due_ns = now_ns + FIT_EVERY_NS // len(phases)
