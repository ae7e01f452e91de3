"""A coordinator over both CUDA lanes, on CPU tensors, under the deferring fake driver."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from support.deferred_cuda import DeferredCuda, WatchedStaging, host_frees
from support.sampled import checked_tokens
from torch import Tensor

from semipd.checkpoints.layout import plan_weights
from semipd.checkpoints.weights import weight_views
from semipd.config.config import default_engine_settings
from semipd.core.events import Event
from semipd.core.messages import Finished, Inbound, PromptLogprobs, StepTokens
from semipd.core.plan import StepResult, TokenLogprobs
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.core.split import LaneName
from semipd.core.state.device import DeviceStats
from semipd.devices.contract import DeviceInfo
from semipd.devices.cpu.math.network import CpuNetwork
from semipd.devices.cuda.driver.matmul_sms import AimMatmuls, leave_matmuls
from semipd.devices.cuda.driver.timing_events import EventPool
from semipd.devices.cuda.lane.lane import CudaLane
from semipd.devices.cuda.lane.launch_loop import IDLE_BEFORE_CAPTURE_NS, Command, LaunchLoop
from semipd.devices.cuda.lane.memory import LaneMemory, Shared
from semipd.devices.cuda.rows.size import LaneSize
from semipd.devices.cuda.sampler.sampler import Sampler, TorchSampler
from semipd.devices.cuda.split.streams import Lanes
from semipd.devices.cuda.start.assembly import build_loop, graph_tables, lane_size, reserve_memory
from semipd.engine.coordinator import Coordinator
from semipd.network.config import ModelConfig, RopeConfig
from semipd.network.kv_layout import KvLayout
from semipd.network.network import Network
from semipd.network.ops import Ops
from semipd.network.ops_torch import TorchOps
from semipd.network.rows import PassSize, StepRows
from semipd.sampling.batch import SamplingBatch, SamplingRow
from semipd.sampling.logprobs import token_logprobs

CPU = torch.device("cpu")
DEFAULTS = default_engine_settings(
    device="cuda", max_num_seqs=6, prefill_chunk_tokens=24, step_token_budget=24, merge_tokens=0
)
MAX_MODEL_LEN = 160

TINY = ModelConfig(
    family="llama",
    vocab_size=61,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    rms_norm_eps=1e-5,
    rope=RopeConfig("default", 10_000.0),
    max_position_embeddings=MAX_MODEL_LEN,
    tie_word_embeddings=False,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=False,
    dtype="float32",
)
FAMILIES = {
    "llama": TINY,
    "qwen2": replace(TINY, family="qwen2", qkv_bias=True, tie_word_embeddings=True),
    "qwen3": replace(TINY, family="qwen3", qk_norm=True, num_kv_heads=1),
    "biased": replace(TINY, o_bias=True, mlp_bias=True, num_kv_heads=4, num_layers=5),
}


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Logits far apart: a token is hardly ever decided by the last bits of a sum."""
    layout = plan_weights(config, "float32")
    weights = weight_views(layout, torch.zeros(layout.total_bytes, dtype=torch.uint8))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.copy_(1 + 0.2 * noise)
        elif weight.dim() == 2 and name != "embed":
            weight.copy_(2 * noise * weight.shape[1] ** -0.5)
        else:
            weight.copy_(0.5 * noise)
    return weights


