"""From a client's texts, token ids or messages to prompts. Long ones leave the event loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from semipd.core.errors import SemipdError
from semipd.daemon.served_model import MessageTemplate, ServedModel

INLINE_ENCODE_CHARS = 4096
"""Longer texts are rendered and tokenized in a thread: this many take about a millisecond."""

_RESERVED_NAMES = frozenset({"messages", "add_generation_prompt"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text`: what the token ids were made of; None when the client sent ids. `opens_text`: what is
    generated is a text of its own, an answer, and not the prompt's continuation."""

    token_ids: list[int]
    text: str | None = None
    opens_text: bool = False


class Prompts:
    def __init__(self, model: ServedModel) -> None:
        self._model = model

    async def of(self, given: Sequence[str | list[int]], *, add_special_tokens: bool = True) -> list[Prompt]:
        """Raises SemipdError(`invalid_text`)."""
        encode = self._model.tokenizer.encode

        def prompt(one: str | list[int]) -> Prompt:
            if isinstance(one, str):
                return Prompt(encode(one, add_special_tokens=add_special_tokens), one)
            return Prompt(one)

        num_chars = sum(len(one) for one in given if isinstance(one, str))
        return await beside_loop(lambda: [prompt(one) for one in given], when=num_chars > INLINE_ENCODE_CHARS)

    async def of_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        wishes: Mapping[str, object] | None = None,
    ) -> Prompt:
        """The conversation as the checkpoint's chat template writes it, special tokens included. `wishes`:
        variables for a template that names them; None stands for none.

        Raises SemipdError: `no_chat_template`, `invalid_messages`, `invalid_chat_template`.
        """
        template = self._template()
        named = {name: wish for name, wish in (wishes or {}).items() if wish is not None}
        extra = {name: wish for name, wish in named.items() if template.names(name)}
        extra |= _checked(template_kwargs or {})
        generate = add_generation_prompt and not continue_final_message

        def render() -> Prompt:
            known = [_with_known_role(message, template) for message in messages]
            text = template.render(known, generate, **extra)
            if continue_final_message:
                text = _cut_behind(text, str(messages[-1]["content"]))
            token_ids = self._model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return Prompt(token_ids, text, opens_text=not continue_final_message)

        num_chars = sum(len(str(message.get("content"))) for message in messages)
        return await beside_loop(render, when=num_chars > INLINE_ENCODE_CHARS)

    def _template(self) -> MessageTemplate:
        template = self._model.chat_template
        if template is None:
            raise SemipdError(
                "no_chat_template",
                "The model has no chat template.",
                "Send a prompt to /v1/completions instead of messages.",
                param="messages",
            )
        return template


async def beside_loop(work: Callable[[], T], *, when: bool) -> T:
    """`work()`, in a thread when it is long."""
    return await asyncio.to_thread(work) if when else work()


def _checked(template_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in template_kwargs:
        if name in _RESERVED_NAMES:
            raise SemipdError(
                "invalid_value",
                f"chat_template_kwargs may not hold {name}.",
                f"Send {name} as a field of the request.",
                param="chat_template_kwargs",
            )
    return template_kwargs


def _with_known_role(message: Mapping[str, Any], template: MessageTemplate) -> Mapping[str, Any]:
    """`developer` is OpenAI's newer word for `system`; most templates drop what they do not know."""
    if message.get("role") == "developer" and not template.names_role("developer"):
        return {**message, "role": "system"}
    return message


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
