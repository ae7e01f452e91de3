"""A model whose tokens are the bytes of UTF-8, so that tests can cut characters wherever they like."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semipd.daemon.model.chat_template import ChatTemplate

EOS = 256
BOS = 257


class ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def prime(self, prompt: Sequence[int]) -> int:
        for token_id in prompt[-4:]:
            self.step(token_id)
        return len(self._decoder.getstate()[0])

    def step(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id])) if token_id < 256 else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")

    def stream_decoder(self, *, skip_special_tokens: bool = True) -> ByteDecoder:
        return ByteDecoder()

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [f"<{token_id}>" for token_id in token_ids]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""


class RoleTemplate:
    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def names_role(self, role: str) -> bool:
        return False

    def names(self, variable: str) -> bool:
        return False


@dataclass
class ByteModel:
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    chat_template: RoleTemplate | ChatTemplate | None = field(default_factory=RoleTemplate)
    eos_token_ids: tuple[int, ...] = (EOS,)
    sampling_defaults: dict[str, float | int] = field(default_factory=dict)
    tokenizer_info: dict[str, Any] = field(default_factory=lambda: {"tokenizer_class": "ByteTokenizer"})