@dataclass(eq=False)
class Oracle:
    """Generates each request alone, one pass a token, with the CPU's decoder and sampler."""

    config: ModelConfig
    weights: dict[str, Tensor]

    def logits(self, tokens: list[int]) -> Tensor:
        """[len(tokens), vocab] of one pass over all of them."""
        layout = KvLayout.of(self.config, len(tokens))
        pool = torch.full(layout.pool_shape(1), torch.nan)
        rows = StepRows.of_prompt(tokens, layout.block_size)
        return CpuNetwork(self.config, self.weights, pool).forward(rows, rows.positions).logits

    def generate(self, request: Request) -> tuple[list[int], list[TokenLogprobs]]:
        tokens, entries = list(request.prompt), list[TokenLogprobs]()
        params = request.params
        limit = min(len(tokens) + params.max_tokens, self.config.max_position_embeddings)
        while len(tokens) < limit:
            logits = self.logits(tokens)[-1:]
            row = SamplingRow(params, tokens, len(request.prompt))
            sampled = SamplingBatch([row], self.config.vocab_size, CPU).sample(logits)
            entries += token_logprobs(logits, sampled, [params.logprobs or 0])
            tokens += checked_tokens(sampled)
            num_output = len(tokens) - len(request.prompt)
            if tokens[-1] in params.stop_token_ids and num_output >= params.min_tokens:
                break
        return tokens[len(request.prompt) :], entries

    def prompt_logprobs(self, request: Request) -> list[TokenLogprobs]:
        wanted = request.params.prompt_logprobs
        assert wanted is not None
        targets = torch.tensor(request.prompt[1:], dtype=torch.int64)
        return token_logprobs(self.logits(request.prompt)[:-1], targets, [wanted] * len(targets))


class InlineRunner:
    """Turns the loop whenever the coordinator looks for results, sometimes several times."""

    def __init__(self, rng: random.Random) -> None:
        self.loop: LaunchLoop | None = None
        self._rng = rng
        self._results: dict[LaneName, list[StepResult]] = {"prefill": [], "decode": []}

    def deliver(self, lane: LaneName, result: StepResult) -> None:
        self._results[lane].append(result)

    def give(self, lane: LaneName, command: Command) -> None:
        assert self.loop is not None
        self.loop.inbox.append((lane, command))

    def take(self, lane: LaneName) -> list[StepResult]:
        assert self.loop is not None
        for _ in range(self._rng.randrange(3)):
            self.loop.turn(time.monotonic_ns())
        results, self._results[lane] = self._results[lane], []
        return results


@dataclass(eq=False)
class RigDevice:
    """See devices.contract.Device."""

    info: DeviceInfo
    prefill: CudaLane
    decode: CudaLane

    def files(self) -> list[int]:
        return []

    def wake_at_ns(self) -> int | None:
        return None

    def stats(self) -> DeviceStats:
        return {}

    def close(self) -> None:
        pass


