"""Is what comes out what plain torch says in the same dtype? The oracle of DESIGN section 3, teacher-forced.

float32 is compared with a CPU, and no token may be wrong. bfloat16 is compared with plain torch operations in
bfloat16 on the same GPU: both round, at different places, so that one token in a thousand may lie beyond a
tolerance which still finds a fault."""

import random
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gpulib.host import Run
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.network.activations import Activations
from semipd.network.config import ModelConfig
from semipd.network.kv_layout import KvLayout
from semipd.network.network import Network
from semipd.network.ops_torch import TorchOps
from semipd.network.rows import StepRows
from semipd.sampling.philox import seed_words, uniforms

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
"""Of the logits' standard deviation for greedy tokens, of the CDF for drawn ones."""

ALLOWED_BEYOND = {"float32": 0.0, "bfloat16": 1e-3, "float16": 1e-3}
"""Share of all tokens that may be beyond the tolerance."""


@dataclass
class Verdict:
    """`deviations`: tokens that are not the reference's own; `beyond`: those outside the tolerance.
    `allowed`: so many may be. `worst_logprob_gap`: of the sampled tokens' own log-probabilities, in nats."""

    tokens: int = 0
    deviations: int = 0
    beyond: int = 0
    allowed: int = 0
    worst_gap: float = 0.0
    worst_logprob_gap: float = 0.0
    unfinished: int = 0

    @property
    def passed(self) -> bool:
        return self.beyond <= self.allowed and not self.unfinished

    def to_plain(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


class Reference:
    """Plain torch operations on the device and in the dtype of the weights, one pass a request."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor]) -> None:
        self._config = config
        self._weights = weights
        dtype = str(weights["embed"].dtype).removeprefix("torch.")
        self._tolerance, self._allowed = TOLERANCES[dtype], ALLOWED_BEYOND[dtype]

    def judge(self, requests: list[Request], run: Run) -> Verdict:
        verdict = Verdict()
        for request in requests:
            output = run.tokens.get(request.seq, [])
            if len(output) != request.params.max_tokens:
                verdict.unfinished += 1
            if output:
                self._judge_one(request, output, run.logprobs.get(request.seq, []), verdict)
        verdict.allowed = int(verdict.tokens * self._allowed)
        return verdict

    @torch.inference_mode()
    def _judge_one(self, request: Request, output: list[int], own: list[float], verdict: Verdict) -> None:
        logits = self._logits(request.prompt + output[:-1])[len(request.prompt) - 1 :]
        chosen = torch.tensor(output)
        if request.params.greedy:
            best, gaps = logits.argmax(dim=-1), self._greedy_gaps(logits, chosen)
        else:
            best, gaps = self._draws(logits, chosen, request)
        verdict.tokens += len(output)
        verdict.deviations += int((best != chosen).sum())
        verdict.beyond += int((gaps > self._tolerance).sum())
        verdict.worst_gap = max(verdict.worst_gap, float(gaps.max()))
        if own:
            expected = logits.log_softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1)
            worst = float((torch.tensor(own) - expected).abs().max())
            verdict.worst_logprob_gap = max(verdict.worst_logprob_gap, worst)

    @staticmethod
    def _greedy_gaps(logits: Tensor, chosen: Tensor) -> Tensor:
        own = logits.gather(1, chosen[:, None]).squeeze(1)
        return (logits.max(dim=-1).values - own) / logits.std(dim=-1)

    @staticmethod
    def _draws(logits: Tensor, chosen: Tensor, request: Request) -> tuple[Tensor, Tensor]:
        """The reference's own draws, and how far each chosen token's span of the CDF is from the uniform."""
        positions = torch.arange(len(chosen)) + len(request.prompt)
        low, high = seed_words([request.params.seed], torch.device("cpu"))
        uniform = uniforms((low, high), positions)
        cdf = (logits / request.params.temperature).softmax(dim=-1).cumsum(dim=-1)
        best = torch.searchsorted(cdf, uniform[:, None], right=True).squeeze(1)
        upper = cdf.gather(1, chosen[:, None]).squeeze(1)
        lower = cdf.gather(1, (chosen - 1).clamp_min(0)[:, None]).squeeze(1).masked_fill(chosen == 0, 0.0)
        return best, torch.maximum(lower - uniform, uniform - upper).clamp_min(0.0)

    def _logits(self, tokens: list[int]) -> Tensor:
        """[T, vocab] float32, on the CPU."""
        layout, like = KvLayout.of(self._config, max(1, len(tokens))), self._weights["embed"]
        with like.device:
            rows = StepRows.of_prompt(tokens, layout.block_size)
        network = Network(self._config, self._weights, like.new_zeros(layout.pool_shape(1)), TorchOps())
        memory = Activations.reserve(self._config, len(tokens), like)
        network.embed(rows, memory)
        network.layers(rows, memory, range(network.num_layers), 0)
        out = like.new_empty(len(tokens), self._config.vocab_size, dtype=torch.float32)
        return network.logits(network.finish(memory, None), out).cpu()


def parity_requests(count: int, vocab_size: int, seed: int, *, output_tokens: int = 48) -> list[Request]:
    """Arrivals spread over half a second; half greedy, half drawn at temperature 0.8; some share a prefix."""
    rng = random.Random(seed)
    shared = [rng.randrange(vocab_size) for _ in range(200)]
    requests = []
    for number in range(count):
        own = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 400))]
        prompt = shared[: rng.choice([0, 0, 64, 200])] + own
        temperature = 0.0 if number % 2 else 0.8
        params = SamplingParams(output_tokens, seed=rng.getrandbits(64), temperature=temperature, logprobs=0)
        arrival_ns = int(rng.random() * 5e8)
        requests.append(Request(SeqId(number + 1), f"r{number}", prompt, params, arrival_ns))
    return sorted(requests, key=lambda request: request.arrival_ns)
