"""The pieces of a lane's steps: what each launches on its stream, and what that touches.

Bodies run in the stream's order. What one leaves for the next (`_bound`) is therefore state of the stream,
not of the host, which may be a step ahead.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from semipd.core.split import LaneName
from semipd.devices.cuda.driver.interface import Graph
from semipd.devices.cuda.driver.stream_work import Touched
from semipd.devices.cuda.lane.graphs import GraphKey, GraphTable, bucket_for
from semipd.devices.cuda.lane.memory import PROMPT_ROWS_AT_ONCE, LaneMemory, Shared
from semipd.devices.cuda.lane.step import LaneStep, Piece, Place
from semipd.devices.cuda.rows.layout import BoundLayout, StepLayout, decode_rows
from semipd.devices.cuda.rows.padded import PaddedRows
from semipd.devices.cuda.rows.residents import Changes
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.rows.staging import Packer
from semipd.devices.cuda.sampler.logprobs import LogprobBuffers
from semipd.network.activations import Activations
from semipd.network.rows import PassSize, StepRows
from semipd.steps.residents import Resident

_SAMPLED = ("slots", "tokens")
"""What sampling writes."""


class LaneWork:
    def __init__(
        self, name: LaneName, shared: Shared, size: LaneSize, memory: LaneMemory, graphs: GraphTable
    ) -> None:
        self._name = name
        self._shared = shared
        self._size = size
        self._memory = memory
        self._graphs = graphs
        self._bound: BoundLayout | None = None

    def uploads(self, step: LaneStep, changes: Changes, layout: StepLayout | None) -> list[Piece]:
        """What has to reach the device before the step computes; staged now, since the host moves on."""
        uploads = list[Piece]()
        if changes.delta:
            uploads.append(self._delta_upload(step, changes))
        uploads += [self._history_upload(step, resident) for resident in changes.histories]
        if layout is not None:
            uploads.append(self._layout_upload(step, layout))
        return uploads

    def _staged(self, step: LaneStep, values: Sequence[int]) -> Tensor:
        packer = Packer()
        packer.add(values)
        buffer = step.take(self._shared.staging, packer.size)
        packer.write(buffer)
        return buffer

    def _delta_upload(self, step: LaneStep, changes: Changes) -> Piece:
        count, memory = len(changes.delta), self._memory
        buffer = self._staged(step, [*changes.delta.keys(), *changes.delta.values()])

        def body() -> None:
            delta = memory.delta[: 2 * count]
            delta.copy_(buffer[: 2 * count], non_blocking=True)
            memory.state.apply(delta[:count], delta[count:])

        touched = self._touched({("pinned", id(buffer))}, {"delta", "slots"})
        return lambda place: self._shared.submit(place.stream, "delta", body, touched)

    def _history_upload(self, step: LaneStep, resident: Resident) -> Piece:
        memory, slot, num_prompt = self._memory, resident.slot, resident.num_prompt_tokens
        num_tokens, allowed = len(resident.token_ids), sorted(set(resident.params.allowed_token_ids))
        buffer, count = self._staged(step, [*resident.token_ids, *allowed]), num_tokens + len(allowed)

        def body() -> None:
            target = memory.history_tokens[:count]
            target.copy_(buffer[:count], non_blocking=True)
            memory.history.join(
                slot, target[:num_tokens], num_prompt, target[num_tokens:] if allowed else None
            )

        touched = self._touched({("pinned", id(buffer))}, {"history"})
        return lambda place: self._shared.submit(place.stream, "history", body, touched)

    def _layout_upload(self, step: LaneStep, layout: StepLayout) -> Piece:
        size, memory = layout.packer.size, self._memory
        if size > memory.metadata.numel():
            memory.grow_metadata(2 * size)
        buffer, target = step.take(self._shared.staging, size), memory.metadata
        layout.packer.write(buffer)

        def body() -> None:
            target[:size].copy_(buffer[:size], non_blocking=True)
            self._bound = layout.bind(target, memory.state, memory.context, memory.workspace)
            if not layout.chunks:
                memory.load_batch(self._bound.decode_slots, samples=layout.is_unfiltered)

        touched = self._touched({("pinned", id(buffer)), "slots"}, {"metadata", "rows"})
        return lambda place: self._shared.submit(place.stream, "layout", body, touched)

    def decode_piece(
        self, step: LaneStep, layout: StepLayout, lens: list[int], uploads: list[Piece]
    ) -> Piece:
        def piece(place: Place) -> None:
            for upload in uploads:
                upload(place)
            if layout.decoding:
                self._launch_decode(place, layout, lens)
                self._launch_sampling(place, step, is_sampled=layout.is_unfiltered)

        return piece

    def _launch_decode(self, place: Place, layout: StepLayout, lens: list[int]) -> None:
        driver, bucket = self._shared.driver, bucket_for(self._size.buckets, len(layout.decoding))
        graph = self._graphs.find(GraphKey(place.split, bucket))

        def body() -> None:
            if graph is None:
                self.decode_pass(bucket, place.num_sms)
            else:
                driver.launch_graph(graph, place.stream)

        touched = self._touched_kv(layout, lens, {"slots", "rows"}, {"activations", "logits", *_SAMPLED})
        self._shared.submit(place.stream, f"decode {bucket}", body, touched)

    def decode_pass(self, bucket: int, num_sms: int) -> None:
        """Logits of the batch in `memory.slots`, padded to `bucket`, and its next tokens if nothing more is
        needed than it can do without the host: what a graph captures."""
        memory, network = self._memory, self._shared.network
        rows = decode_rows(memory.state, memory.slots[:bucket], memory.workspace)
        activations = memory.activations.first(bucket)
        network.embed(rows, activations)
        network.layers(rows, activations, range(network.num_layers), num_sms)
        network.logits(network.finish(activations, None), memory.logits[:bucket])
        self._sample_unfiltered(memory.sampled_slots[:bucket])

    def _sample_unfiltered(self, slots: Tensor) -> None:
        """`slots` int32, of the rows of `memory.logits`."""
        memory, num_rows = self._memory, len(slots)
        logits, tokens = memory.logits[:num_rows], memory.tokens[:num_rows]
        memory.sampler.sample_unfiltered(logits, slots, memory.state, tokens)

    @property
    def padded(self) -> PaddedRows | None:
        return self._memory.padded

    def captured_pass(self, key: GraphKey, num_sms: int) -> Callable[[], None]:
        """What the graph of `key` computes."""
        if key.first_layer is None:
            return lambda: self.decode_pass(key.bucket, num_sms)
        group = self._group(key.first_layer)
        return lambda: self._padded_pass(self._padded_size(key), group, num_sms)

    def warm_up(self, place: Place, key: GraphKey) -> None:
        """The pass of `key` over padding only. The next step must upload its rows again."""
        memory, run = self._memory, self.captured_pass(key, place.num_sms)

        def body() -> None:
            if key.first_layer is None:
                memory.load_batch(memory.slots[:0], samples=False)
            elif memory.padded is not None:
                memory.padded.clear(self._padded_size(key), memory.state)
            run()

        touched = self._touched({"slots"}, {"rows", "activations", "logits", *_SAMPLED})
        self._shared.submit(place.stream, f"warm up {key.bucket}", body, touched)

    def _padded_size(self, key: GraphKey) -> PassSize:
        return next(size for size in self._size.chunk_passes if size.num_rows == key.bucket)

    def _padded_pass(self, size: PassSize, group: range, num_sms: int) -> None:
        """A group of layers over the rows that were loaded, padding included: what a graph captures."""
        assert self._memory.padded is not None
        rows = self._memory.padded.rows(size)
        self._layers(rows, self._memory.activations.first(size.num_rows), group, num_sms)

    def _layers(self, rows: StepRows, activations: Activations, group: range, num_sms: int) -> None:
        network = self._shared.network
        if group.start == 0:
            network.embed(rows, activations)
        network.layers(rows, activations, group, num_sms)

    def _group(self, first_layer: int) -> range:
        stop = min(first_layer + self._size.group_layers, self._shared.network.num_layers)
        return range(first_layer, stop)

    def chunk_pieces(
        self, step: LaneStep, layout: StepLayout, lens: list[int], uploads: list[Piece]
    ) -> list[Piece]:
        """Groups of layers; uploads go with the first, sampling with the last."""
        starts = range(0, self._shared.network.num_layers, self._size.group_layers)
        groups = [self._group(start) for start in starts]
        return [self._group_piece(step, layout, lens, uploads, group) for group in groups]

    def _group_piece(
        self, step: LaneStep, layout: StepLayout, lens: list[int], uploads: list[Piece], group: range
    ) -> Piece:
        shared = self._shared
        activations = self._memory.activations.first(layout.num_rows)

        def piece(place: Place) -> None:
            is_first, is_last = group.start == 0, group.stop == shared.network.num_layers
            for upload in uploads if is_first else []:
                upload(place)

            graph = self._chunk_graph(place, layout, group)

            def body() -> None:
                if graph is not None:
                    shared.driver.launch_graph(graph, place.stream)
                    return
                rows = None if self._bound is None else self._bound.rows
                assert rows is not None, "no rows on the device"
                self._layers(rows, activations, group, place.num_sms)

            touched = self._touched_kv(layout, lens, {"metadata", "rows", "slots"}, {"activations"})
            shared.submit(place.stream, f"layers {group.start}-{group.stop - 1}", body, touched)
            if is_last:
                self._launch_sums(place, step, activations.attended[len(layout.decoding) :])
            if is_last and (layout.sampled or layout.num_prompt_rows):
                self._launch_finish(place, step, layout, activations)

        return piece

    def _chunk_graph(self, place: Place, layout: StepLayout, group: range) -> Graph | None:
        size = layout.padded_size
        if size is None:
            return None
        return self._graphs.find(GraphKey(place.split, size.num_rows, group.start))

    def _launch_sums(self, place: Place, step: LaneStep, attended: Tensor) -> None:
        """`attended`: of the chunks' rows, in the last layer."""
        assert step.sums is not None
        sums = step.sums[: attended.shape[0]]

        def body() -> None:
            sums.copy_(attended.sum(dim=1, dtype=torch.float32), non_blocking=True)

        touched = self._touched({"activations"}, {("pinned", id(step.sums))})
        self._shared.submit(place.stream, "sums", body, touched)

    def _launch_finish(
        self, place: Place, step: LaneStep, layout: StepLayout, activations: Activations
    ) -> None:
        network, logits = self._shared.network, self._memory.logits
        num_sampled = len(layout.sampled)

        def body() -> None:
            bound = self._bound
            assert bound is not None
            final = network.finish(activations, bound.wanted)
            for start in range(0, layout.num_prompt_rows, PROMPT_ROWS_AT_ONCE):
                assert step.prompt_logprobs is not None
                targets = bound.prompt_targets[start : start + PROMPT_ROWS_AT_ONCE]
                rows = final[num_sampled + start :][: targets.shape[0]]
                network.logits(rows, logits[: targets.shape[0]])
                step.prompt_logprobs.launch(logits[: targets.shape[0]], targets, start)
            if num_sampled:
                network.logits(final[:num_sampled], logits[:num_sampled])

        outputs = _pinned(step.prompt_logprobs)
        touched = self._touched({"metadata"}, {"activations", "logits", *outputs})
        self._shared.submit(place.stream, "finish", body, touched)
        if num_sampled:
            self._launch_sampling(place, step, is_sampled=False)

    def _launch_sampling(self, place: Place, step: LaneStep, *, is_sampled: bool) -> None:
        """`is_sampled`: the pass did it, and only the results are missing."""
        memory, num_rows = self._memory, len(step.sampled)

        def body() -> None:
            assert step.tokens is not None
            raw = memory.logits[:num_rows]
            if not is_sampled:
                raw = raw.clone() if step.logprobs is not None else raw
                self._sample(num_rows)
            tokens = memory.tokens[:num_rows]
            step.tokens[:num_rows].copy_(tokens, non_blocking=True)
            if step.logprobs is not None:
                step.logprobs.launch(raw, tokens)

        outputs = {("pinned", id(step.tokens)), *_pinned(step.logprobs)}
        writes = outputs if is_sampled else {"logits", "history", *_SAMPLED, *outputs}
        touched = self._touched({"metadata", "rows", "logits", "tokens"}, writes)
        self._shared.submit(place.stream, "sample", body, touched)

    def _sample(self, num_rows: int) -> None:
        """From the logits of a step's sampled rows to `memory.tokens`, slots and histories."""
        bound, memory = self._bound, self._memory
        assert bound is not None
        slots, stages = bound.sampled_slots, bound.stages
        if not (stages.adjusts or stages.filters):
            self._sample_unfiltered(slots.to(torch.int32))
            return
        logits, tokens = memory.logits[:num_rows], memory.tokens[:num_rows]
        tokens.copy_(memory.sampler.sample(logits, slots, stages, memory.state, memory.history))
        valid = tokens.clamp_min(0)
        memory.state.advance(slots, valid)
        if stages.counted is not None:
            memory.history.advance(stages.counted.pick(slots), stages.counted.pick(valid).long())

    def _touched(self, reads: set[Hashable], writes: set[Hashable]) -> Callable[[], Touched]:
        return lambda: Touched(self._named(reads), self._named(writes))

    def _touched_kv(
        self, layout: StepLayout, lens: list[int], reads: set[Hashable], writes: set[Hashable]
    ) -> Callable[[], Touched]:
        def touched() -> Touched:
            kv_reads = {("kv", block) for block in layout.kv_reads(lens)}
            kv_writes = {("kv", block) for block in layout.kv_writes(lens)}
            return Touched(self._named(reads) | kv_reads, self._named(writes) | kv_writes)

        return touched

    def _named(self, names: set[Hashable]) -> frozenset[Hashable]:
        """Bare words are the lane's own memory."""
        return frozenset((self._name, name) if isinstance(name, str) else name for name in names)


def _pinned(buffers: LogprobBuffers | None) -> set[Hashable]:
    if buffers is None:
        return set()
    memory = (buffers.own, buffers.values, buffers.ids, buffers.ranks)
    return {("pinned", id(buffer)) for buffer in memory}
