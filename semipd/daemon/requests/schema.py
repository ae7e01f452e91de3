"""What requests of HTTP and socket share: how to generate, and refusals in plain words."""

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from semipd.core.brief import brief
from semipd.core.errors import SemipdError
from semipd.core.ranges import Range
from semipd.core.request import Priority
from semipd.core.sampling import (
    LOGIT_BIAS,
    MAX_ALLOWED_TOKEN_IDS,
    MAX_COUNT,
    MAX_LOGIT_BIASES,
    MAX_SEED,
    MAX_STOP_TOKEN_IDS,
    RANGES,
)
from semipd.core.slo import BATCH_CLASS, TARGET_BOUNDS

MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_SALT_CHARS = 1024
MAX_TIMEOUT_MS = MAX_COUNT
MAX_ID_CHARS = 256
"""Of a request's id on the socket: every frame that answers it carries it."""

MAX_SHOWN = 80
"""Characters of a name or a value in a refusal."""

MAX_PROBLEMS = 3000
"""Described to find the first one, in some milliseconds: a map of `logit_bias` may have as many."""

_MIN_SEED = -(2**63)
_TOKEN_ID = "^(0|[1-9][0-9]{0,9})$"


def _stops(value: object) -> object:
    """A single stop string is a list of one."""
    return [value] if isinstance(value, str) else value


def within(limits: Range) -> Any:
    """The range as a field's constraint, which the published schema shows."""
    low, high = limits.low, limits.high
    return Field(gt=low, le=high) if limits.above_low else Field(ge=low, le=high)


def at_most(num: int) -> BeforeValidator:
    """Counted before anything in a list or a map is looked at: each bad entry would cost a report."""

    def counted(value: object) -> object:
        if isinstance(value, list | dict) and len(value) > num:
            message = "should hold at most {most} entries; there are {num}"
            raise PydanticCustomError("too_many", message, {"most": num, "num": len(value)})
        return value

    return BeforeValidator(counted)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""JSON has one kind of number: some languages write 16 as 16.0."""

TokenCount = Annotated[int, Field(ge=0, le=MAX_COUNT), WHOLE]


def _token_id(text: str) -> str:
    """One spelling for each id: two keys of a map must not mean the same token."""
    if not re.fullmatch(_TOKEN_ID[1:-1], text):
        raise PydanticCustomError("token_id", "A key should be a token id in plain digits, such as '5'")
    return text


TokenIdText = Annotated[
    str, AfterValidator(_token_id), WithJsonSchema({"type": "string", "pattern": _TOKEN_ID})
]
LogitBias = Annotated[
    dict[TokenIdText, Annotated[float, within(LOGIT_BIAS)]],
    Field(max_length=MAX_LOGIT_BIASES),
    at_most(MAX_LOGIT_BIASES),
]


def _whole_all(value: object) -> object:
    """A list of hundreds of thousands is only looked at, or turned in one go."""
    if not isinstance(value, list):
        return value
    kinds = set(map(type, value))
    if float not in kinds or not kinds <= {int, float}:
        return value
    try:
        whole = list(map(int, value))
    except (OverflowError, ValueError):  # infinite, or no number
        return value
    return whole if whole == value else value


def _priority(value: object) -> object:
    """vLLM's number: 0 is what its clients send by default."""
    return "interactive" if value == 0 and value is not False else value


RequestPriority = Annotated[
    Priority, BeforeValidator(_priority, json_schema_input_type=Priority | Literal[0])
]

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_COUNT)]], Field(fail_fast=True), BeforeValidator(_whole_all)
]
StopTokenIds = Annotated[TokenIds, Field(max_length=MAX_STOP_TOKEN_IDS), at_most(MAX_STOP_TOKEN_IDS)]
AllowedTokenIds = Annotated[
    TokenIds, Field(min_length=1, max_length=MAX_ALLOWED_TOKEN_IDS), at_most(MAX_ALLOWED_TOKEN_IDS)
]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS, fail_fast=True),
    BeforeValidator(_stops, json_schema_input_type=StopString | list[StopString]),
]


WHOLE_VOCABULARY = -1
"""As a number of alternatives."""

FILL_CONTEXT = -1
"""As a number of prompt tokens to keep."""


class Truncation(NamedTuple):
    """`num_tokens`: of a prompt to keep at most. `side`: where the others are taken away."""

    num_tokens: int
    side: Literal["left", "right"]


Target = Annotated[float, within(TARGET_BOUNDS["ttft_ms"])]
"""In milliseconds; 0: none."""


ClassName = Annotated[str, Field(max_length=MAX_ID_CHARS)]


