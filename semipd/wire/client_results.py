"""What clients of the socket get back, typed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Logprobs:
    """OpenAI's of completions, an entry per token; with echo the prompt's first, which has no prediction,
    holds None. `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@dataclass(frozen=True, slots=True)
class Model:
    """`max_model_len`: prompt and output, in tokens; None until the engine is ready."""

    id: str
    max_model_len: int | None
    created: int

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> "Model":
        return cls(data["id"], data["max_model_len"], data["created"])


@dataclass(frozen=True, slots=True)
class Tokens:
    """`token_strs`: how the vocabulary spells them, if asked for."""

    token_ids: list[int]
    max_model_len: int
    token_strs: list[str] | None = None

    @property
    def count(self) -> int:
        return len(self.token_ids)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> "Tokens":
        return cls(data["tokens"], data["max_model_len"], data.get("token_strs"))


@dataclass(frozen=True, slots=True)
class Greeting:
    """The daemon's hello. Daemons before 0.2 say no more than their name: the rest is None or empty."""

    agent: str
    model: str | None = None
    max_model_len: int | None = None
    role: str | None = None
    operations: list[str] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> "Greeting":
        return cls(
            str(data.get("agent", "")),
            data.get("model"),
            data.get("max_model_len"),
            data.get("role"),
            data.get("operations") or [],
            data.get("limits") or {},
        )
