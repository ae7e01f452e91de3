"""Token ids for a trace's prompts: nothing but enough to make equal prefixes equal and others different."""

from semipd.core.request import Request, SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.slo import DEFAULT_CLASS, NO_TARGETS, Targets
from semipd.sim.workloads.traces import Arrival, Trace

FILLER = 7
_DIGITS = 4


def request_of(
    trace: Trace,
    arrival: Arrival,
    vocab_size: int,
    targets: Targets = NO_TARGETS,
    service_class: str = DEFAULT_CLASS,
) -> Request:
    """The request that the coordinator gets: its length decides when it ends, never a stop token."""
    seq = arrival.idx + 1
    row = arrival.row
    params = SamplingParams(max_tokens=row.output_tokens, seed=seq)
    prompt = prompt_of(trace, arrival, vocab_size)
    return Request(
        SeqId(seq), str(seq), prompt, params, arrival.at_ns, service_class=service_class, targets=targets
    )


def prompt_of(trace: Trace, arrival: Arrival, vocab_size: int) -> list[int]:
    """Blocks of the trace begin with their id, so equal chains of ids are equal prefixes (within one lap:
    a trace that begins again brings new conversations). Without blocks the request's own number stands
    in front and nothing is shared."""
    length = arrival.row.prompt_tokens
    if not arrival.row.blocks:
        return _numbered(arrival.idx, length, vocab_size)
    tokens: list[int] = []
    for block in arrival.row.blocks:
        tokens += _numbered(block, trace.block_tokens, vocab_size)
        tokens[-trace.block_tokens] = arrival.lap % vocab_size
    tokens = tokens[:length]
    return tokens + [FILLER] * (length - len(tokens))


def _numbered(number: int, length: int, vocab_size: int) -> list[int]:
    """`length` tokens that begin with the number's digits (base: the vocabulary), after one spare place."""
    digits = [FILLER]
    for _ in range(_DIGITS - 1):
        number, digit = divmod(number, vocab_size)
        digits.append(digit)
    return (digits + [FILLER] * (length - _DIGITS))[:length]