class RequestSlo(BaseModel):
    """What the request is measured by, in place of what its service class is; see core.slo.Targets."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    ttft_ms: Target | None = None
    ttft_ms_per_1k_tokens: Target | None = None
    tpot_ms: Target | None = None
    itl_ms: Target | None = None
    service_class: Annotated[ClassName | None, Field(alias="class")] = None


class SamplingOptions(BaseModel):
    """How to generate. None means: the model's default, else the neutral value of core.sampling."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    max_tokens: TokenCount | None = None
    temperature: Annotated[float, within(RANGES["temperature"])] | None = None
    top_p: Annotated[float, within(RANGES["top_p"])] | None = None
    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    """-1, 0, and whatever the vocabulary does not exceed: off."""

    min_p: Annotated[float, within(RANGES["min_p"])] | None = None
    repetition_penalty: Annotated[float, within(RANGES["repetition_penalty"])] | None = None
    presence_penalty: Annotated[float, within(RANGES["presence_penalty"])] | None = None
    frequency_penalty: Annotated[float, within(RANGES["frequency_penalty"])] | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: AllowedTokenIds | None = None
    """No other token is sampled."""

    seed: Annotated[int, Field(ge=_MIN_SEED, le=MAX_SEED), WHOLE] | None = None
    min_tokens: TokenCount | None = None
    ignore_eos: bool | None = None
    stop: StopStrings | None = None
    stop_token_ids: StopTokenIds | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_CHARS)] | None = None
    """It travels with every sequence."""

    priority: RequestPriority | None = None
    """batch: another name for `slo.class` batch."""

    slo: RequestSlo | None = None
    accept_late: bool | None = None
    """Wait in the background rather than be refused because the first token would come late."""

    timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS), WHOLE] | None = None
    """From arrival; then the request fails with deadline_exceeded."""

    include_timing: bool | None = None
    """Adds `timing` to the answer's usage."""

    @property
    def class_named(self) -> str | None:
        """The service class; None: none is named. Raises SemipdError(`invalid_value`): two are."""
        named = self.slo.service_class if self.slo is not None else None
        if self.priority != "batch":
            return named
        if named not in (None, BATCH_CLASS):
            raise SemipdError(
                "invalid_value",
                f'priority "batch" and slo.class {named!r:.80} name two classes.',
                "Send one of them.",
                param="priority",
            )
        return BATCH_CLASS

    @property
    def own_targets(self) -> dict[str, float]:
        """Those that stand in the place of the class's; 0: no target."""
        return {} if self.slo is None else self.slo.model_dump(exclude={"service_class"}, exclude_none=True)

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most; None: the endpoint's default."""
        return self.max_tokens

    @property
    def prompt_only(self) -> bool:
        """Nothing is to be generated: the client wants to know about its prompt."""
        return False

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report with each generated token; None: no log-probabilities."""
        return None

    @property
    def prompt_lists(self) -> tuple[int, ...]:
        """Alternatives in each list that tells of the prompt's tokens; -1: the whole vocabulary."""
        return ()

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The most of them; None: no log-probabilities. -1 is more than any other number."""
        if WHOLE_VOCABULARY in self.prompt_lists:
            return WHOLE_VOCABULARY
        return max(self.prompt_lists, default=None)

    @property
    def repeats_prompt(self) -> bool:
        """Every choice of a prompt has the lists that tell of it."""
        return True

    @property
    def is_whole(self) -> bool:
        """Nothing leaves before everything is generated."""
        return False

    @property
    def num_choices(self) -> int:
        """Per prompt."""
        return 1

    @property
    def truncation(self) -> Truncation | None:
        return None


SocketId = Annotated[
    Annotated[int, Field(ge=_MIN_SEED, lt=2**64)] | Annotated[str, Field(max_length=MAX_ID_CHARS)], WHOLE
]
"""What msgpack can carry back; languages that only have doubles write 3 as 3.0."""


class SocketRequest(BaseModel):
    """One operation over the Unix socket."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    id: SocketId
    op: str


_MEMBER = re.compile(r"str|int|[a-z]+(-[a-z]+)+|.*\[.*", re.DOTALL)
"""What pydantic calls a member of a union, such as constrained-int and list[str], and the key of a map."""


_HINTS = {
    "prompt": "A prompt is a string, a list of token ids, or a list of these.",
    "id": f"An id is a whole number of 64 bits, or a string of at most {MAX_ID_CHARS} characters.",
}


def check_names(schema: type[BaseModel], given: object) -> None:
    """Each name that a schema forbids would cost an error of its own. Raises SemipdError(`unknown_field`):
    the first one."""
    if isinstance(given, dict) and schema.model_config.get("extra") == "forbid":
        unknown = next((name for name in given if name not in schema.model_fields), None)
        if unknown is not None:
            raise _unknown_field(str(unknown)[:MAX_SHOWN])


def _unknown_field(field: str) -> SemipdError:
    return SemipdError("unknown_field", f"There is no field {field}.", param=field.partition(".")[0])


def refusal(error: ValidationError) -> SemipdError:
    """The first problem of a body, as an answer for its sender."""
    num_problems = error.error_count()
    if num_problems > MAX_PROBLEMS:
        message = f"The body has {num_problems} faults, each of them in a field or an entry of its own."
        return SemipdError("invalid_value", message, "Send the fields that the endpoint documents.")
    problems = error.errors(include_url=False)
    # Of a union's alternatives, the one that got furthest is the one that was meant.
    same_field = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    # Of those, one whose type was right.
    problem = max(same_field, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    field_name, *inner = map(str, problem["loc"] or ("",))
    where = [
        part for part in (field_name, *inner) if part and (part is field_name or not _MEMBER.fullmatch(part))
    ]
    param = where[0][:MAX_SHOWN] if where else None
    field = ".".join(part[:MAX_SHOWN] for part in where)
    match problem["type"]:
        case "json_invalid":
            return SemipdError("malformed_json", f"The body is not valid JSON: {problem['msg']}.")
        case "missing":
            return SemipdError("missing_field", f"The field {field} is required.", param=param)
        case "extra_forbidden":
            return _unknown_field(field)
    got = f"; got {shown(problem['input'])}" if where else ""
    hint = _HINTS.get(param or "", "")
    message = f"{field or 'body'}: {problem['msg']}{got}."
    return SemipdError("invalid_value", message, hint, param=param)


def shown(value: object) -> str:
    """The beginning of a value as Python writes it, whatever it is."""
    return brief(value, MAX_SHOWN)
