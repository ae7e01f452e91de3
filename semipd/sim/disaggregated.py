"""The baseline 1P1D: one GPU computes prompts, a second one decodes, and KV crosses the link between them."""

import heapq
from dataclasses import replace

from semipd.core.messages import Finished, StepTokens, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.devices.sim.device import SimDevice
from semipd.engine.coordinator import Coordinator
from semipd.sim.outcomes import Outcome
from semipd.sim.simulator import Ledger

LINK_LATENCY_NS = 50_000
"""Set-up of one transfer: handshake between two engines. Estimate."""

UNLIMITED = 2**30


class Disaggregated:
    """Two coordinators, each with its own device and its own KV pool.

    The first token comes from the prefill instance; then the prompt's KV queues for the link, and on
    arrival the request joins the decode instance, whose device (`prompts_arrive`) charges nothing for KV
    it was sent. In favour of this baseline: the prefill instance frees its blocks at once, and the
    transfer takes no bandwidth from either GPU's memory.
    """

    def __init__(
        self, prefill: SimDevice, decode: SimDevice, settings: EngineSettings, ledger: Ledger
    ) -> None:
        decode_settings = replace(settings, scheduler="chunked", step_token_budget=UNLIMITED)
        self.prefill = Coordinator(prefill, settings)
        self.decode = Coordinator(decode, decode_settings)
        self.coordinators = (self.prefill, self.decode)
        self.wake_at_ns: int | None = None
        self.idle = True
        self.link_busy_ns = 0
        self._ledger = ledger
        self._kv_ns_per_token = prefill.model.kv_bytes_per_token / prefill.profile.gpu.link_bytes_per_s * 1e9
        self._link_free_ns = 0
        self._requests: dict[SeqId, Request] = {}
        self._first_tokens: dict[SeqId, int] = {}
        self._travelling: list[tuple[int, SeqId]] = []

    def tick(self, now_ns: int, requests: list[Request]) -> None:
        self._tick_prefill(now_ns, requests)
        self._tick_decode(now_ns)
        times = [self.prefill.device.wake_at_ns(), self.decode.device.wake_at_ns()]
        times += [self._travelling[0][0]] if self._travelling else []
        self.wake_at_ns = min((time for time in times if time is not None), default=None)
        self.idle = not self._requests

    def _tick_prefill(self, now_ns: int, requests: list[Request]) -> None:
        submits = []
        for request in requests:
            self._requests[request.seq] = request
            submits.append(Submit(replace(request, params=replace(request.params, max_tokens=1))))
        for message in self.prefill.tick(now_ns, submits).outbox:
            if isinstance(message, StepTokens):
                for seq, token in zip(message.seqs, message.tokens, strict=True):
                    self._first_tokens[seq] = token
                    self._ledger.first_token(seq, now_ns)
            elif isinstance(message, Finished):
                self._prefilled(message, now_ns)

    def _prefilled(self, finished: Finished, now_ns: int) -> None:
        request = self._requests[finished.seq]
        self._ledger.outcomes[finished.seq].cached_tokens = finished.cached_tokens
        if finished.reason == "error" or request.params.max_tokens == 1:
            self._end(finished, now_ns)
            return
        duration_ns = LINK_LATENCY_NS + round(len(request.prompt) * self._kv_ns_per_token)
        self._link_free_ns = max(self._link_free_ns, now_ns) + duration_ns
        self.link_busy_ns += duration_ns
        heapq.heappush(self._travelling, (self._link_free_ns, finished.seq))

    def _tick_decode(self, now_ns: int) -> None:
        arrived = []
        while self._travelling and self._travelling[0][0] <= now_ns:
            seq = heapq.heappop(self._travelling)[1]
            emitted = (self._first_tokens[seq],)
            arrived.append(Submit(replace(self._requests[seq], emitted=emitted)))
        for message in self.decode.tick(now_ns, arrived).outbox:
            if isinstance(message, StepTokens):
                self._ledger.step(message.seqs, now_ns)
            elif isinstance(message, Finished):
                self._end(message, now_ns)

    def _end(self, finished: Finished, now_ns: int) -> None:
        self._first_tokens.pop(finished.seq, None)
        del self._requests[finished.seq]
        outcome: Outcome = self._ledger.outcomes[finished.seq]
        self._ledger.ended(replace(finished, cached_tokens=outcome.cached_tokens), now_ns)
