"""How long a text may be before it is tokenized: what surely cannot fit is not worth the work.

A token stands for so many characters at most, for tokenizers that lose none of a text. Byte-level and
byte-fallback vocabularies are such; what strips, collapses or fuses characters is not, and gets no bound of
this kind.
"""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers

from semipd.core.errors import SemipdError

MAX_COMPOSED = 4
"""Characters that a Unicode normal form makes one of, at most."""

PREFIX_CHARS_PER_TOKEN = 10
"""Natural texts have three to five characters per token."""

CERTAINTY = 2
"""The start of a text has so many times too many tokens: then the whole has too many, whatever follows."""

_BLANKS = " \n\t\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_COMPOSING = frozenset({"NFC", "NFKC"})
_KEEPING_NORMALIZERS = frozenset({"NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel"})
_KEEPING_SPLITTERS = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts"})


@dataclass(frozen=True, slots=True)
class TextBound:
    """What a text may come to. `wanted_by` says whose limit it is; `code` is the refusal's.
    `is_checked_later`: whoever asks counts the tokens himself, and says more of them."""

    max_tokens: int
    wanted_by: str
    code: str = "context_length_exceeded"
    param: str = "prompt"
    is_checked_later: bool = False

    def check(self, num_tokens: int) -> None:
        """Raises SemipdError when a whole text has too many."""
        if num_tokens > self.max_tokens and not self.is_checked_later:
            message = f"The text has {num_tokens} tokens; {self.wanted_by} is {self.max_tokens}."
            raise SemipdError(self.code, message, "Shorten the text.", param=self.param)

    def too_many_chars(self, num_chars: int, chars_per_token: int) -> SemipdError:
        message = (
            f"The text has {num_chars} characters. No token stands for more than {chars_per_token}, so it "
            f"exceeds {self.wanted_by} of {self.max_tokens} tokens."
        )
        return SemipdError(self.code, message, "Shorten the text.", param=self.param)

    def too_many_tokens(self, num_tokens: int, num_chars: int, of_chars: int) -> SemipdError:
        message = (
            f"The first {num_chars} of the text's {of_chars} characters are {num_tokens} tokens already, "
            f"more than {self.wanted_by} of {self.max_tokens}."
        )
        return SemipdError(self.code, message, "Shorten the text.", param=self.param)


@dataclass(frozen=True, slots=True)
class CharsPerToken:
    """`swallows_blanks`: blanks beside some of its special tokens vanish, any number of them."""

    most: int
    swallows_blanks: bool = False

    def check(self, text: str, bound: TextBound) -> None:
        """Raises SemipdError when `text` surely has too many tokens. Costs nothing if it is short."""
        room = bound.max_tokens * self.most
        if len(text) <= room:
            return
        num_chars = len(text) - (sum(map(text.count, _BLANKS)) if self.swallows_blanks else 0)
        if num_chars > room:
            raise bound.too_many_chars(num_chars, self.most)


def chars_per_token(inner: tokenizers.Tokenizer) -> CharsPerToken | None:
    """None: one token may stand for any number of characters."""
    parts = [*_parts(inner.normalizer), *_parts(inner.pre_tokenizer)]
    if not all(map(_keeps_characters, parts)) or not _spells_everything(inner, parts):
        return None
    added = inner.get_added_tokens_decoder().values()
    factor = MAX_COMPOSED if any(part["type"] in _COMPOSING for part in parts) else 1
    longest = max(map(len, inner.get_vocab(with_added_tokens=True)))
    return CharsPerToken(longest * factor, any(token.lstrip or token.rstrip for token in added))


def _parts(component: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer, sequences unfolded."""
    if component is None:
        return []
    return _unfolded(json.loads(component.__getstate__()))


def _unfolded(part: dict[str, Any]) -> list[dict[str, Any]]:
    inner = part.get("normalizers") or part.get("pretokenizers")
    if part["type"] != "Sequence" or inner is None:
        return [part]
    return [found for one in inner for found in _unfolded(one)]


def _keeps_characters(part: dict[str, Any]) -> bool:
    match part["type"]:
        case "Split" | "Punctuation":
            return bool(part.get("behavior") != "Removed")
        case "Replace":
            pattern = part["pattern"].get("String")
            return pattern is not None and len(part["content"]) >= len(pattern)
        case kind:
            return kind in _COMPOSING | _KEEPING_NORMALIZERS | _KEEPING_SPLITTERS


def _spells_everything(inner: tokenizers.Tokenizer, parts: list[dict[str, Any]]) -> bool:
    """Every byte has a token: nothing is dropped, and unknown characters are not fused."""
    model = inner.model
    if not isinstance(model, tokenizers.models.BPE):
        return False
    if any(part["type"] == "ByteLevel" for part in parts):
        return all(inner.token_to_id(letter) is not None for letter in _alphabet())
    return model.byte_fallback and all(
        inner.token_to_id(f"<0x{value:02X}>") is not None for value in range(256)
    )


def _alphabet() -> list[str]:
    return tokenizers.pre_tokenizers.ByteLevel.alphabet()
