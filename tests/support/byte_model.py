"""A model whose tokens are the bytes of UTF-8, so that tests can cut characters wherever they like."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EOS = 256
BOS = 257


class ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token_id: int) -> str:
        return self._decoder.decode(bytes([token_id])) if token_id < 256 else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def stream_decoder(self) -> ByteDecoder:
        return ByteDecoder()


class RoleTemplate:
    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


@dataclass
class ByteModel:
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    chat_template: RoleTemplate | None = field(default_factory=RoleTemplate)
    eos_token_ids: tuple[int, ...] = (EOS,)
    sampling_defaults: dict[str, float | int] = field(default_factory=dict)
