"""A device for tests: scripted latencies, deterministic tokens, and a KV pool that notices mistakes.

Every KV slot holds a chain value h(i) = mix(h(i - 1), token i), where h(i - 1) is read back from the slot
of token i - 1 *through the block table, when the step finishes*. The next token is a function of the last
chain value, the seed and the position. So a block handed out too early, a wrong table, a missing delta or
a stale prefix hit changes tokens, and comparing with `expected_tokens` finds it.

`poison_token_ids` stand for rows of a checkpoint that hold NaN: from such a token on, a sequence's chain
values are POISON and its logits invalid, and so are those of every sequence that reads one of its slots.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from semipd.checkpoints.gguf.config_json import config_json, is_gguf
from semipd.checkpoints.gguf.header import GgufHeader
from semipd.core.plan import INVALID_LOGITS, Join, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings
from semipd.core.split import LaneName, Split
from semipd.core.state.device import DeviceStats
from semipd.devices.contract import DeviceInfo, LaneFailed

NUM_UNITS = 16
DEFAULT_VOCAB_SIZE = 1000
DEFAULT_MODEL_LEN = 2048
DEFAULT_NUM_BLOCKS = 4096
BLOCK_SIZE = 16
"""Tokens per KV block, unless a test wants another number."""

BLOCK_BYTES = 8 * BLOCK_SIZE
"""A slot holds a chain value of 64 bits."""

POISON = -1
"""No chain value: NaN, as it were."""

_MASK = 2**64 - 1

RunLength = Callable[[SeqId, int], int]
"""(sequence, how many tokens it has) to how many tokens the next decode step gives it."""

Latency = Callable[[LaneName, StepPlan], int]
"""(lane, plan) to nanoseconds."""


def default_latency(lane: LaneName, plan: StepPlan) -> int:
    """Decode: 1 ms and 10 us per sequence, flat above a quarter of the units, as memory-bound work is.
    Prefill: 10 us per token on all units, in inverse proportion to the lane's share."""
    units = plan.split.units_of(lane)
    chunk_tokens = sum(segment.length for segment in plan.segments)
    slowdown = max(1.0, NUM_UNITS / 4 / units)
    decode_ns = (1_000_000 + 10_000 * len(plan.decode)) * slowdown if plan.decode else 0
    return int(decode_ns + 10_000 * chunk_tokens * NUM_UNITS / units)


def mix(state: int, value: int) -> int:
    """A 64-bit hash step (the finaliser of splitmix64)."""
    z = (state * 0x9E3779B97F4A7C15 + value + 0x632BE59BD9B4E019) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def next_token(chain: int, seed: int, position: int, vocab_size: int) -> int:
    return mix(mix(chain, seed), position) % vocab_size


def chosen_token(chain: int, params: SamplingParams, position: int, vocab_size: int) -> int:
    allowed = sorted(set(params.allowed_token_ids))
    idx = next_token(chain, params.seed, position, len(allowed) or vocab_size)
    return allowed[idx] if allowed else idx


def expected_tokens(
    prompt: Sequence[int], params: SamplingParams, max_model_len: int, vocab_size: int
) -> list[int]:
    """The output of an undisturbed run: the oracle for everything the engine does."""
    chain, output = 0, list[int]()
    for token in prompt:
        chain = mix(chain, token)
    limit = min(params.max_tokens, max_model_len - len(prompt))
    while len(output) < limit:
        token = chosen_token(chain, params, len(prompt) + len(output), vocab_size)
        output.append(token)
        chain = mix(chain, token)
        if token in params.stop_token_ids and len(output) >= params.min_tokens:
            break
    return output


