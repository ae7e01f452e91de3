"""Request bodies of HTTP and socket: their fields, and refusals in plain words."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from semipd.core.errors import SemipdError

MAX_STOPS = 64
MAX_STOP_CHARS = 1024
_MIN_SEED = -(2**63)


def _stops(value: object) -> object:
    """A single stop string is a list of one."""
    return [value] if isinstance(value, str) else value


def _one_prompt(value: object) -> object:
    """A batch of one is that prompt."""
    if not isinstance(value, list) or not value or isinstance(value[0], int):
        return value
    if not all(isinstance(entry, str | list) for entry in value):
        return value
    if len(value) > 1:
        raise SemipdError(
            "unsupported_value",
            f"prompt holds {len(value)} prompts; one request takes one.",
            "Send one request per prompt.",
            param="prompt",
        )
    return value[0]


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
Prompt = Annotated[str | TokenIds, BeforeValidator(_one_prompt)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class SamplingOptions(BaseModel):
    """How to generate. None means: the model's default, else the neutral value of core.sampling."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Annotated[int, Field(ge=_MIN_SEED, lt=2**64)] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: Annotated[list[StopString], BeforeValidator(_stops), Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: TokenIds | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class CompletionRequest(SamplingOptions):
    """POST /v1/completions. Fields we do not know land in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: Prompt
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class SocketRequest(BaseModel):
    """One operation over the Unix socket."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    id: int | str


class GenerateRequest(SamplingOptions, SocketRequest):
    op: Literal["generate"]
    prompt: str | TokenIds | None = None
    messages: list[dict[str, Any]] | None = None


class CancelRequest(SocketRequest):
    """`target` is the id of a generate request on the same connection."""

    op: Literal["cancel"]
    target: int | str


class PlainRequest(SocketRequest):
    op: Literal["status", "shutdown"]


# What these fields may hold without asking for anything; other values would change the answer.
_INERT: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (),
    "prompt_logprobs": (),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "truncate_prompt_tokens": (),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}


def refuse_unsupported(fields: Mapping[str, object]) -> list[str]:
    """Names in `fields` that mean nothing to us. Raises SemipdError(`unsupported_value`) on a field we
    know, cannot honour, and would have to."""
    for name, value in fields.items():
        if name in _INERT and value is not None and value not in _INERT[name]:
            raise SemipdError(
                "unsupported_value",
                f"{name}={value!r:.80} is not supported.",
                f"Leave {name} out.",
                param=name,
            )
    return [name for name in fields if name not in _INERT]


def refusal(error: ValidationError) -> SemipdError:
    """The first problem of a body, as an answer for its sender."""
    problems = error.errors(include_url=False)
    # Of a union's alternatives, the one that got furthest is the one that was meant.
    same_field = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    problem = max(same_field, key=lambda problem: len(problem["loc"]))
    where = [str(part) for part in problem["loc"] if str(part) not in ("str", "int") and "[" not in str(part)]
    param = where[0] if where else None
    match problem["type"]:
        case "json_invalid":
            return SemipdError("malformed_json", f"The body is not valid JSON: {problem['msg']}.")
        case "missing":
            return SemipdError("missing_field", f"The field {param} is required.", param=param)
        case "extra_forbidden":
            return SemipdError("unknown_field", f"There is no field {param}.", param=param)
    got = f"; got {problem['input']!r:.80}" if where else ""
    hint = "A prompt is a string or a list of token ids." if param == "prompt" else ""
    message = f"{'.'.join(where) or 'body'}: {problem['msg']}{got}."
    return SemipdError("invalid_value", message, hint, param=param)
