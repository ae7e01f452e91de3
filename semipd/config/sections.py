"""The sections of the configuration: every option with its default, bounds and what it does."""

from dataclasses import dataclass
from typing import get_args

from semipd.config.schema import option
from semipd.core.settings import KV_BLOCK_SIZES, OrderName, PrefillAttention, SchedulerName
from semipd.core.split import PartitionMode, PolicyName
from semipd.system.logs import LOG_FORMATS, LogFormat

_MiB = 2**20
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ServerConfig:
    host: str = option("127.0.0.1", "Address the HTTP server listens on.", required=True)
    port: int = option(8808, "Port of the HTTP server; 0: any free port.", minimum=0, maximum=65535)
    socket: str = option("", "Path of the Unix socket; empty: daemon.sock in the user's runtime folder.")
    max_body_bytes: int = option(
        8 * _MiB, "Largest HTTP request body accepted.", minimum=1024, maximum=1024 * _MiB
    )
    backlog: int = option(
        1024,
        "Connections that may wait to be accepted; the system caps it at net.core.somaxconn.",
        minimum=1,
        maximum=65535,
    )
    allowed_hosts: str = option(
        "", "Further names of this server in Host headers, separated by commas; *: any name."
    )
    cors_origins: str = option(
        "",
        "Origins of web pages that may use this server, separated by commas, such as https://chat.example; "
        "*: any; empty: none.",
    )
    log_level: str = option(
        "info", "Least severe log lines written to stderr.", choices=("debug", "info", "warning", "error")
    )
    log_format: LogFormat = option(
        "text", "text, or json: one object a line, for log collectors.", choices=LOG_FORMATS
    )
    log_prompts: bool = option(False, "Write the prompt of each request into the log.")


@dataclass(frozen=True, slots=True)
class SocketConfig:
    group: str = option(
        "", "Group whose members may use the Unix socket for requests of their own; empty: our user only."
    )


@dataclass(frozen=True, slots=True)
class AuthConfig:
    keys_file: str = option(
        "", "File of API keys, one name:key a line, readable by its owner only; empty: HTTP needs no key."
    )
    operations_keys_file: str = option(
        "", "Likewise for operators' keys; empty with keys_file set: operators use the Unix socket."
    )


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    requests_per_s: float = option(
        0.0, "Requests per second for each key, or address without keys; 0: no limit.", minimum=0, maximum=1e6
    )
    burst: int = option(
        10, "Requests that may come at once before that rate holds.", minimum=1, maximum=_MAX_COUNT
    )
    max_connections: int = option(
        4096, "Most connections open at once, for HTTP and the Unix socket each.", minimum=1, maximum=1048576
    )
    head_limit_s: float = option(
        20.0, "For the head of the first request on a connection to arrive.", minimum=0.1, maximum=3600.0
    )
    body_limit_s: float = option(60.0, "For the body of a request to arrive.", minimum=0.1, maximum=3600.0)
    max_header_bytes: int = option(
        16384, "Longest request line, and longest header.", minimum=1024, maximum=1048576
    )
    max_unread_tokens: int = option(
        4096,
        "Tokens kept for a stream whose client reads slowly; beyond, the stream ends with slow_reader.",
        minimum=16,
        maximum=1048576,
    )
    max_body_values: int = option(
        262144,
        "Most JSON values in a request; a list counts 12, an object 24. A million hold the daemon for 0.1 s.",
        minimum=4096,
        maximum=_MAX_COUNT,
    )
    template_ms: int = option(
        2000,
        "CPU time in which the chat template must write a conversation, in milliseconds.",
        minimum=10,
        maximum=600000,
    )
    template_chars: int = option(
        16777216,
        "Most characters that the chat template may write.",
        minimum=1024,
        maximum=_MAX_COUNT,
    )
    template_memory_bytes: int = option(
        512 * _MiB,
        "Most memory that the chat template may take while it writes.",
        minimum=32 * _MiB,
        maximum=2**40,
    )


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    max_waiting_requests: int = option(
        1024, "Most requests waiting for a place in the KV pool; beyond: 503.", minimum=1, maximum=_MAX_COUNT
    )
    max_waiting_tokens: int = option(
        1048576, "Most prompt tokens of waiting requests; beyond: 503.", minimum=1, maximum=_MAX_COUNT
    )
    max_request_share: float = option(
        0.5,
        "Part of that room which one request (prompts times n) may fill, else 400. One sequence always may.",
        minimum=0.001,
        maximum=1.0,
    )
    batch_share: float = option(
        0.5, "Part of that room which requests of priority batch may fill.", minimum=0.01, maximum=1.0
    )
    max_late_s: float = option(
        30.0,
        "A request whose first token would come so much later than its target says is refused, unless it has "
        "agreed to wait (accept_late): 503 late. Proxies often cut a silent connection after 60 s.",
        minimum=0.0,
        maximum=86400.0,
    )
    timeout_ms: int = option(
        0, "Deadline of requests that name none, from their arrival; 0: none.", minimum=0, maximum=_MAX_COUNT
    )


