"""Encoding and streaming decoding, against `transformers` and against decoding everything at once."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_tokenizers

from semipd.core.errors import SemipdError
from semipd.daemon.model.tokenizer import Tokenizer

KINDS = [tiny_tokenizers.byte_level, tiny_tokenizers.metaspace]
Kind = Callable[[], tokenizers.Tokenizer]

SPECIAL_CASES = [
    "",
    " ",
    "  two leading spaces",
    "trailing space ",
    "\n\n\t",
    "family 👩‍👩‍👧‍👦 flag 🇩🇪 tone 👍🏽",
    "e\u0301 combining",
    "\u200b\u200d\ufeff",
    "a literal \ufffd in the middle",
    "at the end \ufffd",
    "<s>doubled",
    "日本語" * 20,
]


def joined(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    stream = tokenizer.stream_decoder()
    return "".join([*map(stream.step, token_ids), stream.flush()])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(request.param())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", SPECIAL_CASES)
def test_encodes_and_decodes_as_transformers(kind: Kind, text: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast  # slow to import, and every worker collects this file

    reference = PreTrainedTokenizerFast.from_pretrained(tiny_tokenizers.save(kind(), tmp_path))
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    plain = ours.encode(text, add_special_tokens=False)
    assert plain == reference.encode(text, add_special_tokens=False)
    assert ours.decode(plain) == reference.decode(plain, skip_special_tokens=True)
    assert ours.vocab_size == len(reference)
    if not text.startswith("<s>"):
        assert ours.encode(text) == reference.encode(text)


def test_bos_is_added_once(tokenizer: Tokenizer) -> None:
    bos = tokenizer.token_id("<s>")
    assert bos is not None
    assert tokenizer.encode("<s>hello") == [bos, *tokenizer.encode("<s>hello", add_special_tokens=False)[1:]]
    assert tokenizer.encode("hello").count(bos) == 1
    assert bos not in tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.encode("") == [bos]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_deltas_join_to_the_whole_text(kind: Kind, text: str) -> None:
    tokenizer = Tokenizer(kind())
    ids = tokenizer.encode(text)
    assert joined(tokenizer, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", SPECIAL_CASES)
def test_deltas_join_in_special_cases(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert joined(tokenizer, ids) == tokenizer.decode(ids)


def test_random_tokens_join_to_the_whole_text() -> None:
    """A model is free to sample any sequence: broken characters, special and unknown ids included."""
    tokenizer = Tokenizer(tiny_tokenizers.byte_level())
    for seed in range(400):
        chance = random.Random(seed)
        ids = [chance.randrange(tokenizer.vocab_size + 5) for _ in range(chance.randrange(60))]
        assert joined(tokenizer, ids) == tokenizer.decode(ids)


def test_random_byte_fallback_tokens() -> None:
    """Whole characters survive anything around them; without broken bytes the join is exact."""
    tokenizer = Tokenizer(tiny_tokenizers.metaspace())
    ending = tokenizer.encode(" the end 😀", add_special_tokens=False)
    num_exact = 0
    for seed in range(400):
        chance = random.Random(seed)
        ids = [chance.randrange(tokenizer.vocab_size + 5) for _ in range(chance.randrange(12))]
        text = joined(tokenizer, ids + ending)
        assert text.endswith("the end 😀")
        whole = tokenizer.decode(ids + ending)
        if "\ufffd" not in whole:
            num_exact += 1
            assert text == whole
    assert num_exact > 40


def test_a_cut_character_is_withheld_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("𝄞🜁", add_special_tokens=False)  # not in the corpus: several tokens each
    assert len(ids) >= 6
    stream = tokenizer.stream_decoder()
    deltas = [stream.step(token_id) for token_id in ids]
    assert "".join(deltas).strip() == "𝄞🜁"
    assert not any("\ufffd" in delta for delta in deltas)
    assert stream.flush() == ""


def test_flush_shows_an_unfinished_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a𝄞", add_special_tokens=False)[:-1]
    stream = tokenizer.stream_decoder()
    assert "".join(map(stream.step, ids)) == "a"
    assert stream.flush().startswith("\ufffd")
    assert stream.flush() == ""


def test_endless_replacement_characters_are_not_hoarded(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream_decoder()
    ids = tokenizer.encode("\ufffd" * 200, add_special_tokens=False)
    shown = "".join(map(stream.step, ids))
    assert shown.count("\ufffd") >= 180
    assert set((shown + stream.flush()).strip()) == {"\ufffd"}


def test_special_tokens_leave_no_trace(tokenizer: Tokenizer) -> None:
    eos = tokenizer.token_id("</s>")
    assert eos is not None
    first = tokenizer.encode("one", add_special_tokens=False)
    second = tokenizer.encode(" two", add_special_tokens=False)
    ids = [eos, *first, eos, *second, eos]
    assert joined(tokenizer, ids) == tokenizer.decode([*first, *second])


def test_a_trained_truncation_never_cuts_a_prompt() -> None:
    inner = tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level().to_str())
    inner.enable_truncation(4)
    inner.enable_padding(length=4)
    tokenizer = Tokenizer(inner)
    assert tokenizer.decode(tokenizer.encode("a much longer text than four tokens")).endswith("four tokens")
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(SemipdError) as refused:
        tokenizer.encode("bad \ud83d text")
    assert refused.value.code == "invalid_text"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(SemipdError) as refused:
        Tokenizer.from_file(path)
    assert refused.value.code == "invalid_tokenizer"
    assert str(path) in refused.value.message


@given(st.text(max_size=20), st.text(max_size=20))
@settings(deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_a_primed_stream_continues_the_prompt(kind: Kind, prompt: str, answer: str) -> None:
    tokenizer = Tokenizer(kind())
    before, ids = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, f"x{answer}"))
    stream = tokenizer.stream_decoder()
    stream.prime(before)
    shown = "".join([*map(stream.step, ids), stream.flush()])
    assert tokenizer.decode(before) + shown == tokenizer.decode(before + ids)


def test_a_text_may_be_cut_between_any_two_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The quick  brown fox", add_special_tokens=False)
    for cut in range(1, len(ids)):
        stream = tokenizer.stream_decoder()
        stream.prime(ids[:cut])
        rest = "".join([*map(stream.step, ids[cut:]), stream.flush()])
        assert tokenizer.decode(ids[:cut]) + rest == "The quick  brown fox"


def test_a_character_that_the_prompt_began_is_shown_whole() -> None:
    tokenizer = Tokenizer(tiny_tokenizers.byte_level())
    ids = tokenizer.encode("\u00f0x", add_special_tokens=False)
    stream = tokenizer.stream_decoder()
    stream.prime(ids[:1])
    assert "".join([*map(stream.step, ids[1:]), stream.flush()]) == "\u00f0x"


def test_special_tokens_are_shown_on_request(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("one"), tokenizer.token_id("</s>"), 10**6]
    stream = tokenizer.stream_decoder(skip_special_tokens=False)
    shown = "".join([*map(stream.step, ids), stream.flush()])  # type: ignore[arg-type]
    assert shown.startswith("<s>")
    assert shown.endswith("</s>")
    assert joined(tokenizer, ids) == "one"  # type: ignore[arg-type]


def test_bytes_of_every_token_decode_as_the_token(tokenizer: Tokenizer) -> None:
    anchor = tokenizer.encode("a", add_special_tokens=False)
    for token in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token)
        text = tokenizer.decode([*anchor, token], skip_special_tokens=False)
        assert text == "a" + data.decode(errors="replace")
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.pieces([0, tokenizer.vocab_size])[1] == ""
