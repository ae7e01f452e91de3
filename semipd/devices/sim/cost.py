"""How long a step takes on so many SMs: a roofline, max(compute, memory), for each class of operation.

    linears      one matrix product per weight matrix and layer, compute in whole tiles and waves of tiles
    experts      the same over the experts that the step's tokens are sent to, all at once (grouped GEMM)
    attention    prefill: quadratic in the chunk, compute-bound; decode: reads the KV of every context
    elementwise  norms, RoPE, activation: memory traffic only
    head         logits of the sampled rows

On top come the gaps between kernels, the host's launches and a fixed cost per step.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from semipd.devices.sim.models import KV_ELEMENT_BYTES, SimModel
from semipd.devices.sim.profile import Profile, interpolate

ELEMENT_BYTES = KV_ELEMENT_BYTES
MMA_ROWS = 16
"""Rows of the smallest bf16 tensor-core product; small batches and query groups are padded to it."""


class StepWork(NamedTuple):
    """What one step computes: `decode_rows` tokens that read `context_tokens` of KV together, and
    prefill chunks (start, length), of which `sampled_chunks` need logits."""

    decode_rows: int
    context_tokens: int
    chunks: tuple[tuple[int, int], ...] = ()
    sampled_chunks: int = 0


@dataclass(slots=True)
class StepCost:
    """`ns`: the whole step alone on its SMs. `memory_ns` of it is bound by bandwidth; in that time
    `memory_bytes` move. `hbm_bytes`: all device-memory traffic of the step."""

    ns: float = 0.0
    memory_ns: float = 0.0
    memory_bytes: float = 0.0
    hbm_bytes: float = 0.0

    def add(self, compute_ns: float, moved_bytes: float, memory_ns: float, times: int = 1) -> None:
        """`times` operations of one class, one after the other."""
        self.hbm_bytes += moved_bytes * times
        if memory_ns > compute_ns:
            self.ns += memory_ns * times
            self.memory_ns += memory_ns * times
            self.memory_bytes += moved_bytes * times
        else:
            self.ns += compute_ns * times


def soft_ceiling(lane_rate: float, shared_rate: float) -> float:
    """Bandwidth of a lane between its SMs' own ceiling and the memory's: 1/r^2 = 1/lane^2 + 1/shared^2.

    A hard minimum has a corner where real curves bend. With the L2 port as the lane's ceiling this form
    follows the decode curves published for H800 and A100 within 12 % (tests/unit/test_sim_cost.py).
    """
    return lane_rate / math.sqrt(1.0 + (lane_rate / shared_rate) ** 2)


class CostModel:
    """Step costs of one model on one GPU. What depends on token counts only is remembered."""

    def __init__(self, profile: Profile, model: SimModel) -> None:
        self.profile = profile
        self.model = model
        gpu, kernels = profile.gpu, profile.kernels
        self.hbm_rate = gpu.hbm_bytes_per_s * kernels.hbm_frac / 1e9
        """Bytes per nanosecond that the memory gives at best."""
        self._inflight_rate = kernels.attention_inflight_bytes / kernels.loaded_latency_ns
        self._attention_share = kernels.attention_frac / kernels.gemm_frac
        self._remembered: dict[tuple[int, int, int], StepCost] = {}
        self._rates: dict[int, tuple[float, float, float]] = {}
        self._decode_flops_per_token, self._pair_flops = _attention_flops(model)
        self._layer_kv_bytes = model.kv_bytes_per_token // model.num_layers
        self._gaps_ns = model.num_layers * kernels.layer_kernels * kernels.kernel_gap_ns
        self._launches_ns = model.num_layers * kernels.layer_kernels * kernels.launch_ns
        self._step_ns = kernels.step_ns + kernels.serial_host_ns

    def step(self, work: StepWork, sms: int) -> StepCost:
        """Cost of a step on `sms` SMs with nothing on the others."""
        chunk_tokens = sum([length for _, length in work.chunks]) if work.chunks else 0
        rest = self._without_attention(
            work.decode_rows + chunk_tokens, work.decode_rows + work.sampled_chunks, sms
        )
        cost = StepCost(rest.ns, rest.memory_ns, rest.memory_bytes, rest.hbm_bytes)
        if work.decode_rows:
            self._add_decode_attention(cost, work.context_tokens, sms)
        for start, length in work.chunks:
            self._add_prefill_attention(cost, start, length, sms)
        if work.chunks:
            # eager launches run ahead of the GPU; they show only when they take longer than the work
            cost.ns = max(cost.ns, self._launches_ns)
        cost.ns += self._step_ns
        return cost

    def rates(self, sms: int) -> tuple[float, float, float]:
        """(bytes/ns of streaming weights, bytes/ns of decode attention, FLOP/ns of matrix products)."""
        found = self._rates.get(sms)
        if found is None:
            found = self._rates[sms] = (
                self._weight_rate(sms),
                self._attention_rate(sms),
                self._gemm_rate(sms),
            )
        return found

    def _weight_rate(self, sms: int) -> float:
        curve = self.profile.curves.get("weight_bytes_per_s")
        if curve:
            return interpolate(curve, sms) / 1e9
        return soft_ceiling(sms * self.profile.gpu.l2_port_bytes_per_s / 1e9, self.hbm_rate)

    def _attention_rate(self, sms: int) -> float:
        """Bytes in flight bound it (Little's law), and it is never faster than streaming."""
        curve = self.profile.curves.get("attention_bytes_per_s")
        if curve:
            return interpolate(curve, sms) / 1e9
        port = self.profile.gpu.l2_port_bytes_per_s / 1e9
        return soft_ceiling(sms * min(port, self._inflight_rate), self.hbm_rate)

    def _gemm_rate(self, sms: int) -> float:
        curve = self.profile.curves.get("gemm_flops")
        if curve:
            return interpolate(curve, sms) / 1e9
        gpu, kernels = self.profile.gpu, self.profile.kernels
        lane_frac: float = (sms / gpu.num_sms) ** kernels.compute_exponent
        return gpu.peak_flops * kernels.gemm_frac * lane_frac / 1e9

    def _without_attention(self, tokens: int, head_rows: int, sms: int) -> StepCost:
        """Everything that depends on the number of tokens only, gaps between kernels included."""
        found = self._remembered.get((tokens, head_rows, sms))
        if found is None:
            found = self._remembered[tokens, head_rows, sms] = StepCost(self._gaps_ns)
            if tokens:
                for (inputs, outputs), times in self.model.layer_linears:
                    self._add_linear(found, tokens, inputs, outputs, sms, times)
                for inputs, outputs in self.model.expert_linears:
                    self._add_experts(found, tokens, inputs, outputs, sms)
                self._add_elementwise(found, tokens, sms)
            if head_rows:
                self._add_head(found, head_rows, sms)
        return found

    def _add_linear(
        self, cost: StepCost, rows: int, inputs: int, outputs: int, sms: int, times: int = 1
    ) -> None:
        weight_rate, _, gemm_rate = self.rates(sms)
        moved = inputs * outputs * self.model.weight_bytes + rows * (inputs + outputs) * ELEMENT_BYTES
        cost.add(self._gemm_ns(rows, inputs, outputs, sms, gemm_rate), moved, moved / weight_rate, times)

    def _add_experts(self, cost: StepCost, rows: int, inputs: int, outputs: int, sms: int) -> None:
        """The experts that `rows` tokens are sent to when each picks at random: their weights are read once,
        and each multiplies its share of the rows."""
        experts = self.model.experts
        assert experts is not None, f"{self.model.name} has no experts"
        weight_rate, _, gemm_rate = self.rates(sms)
        num_read, sent_rows = experts.num_read(rows), rows * experts.top_k
        weights = num_read * inputs * outputs * self.model.weight_bytes
        moved = weights + sent_rows * (inputs + outputs) * ELEMENT_BYTES
        each = math.ceil(sent_rows / num_read)
        compute_ns = self._gemm_ns(each, inputs, outputs, sms, gemm_rate, num_read)
        cost.add(compute_ns, moved, moved / weight_rate, self.model.num_expert_layers)

    def _gemm_ns(
        self, rows: int, inputs: int, outputs: int, sms: int, gemm_rate: float, matrices: float = 1
    ) -> float:
        """Whole tiles, one per SM at a time. Fewer tiles than SMs: the inner dimension is split (split-K),
        so that all SMs work; more: the last wave runs as long as a full one. `rows` go through each of the
        `matrices`."""
        kernels = self.profile.kernels
        tile_rows = min(kernels.tile_rows, math.ceil(rows / MMA_ROWS) * MMA_ROWS)
        waves = matrices * math.ceil(rows / tile_rows) * math.ceil(outputs / kernels.tile_columns) / sms
        tile_flops = 2 * tile_rows * kernels.tile_columns * inputs
        return (waves if waves < 1.0 else math.ceil(waves)) * tile_flops * sms / gemm_rate

    def _add_elementwise(self, cost: StepCost, tokens: int, sms: int) -> None:
        """Residual and norm twice, RoPE on Q, K and V, activation: each value read and written once.
        What fits in half of L2 stays there and moves at the speed of the lane's ports."""
        model = self.model
        values = 8 * model.hidden + 3 * model.active_intermediate
        values += 2 * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
        moved = tokens * values * ELEMENT_BYTES
        if tokens * 3 * model.active_intermediate * ELEMENT_BYTES <= self.profile.gpu.l2_bytes / 2:
            port = self.profile.gpu.l2_port_bytes_per_s / 1e9
            cost.add(moved / (sms * port), 0, 0.0, model.num_layers)
        else:
            cost.add(0.0, moved, moved / self.rates(sms)[0], model.num_layers)

    def _add_decode_attention(self, cost: StepCost, context_tokens: int, sms: int) -> None:
        _, attention_rate, gemm_rate = self.rates(sms)
        moved = context_tokens * self._layer_kv_bytes
        compute_ns = context_tokens * self._decode_flops_per_token / (gemm_rate * self._attention_share)
        cost.add(compute_ns, moved, moved / attention_rate, self.model.num_layers)

    def _add_prefill_attention(self, cost: StepCost, start: int, length: int, sms: int) -> None:
        """Causal: each new token sees the `start` tokens before the chunk and its predecessors in it. KV
        is read from memory once: the query tiles of a layer run together and share it in L2."""
        weight_rate, _, gemm_rate = self.rates(sms)
        pairs = length * start / self.profile.kernels.prior_attention_frac + length * (length + 1) / 2
        moved = (start + length) * self._layer_kv_bytes
        compute_ns = pairs * self._pair_flops / (gemm_rate * self._attention_share)
        cost.add(compute_ns, moved, moved / weight_rate, self.model.num_layers)

    def _add_head(self, cost: StepCost, rows: int, sms: int) -> None:
        """Logits of the sampled rows and the sampler's pass over them (fp32, written and read twice)."""
        self._add_linear(cost, rows, self.model.hidden, self.model.vocab_size, sms)
        moved = rows * self.model.vocab_size * 4 * 3
        cost.add(0.0, moved, moved / self.rates(sms)[0])


def _attention_flops(model: SimModel) -> tuple[int, int]:
    """(of a decode step per context token, of a prompt per pair of tokens), one layer. Decode's query groups
    are padded to whole MMA rows; with latent attention all heads are one group."""
    if model.latent is not None:
        heads, latents = math.ceil(model.num_heads / MMA_ROWS) * MMA_ROWS, model.latent.kv_rank
        pair = 2 * model.num_heads * (2 * model.head_dim + model.latent.rope_dim)
        return 2 * heads * (2 * latents + model.latent.rope_dim), pair
    groups = model.num_heads // model.num_kv_heads
    padded_heads = model.num_kv_heads * math.ceil(groups / MMA_ROWS) * MMA_ROWS
    return 4 * padded_heads * model.head_dim, 4 * model.num_heads * model.head_dim
