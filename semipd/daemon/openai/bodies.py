"""Bodies of the OpenAI endpoints and of those beside them. Fields we do not know land in `model_extra`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from semipd.core.errors import SemipdError
from semipd.core.sampling import MAX_COUNT, MAX_LOGPROBS, RANGES
from semipd.daemon.openai.harmless_fields import HarmlessOptions
from semipd.daemon.openai.unserved_fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    STREAM_FIELDS,
    TOKENIZE_FIELDS,
    Allowed,
    refuse_unsupported,
)
from semipd.daemon.requests.messages import Messages
from semipd.daemon.requests.schema import (
    WHOLE,
    SamplingOptions,
    TokenCount,
    TokenIds,
    Truncation,
    within,
)

MAX_N = 128
"""OpenAI's."""

MAX_CHOICES = 4096
"""Of one request: prompts times n."""


def _prompt_kind(value: object) -> str | None:
    if isinstance(value, str):
        return "[text]"
    if not isinstance(value, list):
        return None
    first = value[0] if value else 0
    return "[texts]" if isinstance(first, str) else "[id_lists]" if isinstance(first, list) else "[ids]"


OnePrompt = Annotated[str, Tag("[text]")] | Annotated[TokenIds, Tag("[ids]")]
Prompt = Annotated[
    OnePrompt
    | Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True), Tag("[texts]")]
    | Annotated[list[TokenIds], Field(max_length=MAX_CHOICES, fail_fast=True), Tag("[id_lists]")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="Input should be a string or a list",
    ),
]
NumLogprobs = Annotated[int, within(RANGES["logprobs"]), WHOLE]
NumPromptLogprobs = Annotated[int, Field(ge=-1, le=MAX_LOGPROBS), WHOLE]
"""-1: the whole vocabulary."""

NumChoices = Annotated[int, Field(ge=1, le=MAX_N), WHOLE]


class HttpBody(HarmlessOptions):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    known_fields: ClassVar[Mapping[str, Allowed]] = {}
    """Besides the model's own."""

    model: str | None = None

    def check(self) -> None:
        """Raises SemipdError when fields contradict each other."""

    def unknown_fields(self) -> list[str]:
        """Names that mean nothing to us. Raises SemipdError(`unsupported_value`)."""
        return refuse_unsupported(self.model_extra or {}, self.known_fields)


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None
    """One more event at the end. False: there is no usage at all."""

    continuous_usage_stats: bool | None = None

    @property
    def wants_usage_always(self) -> bool:
        """In every event."""
        return bool(self.continuous_usage_stats) and self.include_usage is not False


class ChoiceOptions(SamplingOptions):
    """Choices, and what is told of their tokens, on every endpoint and on the socket."""

    n: NumChoices | None = None
    prompt_logprobs: NumPromptLogprobs | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=MAX_COUNT), WHOLE] | None = None
    """Tokens of the prompt to keep at most; -1: as many as leave room for max_tokens."""

    truncation_side: Literal["left", "right"] | None = None
    """Where the others are taken away; default: left."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def num_choices(self) -> int:
        """Per prompt."""
        return self.n or 1

    @property
    def prompt_lists(self) -> tuple[int, ...]:
        return () if self.prompt_logprobs is None else (self.prompt_logprobs,)

    @property
    def truncation(self) -> Truncation | None:
        if self.truncate_prompt_tokens is None:
            return None
        return Truncation(self.truncate_prompt_tokens, self.truncation_side or "left")


class AnswerOptions(HttpBody, ChoiceOptions):
    """What both OpenAI endpoints take."""

    max_completion_tokens: TokenCount | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def is_whole(self) -> bool:
        return not self.stream

    def check(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise SemipdError("invalid_value", "stream_options needs stream=true.", param="stream_options")
        if self.include_timing and self.stream_options and self.stream_options.include_usage is False:
            raise SemipdError(
                "invalid_value",
                "include_timing of a stream is part of its usage, which include_usage=false leaves out.",
                "Leave one of them out.",
                param="include_timing",
            )
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise SemipdError(
                "invalid_value",
                f"max_tokens={self.max_tokens} and max_completion_tokens={self.max_completion_tokens} "
                "are two names of one limit.",
                "Send one of them.",
                param="max_completion_tokens",
            )

    def unknown_fields(self) -> list[str]:
        options = self.stream_options
        in_options = refuse_unsupported(options.model_extra or {}, STREAM_FIELDS) if options else []
        return super().unknown_fields() + in_options


class CompletionOptions(ChoiceOptions):
    """Of /v1/completions, and of the socket's generate."""

    echo: bool | None = None
    logprobs: NumLogprobs | None = None

    @property
    def prompt_only(self) -> bool:
        return bool(self.echo) and self.token_limit == 0

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompt_lists(self) -> tuple[int, ...]:
        echoed = (self.logprobs,) if self.echo and self.logprobs is not None else ()
        return super().prompt_lists + echoed

    def check_prompt_only(self) -> None:
        """Raises SemipdError when nothing is asked for."""
        if self.token_limit == 0 and not self.echo:
            message = "max_tokens=0 asks for nothing but the prompt, which needs echo=true."
            raise SemipdError("invalid_value", message, "Send max_tokens of 1 or more.", param="max_tokens")


