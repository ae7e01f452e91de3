"""Stop strings and whole characters, against an oracle that reads one character at a time."""

import random

from hypothesis import given
from hypothesis import strategies as st
from support.byte_model import EOS, ByteDecoder

from semipd.daemon.model.text import StopStrings, TextStream


def cut_slowly(text: str, stops: list[str]) -> tuple[str, bool]:
    """Oracle: the first character at which some stop string completes; of those, the longest is cut."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


ALPHABET = "ab"
stops_of = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)


@given(st.text(ALPHABET, max_size=60), stops_of, st.randoms(use_true_random=False))
def test_any_split_of_a_text_gives_the_same_cut(text: str, stops: list[str], rng: random.Random) -> None:
    expected, matched = cut_slowly(text, stops)
    cutter, shown, position = StopStrings(stops), "", 0
    while position < len(text) and not cutter.matched:
        size = rng.randint(1, 7)
        shown += cutter.push(text[position : position + size])
        position += size
        assert expected.startswith(shown), "text was shown that belongs to a stop string"
    shown += cutter.flush()
    assert (shown, cutter.matched) == (expected, matched)


@given(st.text(ALPHABET, max_size=40), stops_of)
def test_nothing_is_withheld_that_cannot_become_a_stop_string(text: str, stops: list[str]) -> None:
    cutter, shown = StopStrings(stops), ""
    for end, character in enumerate(text, 1):
        shown += cutter.push(character)
        if cutter.matched:
            return
        withheld = text[len(shown) : end]
        assert not withheld or any(stop.startswith(withheld) for stop in stops)


@given(st.text(max_size=30), st.lists(st.text("é∂🎈ab", min_size=1, max_size=3), max_size=3), st.data())
def test_tokens_to_text_with_characters_cut_anywhere(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    tokens = list(text.encode())
    stream, shown, position = TextStream(ByteDecoder(), stops), "", 0
    while position < len(tokens) and not stream.matched:
        size = data.draw(st.integers(1, 5))
        shown += stream.push(tokens[position : position + size])
        assert "\ufffd" not in shown or "\ufffd" in text
        position += size
    shown += "" if stream.matched else stream.finish(at_stop_token=False)
    expected, matched = cut_slowly(text, stops)
    assert (shown, stream.matched) == (expected, matched)
    if not matched:
        assert stream.num_tokens == len(tokens)


def test_tokens_after_the_stop_string_do_not_count() -> None:
    stream = TextStream(ByteDecoder(), ["lo"])
    assert stream.push(list(b"hello world")) == "hel"
    assert stream.matched
    assert stream.num_tokens == 5


def test_incomplete_character_at_the_end_is_flushed_once() -> None:
    stream = TextStream(ByteDecoder())
    assert stream.push(list("é".encode())[:1]) == ""
    assert stream.finish(at_stop_token=False) == "\ufffd"


def test_text_of_the_stop_token_is_not_shown() -> None:
    x = ord("x")
    stream = TextStream(ByteDecoder(), stop_token_ids=[x, EOS])
    assert stream.push(list(b"abx")) + stream.finish(at_stop_token=True) == "ab"
    assert stream.num_tokens == 3


def test_a_stop_token_that_did_not_stop_is_text() -> None:
    x = ord("x")
    stream = TextStream(ByteDecoder(), stop_token_ids=[x])
    assert stream.push(list(b"axb")) == "axb"
    assert stream.push([x]) + stream.finish(at_stop_token=False) == "x"


def test_stop_strings_wait_for_min_tokens() -> None:
    stream = TextStream(ByteDecoder(), ["a"], min_tokens=3)
    assert stream.push(list(b"aaaba")) == "aaab"
    assert stream.matched
    assert stream.num_tokens == 5


@given(st.text(ALPHABET, max_size=40), stops_of, st.randoms(use_true_random=False))
def test_a_kept_stop_string_ends_the_text(text: str, stops: list[str], rng: random.Random) -> None:
    before, matched = cut_slowly(text, stops)
    cutter, shown, position = StopStrings(stops, keep=True), "", 0
    while position < len(text) and not cutter.matched:
        size = rng.randint(1, 7)
        shown += cutter.push(text[position : position + size])
        position += size
    shown += cutter.flush()
    assert shown == (before + (cutter.stop or "") if matched else text)
    assert (cutter.stop in stops) == matched


def test_a_kept_stop_token_is_text() -> None:
    x = ord("x")
    stream = TextStream(ByteDecoder(), stop_token_ids=[x], keep_stop=True)
    assert stream.push(list(b"abx")) + stream.finish(at_stop_token=True) == "abx"
