"""Several engines behind one door: every GPU computes prompts and tokens, and the least busy one is given the
next request."""

from semipd.core.request import Request
from semipd.engine.coordinator import Coordinator
from semipd.sim.simulator import Engine


class Group:
    """`engines`: one for each GPU, over one ledger."""

    def __init__(self, engines: list[Engine]) -> None:
        self.engines = engines
        self.coordinators = tuple(engine.coordinator for engine in engines)
        self.wake_at_ns: int | None = None
        self.idle = True

    def tick(self, now_ns: int, requests: list[Request]) -> None:
        """Only engines that have something to do take a turn. Work that came in this tick counts as soon as
        it is given away, so a burst is spread."""
        for request in requests:
            self._least_busy(request).tick(now_ns, [request])
        for engine in self.engines:
            if engine.wake_at_ns is not None and engine.wake_at_ns <= now_ns:
                engine.tick(now_ns, [])
        times = [engine.wake_at_ns for engine in self.engines if engine.wake_at_ns is not None]
        self.wake_at_ns = min(times, default=None)
        self.idle = all(engine.idle for engine in self.engines)

    def _least_busy(self, request: Request) -> Engine:
        """By predicted milliseconds until its prompt is computed; then by prompt tokens, then by streams."""
        return min(self.engines, key=lambda engine: _busy_with(engine.coordinator, request))


def _busy_with(coordinator: Coordinator, request: Request) -> tuple[float, int, int]:
    """(predicted milliseconds, prompt tokens, streams) of an engine that takes the request too. Prompt
    tokens that it holds as a prefix cost nothing, so conversations stay where they began unless work piles
    up there."""
    scheduler = coordinator.scheduler
    cached = scheduler.memory.cached_tokens(request.namespace, request.prompt)
    tokens, attended = _prompt_work(len(request.prompt), cached)
    for prompt in scheduler.queue.all():
        sequence = scheduler.sequences[prompt.seq]
        done_tokens = sequence.num_scheduled if prompt.is_begun else prompt.prior_tokens
        left, pairs = _prompt_work(len(sequence.tokens), done_tokens)
        tokens, attended = tokens + left, attended + pairs
    num_decodes = len(scheduler.decoding)
    context = sum([sequence.num_scheduled for sequence in scheduler.decoding.values()])
    line = coordinator.control.models.merged(num_decodes, context)
    num_steps = max(tokens / coordinator.settings.prefill_chunk_tokens, 1.0)
    return num_steps * line.constant_ms + line.ms(tokens, attended) - line.constant_ms, tokens, num_decodes


def _prompt_work(length: int, start: int) -> tuple[int, float]:
    """(tokens left, pairs of tokens left) of a prompt of which `start` tokens are computed."""
    left = length - start
    return left, left * (start + (left + 1) / 2)
