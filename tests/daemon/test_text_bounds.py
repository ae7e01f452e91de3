"""A text is refused before it is tokenized only when it surely has too many tokens."""

import random
import unicodedata
from collections.abc import Callable

import pytest
import tokenizers
from support import tiny_tokenizers
from support.byte_model import ByteModel
from tokenizers import models, normalizers, pre_tokenizers

from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.daemon.model.text_bounds import TextBound
from semipd.daemon.model.tokenizer import Tokenizer
from semipd.daemon.prompts.prompt import MAX_REQUEST_TOKENS, Prompts

BOUND = TextBound(64, "the context")


def composing() -> tokenizers.Tokenizer:
    """As Qwen: a normal form that makes one character of up to four."""
    made = tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level().to_str())
    made.normalizer = normalizers.NFC()
    return made


def swallowing() -> tokenizers.Tokenizer:
    """As Phi 3: blanks behind a special token vanish."""
    made = tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level().to_str())
    made.add_special_tokens([tokenizers.AddedToken("<|x|>", rstrip=True, special=True)])
    return made


def word_piece() -> tokenizers.Tokenizer:
    """A word of any length that it does not know is one token."""
    made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##a": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def fusing() -> tokenizers.Tokenizer:
    """Without byte fallback, characters that it does not know become one token."""
    return tokenizers.Tokenizer(models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", fuse_unk=True))


def stripping() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level().to_str())
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    return made


def collapsing() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level().to_str())
    made.normalizer = normalizers.Replace(tokenizers.Regex(" +"), " ")
    return made


Kind = Callable[[], tokenizers.Tokenizer]


@pytest.mark.parametrize(
    "kind", [tiny_tokenizers.byte_level, tiny_tokenizers.metaspace, composing, swallowing]
)
def test_no_text_that_fits_is_refused(kind: Kind) -> None:
    tokenizer, rng = Tokenizer(kind()), random.Random(3)
    assert tokenizer.chars_per_token is not None
    vocabulary = list(kind().get_vocab())
    units = [
        *vocabulary[:200],
        " " * 20,
        unicodedata.normalize("NFD", "ᾧ각é"),
        "<|x|>" + " " * 900,
        "語",
        "\n",
    ]
    for _ in range(300):
        text = "".join(rng.choices(units, k=rng.randrange(1, 40)))
        if len(tokenizer.encode(text, add_special_tokens=False)) <= BOUND.max_tokens:
            tokenizer.chars_per_token.check(text, BOUND)
    with pytest.raises(SemipdError, match="64 tokens") as refused:
        tokenizer.chars_per_token.check("語" * 10_000, BOUND)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("kind", [word_piece, fusing, stripping, collapsing])
def test_what_loses_characters_has_no_bound(kind: Kind) -> None:
    assert Tokenizer(kind()).chars_per_token is None


class Model(ByteModel):
    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(inner)  # type: ignore[assignment]
        self.longest = 0
        encode = self.tokenizer.encode

        def noting(text: str, *, add_special_tokens: bool = True) -> list[int]:
            self.longest = max(self.longest, len(text))
            return encode(text, add_special_tokens=add_special_tokens)

        self.tokenizer.encode = noting  # type: ignore[method-assign]


async def test_a_text_that_cannot_fit_is_not_tokenized() -> None:
    model = Model(tiny_tokenizers.byte_level())
    prompts = Prompts(model, LimitsConfig())
    with pytest.raises(SemipdError) as refused:
        await prompts.of(["short", "hello " * 10**6], BOUND)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert "6000000 characters" in refused.value.message
    assert model.longest == 0
    await prompts.close()


async def test_the_start_of_a_text_may_show_that_it_is_too_long() -> None:
    model = Model(collapsing())
    prompts = Prompts(model, LimitsConfig())
    with pytest.raises(SemipdError) as refused:
        await prompts.of(["語" * 10**6], BOUND)
    assert refused.value.code == "context_length_exceeded"
    assert model.longest == 640, "the rest would be time and memory for nothing"
    [prompt] = await prompts.of(["a" + " " * 10**5 + "b"], BOUND)
    assert len(prompt.token_ids) < 5, "blanks that vanish are no tokens"
    await prompts.close()


async def test_the_prompts_of_a_request_are_bounded_together() -> None:
    prompts = Prompts(Model(tiny_tokenizers.byte_level()), LimitsConfig())
    with pytest.raises(SemipdError) as refused:
        await prompts.of([[1] * MAX_REQUEST_TOKENS, "a"], BOUND)
    assert refused.value.code == "request_too_large"
    await prompts.close()