@dataclass(frozen=True, slots=True)
class DrainConfig:
    limit_s: float = option(
        30.0,
        "For requests under way to finish when the daemon stops or drains.",
        minimum=0.0,
        maximum=86400.0,
    )


@dataclass(frozen=True, slots=True)
class SupervisionConfig:
    interval_s: float = option(
        1.0, "Time between two looks at whether the engine moves.", minimum=0.02, maximum=60.0
    )
    answer_limit_s: float = option(
        60.0,
        "An engine whose loop does not answer for so long is killed and replaced.",
        minimum=0.1,
        maximum=86400.0,
    )
    step_limit_s: float = option(
        120.0,
        "An engine that has work and finishes no step for so long is killed and replaced.",
        minimum=0.1,
        maximum=86400.0,
    )
    worker_step_limit_s: float = option(
        60.0,
        "A lane's worker process that takes longer for a step is killed and replaced; long prompts get more.",
        minimum=0.1,
        maximum=86400.0,
    )
    stall_s: float = option(
        30.0,
        "From such a delay on, /ready answers 503 and the indicator progress is out.",
        minimum=0.1,
        maximum=86400.0,
    )
    start_patience: float = option(
        1.0,
        "How long each phase of the engine's start may stand still is multiplied by this.",
        minimum=0.01,
        maximum=1000.0,
    )
    max_deaths: int = option(
        5,
        "So many deaths of the engine within window_s, no token between them, end the daemon.",
        minimum=1,
        maximum=1000,
    )
    window_s: float = option(
        300.0, "Time of serving over which deaths are counted.", minimum=0.1, maximum=86400.0
    )
    backoff_s: float = option(
        0.5,
        "Wait before the first restart, doubled with each death within window_s.",
        minimum=0.0,
        maximum=3600.0,
    )
    backoff_max_s: float = option(30.0, "Most that this wait is doubled to.", minimum=0.0, maximum=86400.0)


