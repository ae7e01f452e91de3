"""Runs the plans of one lane on the device: deltas up, one forward pass, samples fed back on the device.

The host runs ahead of the device: a step is begun and launched from what the host knows (who, where, which
parameters), and what it does not know yet (newest tokens, their positions, counts) stays in the slots on the
device. Only the launch thread comes here.

    begin ─▶ pieces ─launch_piece─▶ marks ─settle─▶ result
"""

import time
from collections import deque
from collections.abc import Sequence

import torch

from semipd.core.plan import Join, StepPlan, StepResult
from semipd.core.split import LaneName, Split
from semipd.devices.cuda.driver.interface import Event
from semipd.devices.cuda.lane.graphs import GraphKey, GraphTable
from semipd.devices.cuda.lane.memory import LaneMemory, Shared
from semipd.devices.cuda.lane.pieces import LaneWork
from semipd.devices.cuda.lane.step import LaneStep, Mark, Place
from semipd.devices.cuda.rows.layout import StepLayout
from semipd.devices.cuda.rows.residents import SlotResidents
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.sampler.logprobs import LogprobBuffers
from semipd.network.rows import ChunkPlan
from semipd.steps.residents import Chunk
from semipd.steps.rows import num_prompt_top


class LaneExecutor:
    """One lane. `peer` is the other one; set before the first plan."""

    def __init__(
        self, name: LaneName, shared: Shared, size: LaneSize, memory: LaneMemory, graphs: GraphTable
    ) -> None:
        self.name: LaneName = name
        self.peer: LaneExecutor = self
        self.graphs = graphs
        self.residents = SlotResidents(memory.state)
        self.inflight: deque[LaneStep] = deque()
        self.last_settled: Event | None = None
        solo = shared.lanes.solo_prefill if name == "prefill" else shared.lanes.solo_decode
        self.split: Split = solo
        self.capturing_s = 0.0  # without the passes before the captures, which may compile kernels
        self._shared = shared
        self._size = size
        self._work = LaneWork(name, shared, size, memory, graphs)
        self._cached: StepLayout | None = None

    def begin(self, plan: StepPlan) -> None:
        """Take a plan: the host's part of it. Its pieces wait to be launched."""
        self.residents.apply(plan)
        decoding = self.residents.find(plan.decode)
        chunks = self.residents.chunks(plan)
        self._check_size(plan)
        layout, is_new = self._layout(plan, chunks)
        step = LaneStep(plan, layout.sampled, chunks, begun_at_ns=time.monotonic_ns())
        self._reserve_outputs(step, layout)
        lens = [resident.num_tokens for resident in decoding]
        uploads = self._work.uploads(step, self.residents.take_changes(), layout if is_new else None)
        if chunks:
            step.pieces.extend(self._work.chunk_pieces(step, layout, lens, uploads))
        else:
            step.pieces.append(self._work.decode_piece(step, layout, lens, uploads))
        for resident in layout.sampled:
            resident.num_tokens += 1
        self.inflight.append(step)

    def rebuild(self, joins: Sequence[Join]) -> None:
        assert not self.inflight, f"{self.name}: rebuild with {len(self.inflight)} steps in flight"
        self._cached = None
        self.residents.rebuild(joins)

    def warm_up(self, key: GraphKey) -> None:
        """Run the pass of `key` once on its stream, so that kernels are compiled and libraries set up.
        Blocks; both lanes are idle."""
        assert not self.inflight, f"{self.name}: warm-up with {len(self.inflight)} steps in flight"
        place = self._place(key.split)
        self._cached = None
        self._shared.aim_matmuls(place.num_sms)
        self._work.warm_up(place, key)
        self._shared.driver.synchronize_stream(place.stream)

    def capture(self, key: GraphKey) -> None:
        """Warm up, then capture that pass as a graph."""
        self.warm_up(key)
        place, driver = self._place(key.split), self._shared.driver
        began_s = time.monotonic()
        graph = driver.capture(place.stream, self._work.captured_pass(key, place.num_sms))
        self.capturing_s += time.monotonic() - began_s
        self.graphs.add(key, graph)

    def _place(self, split: Split) -> Place:
        """For work while the lanes are idle: nothing moves."""
        lanes = self._shared.lanes
        return Place(split, lanes.stream(self.name, split), lanes.num_sms(self.name, split))

    def _check_size(self, plan: StepPlan) -> None:
        num_rows = len(plan.decode) + sum(segment.length for segment in plan.segments)
        assert num_rows <= self._size.max_rows, (
            f"step {plan.step_id} has {num_rows} rows, {self.name} holds {self._size.max_rows}"
        )

    def _layout(self, plan: StepPlan, chunks: list[Chunk]) -> tuple[StepLayout, bool]:
        """The layout, and whether the device does not have it yet. Residents are compared by identity: one
        that left and came back is another."""
        decoding = self.residents.find(plan.decode)
        if not chunks and self._cached is not None and self._cached.decoding == decoding:
            return self._cached, False
        num_sms = max(1, plan.split.units_of(self.name))

        def plan_chunks(query_lens: list[int], kv_lens: list[int]) -> ChunkPlan:
            return self._shared.network.plan_chunks(query_lens, kv_lens, num_sms)

        layout = StepLayout(decoding, chunks, self._size.vocab_size, plan_chunks, self._work.padded)
        self._cached = None if chunks else layout
        return layout, True

    def _reserve_outputs(self, step: LaneStep, layout: StepLayout) -> None:
        step.tokens = step.take(self._shared.staging, len(layout.sampled))
        if layout.chunks:
            num_rows = layout.num_rows - len(layout.decoding)
            step.sums = step.take(self._shared.staging, num_rows, torch.float32)
        wanted = [r.params.logprobs for r in layout.sampled if r.params.logprobs is not None]
        if wanted:
            step.logprobs = self._logprob_buffers(step, len(layout.sampled), max(wanted))
        if owed := num_prompt_top(step.chunks):
            step.prompt_logprobs = self._logprob_buffers(step, layout.num_prompt_rows, max(owed))

    def _logprob_buffers(self, step: LaneStep, num_rows: int, num_top: int) -> LogprobBuffers:
        num_top, staging = min(num_top, self._size.vocab_size), self._shared.staging
        return LogprobBuffers(
            num_rows,
            num_top,
            step.take(staging, num_rows, torch.float32),
            step.take(staging, num_rows * num_top, torch.float32),
            step.take(staging, num_rows * num_top),
            step.take(staging, num_rows),
        )

    @property
    def next_step(self) -> LaneStep | None:
        """The oldest step with pieces to launch."""
        return next((step for step in self.inflight if step.pieces), None)

    @property
    def num_marks(self) -> int:
        """Pieces launched and not known to be done."""
        return sum(len(step.marks) for step in self.inflight)

    def held_units(self) -> list[int]:
        """Of the splits under which unfinished pieces were launched."""
        return [mark.units for step in self.inflight for mark in step.marks]

    def launch_piece(self, split: Split) -> None:
        """The next piece of the oldest step that has one."""
        step = self.next_step
        assert step is not None, f"{self.name}: nothing to launch"
        lanes, events = self._shared.lanes, self._shared.events
        place = Place(split, lanes.move(self.name, split), lanes.num_sms(self.name, split))
        self.split = split
        self._shared.aim_matmuls(place.num_sms)
        step.is_mixed |= split != step.plan.split
        if step.started is None:
            self._wait_for_peer(step, place)
            step.started = events.record(place.stream)
        step.pieces.popleft()(place)
        mark = Mark(events.record(place.stream), split.units_of(self.name))
        step.marks.append(mark)
        if not step.pieces:
            step.finished = mark.event

    def _wait_for_peer(self, step: LaneStep, place: Place) -> None:
        """Blocks that come to this lane were computed or given up by settled steps of the other one. Never an
        event of a step in flight: a decode step would wait for a whole prefill."""
        event = self.peer.last_settled
        if event is not None and (step.plan.joins or step.plan.new_blocks):
            self._shared.driver.wait_event(place.stream, event)

    def settle(self) -> list[StepResult]:
        """Results of the steps that the device has finished, oldest first. Raises CudaError."""
        results = list[StepResult]()
        for step in self.inflight:
            while step.marks and self._shared.driver.event_done(step.marks[0].event):
                mark = step.marks.popleft()
                if mark.event != step.finished:
                    self._shared.events.give_back(mark.event)
            if step.marks:
                break
        while self.inflight and self.inflight[0].finished is not None and not self.inflight[0].marks:
            results.append(self._finish(self.inflight.popleft()))
        return results

    def _finish(self, step: LaneStep) -> StepResult:
        assert step.started is not None
        assert step.finished is not None
        busy_ns = int(self._shared.driver.elapsed_ms(step.started, step.finished) * 1e6)
        result = step.result(busy_ns)
        failed = result.failed
        for resident, tokens in zip(step.sampled, result.tokens, strict=True):
            if not failed or resident.seq not in failed:
                resident.token_ids.extend(tokens)
        self._shared.staging.give_back(step.buffers)
        self._shared.events.give_back(step.started)
        if self.last_settled is not None:
            self._shared.events.give_back(self.last_settled)
        self.last_settled = step.finished
        return result
