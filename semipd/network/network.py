"""The forward pass, once for all devices: what an Ops computes makes it a device's.

A pass can be cut between any two layers, captured into a graph, and run on any lane.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from semipd.network.activations import Activations
from semipd.network.blocks import DenseMlp, GqaAttention, bound
from semipd.network.config import ModelConfig
from semipd.network.kv_layout import KvLayout
from semipd.network.ops import Heads, Ops
from semipd.network.rows import ChunkPlan, StepRows


class Network:
    """A pre-norm transformer. One pass: `embed`, `layers` over all indices in order, `finish`, then `logits`
    of the rows wanted. Matrix products run in the weights' dtype; norms, RoPE and softmax in float32.

    Args:
        weights: by the names of network.params, on one device and, where a Param says nothing, of one dtype.
        kv_pool: of a shape of KvLayout, same device and dtype; slots that hold no token may contain anything.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], kv_pool: Tensor, ops: Ops) -> None:
        assert kv_pool.shape == KvLayout.of(config, kv_pool.shape[4]).pool_shape(kv_pool.shape[2]), (
            kv_pool.shape
        )
        self.num_layers = config.num_layers
        self._ops = ops
        self._eps = config.rms_norm_eps
        self._pool = kv_pool
        self._heads = Heads.of(config, kv_pool)
        self._embed = weights["embed"]
        self._norm = weights["norm"]
        self._lm_head = weights.get("lm_head", self._embed)
        self._attention = [bound(GqaAttention, weights, idx) for idx in range(config.num_layers)]
        self._mlp = [bound(DenseMlp, weights, idx) for idx in range(config.num_layers)]

    def plan_chunks(self, query_lens: Sequence[int], kv_lens: Sequence[int], num_units: int) -> ChunkPlan:
        """See Ops.plan_chunks."""
        return self._ops.plan_chunks(query_lens, kv_lens, self._heads, num_units)

    def embed(self, rows: StepRows, memory: Activations) -> None:
        memory.hidden = self._ops.embed(rows.token_ids, self._embed, memory.hidden)

    def layers(self, rows: StepRows, memory: Activations, indices: Iterable[int], num_units: int) -> None:
        """The last layer stops after attention: `finish` does the rest, for the rows that matter."""
        for idx in indices:
            attention = self._attention[idx]
            if idx == 0:
                norm = attention.input_norm
                memory.normed = self._ops.rms_norm(memory.hidden, norm, self._eps, memory.normed)
            else:
                self._add_norm(memory, attention.input_norm)
            attention.attend(self._ops, self._heads, rows, memory, self._pool[idx], num_units)
            if idx < self.num_layers - 1:
                self._after_attention(idx, memory)

    def finish(self, memory: Activations, wanted: Tensor | None) -> Tensor:
        """Final hidden states [R, H] of the rows `wanted` ([R]; None: all), in their order; valid until the
        lane's next pass."""
        if wanted is not None:
            # Their own tensors: gathering in place would overwrite rows still to be read.
            hidden, attended = memory.hidden.index_select(0, wanted), memory.attended.index_select(0, wanted)
            memory = memory.first(wanted.shape[0])
            memory.hidden, memory.attended = hidden, attended
        self._after_attention(self.num_layers - 1, memory)
        self._add_norm(memory, self._norm)
        return memory.normed

    def logits(self, final: Tensor, out: Tensor) -> Tensor:
        """[R, vocab] float32, as `out` is."""
        return self._ops.linear(final, self._lm_head, None, out)

    def _after_attention(self, idx: int, memory: Activations) -> None:
        """From attended values to `branch`, what the MLP adds."""
        self._attention[idx].project(self._ops, memory)
        self._add_norm(memory, self._mlp[idx].mlp_norm)
        self._mlp[idx].forward(self._ops, memory)

    def _add_norm(self, memory: Activations, weight: Tensor) -> None:
        memory.normed = self._ops.add_rms_norm(memory.branch, memory.hidden, weight, self._eps, memory.normed)
