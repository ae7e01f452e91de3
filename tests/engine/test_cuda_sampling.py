"""Who samples on the CUDA device: the captured decode pass, or launches behind it."""

from dataclasses import dataclass, replace

import pytest
import torch
from support import cuda_rig
from support.cuda_rig import Rig
from support.cuda_serving import check_outputs, random_requests, serve
from torch import Tensor

from semipd.core.request import Request
from semipd.core.sampling import SamplingParams
from semipd.devices.cuda.forward.kernel_ops import KernelOps
from semipd.devices.cuda.rows.slots import SlotState
from semipd.devices.cuda.sampler.kernel_sampler import KernelSampler
from semipd.devices.cuda.sampler.sampler import Sampler, TorchSampler
from semipd.sampling.history import TokenHistory
from semipd.sampling.stages import Stages


@dataclass
class CountingSampler:
    """Counts the steps that are sampled by launches with parameters from the host."""

    sampler: Sampler
    num_full: int = 0

    @property
    def num_bytes(self) -> int:
        return self.sampler.num_bytes

    def sample(
        self, logits: Tensor, slots: Tensor, stages: Stages, state: SlotState, history: TokenHistory
    ) -> Tensor:
        self.num_full += 1
        return self.sampler.sample(logits, slots, stages, state, history)

    def sample_unfiltered(self, logits: Tensor, slots: Tensor, state: SlotState, tokens: Tensor) -> None:
        self.sampler.sample_unfiltered(logits, slots, state, tokens)


def unfiltered(request: Request) -> Request:
    """The same without all that a captured pass cannot do; log-probabilities stay."""
    own = request.params
    params = SamplingParams(
        max_tokens=own.max_tokens,
        seed=own.seed,
        temperature=own.temperature,
        min_p=own.min_p,
        logprobs=own.logprobs,
        stop_token_ids=own.stop_token_ids,
    )
    return replace(request, params=params)


def rig_of(seed: int, *, kernels: bool) -> tuple[Rig, list[CountingSampler]]:
    samplers = list[CountingSampler]()

    def counting(sampler: Sampler) -> Sampler:
        samplers.append(CountingSampler(sampler))
        return samplers[-1]

    if not kernels:
        return Rig(seed, sampler_of=lambda size: counting(TorchSampler())), samplers
    ops, cpu = KernelOps(torch.float32, 90), cuda_rig.CPU
    return Rig(seed, ops=ops, sampler_of=lambda size: counting(KernelSampler(size, cpu))), samplers


@pytest.mark.parametrize(("seed", "kernels"), [(1, False), (2, False), (3, True)])
def test_the_captured_pass_samples_what_it_can(
    seed: int, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, log-probabilities and positions are the CPU's, with graphs and through live switches."""
    for name, config in cuda_rig.FAMILIES.items():
        monkeypatch.setitem(cuda_rig.FAMILIES, name, replace(config, head_dim=64))  # as kernels need it
    rig, samplers = rig_of(seed, kernels=kernels)
    rig.capture_all()
    requests = [unfiltered(r) for r in random_requests(rig.rng, 8, rig.config.vocab_size)]
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)
    assert rig.graphs.num_misses == 0
    assert [sampler.num_full for sampler in samplers] == [0, 0]


def test_batches_that_need_more_come_and_go() -> None:
    """As long as one of a batch needs more, all of it is sampled behind the pass."""
    rig, samplers = rig_of(4, kernels=False)
    rig.capture_all()
    some = random_requests(rig.rng, 10, rig.config.vocab_size)
    requests = [unfiltered(r) if number % 3 else r for number, r in enumerate(some)]
    for part in (requests[:5], requests[5:]):
        serve(rig, part)
    check_outputs(rig, requests)
    num_steps = rig.graphs.num_hits
    assert 0 < samplers[1].num_full < num_steps


def test_padding_stays_where_it_is() -> None:
    rig, _ = rig_of(5, kernels=False)
    serve(rig, [unfiltered(r) for r in random_requests(rig.rng, 5, rig.config.vocab_size)])
    for lane in rig.loop.lanes.values():
        assert not lane._work._memory.state.columns[:, 0].any()


def test_rows_that_are_not_numbers_end_their_sequences_in_graphs_too() -> None:
    rig, _ = rig_of(6, kernels=False)
    rig.capture_all()
    requests = [unfiltered(r) for r in random_requests(rig.rng, 3, rig.config.vocab_size)]
    rig.weights["norm"].fill_(torch.nan)
    serve(rig, requests)
    assert {end.code for end in rig.finished.values()} == {"invalid_logits"}
