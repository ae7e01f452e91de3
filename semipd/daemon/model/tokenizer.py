"""Text to token ids and back, over `tokenizers`; streaming never shows half a character."""

import codecs
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from semipd.core.errors import SemipdError
from semipd.daemon.model.text_bounds import chars_per_token

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text does not take the engine's cores

_REPLACEMENT = "\ufffd"
_MAX_REASON_CHARS = 300
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_INLINE_TOKENS = 1024
"""Decoded in a tenth of a millisecond; more of them release the GIL."""

_NUM_ANCHORS = 100
"""Words of the vocabulary that are tried, at most, for a text that the tokenizer can spell."""

_MAX_PENDING = 16
"""Tokens held back at most. A UTF-8 character has 4 bytes, so a longer wait is for text that never comes."""

T = TypeVar("T")


def _byte_characters() -> dict[str, int]:
    """Byte-level vocabularies write each byte as a printable character: itself where it is one in
    Latin-1, else the next character from U+0100 on (GPT-2's bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [value for value in range(256) if value not in printable]
    spelled = {chr(value): value for value in printable}
    return spelled | {chr(256 + idx): value for idx, value in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()


class Tokenizer:
    """A checkpoint's tokenizer.json. Thread-safe; `encode` and `decode` release the GIL while they work.

    Where the library fails, its panics included, methods raise SemipdError(`invalid_text`).
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        # some checkpoints carry the truncation they were trained with; a prompt must never lose text silently
        inner.no_truncation()
        inner.no_padding()
        if not inner.get_vocab_size(with_added_tokens=True):
            raise ValueError("its vocabulary is empty")
        if getattr(inner.model, "dropout", None):
            inner.model.dropout = None  # meant for training: the same text must have the same tokens
        self._inner = inner
        anchor, self._anchor = _find_anchor(inner)
        self._bos_id = self._find_bos(anchor)
        self.chars_per_token = chars_per_token(inner)
        self.special_ids = frozenset(
            token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special
        )

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Raises SemipdError(`invalid_tokenizer`)."""
        return cls.of(lambda: tokenizers.Tokenizer.from_file(str(path)), path)

    @classmethod
    def of(cls, made: Callable[[], tokenizers.Tokenizer], path: Path) -> "Tokenizer":
        """Of what is in the file `path`. Raises SemipdError(`invalid_tokenizer`) also where the library fails
        to make it."""
        try:
            return cls(made())
        except SemipdError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_of_library(error):
                raise
            raise SemipdError(
                "invalid_tokenizer",
                f"{path} cannot be used: {_reason(error)}.",
                "Fetch the file again, or save it again with a current `transformers`.",
            ) from error

    @property
    def anchor(self) -> list[int]:
        """Tokens that a text may begin with, where what matters comes after them."""
        return list(self._anchor)

    @property
    def vocab_size(self) -> int:
        """Tokens known, added ones included. A model's own vocabulary may be padded beyond it."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. With special tokens the checkpoint's post-processor adds its BOS, unless
        the text already starts with it. A rendered chat template wants `add_special_tokens=False`.

        Raises SemipdError(`invalid_text`) when `text` is not Unicode text (a lone surrogate), or has
        characters that the tokenizer cannot spell.
        """
        try:
            # not `encode`, which keeps the GIL; nor with offsets, which take most of its time and memory
            [encoding] = _called(self._inner.encode_batch_fast, [text], add_special_tokens=add_special_tokens)
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
            one: str = _called(self._inner.decode, list(token_ids), skip_special_tokens=skip_special_tokens)
            return one
        [text] = _called(self._inner.decode_batch, [list(token_ids)], skip_special_tokens=skip_special_tokens)
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

    def _find_bos(self, anchor: str) -> int | None:
        special = self._inner.encode(anchor).ids
        unknown = [token_id for token_id in special if self._inner.id_to_token(token_id) is None]
        if unknown:
            raise ValueError(f"its post_processor adds the token {unknown[0]}, which its vocabulary lacks")
        return special[0] if special[:1] != self._anchor[:1] else None


def _find_anchor(inner: tokenizers.Tokenizer) -> tuple[str, list[int]]:
    """A text that the tokenizer can spell, and how. Vocabularies of words may lack every letter."""
    for text in _candidates(inner):
        try:
            return text, inner.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not _is_of_library(error):
                raise
    return "", []


def _candidates(inner: tokenizers.Tokenizer) -> Iterator[str]:
    yield "a"
    yield from sorted(inner.get_vocab())[:_NUM_ANCHORS]


def _called(call: Callable[..., T], *args: Any, **options: Any) -> T:
    """Raises SemipdError(`invalid_text`) where the library fails."""
    try:
        return call(*args, **options)
    except BaseException as error:
        if not _is_of_library(error):
            raise
        raise SemipdError(
            "invalid_text",
            f"The model's tokenizer cannot process this text: {_reason(error)}.",
            "Send a text without the characters that its vocabulary lacks, or serve a checkpoint whose "
            "tokenizer.json has a token for unknown characters.",
        ) from error


def _is_of_library(error: BaseException) -> bool:
    """It raises bare Exception, and its panics are no Exception at all."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _reason(error: BaseException) -> str:
    """On one line, without the end of a sentence."""
    return " ".join(str(error).split())[:_MAX_REASON_CHARS].rstrip(".")


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

    def prime(self, prompt: Sequence[int]) -> int:
        """The text to come continues that of `prompt`: a space at its start is kept, and a character that
        the prompt has begun is given out when it is complete. Call before the first step.

        Returns how many tokens at the prompt's end have begun that character.
        """
        tail = prompt[-_MAX_PENDING:]
        num_shown = 0
        for idx, token_id in enumerate(tail, 1):
            if self._pending() and token_id in self._tokenizer.special_ids:
                self._forget()  # a character does not go on after a special token
            self.step(token_id)
            num_shown = num_shown if self._pending() else idx
        if not _ends_inside_character(b"".join(map(self._tokenizer.token_bytes, self._pending()))):
            self.flush()
        return len(tail) - num_shown if self._pending() else 0

    def step(self, token_id: int) -> str:
        """Text completed by this token; empty while a character is incomplete."""
        if not self._tokenizer.has_text(token_id, or_special=not self._skip_special):
            return ""
        self._window.append(token_id)
        text = self._decode()
        num_pending = len(self._pending())
        if text.endswith(_REPLACEMENT) and num_pending < _MAX_PENDING:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """What is held back when the sequence ends; an incomplete character shows as U+FFFD."""
        return self._take(self._decode())

    def _pending(self) -> list[int]:
        return self._window[self._num_context :]

    def _forget(self) -> None:
        """As in the middle of another text."""
        self._window = self._tokenizer.anchor
        self._num_context = len(self._window)
        self._context_text = self._decode()

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
