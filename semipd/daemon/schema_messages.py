"""The messages of a conversation, as clients write them and as chat templates read them."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from semipd.core.errors import SemipdError


def _content(value: object) -> object:
    """Parts that are no text are refused by name before anything else is said about them."""
    for part in value if isinstance(value, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in ("text", "refusal"):
            raise SemipdError(
                "unsupported_value",
                f"A content part of type {kind!r:.80} is not supported: this model reads text.",
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
        Annotated[str, Tag("[text]")] | Annotated[list[ContentPart], Tag("[parts]")],
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
        """As templates read it: the content is one string, arguments of tool calls are values."""
        if self.content is None and self.role != "assistant":
            message = f"A message of the role {self.role} needs content."
            raise SemipdError("missing_field", message, param="messages")
        return {"role": self.role, "content": self._text()} | _tool_calls_as_values(self.model_extra or {})

    def _text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in self.content)


def _tool_calls_as_values(fields: dict[str, Any]) -> dict[str, Any]:
    """OpenAI sends arguments as JSON text; templates write them as JSON themselves. Nulls are left out:
    templates ask whether a field is there."""
    shown = {name: value for name, value in fields.items() if value is not None}
    if isinstance(calls := shown.get("tool_calls"), list):
        shown["tool_calls"] = [_call_as_values(call) for call in calls]
    return shown


def _call_as_values(call: Any) -> Any:
    """Unchanged if it is no call of a function or its arguments, which a model wrote, are no JSON."""
    try:
        function = call["function"]
        return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
    except (TypeError, KeyError, ValueError):
        return call


Messages = Annotated[list[ChatMessage], Field(min_length=1)]
