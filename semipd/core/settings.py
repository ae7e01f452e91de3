"""Everything the engine process needs to know, resolved once by the daemon and sent as the first frame.

Its defaults are those of the configuration: see semipd.config.config.default_engine_settings.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from semipd.core.slo import Slo
from semipd.core.split import PartitionMode, PolicyName
from semipd.system.logs import LogFormat

SchedulerName = Literal["semipd", "chunked", "prefill-first"]
OrderName = Literal["fcfs", "cost", "deadline"]
"""See sched.order."""

PrefillAttention = Literal["triton", "sdpa"]

TMA_BLOCK_SIZE = 64
KV_BLOCK_SIZES = (16, TMA_BLOCK_SIZE)
"""Of the CUDA device."""


PREFILL_GRAPH_ROWS = (256, 512, 1024, 2048)
"""Of a prefill step's graphs. A longer step computes for so long that launching it costs nothing."""

PREFILL_GRAPH_FILL = 0.75
"""A step that fills less of a graph is computed without: padded rows cost more than launches."""


@dataclass(frozen=True, slots=True)
class CudaSettings:
    """What only the CUDA device can do: the section [cuda] of the configuration.

    Attributes:
        sm_carveout: cuBLAS is told the SMs of the lane whose matrix products come next.
        dependent_launch: small kernels and decode attention are launched by programmatic dependent launch.
        prefill_graphs: groups of layers of a prefill are captured as graphs.
        kv_block_size: tokens per KV block, one of KV_BLOCK_SIZES.
        tma_loads: decode attention loads tiles by the tensor memory accelerator; with blocks of 64 tokens.
        prefill_attention: "triton": the kernels of semipd_kernels; "sdpa": torch's, see
            devices.cuda.forward.sdpa_ops.
    """

    sm_carveout: bool
    dependent_launch: bool
    prefill_graphs: bool
    kv_block_size: int
    tma_loads: bool
    prefill_attention: PrefillAttention


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Attributes:
    model_dir: local checkpoint folder ("" for devices that need none, e.g. fake).
    model_name: what was asked for; the device sim finds its row by it.
    device: "cpu", "cuda", "fake" or "sim:<gpu>".
    dtype: "auto", "float32", "bfloat16" or "float16".
    order: in which prompts are computed.
    max_late_s: a request whose first token would come so much later than it is due is refused.
    max_model_len: longest prompt plus output; 0: what the checkpoint says.
    max_num_seqs: most sequences admitted at once (prefilling and decoding).
    prefill_chunk_tokens: most prompt tokens in one prefill step.
    step_token_budget: most tokens in one merged step of the scheduler `chunked`.
    kv_bytes: size of the KV pool; 0: a fraction of the memory that is free after the weights.
    kv_fraction: that fraction; 0: the device's default.
    max_num_blocks: cap on pool blocks, for tests; 0: no cap.
    prefill_units: prefill's share while both lanes are busy; 0: half. In partition mode `auto` it holds
        until the step times are known.
    partition_mode, partition_policy: who chooses the split at start-up.
    merge_tokens: largest merged step that partition mode `auto` may choose instead of splitting; 0: none.
    slo_ttft_ms, slo_tpot_ms, slo_percentile, slo_window_s, slo_ttft_ms_per_1k_tokens, slo_itl_ms,
        slo_itl_percentile: targets at start-up, see Slo.
    state_dir: folder where learned step times are kept; "": semipd in the user's state folder.
    log_format: how the engine process logs: "text" or "json".
    start_patience: factor on the time limit of each start-up phase, and of the start of another worker.
    worker_step_limit_s: a worker process that takes longer for a step is killed and replaced.
    cuda: switches of the CUDA device; their defaults for every other device.
    """

    model_dir: str
    model_name: str
    device: str
    dtype: str
    scheduler: SchedulerName
    order: OrderName
    max_late_s: float
    max_model_len: int
    max_num_seqs: int
    prefill_chunk_tokens: int
    step_token_budget: int
    kv_bytes: int
    kv_fraction: float
    max_num_blocks: int
    prefill_units: int
    log_format: LogFormat
    sim_profile: str
    partition_mode: PartitionMode
    partition_policy: PolicyName
    merge_tokens: int
    slo_ttft_ms: float
    slo_tpot_ms: float
    slo_percentile: float
    slo_window_s: float
    slo_ttft_ms_per_1k_tokens: float
    slo_itl_ms: float
    slo_itl_percentile: float
    state_dir: str
    start_patience: float
    worker_step_limit_s: float
    cuda: CudaSettings

    @property
    def slo(self) -> Slo:
        """Targets at start-up."""
        return Slo(
            self.slo_ttft_ms,
            self.slo_tpot_ms,
            self.slo_percentile,
            self.slo_window_s,
            self.slo_ttft_ms_per_1k_tokens,
            self.slo_itl_ms,
            self.slo_itl_percentile,
        )

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> "EngineSettings":
        return cls(**data | {"cuda": CudaSettings(**data["cuda"])})
