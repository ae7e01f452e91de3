"""Drives a coordinator on the fake device under a virtual clock, and checks what comes out."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from typing_extensions import TypeVar

from semipd.core.events import Event
from semipd.core.messages import Cancel, Finished, Inbound, Outbound, PromptLogprobs, StepTokens, Submit
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.settings import EngineSettings
from semipd.core.slo import Targets
from semipd.devices.fake import FakeDevice, expected_tokens
from semipd.devices.sim.device import SimDevice
from semipd.engine.coordinator import Coordinator

RANDOM_VOCAB = 50


DeviceT = TypeVar("DeviceT", bound=FakeDevice | SimDevice, covariant=True, default=FakeDevice)


@dataclass
class Run(Generic[DeviceT]):
    """A coordinator, its virtual clock and everything it has said."""

    device: DeviceT
    settings: EngineSettings
    now_ns: int = 0
    check: bool = True
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, Finished] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    messages: list[Outbound] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.device, self.settings)

    def tick(self, inbox: Iterable[Inbound] = ()) -> bool:
        """One turn, then virtual time moves to the next event. False when nothing is left to do."""
        turn = self.coordinator.tick(self.now_ns, inbox)
        for message in turn.outbox:
            self._note(message)
        if self.check:
            self.coordinator.check_integrity()
        if turn.wake_at_ns is None:
            assert turn.idle, "nothing in flight, yet requests are waiting"
            return False
        self.now_ns = max(self.now_ns, turn.wake_at_ns)
        return True

    def drain(self) -> None:
        while self.tick():
            pass

    def prompt_logprobs(self, seq: int) -> list[TokenLogprobs]:
        told = (m for m in self.messages if isinstance(m, PromptLogprobs) and m.seq == seq)
        return [entry for message in told for entry in message.entries]

    def _note(self, message: Outbound) -> None:
        match message:
            case StepTokens(seqs, tokens):
                assert tokens
                assert len(seqs) == len(tokens)
                for seq, token in zip(seqs, tokens, strict=True):
                    assert seq not in self.finished, f"a token for finished seq {seq}"
                    self.tokens.setdefault(seq, []).append(token)
            case Finished(seq):
                assert seq not in self.finished, f"seq {seq} finished twice"
                self.finished[seq] = message
            case Event():
                self.events.append(message)
        self.messages.append(message)

    def expected(self, request: Request) -> list[int]:
        info = self.device.info
        return expected_tokens(request.prompt, request.params, info.max_model_len, info.vocab_size)


def request(
    seq: int, prompt: list[int], *, max_tokens: int = 8, arrival_ns: int = 0, **params: Any
) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, seed=params.pop("seed", seq), **params)
    return Request(SeqId(seq), f"req-{seq}", prompt, sampling, arrival_ns)


def submit(seq: int, prompt: list[int], **kwargs: Any) -> Submit:
    return Submit(request(seq, prompt, **kwargs))


def random_request(rng: random.Random, seq: int, now_ns: int) -> Request:
    """Shared prefixes are common, some prompts are long, some requests stop early; some have a target for
    their first token, which they may miss."""
    prefix = [rng.randint(0, 2)] * rng.choice([0, 16, 32, 48])
    prompt = prefix + [rng.randint(0, 3) for _ in range(rng.choice([1, 5, 17, 60]))]
    stop = (rng.randrange(RANDOM_VOCAB),) if rng.random() < 0.5 else ()
    max_tokens = rng.choice([1, 4, 20, 60])
    found = request(
        seq, prompt, max_tokens=max_tokens, arrival_ns=now_ns, seed=rng.getrandbits(64), stop_token_ids=stop,
        min_tokens=rng.choice([0, 0, min(3, max_tokens)]),
    )  # fmt: skip
    choose = random.Random(seq).choice
    return replace(found, targets=Targets(choose([None, 1.0, 8.0, 1000.0]), choose([0.0, 100.0])))


__all__ = ["RANDOM_VOCAB", "Cancel", "Run", "random_request", "request", "submit"]
