"""What the tokenizer library cannot do is an answer, panics of its Rust included."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support import tiny_tokenizers
from support.byte_model import ByteModel, ByteTokenizer
from support.daemon import running
from support.fake_model import fake_model, fake_settings
from tokenizers import models, normalizers

from semipd.client import AsyncClient
from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.daemon.model.files import ModelFiles
from semipd.daemon.model.tokenizer import Tokenizer
from semipd.daemon.prompts import prompt as prompts
from semipd.daemon.prompts.prompt import Prompts

PANICS = "a" * 30 + "b"


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> ModelFiles:
    fake_model(folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return ModelFiles.open(str(folder))


def give_up(data: dict[str, Any]) -> None:
    """A regular expression that Oniguruma gives up on."""
    data["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}


def template(special: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    single = [{"SpecialToken": {"id": "[C]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]

    def change(data: dict[str, Any]) -> None:
        data["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [],
            "special_tokens": special,
        }

    return change


def empty(data: dict[str, Any]) -> None:
    data["model"] |= {"vocab": {}, "merges": []}
    data["added_tokens"] = []
    data["post_processor"] = None


BEYOND = {"[C]": {"id": "[C]", "ids": [99999], "tokens": ["[C]"]}}


@pytest.mark.parametrize("change", [template({}), template(BEYOND), empty], ids=["panic", "beyond", "empty"])
def test_a_tokenizer_that_cannot_work_stops_the_start(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    with pytest.raises(SemipdError) as refused:
        changed(tmp_path, change)
    assert refused.value.code == "invalid_tokenizer"
    assert str(tmp_path / "tokenizer.json") in refused.value.message
    assert refused.value.hint


async def test_a_panic_is_an_answer(tmp_path: Path) -> None:
    model = changed(tmp_path, give_up)
    async with running(tmp_path, model, fake=fake_settings(model)) as daemon:
        for path, body in (
            ("/v1/completions", {"prompt": PANICS, "max_tokens": 1}),
            ("/v1/completions", {"prompt": "c" * 5000 + PANICS, "max_tokens": 1}),
            ("/tokenize", {"prompt": PANICS}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": PANICS + "\n" + PANICS}]}),
        ):
            status, answer, _ = await daemon.post(body, path)
            assert (status, answer["error"]["code"]) == (400, "invalid_text")
        async with await AsyncClient.connect(daemon.socket_path) as client:
            with pytest.raises(SemipdError) as refused:
                [item async for item in client.generate(PANICS, max_tokens=1)]
            assert refused.value.code == "invalid_text"
            assert [item async for item in client.generate("c", max_tokens=1)]


WITHOUT_UNKNOWN = {
    "words": models.WordLevel({"b": 0}, unk_token="[UNK]"),
    "unigram": models.Unigram([("b", 0.0)]),
    "pieces": models.WordPiece({"b": 0}),
}


@pytest.mark.parametrize("model", WITHOUT_UNKNOWN.values(), ids=WITHOUT_UNKNOWN)
def test_a_text_that_cannot_be_spelled(model: Any) -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(model))
    assert tokenizer.encode("b") == [0]
    with pytest.raises(SemipdError, match="cannot process this text") as refused:
        tokenizer.encode("z")
    assert refused.value.code == "invalid_text"


class Panic(BaseException):
    pass


class Broken(ByteTokenizer):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise Panic


async def test_whatever_is_raised_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path, ByteModel(tokenizer=Broken())) as daemon:
        status, answer, _ = await daemon.post({"prompt": "x"})
        assert (status, answer["error"]["code"]) == (500, "internal_error")
        async with await AsyncClient.connect(daemon.socket_path) as client:
            with pytest.raises(SemipdError, match="log"):
                [item async for item in client.generate("x", max_tokens=1)]


def test_dropout_is_for_training() -> None:
    inner = tiny_tokenizers.byte_level()
    data = json.loads(inner.to_str())
    data["model"]["dropout"] = 0.9
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(data)))
    text = "The quick brown fox"
    assert {tuple(tokenizer.encode(text)) for _ in range(20)} == {tuple(inner.encode(text).ids)}


class Counting(ByteTokenizer):
    """`slow_s` of CPU time for each text."""

    def __init__(self, slow_s: float) -> None:
        self.slow_s = slow_s
        self.threads: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.threads.append(threading.current_thread().name)
        until_s = time.thread_time() + self.slow_s
        while time.thread_time() < until_s:
            pass
        return super().encode(text)


async def names_of_threads(slow_s: float, num_texts: int) -> list[str]:
    tokenizer = Counting(slow_s)
    given = Prompts(ByteModel(tokenizer=tokenizer), LimitsConfig())
    try:
        texts = [str(idx) for idx in range(num_texts)]
        found = await given.of(texts)
        assert [prompt.text for prompt in found] == texts
        assert [prompt.token_ids for prompt in found] == [ByteTokenizer().encode(text) for text in texts]
    finally:
        await given.close()
    return tokenizer.threads


async def test_a_slow_tokenizer_leaves_the_loop() -> None:
    first, *others = await names_of_threads(prompts.SLOW_ENCODE_S * 1.5, 8)
    assert not first.startswith("tokenize")
    assert all(name.startswith("tokenize") for name in others)


async def test_many_texts_leave_the_loop() -> None:
    names = await names_of_threads(0.0, prompts.INLINE_TEXTS + 1)
    assert all(name.startswith("tokenize") for name in names)


def test_regular_expressions_are_normalizers_too() -> None:
    inner = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    inner.normalizer = normalizers.Replace(tokenizers.Regex("(a+)+$"), "x")
    with pytest.raises(SemipdError, match="retry-limit"):
        Tokenizer(inner).encode(PANICS)
