"""POST /tokenize and /detokenize, with vLLM's fields."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Running, running
from support.fake_model import CONTEXT_TOKENS, TEMPLATE, fake_model
from support.keys import ANN, key_settings

from semipd.daemon.model.files import ModelFiles
from semipd.daemon.prompts.prompt import INLINE_ENCODE_CHARS

MESSAGES = [{"role": "user", "content": "hi"}]


async def tokenize(daemon: Running, **body: Any) -> dict[str, Any]:
    return await daemon.complete("/tokenize", **body)


async def test_text(daemon: Running) -> None:
    answer = await tokenize(daemon, model="bytes", prompt="Whan that")
    assert answer == {
        "count": 3,
        "max_model_len": CONTEXT_TOKENS,
        "tokens": [0, 381, 376],
        "token_strs": None,
    }
    plain = await tokenize(daemon, prompt="Whan that", add_special_tokens=False, return_token_strs=True)
    assert (plain["tokens"], plain["token_strs"]) == ([381, 376], ["Whan", "\u0120that"])
    assert (await tokenize(daemon, prompt="", add_special_tokens=False))["count"] == 0


async def test_messages(daemon: Running) -> None:
    chat = await daemon.chat(messages=MESSAGES, max_tokens=1, return_token_ids=True)
    answer = await tokenize(daemon, messages=MESSAGES, return_token_strs=True)
    assert answer["tokens"] == chat["prompt_token_ids"]
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    shorter = await tokenize(daemon, messages=MESSAGES, add_generation_prompt=False)
    assert answer["tokens"][: shorter["count"]] == shorter["tokens"]
    assert shorter["count"] < answer["count"]


async def test_round_trip(daemon: Running) -> None:
    text = "na\u00efve \U0001f600 \u65e5\u672c\u8a9e"
    tokens = (await tokenize(daemon, prompt=text))["tokens"]
    assert await daemon.complete("/detokenize", model="bytes", tokens=tokens) == {"prompt": f"<s>{text}"}
    assert await daemon.complete("/detokenize", tokens=tokens[1:]) == {"prompt": text}
    assert await daemon.complete("/detokenize", tokens=[]) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "prompt"),
        ("/tokenize", {"prompt": [1]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"messages": MESSAGES, "tools": [{}]}, 400, "tools"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/detokenize", {"tokens": [400]}, 400, "tokens"),
    ],
)
async def test_bad_bodies(daemon: Running, path: str, body: dict[str, Any], status: int, param: str) -> None:
    got, answer, _ = await daemon.post(body, path)
    assert (got, answer["error"]["param"]) == (status, param)


async def test_long_ones_leave_the_loop(daemon: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, list[int]] = {"encode": [], "decode": [], "pieces": [], "render": []}

    def note(owner: object, name: str) -> None:
        method = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            threads[name].append(threading.get_ident())
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    model = daemon.services.generation.model
    for name in ("encode", "decode", "pieces"):
        note(model.tokenizer, name)
    note(model.chat_template, "render")
    for size in (1, INLINE_ENCODE_CHARS + 1):
        message = {"role": "user", "content": "a b " * size}
        tokens = (await tokenize(daemon, messages=[message], return_token_strs=True))["tokens"]
        await daemon.complete("/detokenize", tokens=tokens)
    here = threading.get_ident()
    assert not threads.pop("render"), "a checkpoint's template runs in a process of its own"
    for name, idents in threads.items():
        assert (idents[0] == here, here in idents[1:]) == (True, False), name


async def test_what_the_tokenizer_is(daemon: Running) -> None:
    status, info, headers = await daemon.ask("GET", "/tokenizer_info")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert info == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }


async def test_what_is_said_of_a_checkpoints_tokenizer(tmp_path: Path) -> None:
    """The template from its own file, nothing of whoever saved it, and JSON whatever the file holds."""
    model = fake_model(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = {"model_max_length": float("nan"), "name_or_path": "/home/me", "token": "secret"}
    config |= {"tokenizer_class": None, "bos_token": {"content": "<s>", "lstrip": False}, "extra": [1]}
    path.write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    info = ModelFiles.open(str(model.folder)).tokenizer_info
    assert info == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": None,
        "bos_token": "<s>",
        "extra": [1],
        "chat_template": "{{ messages }}",
    }


async def test_a_key_that_sees_the_models_sees_the_tokenizer(tmp_path: Path) -> None:
    async with running(tmp_path, settings=key_settings(tmp_path), start=False) as daemon:
        for key in (None, "wrong", ANN):
            models, _, _ = await daemon.ask("GET", "/v1/models", key)
            info, _, _ = await daemon.ask("GET", "/tokenizer_info", key)
            assert info == models == (200 if key == ANN else 401)