@dataclass(frozen=True, slots=True)
class ServedModelConfig:
    name: str = option(
        "demo",
        'Model to serve: "demo" (bundled), "smollm2" (fetched), a folder, a GGUF file, or a hub name.',
        required=True,
    )
    served_model_name: str = option("", "Name that clients use for the model; empty: model.name.")
    dtype: str = option(
        "auto",
        "Type of weights and KV; auto: bfloat16 where the device has it, else float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_model_len: int = option(
        0, "Longest prompt plus output in tokens; 0: what the checkpoint says.", minimum=0, maximum=_MAX_COUNT
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    device: str = option(
        "cpu",
        "Where the model runs; sim: a GPU's timing with made-up tokens; fake: made-up tokens, for tests.",
        choices=("cpu", "cuda", "sim:h200", "sim:h100", "sim:a100", "fake"),
    )
    scheduler: SchedulerName = option(
        "semipd",
        "semipd: two lanes; chunked: merged steps on one lane; prefill-first: prompts before decode.",
        choices=get_args(SchedulerName),
    )
    order: OrderName = option(
        "deadline",
        "In which order prompts are computed. deadline: due ones first, those that would be late in the "
        "background; cost: short ones first, with ageing; fcfs: by arrival.",
        choices=get_args(OrderName),
    )
    max_num_seqs: int = option(
        64, "Most sequences prefilling and decoding at once.", minimum=1, maximum=65536
    )
    prefill_chunk_tokens: int = option(
        512, "Most prompt tokens in one prefill step.", minimum=1, maximum=_MAX_COUNT
    )
    step_token_budget: int = option(
        512, "Most tokens in one merged step of the scheduler chunked.", minimum=1, maximum=_MAX_COUNT
    )
    prefill_units: int = option(
        0, "Prefill's share of the cores or SMs while both lanes work; 0: half.", minimum=0, maximum=65536
    )
    sim_profile: str = option("", "JSON file of measured values for the devices sim; empty: built-in ones.")


@dataclass(frozen=True, slots=True)
class KvConfig:
    bytes: int = option(0, "Size of the KV pool in bytes; 0: kv.fraction decides.", minimum=0, maximum=2**50)
    fraction: float = option(
        0.0,
        "Share of the memory left after the weights that the KV pool takes; 0: 0.5 on the CPU, 0.9 on a GPU.",
        minimum=0.0,
        maximum=0.95,
    )


@dataclass(frozen=True, slots=True)
class CudaConfig:
    """Each field stands in CudaSettings too. For another device than cuda only the defaults are allowed."""

    sm_carveout: bool = option(
        False, "Tell cuBLAS how many SMs the lane has whose matrix products come next; not yet measured."
    )
    dependent_launch: bool = option(
        False, "Launch small kernels while the ones before them still end; from Hopper; not yet measured."
    )
    prefill_graphs: bool = option(
        False, "Replay prefill steps of 192 to 2048 tokens as CUDA graphs where they fit; not yet measured."
    )
    kv_block_size: int = option(16, "Tokens per KV block; 64 is not yet measured.", choices=KV_BLOCK_SIZES)
    tma_loads: bool = option(
        False, "Decode attention loads tiles by TMA; needs kv_block_size 64 and Hopper; not yet measured."
    )
    prefill_attention: PrefillAttention = option(
        "triton",
        "What computes attention of prompts; sdpa: torch, from a copy of each context; not yet measured.",
        choices=get_args(PrefillAttention),
    )


@dataclass(frozen=True, slots=True)
class PartitionConfig:
    mode: PartitionMode = option(
        "auto",
        "auto: the policy chooses the split; fixed: engine.prefill_units; off: no split, merged steps.",
        choices=get_args(PartitionMode),
    )
    policy: PolicyName = option(
        "predictive",
        "predictive: from predicted step times and the real queue; paper: Algorithm 1 of semi-PD.",
        choices=get_args(PolicyName),
    )
    merge_tokens: int = option(
        8192,
        "Largest merged step that mode auto may run when no split is needed; 0: always split. On the CPU "
        "engine.step_token_budget or engine.prefill_chunk_tokens, if the larger of them is less.",
        minimum=0,
        maximum=_MAX_COUNT,
    )
    state_dir: str = option(
        "", "Folder where learned step times are kept; empty: semipd in the user's state folder."
    )


@dataclass(frozen=True, slots=True)
class SloConfig:
    ttft_ms: float = option(
        500.0, "Target from arrival to the first token, in milliseconds.", minimum=0.001, maximum=1e9
    )
    ttft_ms_per_1k_tokens: float = option(
        0.0,
        "Added to that target for each 1000 prompt tokens that are not in the prefix cache, in milliseconds.",
        minimum=0.0,
        maximum=1e9,
    )
    tpot_ms: float = option(
        50.0, "Target of the mean time per further token, in milliseconds.", minimum=0.001, maximum=1e9
    )
    itl_ms: float = option(
        0.0,
        "Target of the times between two tokens of a request, at itl_percentile of them, in milliseconds; "
        "0: none.",
        minimum=0.0,
        maximum=1e9,
    )
    itl_percentile: float = option(
        99.0,
        "Share of a request's inter-token times, in percent, that should be within itl_ms; for every class.",
        minimum=1.0,
        maximum=100.0,
    )
    percentile: float = option(
        90.0, "Share of requests, in percent, that should meet their targets.", minimum=1.0, maximum=100.0
    )
    window_s: float = option(
        60.0, "Sliding window over which that is measured, in seconds.", minimum=1.0, maximum=86400.0
    )
