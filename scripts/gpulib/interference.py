"""What prompts do to the sequences that decode beside them: inter-token latency and prompt throughput."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpulib.host import Host, Run
from semipd.core.messages import Cancel, Inbound, Submit
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings
from semipd.devices.contract import Device
from semipd.sim.outcomes import percentiles

PROMPTS_AHEAD = 2
"""Prompts that wait at any time: the prefill lane never runs dry."""


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` sequences decode after prompts of `stream_prompt_tokens`; once they all do, prompts of
    `prompt_tokens` keep coming for `window_s` (none if 0)."""

    streams: int = 32
    stream_prompt_tokens: int = 1024
    prompt_tokens: int = 2048
    window_s: float = 5.0
    start_limit_s: float = 20.0


def measure(device: Device, settings: EngineSettings, load: Load) -> dict[str, Any]:
    """One row: inter-token latency of the streams in the window, and prompt tokens per second."""
    host, feeder = Host(device, settings), _Feeder(load)
    feeder.host = host
    vocab = device.info.vocab_size
    longest = device.info.max_model_len - load.stream_prompt_tokens - 1
    streams = [
        _request(SeqId(i + 1), load.stream_prompt_tokens, min(longest, 100_000), vocab, 0)
        for i in range(load.streams)
    ]
    run = host.run(streams, load.start_limit_s + load.window_s, feeder)
    host.drain(10.0)
    return feeder.row(run)


class _Feeder:
    """Submits prompts as long as the window lasts, then ends everything."""

    def __init__(self, load: Load) -> None:
        self.host: Host | None = None
        self._load = load
        self._next_seq = 1_000_000
        self._began_ns = 0
        self._ended_ns = 0
        self._tokens_at_begin = 0
        self._tokens_at_end = 0

    def __call__(self, now_ns: int) -> list[Inbound]:
        assert self.host is not None
        scheduler = self.host.coordinator.scheduler
        if not self._began_ns:
            if len(scheduler.decoding) < self._load.streams:
                return []
            self._began_ns, self._tokens_at_begin = now_ns, self._prefilled()
        if now_ns - self._began_ns >= self._load.window_s * 1e9:
            return self._end(now_ns)
        if not self._load.prompt_tokens:
            return []
        waiting = scheduler.queue.num_waiting + len(scheduler.prefilling)
        return list(self._prompts(PROMPTS_AHEAD - waiting))

    def row(self, run: Run) -> dict[str, Any]:
        streams = [SeqId(i + 1) for i in range(self._load.streams)]
        if not self._ended_ns:
            return {"error": f"the streams did not all decode within {self._load.start_limit_s:g} s"}
        gaps = run.inter_token_ms(streams, self._began_ns)
        window_s = (self._ended_ns - self._began_ns) / 1e9
        rate = (self._tokens_at_end - self._tokens_at_begin) / window_s
        itl = percentiles(gaps)
        named = {f"itl_{key}_ms": round(value, 3) for key, value in itl.items()}
        return named | {
            "prompt_tokens_per_s": round(rate),
            "decode_tokens_per_s": round(len(gaps) / window_s),
        }

    def _prompts(self, count: int) -> Iterator[Inbound]:
        assert self.host is not None
        for _ in range(count):
            seq = SeqId(self._next_seq)
            self._next_seq += 1
            vocab = self.host.device.info.vocab_size
            yield Submit(_request(seq, self._load.prompt_tokens, 1, vocab, time.monotonic_ns()))

    def _prefilled(self) -> int:
        assert self.host is not None
        coordinator = self.host.coordinator
        return coordinator.prefill.num_prefill_tokens + coordinator.decode.num_prefill_tokens

    def _end(self, now_ns: int) -> list[Inbound]:
        assert self.host is not None
        if not self._ended_ns:
            self._ended_ns, self._tokens_at_end = now_ns, self._prefilled()
        return [Cancel(seq) for seq in list(self.host.coordinator.scheduler.sequences)]


def _request(seq: SeqId, prompt_tokens: int, output_tokens: int, vocab_size: int, at_ns: int) -> Request:
    """Prompts that share no prefix."""
    digits = [int(seq) // vocab_size**i % vocab_size for i in range(3)]
    prompt = (digits + [7] * prompt_tokens)[:prompt_tokens]
    return Request(seq, str(seq), prompt, SamplingParams(output_tokens, seed=1, temperature=0.0), at_ns)
