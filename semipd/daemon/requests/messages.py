"""The messages of a conversation, as clients write them and as chat templates read them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from semipd.core.brief import brief
from semipd.core.errors import SemipdError


def _content(value: object) -> object:
    """Parts that are no text are refused by name before anything else is said about them."""
    for part in value if isinstance(value, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in ("text", "refusal"):
            raise SemipdError(
                "unsupported_value",
                f"A content part of type {brief(kind)} is not supported: this model reads text.",
                "Send parts of type text.",
                param="messages",
            )
    return value


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["refusal"]
    refusal: str


def _content_kind(value: object) -> str:
    return "[parts]" if isinstance(value, list) else "[text]"


def _part_kind(value: object) -> str:
    return "[refusal]" if isinstance(value, dict) and value.get("type") == "refusal" else "[text]"


ContentPart = Annotated[
    Annotated[TextPart, Tag("[text]")] | Annotated[RefusalPart, Tag("[refusal]")], Discriminator(_part_kind)
]
Content = Annotated[
    Annotated[
        Annotated[str, Tag("[text]")] | Annotated[list[ContentPart], Field(fail_fast=True), Tag("[parts]")],
        Discriminator(_content_kind),
    ],
    BeforeValidator(_content, json_schema_input_type=str | list[ContentPart]),
]


class ChatMessage(BaseModel):
    """One message. What else it holds (name, tool_calls, tool_call_id, reasoning_content, ...) is for the
    chat template."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None

    def for_template(self) -> dict[str, Any]:
        """As templates read it, but for the arguments of tool calls: the content is one string, and nulls
        are left out, as templates ask whether a field is there."""
        if self.content is None and self.role != "assistant":
            message = f"A message of the role {self.role} needs content."
            raise SemipdError("missing_field", message, param="messages")
        further = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        return {"role": self.role, "content": self._text()} | further

    def _text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in self.content)


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
