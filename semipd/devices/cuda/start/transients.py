"""What steps that no graph replays allocate and give back: arithmetic on a lane's greatest numbers.

torch's allocator keeps it for every stream that has had such a step, until memory is short.
"""

from collections.abc import Iterable

from semipd.devices.cuda.lane.memory import PROMPT_ROWS_AT_ONCE
from semipd.devices.cuda.rows.size import LaneSize
from semipd.network.config import ITEM_BYTES, DTypeName, ModelConfig

_LOGPROB_BYTES = 4 + 1
"""For each logit: its log-probability in float32, and whether it is at least the token's own."""
_COPY_BYTES = 4
"""For each logit that is sampled from: it is changed, but log-probabilities are of the raw one."""


def transients_bytes(lanes: Iterable[LaneSize], config: ModelConfig, dtype: DTypeName) -> int:
    """The most that one step of each lane has at once, vectors with a number or two a row left out."""
    return sum(_of_a_step(lane, config, dtype) for lane in lanes)


def _of_a_step(size: LaneSize, config: ModelConfig, dtype: DTypeName) -> int:
    """While it samples for every resident with log-probabilities, or takes those of a whole chunk's rows."""
    sampling = size.max_num_seqs * config.vocab_size * (_COPY_BYTES + _LOGPROB_BYTES)
    gathered = size.max_rows * (config.hidden_size + config.q_width) * ITEM_BYTES[dtype]
    prompt_rows = min(size.max_rows, PROMPT_ROWS_AT_ONCE)
    return max(sampling, gathered + prompt_rows * config.vocab_size * _LOGPROB_BYTES)