@dataclass(slots=True)
class _Resident:
    tokens: list[int]
    blocks: list[int]
    params: SamplingParams
    block_size: int
    is_poisoned: bool = False

    def slot(self, position: int) -> int:
        return self.blocks[position // self.block_size] * self.block_size + position % self.block_size


@dataclass(slots=True, eq=False)
class FakeLane:
    """Runs plans in order, up to `depth` in flight; does a step's work at its finishing time."""

    name: LaneName
    device: "FakeDevice"
    depth: int
    latency: Latency
    residents: dict[SeqId, _Resident] = field(default_factory=dict)
    run_length: "RunLength | None" = None
    _queue: deque[tuple[StepPlan, int, int]] = field(default_factory=deque)  # plan, start, finish
    _free_at_ns: int = 0

    def capacity(self) -> int:
        return self.depth - len(self._queue)

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        assert self.capacity() > 0, f"{self.name} lane is full"
        start = max(now_ns, self._free_at_ns)
        self._free_at_ns = start + self.latency(self.name, plan)
        self._queue.append((plan, start, self._free_at_ns))

    def poll(self, now_ns: int) -> list[StepResult]:
        results = []
        while self._queue and self._queue[0][2] <= now_ns:
            plan, start, finish = self._queue.popleft()
            results.append(self._execute(plan, finish - start))
        return results

    def rebuild(self, residents: Sequence[Join]) -> None:
        assert not self._queue, "rebuild with steps in flight"
        self.residents = {}
        for join in residents:
            self._join(join)

    def next_finish_ns(self) -> int | None:
        return self._queue[0][2] if self._queue else None

    def _join(self, join: Join) -> None:
        assert join.seq not in self.residents, f"seq {join.seq} joins twice"
        self.residents[join.seq] = _Resident(
            list(join.token_ids), list(join.block_table), join.params, self.device.info.block_size
        )

    def _execute(self, plan: StepPlan, busy_ns: int) -> StepResult:
        for seq in plan.leaves:
            del self.residents[seq]
        for join in plan.joins:
            self._join(join)
        for seq, blocks in plan.new_blocks:
            self.residents[seq].blocks.extend(blocks)
        vocab_size = self.device.info.vocab_size
        tokens: list[tuple[int, ...]] = []
        wanted: list[int | None] = []
        failed: dict[SeqId, str] = {}
        for seq in plan.decode:
            resident = self.residents[seq]
            tokens.append(self._decode(seq, resident))
            wanted.append(resident.params.logprobs)
            if resident.is_poisoned:
                failed[seq] = INVALID_LOGITS
        prompt_logprobs: dict[SeqId, list[TokenLogprobs]] = {}
        for segment in plan.segments:
            resident = self.residents[segment.seq]
            token = self._compute(resident, segment.start, segment.length, sample=segment.sample)
            if resident.is_poisoned:
                failed[segment.seq] = INVALID_LOGITS
            elif segment.prompt_logprobs is not None:
                last = min(segment.start + segment.length + 1, len(resident.tokens) - segment.sample)
                prompt = resident.tokens[segment.start + 1 : last]
                count = segment.prompt_logprobs
                prompt_logprobs[segment.seq] = [_logprobs(t, count, vocab_size) for t in prompt]
            if segment.sample:
                tokens.append((token,))
                wanted.append(resident.params.logprobs)
        logprobs = None
        if any(count is not None for count in wanted):
            pairs = zip(tokens, wanted, strict=True)
            logprobs = [
                None if n is None or run[0] < 0 else tuple(_logprobs(token, n, vocab_size) for token in run)
                for run, n in pairs
            ]
        return StepResult(
            plan.step_id, tokens, busy_ns, logprobs, prompt_logprobs or None, failed=failed or None
        )

    def _decode(self, seq: SeqId, resident: _Resident) -> tuple[int, ...]:
        """Several tokens, as if they had been drafted and found right."""
        count = self.run_length(seq, len(resident.tokens)) if self.run_length else 1
        return tuple(self._compute(resident, len(resident.tokens) - 1, 1, sample=True) for _ in range(count))

    def _compute(self, resident: _Resident, start: int, length: int, *, sample: bool) -> int:
        """Write the chain values of tokens [start, start + length); the next token if it is to be sampled, -1
        if there is none."""
        pool, poison = self.device.pool, self.device.poison_token_ids
        chain = pool[resident.slot(start - 1)] if start else 0
        for position in range(start, start + length):
            token = resident.tokens[position]
            chain = POISON if chain == POISON or token in poison else mix(chain, token)
            pool[resident.slot(position)] = chain
        end = start + length
        assert not sample or end == len(resident.tokens), (
            f"sampling at {end} of {len(resident.tokens)} tokens"
        )
        resident.is_poisoned = chain == POISON
        if not sample or resident.is_poisoned:
            return -1
        token = chosen_token(chain, resident.params, end, self.device.info.vocab_size)
        resident.tokens.append(token)
        return token


def _logprobs(token: int, num_alternatives: int, vocab_size: int) -> TokenLogprobs:
    """Made up, but a function of the token: the token first, then its neighbours."""
    top = tuple(((token + i) % vocab_size, -0.5 - i) for i in range(num_alternatives))
    return TokenLogprobs(token, -0.5, top, rank=1)


class FakeDevice:
    """16 units that can be split anywhere. `pool` is the KV memory, one chain value per token slot."""

    def __init__(
        self,
        *,
        num_blocks: int = DEFAULT_NUM_BLOCKS,
        block_size: int = BLOCK_SIZE,
        vocab_size: int = DEFAULT_VOCAB_SIZE,
        max_model_len: int = DEFAULT_MODEL_LEN,
        decode_depth: int = 1,
        prefill_depth: int = 1,
        latency: Latency = default_latency,
        poison_token_ids: Iterable[int] = (),
        max_decode_tokens: int = 1,
        run_length: RunLength | None = None,
    ) -> None:
        """`run_length`: of decode steps, at most `max_decode_tokens`; None: always one token."""
        self.info = DeviceInfo(
            kind="fake",
            name=f"fake device, {NUM_UNITS} units",
            unit="unit",
            num_units=NUM_UNITS,
            splits=tuple(Split(NUM_UNITS - n, n) for n in range(1, NUM_UNITS)),
            solo_prefill=Split(NUM_UNITS, 0),
            solo_decode=Split(0, NUM_UNITS),
            num_blocks=num_blocks,
            block_size=block_size,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            dtype="none",
            memory={},
            max_decode_tokens=max_decode_tokens,
        )
        self.poison_token_ids = frozenset(poison_token_ids)
        self.pool = [0] * (num_blocks * block_size)
        self.prefill = FakeLane("prefill", self, prefill_depth, latency, run_length=run_length)
        self.decode = FakeLane("decode", self, decode_depth, latency, run_length=run_length)

    @classmethod
    def open(cls, settings: EngineSettings) -> "FakeDevice":
        """As the engine process starts it: vocabulary, context and "poison_token_ids" of the checkpoint's
        config.json or file of GGUF, if there is one."""
        vocab_size, context, poison = _checkpoint_facts(settings.model_dir)
        return cls(
            num_blocks=settings.max_num_blocks or settings.kv_bytes // BLOCK_BYTES or DEFAULT_NUM_BLOCKS,
            vocab_size=vocab_size,
            max_model_len=settings.max_model_len or context,
            poison_token_ids=poison,
        )

    def files(self) -> Sequence[int]:
        return ()

    def wake_at_ns(self) -> int | None:
        times = [self.prefill.next_finish_ns(), self.decode.next_finish_ns()]
        return min((time for time in times if time is not None), default=None)

    def stats(self) -> DeviceStats:
        return {}

    def close(self) -> None:
        pass


def _checkpoint_facts(model_dir: str) -> tuple[int, int, list[int]]:
    """(vocabulary size, context length, poison tokens)."""
    if not model_dir:
        return DEFAULT_VOCAB_SIZE, DEFAULT_MODEL_LEN, []
    path = Path(model_dir)
    try:
        if is_gguf(path):
            config = config_json(GgufHeader.read(path))
        else:
            config = json.loads((path / "config.json").read_text())
        poison = [int(token) for token in config.get("poison_token_ids", [])]
        return int(config["vocab_size"]), int(config["max_position_embeddings"]), poison
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LaneFailed("checkpoint_corrupt", f"The fake device cannot read {path} ({error!r}).") from error
