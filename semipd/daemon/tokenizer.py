"""Text to token ids and back, over `tokenizers`; streaming never shows half a character."""

import codecs
import os
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from semipd.core.errors import SemipdError
from semipd.daemon.text_bounds import chars_per_token

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text does not take the engine's cores

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_INLINE_TOKENS = 1024
"""Decoded in a tenth of a millisecond; more of them release the GIL."""

_MAX_PENDING = 16
"""Tokens held back at most. A UTF-8 character has 4 bytes, so a longer wait is for text that never comes."""


def _byte_characters() -> dict[str, int]:
    """Byte-level vocabularies write each byte as a printable character: itself where it is one in
    Latin-1, else the next character from U+0100 on (GPT-2's bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [value for value in range(256) if value not in printable]
    spelled = {chr(value): value for value in printable}
    return spelled | {chr(256 + idx): value for idx, value in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()


class Tokenizer:
    """A checkpoint's tokenizer.json. Thread-safe; `encode` and `decode` release the GIL while they work."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        # some checkpoints carry the truncation they were trained with; a prompt must never lose text silently
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._bos_id = self._find_bos()
        self._anchor = inner.encode("a", add_special_tokens=False).ids
        self.chars_per_token = chars_per_token(inner)
        self.special_ids = frozenset(
            token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special
        )

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Raises SemipdError(`invalid_tokenizer`)."""
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise SemipdError(
                "invalid_tokenizer",
                f"{path} cannot be loaded: {error}.",
                "Fetch the file again, or save it again with a current `transformers`.",
            ) from error

    @property
    def vocab_size(self) -> int:
        """Tokens known, added ones included. A model's own vocabulary may be padded beyond it."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. With special tokens the checkpoint's post-processor adds its BOS, unless
        the text already starts with it. A rendered chat template wants `add_special_tokens=False`.

        Raises SemipdError(`invalid_text`) when `text` is not Unicode text (a lone surrogate).
        """
        try:
            # not `encode`, which keeps the GIL; nor with offsets, which take most of its time and memory
            [encoding] = self._inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise SemipdError(
                "invalid_text",
                "The text holds half of a surrogate pair, which is no Unicode character.",
                "Send valid UTF-8, or write characters above U+FFFF as a full pair in JSON.",
            ) from error
        ids: list[int] = encoding.ids
        if add_special_tokens and self._bos_id is not None and ids[:2] == [self._bos_id, self._bos_id]:
            return ids[1:]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if len(token_ids) <= _INLINE_TOKENS:
            return self._inner.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        [text] = self._inner.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)
        return text

    def stream_decoder(self, *, skip_special_tokens: bool = True) -> "StreamDecoder":
        return StreamDecoder(self, skip_special_tokens=skip_special_tokens)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary spells them; empty for ids beyond it."""
        return [self._inner.id_to_token(token_id) or "" for token_id in token_ids]

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds in the middle of a text, special or not; empty for ids beyond the vocabulary.

        Bytes, because a token may hold part of a character.
        """
        piece = self._inner.id_to_token(token_id)
        if piece is None:
            return b""
        text = self._after_anchor(token_id)
        if _REPLACEMENT not in text:
            return text.encode()
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        if all(character in _BYTE_OF_CHARACTER for character in piece):
            return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
        return text.encode()

    def has_text(self, token_id: int, *, or_special: bool = False) -> bool:
        """False for special tokens, unless `or_special`, and for ids beyond the vocabulary (padding of
        the model's head)."""
        if token_id in self.special_ids:
            return or_special
        return self._inner.id_to_token(token_id) is not None

    def _after_anchor(self, token_id: int) -> str:
        # alone, a token would lose the leading space that decoders strip at the start of a text
        text = self.decode([*self._anchor, token_id], skip_special_tokens=False)
        anchor = self.decode(self._anchor, skip_special_tokens=False)
        return text.removeprefix(anchor)

    def _find_bos(self) -> int | None:
        plain = self._inner.encode("a", add_special_tokens=False).ids
        special = self._inner.encode("a").ids
        return special[0] if special[:1] != plain[:1] else None


class StreamDecoder:
    """One sequence's tokens to text, in order; special tokens leave no trace unless they are asked for.

    The deltas and the flush joined are `Tokenizer.decode` of all tokens, whatever characters the tokens
    cut through. Byte-fallback tokenizers have one exception: they turn a whole run of byte tokens into
    replacement characters when its bytes are not valid UTF-8, and text given out before stays as it was.

    Not `tokenizers.decoders.DecodeStream`: that raises on such a run, cannot be flushed, and keeps
    ever more tokens when a replacement character is what the model means.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        # Decoding depends on the token before (a leading space is dropped at the start of a text), so:
        #     window = [tokens of the last delta, kept as context | tokens whose text is still held back]
        self._window: list[int] = []
        self._num_context = 0
        self._context_text = ""

    def prime(self, prompt: Sequence[int]) -> None:
        """The text to come continues that of `prompt`: a space at its start is kept, and a character that
        the prompt has begun is given out when it is complete. Call before the first step."""
        for token_id in prompt[-_MAX_PENDING:]:
            self.step(token_id)
        pending = b"".join(map(self._tokenizer.token_bytes, self._window[self._num_context :]))
        if not _ends_inside_character(pending):
            self.flush()

    def step(self, token_id: int) -> str:
        """Text completed by this token; empty while a character is incomplete."""
        if not self._tokenizer.has_text(token_id, or_special=not self._skip_special):
            return ""
        self._window.append(token_id)
        text = self._decode()
        num_pending = len(self._window) - self._num_context
        if text.endswith(_REPLACEMENT) and num_pending < _MAX_PENDING:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """What is held back when the sequence ends; an incomplete character shows as U+FFFD."""
        return self._take(self._decode())

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=self._skip_special)

    def _take(self, text: str) -> str:
        delta = text[len(self._context_text) :]
        if delta:
            del self._window[: self._num_context]
            self._num_context = len(self._window)
            self._context_text = self._decode()
        return delta


def _ends_inside_character(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return bool(decoder.getstate()[0])
