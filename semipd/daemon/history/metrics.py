"""What /metrics says. Names are vLLM's where the meaning is the same, else they begin with `semipd:`."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from semipd.daemon.history.metric_names import DEFINITIONS, TOKENS, VLLM_LABELS, Definition
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.history.records import RequestHistory

_FINISHED_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "error": "error"}
"""Ours to vLLM's."""


class Histogram:
    """Bucket counts; one `observe` may stand for many equal observations, such as a step's whole batch."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    @classmethod
    def counted(cls, bounds: Sequence[float], counts: Sequence[int], total: float) -> "Histogram":
        """One that somebody else has filled. `counts`: per bucket, the last above all bounds."""
        histogram = cls(bounds)
        histogram._counts = list(counts)
        histogram._sum = total
        return histogram

    def up_to(self, most: float) -> "Histogram":
        """The same observations, without the bounds above `most`."""
        bounds = [bound for bound in self._bounds if bound <= most]
        counts, above = self._counts[: len(bounds)], sum(self._counts[len(bounds) :])
        return Histogram.counted(bounds, [*counts, above], self._sum)

    def observe(self, value: float | None, count: int = 1) -> None:
        if value is not None:
            self._counts[bisect_left(self._bounds, value)] += count
            self._sum += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as the exposition wants them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        total, cumulated = 0, list[float]()
        for count in self._counts:
            total += count
            cumulated.append(total)
        return list(zip(bounds, cumulated, strict=True))

    @property
    def sum(self) -> float:
        return self._sum


@dataclass(frozen=True, slots=True)
class MetricSample:
    """`labels` are values in the definition's order, without vLLM's two."""

    name: str
    value: float | Histogram
    labels: tuple[str, ...] = ()


class Metrics:
    """Counts what the history tells; everything else is handed to `families` when somebody asks."""

    def __init__(self, history: RequestHistory) -> None:
        self._history = history
        self._histograms = {
            name: Histogram(definition.buckets)
            for name, definition in DEFINITIONS.items()
            if definition.kind == "histogram" and definition.buckets
        }
        self._finished = dict.fromkeys(_FINISHED_REASONS.values(), 0)
        self._itl = self._histograms["vllm:inter_token_latency_seconds"]
        history.on_gap.append(self._on_gap)
        history.on_first_sent.append(self._on_first_sent)
        history.on_finished.append(self._on_finished)

    def samples(self, max_model_len: int | None = None) -> Iterator[MetricSample]:
        """`max_model_len`: None while no engine has said it."""
        history = self._history
        yield MetricSample("vllm:prompt_tokens", history.prompt_tokens)
        yield MetricSample("vllm:generation_tokens", history.output_tokens)
        yield MetricSample("vllm:num_preemptions", history.preemptions)
        yield MetricSample("vllm:prefix_cache_queries", history.prefix_queries_tokens)
        yield MetricSample("vllm:prefix_cache_hits", history.prefix_hits_tokens)
        for reason, count in self._finished.items():
            yield MetricSample("vllm:request_success", count, (reason,))
        for code, count in history.refused.items():
            yield MetricSample("semipd:requests_refused", count, (code,))
        for name, histogram in self._histograms.items():
            is_cut = max_model_len is not None and DEFINITIONS[name].buckets is TOKENS
            yield MetricSample(name, histogram.up_to(max_model_len or 0) if is_cut else histogram)

    def _on_gap(self, gap_ns: int, count: int) -> None:
        self._itl.observe(gap_ns / 1e9, count)

    def _on_first_sent(self, record: RequestRecord) -> None:
        self._observe_ms("vllm:time_to_first_token_seconds", record.ttft_ms)

    def _on_finished(self, record: RequestRecord) -> None:
        self._finished[_FINISHED_REASONS[record.finish_reason or "error"]] += 1
        self._observe_ms("vllm:request_time_per_output_token_seconds", record.tpot_ms)
        self._observe_ms("vllm:e2e_request_latency_seconds", record.total_ms(record.finished_ns))
        self._observe_ms("vllm:request_queue_time_seconds", record.queue_ms)
        self._observe_ms("vllm:request_prefill_time_seconds", record.prefill_ms)
        if record.first_token_ns:
            decode_ms = (record.last_token_ns - record.first_token_ns) / 1e6
            self._observe_ms("vllm:request_decode_time_seconds", decode_ms)
        self._observe_ms("vllm:request_inference_time_seconds", record.inference_ms)
        self._histograms["vllm:request_prompt_tokens"].observe(record.prompt_tokens)
        self._histograms["vllm:request_generation_tokens"].observe(record.output_tokens)
        self._histograms["vllm:request_params_max_tokens"].observe(record.max_tokens)
        self._histograms["vllm:request_params_n"].observe(record.num_choices or None)

    def _observe_ms(self, name: str, value_ms: float | None) -> None:
        self._histograms[name].observe(None if value_ms is None else value_ms / 1e3)


def families(samples: Iterable[MetricSample], model_name: str) -> list[Metric]:
    """Samples by metric. Every definition has a family, with no samples if nothing is known."""
    found: dict[str, Metric] = {name: _family(definition) for name, definition in DEFINITIONS.items()}
    for sample in samples:
        labels = (model_name, "0", *sample.labels) if sample.name.startswith("vllm:") else sample.labels
        family, value = found[sample.name], sample.value
        if isinstance(value, Histogram):
            assert isinstance(family, HistogramMetricFamily), f"{sample.name} is a {family.type}"
            family.add_metric(labels, value.buckets(), value.sum)
        else:
            assert isinstance(family, GaugeMetricFamily | CounterMetricFamily), f"{sample.name}: {value}"
            family.add_metric(labels, value)
    return list(found.values())


def _family(definition: Definition) -> Metric:
    vllm = VLLM_LABELS if definition.name.startswith("vllm:") else ()
    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    family: Metric = kinds[definition.kind](
        definition.name, definition.help, labels=(*vllm, *definition.labels)
    )
    return family


class _Ready(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def exposition(metrics: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """(text, content type) in the format that an Accept header prefers, our process's own numbers included.
    Reads /proc: not for the event loop."""
    registry = CollectorRegistry()
    registry.register(_Ready(metrics))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
