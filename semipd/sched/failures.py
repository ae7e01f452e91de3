"""What clients are told of sequences that are refused, or that a step has failed."""

from semipd.core.errors import SemipdError
from semipd.core.events import REFUSED, Told
from semipd.core.messages import Finished
from semipd.core.plan import INVALID_LOGITS
from semipd.core.sampling import SamplingParams
from semipd.sched.sequence import Sequence

_OFF = SamplingParams(max_tokens=1, seed=0)
_CHANGE_LOGITS = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "min_tokens",
)
"""Parameters that change logits. Those with many values are named only."""


def refused(error: SemipdError) -> Told:
    return REFUSED({"code": error.code, "message": error.message})


def failed(sequence: Sequence, error: SemipdError) -> Finished:
    return Finished(
        sequence.seq,
        "error",
        cached_tokens=sequence.cached_tokens,
        code=error.code,
        message=error.message,
        hint=error.hint,
        retry_after_s=error.retry_after_s,
    )


def step_failure(code: str, sequence: Sequence) -> SemipdError:
    """`code`: see StepResult.failed."""
    if code != INVALID_LOGITS:
        return SemipdError(code, "The device cannot go on with this request.")
    prompt, output = len(sequence.request.prompt), sequence.num_output_tokens
    return SemipdError(
        code,
        f"The model has no valid logits for this request after {prompt} prompt and {output} output tokens: "
        "they hold NaN or infinity, or leave no token to choose.",
        f"{_advice(sequence.request.params)} Other requests go on.",
    )


def _advice(params: SamplingParams) -> str:
    model = "the checkpoint and engine.dtype (float16 overflows where bfloat16 and float32 do not)"
    changed = [
        _shown(name, params) for name in _CHANGE_LOGITS if getattr(params, name) != getattr(_OFF, name)
    ]
    return f"Look at {', '.join(changed)}, then at {model}." if changed else f"Look at {model}."


def _shown(name: str, params: SamplingParams) -> str:
    value = getattr(params, name)
    return f"{name} ({len(value)} tokens)" if isinstance(value, tuple) else f"{name} {value:g}"
