"""Random requests served by a rig, and what must come out."""

import random
from dataclasses import replace

import pytest
from support.cuda_rig import Oracle, Rig

from semipd.core.messages import Inbound, SetPartition, Submit
from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams


def random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randrange(1, 30),
        seed=rng.getrandbits(64),
        temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
        top_k=rng.choice([0, 5, 200]),
        top_p=rng.choice([1.0, 0.8]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.4]),
        presence_penalty=rng.choice([0.0, 0.3]),
        logit_bias=rng.choice([(), ((3, 1.5), (7, -2.0))]),
        stop_token_ids=(3, 4),
        min_tokens=rng.choice([0, 1, 8]) if rng.random() < 0.5 else 0,
        logprobs=rng.choice([None, None, 0, 3]),
        prompt_logprobs=rng.choice([None, None, None, 2]),
        allowed_token_ids=tuple(rng.sample(range(61), 30)) if rng.random() < 0.25 else (),
    )


def random_requests(rng: random.Random, count: int, vocab_size: int) -> list[Request]:
    shared = [rng.randrange(vocab_size) for _ in range(50)]
    requests = []
    for number in range(count):
        own = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 60))]
        prompt = (shared[: rng.randrange(50)] if rng.random() < 0.5 else []) + own
        params = random_params(rng)
        params = replace(params, min_tokens=min(params.min_tokens, params.max_tokens))
        requests.append(Request(SeqId(number + 1), f"r{number}", prompt, params, 0))
    return requests


def serve(rig: Rig, requests: list[Request], *, switches: bool = False) -> None:
    waiting = list(requests)
    while waiting or not rig.finished.keys() >= {request.seq for request in requests}:
        inbox: list[Inbound] = [Submit(waiting.pop())] if waiting and rig.rng.random() < 0.3 else []
        if switches and rig.rng.random() < 0.2:
            units = rig.rng.choice(rig.device.info.splits).prefill_units
            inbox.append(SetPartition(1, "fixed", "test", prefill_units=units))
        rig.tick(inbox)
    rig.finish()


def check_outputs(rig: Rig, requests: list[Request]) -> None:
    oracle = Oracle(rig.config, rig.weights)
    for request in requests:
        tokens, entries = oracle.generate(request)
        assert rig.tokens[request.seq] == tokens, f"seed {rig.seed}, request {request.seq}"
        wanted = request.params.logprobs
        for have, want in zip(rig.logprobs[request.seq], entries, strict=True):
            if wanted is None:
                assert have is None
            else:
                assert have is not None
                assert have.token_id == want.token_id
                assert have.logprob == pytest.approx(want.logprob, abs=1e-3)
                assert abs(have.rank - want.rank) <= 1  # neighbours may be closer than that
                assert [pair[0] for pair in have.top] == [pair[0] for pair in want.top[:wanted]]
        if request.params.prompt_logprobs is not None:
            found, expected = rig.prompt_logprobs.get(request.seq, []), oracle.prompt_logprobs(request)
            assert [entry.token_id for entry in found] == [entry.token_id for entry in expected]
            for have, want in zip(found, expected, strict=True):
                assert have.logprob == pytest.approx(want.logprob, abs=1e-3)
                assert abs(have.rank - want.rank) <= 1
