"""A tokenizer from the metadata of a GGUF file, as its checkpoint's tokenizer.json has it.

Which tokenizer each name in `tokenizer.ggml.pre` stands for is what llama.cpp's converter writes there
(convert_hf_to_gguf.py, get_vocab_base_pre); the expressions are those of the models' own tokenizer.json.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from semipd.core.errors import SemipdError

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Of Llama 3 and Qwen 2, which differ in how many digits they keep together."""

_LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN_2 = ("qwen2", "deepseek-r1-qwen")
_DIGITS_APART = ("smollm", "starcoder", "refact")
_GPT_2 = ("gpt-2", "default", "phi-2")

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""Types of tokens."""

_KEY = "tokenizer.ggml."


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Raises SemipdError: `invalid_tokenizer` where the file does not say enough; `unsupported_tokenizer` for
    kinds that are not known here. Raises what the library raises for a vocabulary that contradicts itself."""
    kind = metadata.get(f"{_KEY}model")
    if kind not in _KINDS:
        raise _unsupported(path, f"{_KEY}model", kind, _KINDS)
    given = _Given(path, metadata)
    tokenizer = _KINDS[kind](given)
    _add_special(tokenizer, given)
    return tokenizer


class _Given:
    """What the file says, by the part of a key behind `tokenizer.ggml.`."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path = path
        self._metadata = metadata
        self.tokens: list[str] = self.array("tokens", str)
        if len(set(self.tokens)) != len(self.tokens):
            raise self.corrupt("has a token twice")

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(_KEY + key, default)

    def array(self, key: str, kind: type, default: Sequence[Any] | None = None) -> list[Any]:
        found = self.get(key, default)
        items = list(found) if found is not None and not isinstance(found, str | int | float) else []
        if (not items and default is None) or not all(isinstance(item, kind) for item in items):
            raise self.corrupt(f"has no usable {_KEY}{key}")
        return items

    def types(self) -> list[int]:
        types = self.array("token_type", int, [_NORMAL] * len(self.tokens))
        if len(types) != len(self.tokens):
            raise self.corrupt(f"has {len(types)} types of tokens for {len(self.tokens)} tokens")
        return types

    def token(self, key: str) -> str | None:
        """Whose id `key` says."""
        token_id = self.get(key)
        if token_id is None:
            return None
        if type(token_id) is not int or not 0 <= token_id < len(self.tokens):
            raise self.corrupt(f"says {_KEY}{key} {token_id!r:.50}; it has {len(self.tokens)} tokens")
        return self.tokens[token_id]

    def corrupt(self, what: str) -> SemipdError:
        return SemipdError("invalid_tokenizer", f"{self.path} {what}.", "Download the file again.")


def special_tokens(path: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """By their names in tokenizer_config.json."""
    given = _Given(path, metadata)
    keys = {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }
    return {name: token for name, key in keys.items() if (token := given.token(key)) is not None}


def _byte_level(given: _Given) -> tokenizers.Tokenizer:
    """BPE over bytes."""
    name = given.get("pre", "default")
    merges = [_pair(given, merge) for merge in given.array("merges", str)]
    vocab = {token: idx for idx, token in enumerate(given.tokens)}
    model = models.BPE(vocab, merges, ignore_merges=name in _LLAMA_3)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = _words(given.path, name)
    if name in _QWEN_2:
        tokenizer.normalizer = normalizers.NFC()
    _add_bos(tokenizer, given, default=name in _LLAMA_3)
    return tokenizer


def _words(path: Path, name: object) -> pre_tokenizers.PreTokenizer:
    if name in _GPT_2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name in _LLAMA_3 or name in _QWEN_2:
        words = Regex(_WORDS % (r"\p{N}{1,3}" if name in _LLAMA_3 else r"\p{N}"))
        split = pre_tokenizers.Split(words, "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, to_bytes])
    raise _unsupported(path, f"{_KEY}pre", name, (*_LLAMA_3, *_QWEN_2, *_DIGITS_APART, *_GPT_2))


def _pair(given: _Given, merge: str) -> tuple[str, str]:
    first, _, second = merge.partition(" ")
    if not first or not second:
        raise given.corrupt(f"has the merge {merge!r:.50}, which is no pair")
    return first, second


def _sentencepiece(given: _Given) -> tokenizers.Tokenizer:
    """SentencePiece's BPE, whose merges follow from the scores: of two that are possible the token with the
    higher score is made first."""
    if given.get("precompiled_charsmap") is not None:
        raise _unsupported(given.path, f"{_KEY}precompiled_charsmap", "present", ("none",))
    scores = given.array("scores", float)
    if len(scores) != len(given.tokens):
        raise given.corrupt(f"has {len(scores)} scores for {len(given.tokens)} tokens")
    vocab = {token: idx for idx, token in enumerate(given.tokens)}
    unknown = given.token("unknown_token_id")
    merges = merges_by_score(vocab, scores)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefixed = bool(given.get("add_space_prefix", True))
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_bos(tokenizer, given, default=True)
    return tokenizer


def merges_by_score(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, by falling score of the token made; of those that are equal,
    longer first halves first."""
    made = [
        (-scores[idx], -cut, cut - len(token), idx, (token[:cut], token[cut:]))
        for token, idx in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return [halves for *_, halves in sorted(made)]


def _add_bos(tokenizer: tokenizers.Tokenizer, given: _Given, *, default: bool) -> None:
    bos = given.token("bos_token_id")
    if bos is not None and given.get("add_bos_token", default):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )


def _add_special(tokenizer: tokenizers.Tokenizer, given: _Given) -> None:
    """Tokens that a text is searched for before it is cut into words."""
    kinds = {_UNKNOWN: True, _CONTROL: True, _USER_DEFINED: False}
    added = [
        AddedToken(token, special=kinds[kind], normalized=False)
        for token, kind in zip(given.tokens, given.types(), strict=True)
        if kind in kinds and token
    ]
    tokenizer.add_tokens(added)


def _unsupported(
    path: Path, key: str, value: object, known: Sequence[str] | Mapping[str, Any]
) -> SemipdError:
    return SemipdError(
        "unsupported_tokenizer",
        f"{path}: {key} is {value!r:.100}, a kind of tokenizer that is not known here.",
        f"Known: {', '.join(known)}. Use the model's safetensors release, which has tokenizer.json.",
    )


_KINDS: dict[str, Callable[[_Given], tokenizers.Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}