class CompletionRequest(AnswerOptions, CompletionOptions):
    """POST /v1/completions."""

    known_fields = COMPLETION_FIELDS

    prompt: Prompt
    best_of: NumChoices | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if _prompt_kind(prompt) == "[ids]":
            return [cast(list[int], prompt)]
        return cast(list[str] | list[list[int]], prompt)

    def check(self) -> None:
        super().check()
        if len(self.prompts) * self.num_choices > MAX_CHOICES:
            raise SemipdError(
                "invalid_value",
                f"{len(self.prompts)} prompts and n={self.num_choices} make more than {MAX_CHOICES} choices.",
                "Send fewer prompts in one request.",
                param="n",
            )
        if self.best_of not in (None, 1, self.num_choices):
            raise SemipdError(
                "unsupported_value",
                f"best_of={self.best_of} is not supported: every choice is returned, n={self.num_choices}.",
                "Leave best_of out.",
                param="best_of",
            )
        self.check_prompt_only()


class TemplateFields(BaseModel):
    """How the chat template writes messages."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    """Default: a text gets them, a conversation has them from its template."""

    @property
    def template_options(self) -> dict[str, object]:
        """What OpenAI's fields say of the answer, for a template that reads it."""
        return {}

    def check_template(self) -> None:
        """Raises SemipdError when fields exclude each other."""
        if self.continue_final_message and self.add_generation_prompt:
            raise SemipdError(
                "invalid_value",
                "continue_final_message and add_generation_prompt exclude each other.",
                "Send one of them.",
                param="continue_final_message",
            )


class TemplateOptions(HttpBody, TemplateFields):
    @property
    def template_options(self) -> dict[str, object]:
        effort, verbosity = self.reasoning_effort, self.verbosity
        thinks = None if effort is None else effort != "none"
        return {"reasoning_effort": effort, "enable_thinking": thinks, "verbosity": verbosity}

    def check(self) -> None:
        super().check()
        self.check_template()


class ChatCompletionRequest(TemplateOptions, AnswerOptions):
    """POST /v1/chat/completions."""

    known_fields = CHAT_FIELDS

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: NumLogprobs | None = None

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def repeats_prompt(self) -> bool:
        return False

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise SemipdError("invalid_value", "top_logprobs needs logprobs=true.", param="top_logprobs")


class TokenizeFields(TemplateFields):
    """What to tokenize: a text or a conversation."""

    prompt: str | None = None
    messages: Messages | None = None
    return_token_strs: bool | None = None

    def check_source(self) -> None:
        """Raises SemipdError unless there is one."""
        if (self.prompt is None) == (self.messages is None):
            raise SemipdError("invalid_value", "Send either prompt or messages.", param="prompt")


class TokenizeRequest(TemplateOptions, TokenizeFields):
    """POST /tokenize."""

    known_fields = TOKENIZE_FIELDS

    def check(self) -> None:
        super().check()
        self.check_source()


class DetokenizeRequest(HttpBody):
    """POST /detokenize."""

    tokens: TokenIds
