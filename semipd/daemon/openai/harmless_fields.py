"""Fields that clients send for OpenAI's own service. Their form is checked; no answer depends on them, save
through a chat template that names one."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_METADATA = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512
MAX_LABEL_CHARS = 1024

Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARS)],
        Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS)],
    ],
    Field(max_length=MAX_METADATA),
]

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class HarmlessOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    user: Label | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    """We store nothing, whatever it says."""

    service_tier: Literal["auto", "default", "flex", "fast", "scale", "priority"] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    parallel_tool_calls: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Handed to a chat template that names it, as `reasoning_effort` is."""

    reasoning_effort: ReasoningEffort | None = None
    request_id: Label | None = None
    """vLLM's; here the header X-Request-ID names a request."""

    session_id: Label | None = None
