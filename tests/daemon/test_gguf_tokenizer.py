"""Tokenizers from the metadata of GGUF, against the tokenizer.json they were written from."""

import json
from pathlib import Path

import pytest
from support import tiny_tokenizers
from support.gguf_files import write_gguf, write_sentencepiece
from support.tiny_models import tiny_checkpoint
from tokenizers import Tokenizer

from semipd.checkpoints.gguf.header import GgufHeader
from semipd.core.errors import SemipdError
from semipd.daemon.model.files import ModelFiles
from semipd.daemon.model.gguf_tokenizer import gguf_tokenizer, merges_by_score

TEXTS = [
    *tiny_tokenizers.CORPUS[:4],
    "",
    " leading and trailing ",
    "don't WE'LL 2024-12-31\r\n\r\n\t  x",
    "<|im_start|>user\n<s></s>",
    "e\u0301 \u00e9 \ufffd",
]


def test_bytes(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path_factory, "llama")
    files = ModelFiles.open(str(write_gguf(folder, tmp_path / "m.gguf")))
    theirs = ModelFiles.open(str(folder))
    for text in TEXTS:
        for special in (True, False):
            ids = files.tokenizer.encode(text, add_special_tokens=special)
            assert ids == theirs.tokenizer.encode(text, add_special_tokens=special)
            assert files.tokenizer.decode(ids) == theirs.tokenizer.decode(ids)
    assert files.tokenizer.special_ids == theirs.tokenizer.special_ids
    assert files.eos_token_ids == theirs.eos_token_ids
    assert files.max_position_embeddings == theirs.max_position_embeddings
    assert files.chat_template is not None
    assert files.chat_template.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_sentencepiece(tmp_path: Path) -> None:
    inner = tiny_tokenizers.metaspace()
    header = GgufHeader.read(write_sentencepiece(tmp_path / "m.gguf", json.loads(inner.to_str())))
    ours = gguf_tokenizer(header.path, header.metadata)
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == inner.encode(text).ids, text
        assert ours.decode(ids) == inner.decode(ids)


def test_merges_follow_from_scores() -> None:
    vocab = {token: idx for idx, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    assert merges_by_score(vocab, [0.0, 0.0, 0.0, -2.0, -1.0, -3.0]) == [
        ("b", "c"),
        ("a", "b"),
        ("ab", "c"),
        ("a", "bc"),
    ]


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("llama-bpe", "12345 we'LL\n\n x", ["123", "45", "Ġwe", "'LL", "ĊĊ", "Ġx"]),
        ("qwen2", "123 we'll", ["1", "2", "3", "Ġwe", "'ll"]),
        ("smollm", "a 12b", ["a", "Ġ", "1", "2", "b"]),
        ("gpt-2", "a 12b we'LL", ["a", "Ġ12", "b", "Ġwe", "'", "LL"]),
    ],
)
def test_words_are_cut_as_the_name_says(
    pre: str, text: str, words: list[str], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    header = GgufHeader.read(
        write_gguf(tiny_checkpoint(tmp_path_factory, "llama"), tmp_path / "m.gguf", pre=pre)
    )
    tokenizer: Tokenizer = gguf_tokenizer(header.path, header.metadata)
    assert tokenizer.pre_tokenizer is not None
    assert [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == words


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'"),
        ({"tokenizer.ggml.tokens": None}, "no usable tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "a token twice"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab', which is no pair"),
        ({"tokenizer.ggml.merges": ["nobody knows"]}, "cannot be used"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id 1000000"),
        ({"tokenizer.ggml.token_type": [1]}, "1 types of tokens"),
    ],
)
def test_a_bad_vocabulary_is_one_sentence(
    changed: dict[str, object],
    says: str,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_gguf(tiny_checkpoint(tmp_path_factory, "llama"), tmp_path / "m.gguf")
    header = GgufHeader.read(path)
    header.metadata.update(changed)
    monkeypatch.setattr(GgufHeader, "read", lambda _path: header)
    with pytest.raises(SemipdError) as caught:
        ModelFiles.open(str(path))
    assert says in caught.value.message
    assert str(path) in caught.value.message
