"""The names, kinds, labels and buckets of everything on /metrics."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

VLLM_LABELS = ("model_name", "engine")
"""Labels of every metric with vLLM's name; there is one engine, 0."""

# vLLM's boundaries, so that its dashboards and recording rules fit; per token, ours begin lower.
# fmt: off
_TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)
_PER_TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)
_REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)
# fmt: on
_CHOICES = (1, 2, 5, 10, 20)
TOKENS = tuple(float(digit * 10**power) for power in range(7) for digit in (1, 2, 5))
"""vLLM's; those above the model's context are left out when it is known."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric family. A counter's name is without `_total`; `labels` without vLLM's two;
    a histogram without `buckets` is the engine's, which chose them."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _gauges() -> Iterator[Definition]:
    def gauge(name: str, text: str, *labels: str) -> Definition:
        return Definition(name, "gauge", text, labels)

    yield gauge("vllm:num_requests_running", "Requests that prefill or decode.")
    yield gauge("vllm:num_requests_waiting", "Requests that wait for a place in the KV pool.")
    yield gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks in use; 1: all.")
    yield gauge("semipd:engine_up", "1 if the engine has answered just now.")
    yield gauge("semipd:kv_blocks", "KV blocks; cached ones are free but hold reusable prefixes.", "state")
    background = "Prompts in the background: without a target, or too late for it."
    yield gauge("semipd:background_requests", background)
    yield gauge("semipd:oldest_waiting_seconds", "Age of the oldest waiting request; 0: none waits.")
    yield gauge("semipd:split_units", "Cores or SMs of each lane under the split in force.", "lane")
    yield gauge("semipd:partition_mode", "1 for the mode of partition control in force.", "mode")
    predicted = "What the last decision about the split predicts; NaN: nothing yet."
    yield gauge("semipd:predicted_seconds", predicted, "slo")
    error = "Running mean of abs(observed / predicted - 1); NaN: not known yet."
    yield gauge("semipd:prediction_error_ratio", error, "slo")
    yield gauge("semipd:progress_age_seconds", "How long the slowest step in flight takes; 0: no step.")
    yield gauge("semipd:event_loop_lag_seconds", "Worst delay of the daemon's event loop in the last 5 s.")
    yield gauge("semipd:live_requests", "Requests between arrival and their last byte.")
    target = "Targets of a service class; ttft without what uncached prompts add."
    yield gauge("semipd:slo_target_seconds", target, "slo", "service_class")
    yield gauge("semipd:startup_phase_seconds", "What the start of the engine spent its time on.", "phase")
    facts = ("version", "engine_version", "device", "scheduler")
    yield gauge("semipd:build_info", "Always 1; the labels are the fact.", *facts)
    cache = (
        "block_size",
        "cache_dtype",
        "enable_prefix_caching",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "num_gpu_blocks",
    )
    yield gauge("vllm:cache_config_info", "Always 1; the labels describe the KV pool.", *cache)


def _counters() -> Iterator[Definition]:
    def counter(name: str, text: str, *labels: str) -> Definition:
        return Definition(name, "counter", text, labels)

    yield counter("vllm:prompt_tokens", "Prompt tokens of prefilled requests, cached ones included.")
    yield counter("vllm:generation_tokens", "Tokens generated.")
    yield counter("vllm:request_success", "Requests that ended, by reason.", "finished_reason")
    yield counter("vllm:num_preemptions", "Times a request had to give up its KV blocks.")
    yield counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix index.")
    yield counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix index.")
    yield counter("semipd:lane_busy_seconds", "Time a lane has spent on steps.", "lane")
    yield counter("semipd:lane_steps", "Steps a lane has finished.", "lane")
    slow = "Steps that took far longer than their step-time model predicted."
    yield counter("semipd:slow_steps", slow, "lane")
    yield counter("semipd:lane_tokens", "Tokens a lane has computed, by phase.", "lane", "phase")
    yield counter("semipd:requests_refused", "Requests refused before or by the engine, by code.", "code")
    yield counter("semipd:ignored_fields", "Fields of requests that are unknown here and were ignored.")
    yield counter("semipd:engine_deaths", "Engines that died or had to be killed.")
    yield counter("semipd:worker_deaths", "Lane workers that the engine had to replace.", "lane")
    yield counter("semipd:requests_resumed", "Requests taken up again by the engine after a dead one.")
    judged = "Requests judged against their targets, by service class."
    yield counter("semipd:slo_requests", judged, "service_class")
    yield counter("semipd:slo_met", "Requests that met all of their targets.", "service_class")


def _histograms() -> Iterator[Definition]:
    def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Definition:
        return Definition(name, "histogram", text, (), buckets)

    first = "From arrival at the daemon to the first token leaving it."
    yield histogram("vllm:time_to_first_token_seconds", first, _TTFT_S)
    between = "Between two tokens of a request, as they reach the daemon."
    yield histogram("vllm:inter_token_latency_seconds", between, _PER_TOKEN_S)
    mean = "(last - first) / (tokens - 1) of one request, as its tokens leave the daemon."
    yield histogram("vllm:request_time_per_output_token_seconds", mean, _PER_TOKEN_S)
    yield histogram("vllm:e2e_request_latency_seconds", "From arrival to the end of a request.", _REQUEST_S)
    queued = "From arrival to the first admission to the KV pool."
    yield histogram("vllm:request_queue_time_seconds", queued, _REQUEST_S)
    prefilled = "From the first admission to the engine's first token."
    yield histogram("vllm:request_prefill_time_seconds", prefilled, _REQUEST_S)
    decoded = "From the engine's first token to its last."
    yield histogram("vllm:request_decode_time_seconds", decoded, _REQUEST_S)
    inferred = "From the first admission to the engine's last token."
    yield histogram("vllm:request_inference_time_seconds", inferred, _REQUEST_S)
    yield histogram("vllm:request_prompt_tokens", "Prompt tokens of a request that ended.", TOKENS)
    yield histogram("vllm:request_generation_tokens", "Tokens generated for it.", TOKENS)
    yield histogram("vllm:request_params_max_tokens", "Tokens that it might generate at most.", TOKENS)
    yield histogram("vllm:request_params_n", "Choices that were asked for, of each prompt.", _CHOICES)
    sizes = "Tokens that a step of a lane computed, prefill and decode together."
    yield histogram("vllm:iteration_tokens_total", sizes, ())
    switched = "From wanting another split to the first step launched under it."
    yield histogram("semipd:split_switch_seconds", switched, ())


DEFINITIONS: dict[str, Definition] = {
    definition.name: definition for definition in (*_gauges(), *_counters(), *_histograms())
}