@dataclass
class Rig:
    """`run` serves requests; what came out stands in the attributes."""

    seed: int = 0
    family: str = "llama"
    settings: EngineSettings = DEFAULTS
    num_blocks: int = 60
    block_size: int = 16
    decode_depth: int = 2
    prefill_depth: int = 2
    group_layers: int = 1
    chunk_passes: tuple[PassSize, ...] = ()
    prefill_moves: bool = True
    ops: Ops = field(default_factory=TorchOps)
    aim_matmuls: AimMatmuls = leave_matmuls
    sampler_of: Callable[[LaneSize], Sampler] = lambda size: TorchSampler()
    tokens: dict[SeqId, list[int]] = field(default_factory=dict)
    logprobs: dict[SeqId, list[TokenLogprobs | None]] = field(default_factory=dict)
    prompt_logprobs: dict[SeqId, list[TokenLogprobs]] = field(default_factory=dict)
    finished: dict[SeqId, Finished] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.rng = random.Random(self.seed)
        self.config = FAMILIES[self.family]
        self.weights = random_weights(self.config)
        self.driver = DeferredCuda(self.rng)
        self.driver.bind_thread()
        self.cuda_lanes = Lanes.open(self.driver)
        layout = KvLayout.of(self.config, self.block_size)
        self.pool = torch.full(layout.pool_shape(self.num_blocks), torch.nan)
        self.runner = InlineRunner(self.rng)
        self.loop = self.runner.loop = self._loop()
        self.device = RigDevice(
            self._info(),
            CudaLane("prefill", self.runner, self.prefill_depth),
            CudaLane("decode", self.runner, self.decode_depth),
        )
        self.coordinator = Coordinator(self.device, self.settings)
        self._watch_blocks()
        self._now_ns = 0

    def _loop(self) -> LaunchLoop:
        self.staging = WatchedStaging(self.driver)
        shared = Shared(
            self.driver,
            self.cuda_lanes,
            self.driver.submit,
            Network(self.config, self.weights, self.pool, self.ops),
            self.staging,
            EventPool(self.driver),
            CPU,
            self.aim_matmuls,
        )
        names: tuple[LaneName, ...] = ("prefill", "decode")
        num_sms = self.cuda_lanes.capability.num_sms
        sizes = {
            name: replace(
                lane_size(name, self.settings, self.config, MAX_MODEL_LEN, self.block_size, num_sms),
                group_layers=self.group_layers,
                chunk_passes=self.chunk_passes if name == "prefill" else (),
            )
            for name in names
        }
        self.staging.reserve(sizes.values())
        memories = {
            name: reserve_memory(
                sizes[name], self.config, "float32", self.sampler_of(sizes[name]), self.ops, CPU
            )
            for name in names
        }
        for memory in memories.values():
            memory.logits.fill_(torch.nan)
        zeroed = [(name, part) for name in names for part in ("slots", "history", "rows")]
        self.driver.host("memory zeroed, device synchronised", writes=zeroed)
        tables = graph_tables(self.cuda_lanes, sizes, self.config.num_layers)
        self.graphs, self.prefill_graphs = tables["decode"], tables["prefill"]
        return build_loop(shared, sizes, memories, tables, self.runner.deliver)

    def _info(self) -> DeviceInfo:
        lanes = self.cuda_lanes
        return DeviceInfo(
            kind="cuda",
            name="rig",
            unit="SM",
            num_units=lanes.capability.num_sms,
            splits=lanes.splits,
            solo_prefill=lanes.solo_prefill,
            solo_decode=lanes.solo_decode,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            vocab_size=self.config.vocab_size,
            max_model_len=MAX_MODEL_LEN,
            dtype="float32",
            memory={},
            prefill_moves=self.prefill_moves,
        )

    def _watch_blocks(self) -> None:
        """A block that is handed out holds nothing any more."""
        pool = self.coordinator.scheduler.memory.pool
        allocate = pool.allocate

        def watched(count: int) -> list[int]:
            blocks = allocate(count)
            host_frees(self.driver, blocks)
            self.pool[:, :, blocks] = torch.nan
            return blocks

        pool.allocate = watched  # type: ignore[method-assign]

    def use_pause(self) -> bool:
        """Nothing has been done for long enough to capture a graph."""
        return self.loop.use_pause(time.monotonic_ns() + IDLE_BEFORE_CAPTURE_NS + 1)

    def capture_all(self) -> None:
        """Every graph, as the pauses of a long life would."""
        while self.graphs.num_missing or self.prefill_graphs.num_missing:
            assert self.use_pause(), "nothing runs, yet no graph came"
        assert not self.use_pause()

    def memory(self, lane: LaneName) -> LaneMemory:
        return self.loop.lanes[lane]._work._memory

    def activations(self, lane: LaneName) -> list[Tensor]:
        """The memory of the lane's passes."""
        memory = self.memory(lane).activations
        return [getattr(memory, name) for name in memory.__slots__]

    def tick(self, inbox: list[Inbound] | None = None) -> bool:
        """One turn of the coordinator. False when nothing lives."""
        self._now_ns += 1_000_000
        turn = self.coordinator.tick(self._now_ns, inbox or [])
        for message in turn.outbox:
            match message:
                case StepTokens(seqs, tokens, logprobs):
                    for seq, token, entry in zip(seqs, tokens, logprobs or [None] * len(seqs), strict=True):
                        self.tokens.setdefault(seq, []).append(token)
                        self.logprobs.setdefault(seq, []).append(entry)
                case PromptLogprobs(seq, entries):
                    self.prompt_logprobs.setdefault(seq, []).extend(entries)
                case Finished(seq):
                    self.finished[seq] = message
                case Event():
                    self.events.append(message)
        return not turn.idle

    def finish(self) -> None:
        """Until nothing lives, with every check at the end."""
        turns = 0
        while self.tick():
            turns += 1
            assert turns < 50_000, "the engine does not come to an end"
            self.coordinator.check_integrity()
        self.driver.check_order()
