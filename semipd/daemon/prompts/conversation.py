"""A conversation on its way to a prompt: what a chat template reads, and what becomes of its text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from semipd.core.errors import SemipdError


class Template(Protocol):
    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **extra: Any
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Conversation:
    """`extra`: further names for the template. With `continue_final` the text ends with the last message."""

    messages: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool = True
    continue_final: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def written(conversation: Conversation, template: Template) -> str:
    """The prompt's text. Takes as long as the template likes. Raises what `ChatTemplate.render` raises."""
    messages = [_with_values(message) for message in conversation.messages]
    generate = conversation.add_generation_prompt and not conversation.continue_final
    text = template.render(messages, generate, **conversation.extra)
    if conversation.continue_final:
        return _cut_behind(text, str(messages[-1]["content"]))
    return text


def _with_values(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenAI sends arguments of calls as JSON text; templates write them as JSON themselves."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call_with_values(call) for call in calls]}


def _call_with_values(call: Any) -> Any:
    """Unchanged if it is no call of a function or its arguments, which a model wrote, are no JSON that can
    be read (nested too deeply, say)."""
    try:
        function = call["function"]
        return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
    except (TypeError, KeyError, ValueError, RecursionError):
        return call


def _cut_behind(text: str, final: str) -> str:
    """The rendered text up to the end of the final message, whose blanks the template may have stripped."""
    start = text.rfind(final.strip())
    if not final.strip() or start < 0:
        raise SemipdError(
            "invalid_messages",
            "continue_final_message needs a final message whose text the chat template shows as it is.",
            "Send a final message with text, or leave continue_final_message out.",
            param="messages",
        )
    whole = final.lstrip()
    return text[: start + len(whole if text.startswith(whole, start) else final.strip())]
