"""What serving needs to know of the checkpoint; daemon.model.files provides it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from semipd.daemon.model.text import TokenDecoder


class TextCodec(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def stream_decoder(self, *, skip_special_tokens: bool = True) -> TokenDecoder: ...

    def pieces(self, token_ids: Sequence[int]) -> list[str]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class MessageTemplate(Protocol):
    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **extra: Any
    ) -> str: ...

    def names_role(self, role: str) -> bool: ...

    def names(self, variable: str) -> bool: ...


class ServedModel(Protocol):
    @property
    def tokenizer(self) -> TextCodec: ...

    @property
    def chat_template(self) -> MessageTemplate | None: ...

    @property
    def eos_token_ids(self) -> Sequence[int]: ...

    @property
    def tokenizer_info(self) -> Mapping[str, Any]: ...

    @property
    def sampling_defaults(self) -> Mapping[str, float | int]: ...
