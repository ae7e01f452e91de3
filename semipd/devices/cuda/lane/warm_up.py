"""Plans that run once before serving, in the thread that will launch: kernels are compiled, libraries make
their handles, buffers reach their sizes, and a device that cannot compute fails now."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from semipd.core.plan import PADDING_BLOCK, Join, Segment, StepPlan, blocks_for
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split

_GOLDEN = 0.618
GREEDY = SamplingParams(max_tokens=4, seed=0, temperature=0.0)
EVERYTHING = SamplingParams(
    max_tokens=4,
    seed=0,
    temperature=0.8,
    top_k=20,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((0, 1.0),),
    allowed_token_ids=(0, 1),
    stop_token_ids=(1,),
    min_tokens=4,
    logprobs=2,
    prompt_logprobs=2,
)


def trial_tokens(vocab_size: int) -> Iterator[int]:
    """Without end, and soon from all over the vocabulary: its golden sections."""
    return (int(vocab_size * (idx * _GOLDEN % 1.0)) for idx in count(1))


class WarmUpSize(NamedTuple):
    """The KV pool, and the longest chunk and sequence."""

    num_blocks: int
    block_size: int
    chunk_tokens: int
    max_model_len: int


def warm_up_plans(
    split: Split, size: WarmUpSize, tokens: Iterator[int], *, with_prompt_logprobs: bool
) -> Iterator[StepPlan]:
    """For an empty lane; each plan follows the one before, and the last one leaves nobody. The blocks belong
    to nobody yet; what stays in them is never read. `tokens`: each prompt repeats the next one.

    `with_prompt_logprobs`: their logits (64 rows of the vocabulary in float32, three times over) stay in the
    allocator's cache of the stream, so one stream of a lane is enough: kernels belong to all of them."""
    num_blocks, block_size, chunk_tokens, max_model_len = size
    usable = num_blocks - 1 - PADDING_BLOCK
    length = max(1, min(chunk_tokens, max_model_len - 2, (usable - 1) * block_size - 1))
    blocks = list(range(PADDING_BLOCK + 1, num_blocks))
    step_id = 0
    everything = EVERYTHING if with_prompt_logprobs else replace(EVERYTHING, prompt_logprobs=None)
    for params in (GREEDY, everything):
        table = blocks[: min(blocks_for(length + 1, block_size), usable)]
        join = Join(SeqId(1), [next(tokens)] * length, length, params, table)
        segment = Segment(SeqId(1), 0, length, True, params.prompt_logprobs)
        yield StepPlan(step_id, split, segments=(segment,), joins=(join,))
        yield StepPlan(step_id + 1, split, decode=(SeqId(1),))
        yield StepPlan(step_id + 2, split, leaves=(SeqId(1),))
        step_id += 3
