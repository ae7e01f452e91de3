"""Frames between the engine and a worker. Both are always the same release, so encoding is positional.

engine -> worker: setup, warm_up, step, rebuild; worker -> engine: attached, ready, result, error.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from semipd.core.plan import Join, Segment, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.core.split import LaneName, Split
from semipd.network.config import DTypeName
from semipd.wire.engine_link import logprobs_from_wire
from semipd.wire.sampling import sampling_from_wire, sampling_to_wire

LANE_FRAME_BYTES = 512 * 2**20
"""A rebuild carries the whole history of every resident."""

STEP_FAILED = "step_failed"
"""Code of an error that is no answer: any exception but SemipdError."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setup:
    """First frame to a worker. The descriptors are inherited; `cores` are those of both lanes."""

    lane: LaneName
    model_dir: str
    max_model_len: int
    dtype: DTypeName
    packed: bool
    num_blocks: int
    weights_fd: int
    kv_fd: int
    cores: tuple[int, ...]
    split: Split
    warm_up_tokens: int

    def to_wire(self) -> Message:
        return {"op": "setup"} | asdict(self)

    @classmethod
    def from_wire(cls, message: Message) -> "Setup":
        fields = {name: value for name, value in message.items() if name != "op"}
        return cls(**fields | {"cores": tuple(fields["cores"]), "split": Split(*fields["split"])})


def plan_to_wire(plan: StepPlan, previous_decode: tuple[SeqId, ...]) -> Message:
    """`decode` travels only when it is another tuple object than `previous_decode`."""
    return {
        "op": "step",
        "step_id": plan.step_id,
        "split": plan.split,
        "decode": None if plan.decode is previous_decode else plan.decode,
        "segments": plan.segments,
        "joins": [_join_to_wire(join) for join in plan.joins],
        "leaves": plan.leaves,
        "new_blocks": plan.new_blocks,
    }


def plan_from_wire(message: Message, previous_decode: tuple[SeqId, ...]) -> StepPlan:
    decode = message["decode"]
    return StepPlan(
        step_id=message["step_id"],
        split=Split(*message["split"]),
        decode=previous_decode if decode is None else tuple(decode),
        segments=tuple(Segment(*segment) for segment in message["segments"]),
        joins=tuple(_join_from_wire(join) for join in message["joins"]),
        leaves=tuple(message["leaves"]),
        new_blocks=tuple((seq, tuple(blocks)) for seq, blocks in message["new_blocks"]),
    )


def rebuild_to_wire(residents: Iterable[Join]) -> Message:
    return {"op": "rebuild", "joins": [_join_to_wire(join) for join in residents]}


def rebuild_from_wire(message: Message) -> list[Join]:
    return [_join_from_wire(join) for join in message["joins"]]


def result_to_wire(result: StepResult) -> Message:
    prompt = result.prompt_logprobs
    return {
        "op": "result",
        "step_id": result.step_id,
        "tokens": result.tokens,
        "busy_ns": result.busy_ns,
        "logprobs": result.logprobs,
        "prompt_logprobs": None if prompt is None else list(prompt.items()),
        "failed": None if result.failed is None else list(result.failed.items()),
    }


def result_from_wire(message: Message) -> StepResult:
    logprobs, prompt, failed = message["logprobs"], message["prompt_logprobs"], message["failed"]
    return StepResult(
        step_id=message["step_id"],
        tokens=[tuple(tokens) for tokens in message["tokens"]],
        busy_ns=message["busy_ns"],
        logprobs=None if logprobs is None else [run and tuple(_entries(run)) for run in logprobs],
        prompt_logprobs=None
        if prompt is None
        else {SeqId(seq): _entries(entries) for seq, entries in prompt},
        failed=None if failed is None else {SeqId(seq): code for seq, code in failed},
    )


def _entries(entries: list[Any]) -> list[TokenLogprobs]:
    return [logprobs_from_wire(entry) for entry in entries]


def _join_to_wire(join: Join) -> list[Any]:
    return [join.seq, join.token_ids, join.num_prompt_tokens, sampling_to_wire(join.params), join.block_table]


def _join_from_wire(data: list[Any]) -> Join:
    seq, token_ids, num_prompt_tokens, params, block_table = data
    return Join(SeqId(seq), token_ids, num_prompt_tokens, sampling_from_wire(params), block_table)
