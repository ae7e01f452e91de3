"""From a model's name to what the daemon reads of its folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from support import tiny_tokenizers

from semipd.core.errors import SemipdError
from semipd.core.sampling import MAX_STOP_TOKEN_IDS, RANGES
from semipd.daemon.model import files as model_files
from semipd.daemon.model.files import ModelFiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without weights: the daemon never reads them."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), path)
    write(path, "config.json", {"vocab_size": 400, "eos_token_id": 2, "max_position_embeddings": 4096})
    return path


def write(folder: Path, name: str, data: Any) -> None:
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))


def change(folder: Path, name: str, **values: object) -> None:
    write(folder, name, json.loads((folder / name).read_text()) | values)


def refusal(name: object) -> SemipdError:
    with pytest.raises(SemipdError) as refused:
        ModelFiles.open(str(name))
    return refused.value


def test_a_plain_folder(folder: Path) -> None:
    files = ModelFiles.open(str(folder))
    assert files.folder == folder.resolve()
    assert files.max_position_embeddings == 4096
    assert files.eos_token_ids == (1, 2)  # </s> of the tokenizer is 1
    assert files.sampling_defaults == {}
    assert files.chat_template is None
    assert files.tokenizer.decode(files.tokenizer.encode("hello")) == "hello"


def test_every_eos_id_is_found(folder: Path) -> None:
    change(folder, "config.json", eos_token_id=[7, 8])
    write(folder, "generation_config.json", {"eos_token_id": [3, 7, 399, 400, -1]})
    assert ModelFiles.open(str(folder)).eos_token_ids == (1, 3, 7, 8, 399)
    change(folder, "tokenizer_config.json", eos_token={"content": "<|im_end|>", "lstrip": False})
    write(folder, "generation_config.json", {"eos_token_id": None})
    change(folder, "config.json", eos_token_id=None)
    assert ModelFiles.open(str(folder)).eos_token_ids == (3,)


def test_sampling_defaults_count_under_do_sample(folder: Path) -> None:
    wanted = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    write(folder, "generation_config.json", wanted | {"do_sample": True, "max_length": 20})
    assert ModelFiles.open(str(folder)).sampling_defaults == wanted
    write(folder, "generation_config.json", wanted | {"do_sample": False})
    assert ModelFiles.open(str(folder)).sampling_defaults == {"repetition_penalty": 1.1}
    write(folder, "generation_config.json", {"do_sample": True, "temperature": None, "top_k": 5})
    assert ModelFiles.open(str(folder)).sampling_defaults == {"top_k": 5}


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        (
            "repetition_penalty",
            ["1e-300", "0", "1e300", "NaN", "Infinity", "true", '"1.1"', "9" * 400, "[1]"],
        ),
        ("temperature", ["-0.1", "1e400", "101", "true", "-1e-320"]),
        ("top_p", ["0", "1.1", "-0.0", "false"]),
        ("top_k", ["-2", "1.5", "NaN", "Infinity", "true", '"50"']),
        ("min_p", ["-1e-300", "2"]),
    ],
)
def test_numbers_of_a_checkpoint_have_the_ranges_of_requests(
    folder: Path, name: str, texts: list[str]
) -> None:
    for text in texts:
        (folder / "generation_config.json").write_text(f'{{"do_sample": true, "{name}": {text}}}')
        error = refusal(folder)
        assert error.code == "invalid_checkpoint"
        assert str(folder / "generation_config.json") in error.message
        assert name in error.message
        assert str(RANGES[name]) in error.message
        assert len(error.message) < 400
    (folder / "generation_config.json").write_text('{"do_sample": true, "top_k": -1, "top_p": 1e-320}')
    assert ModelFiles.open(str(folder)).sampling_defaults == {"top_k": 0, "top_p": 1e-320}


def test_top_k_of_a_checkpoint_follows_the_rule_of_requests(folder: Path) -> None:
    for text, top_k in (("50.0", 50), ("1e30", 0), ("3000000000", 0), ("9" * 400, 0), ("-1.0", 0), ("0", 0)):
        (folder / "generation_config.json").write_text(f'{{"do_sample": true, "top_k": {text}}}')
        assert ModelFiles.open(str(folder)).sampling_defaults == {"top_k": top_k}


def test_what_is_no_number_is_refused_whether_it_counts_or_not(folder: Path) -> None:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    for name, text in [(name, text) for name in names for text in ("NaN", '"1"', "true", "[1]", "1e400")]:
        (folder / "generation_config.json").write_text(f'{{"{name}": {text}}}')
        error = refusal(folder)
        assert error.code == "invalid_checkpoint"
        assert f"generation_config.json: {name} is" in error.message
    for text in ('"true"', "1", "[]"):
        (folder / "generation_config.json").write_text(f'{{"do_sample": {text}}}')
        assert "do_sample is" in refusal(folder).message
    (folder / "generation_config.json").write_text('{"do_sample": false, "top_p": 0, "top_k": null}')
    assert ModelFiles.open(str(folder)).sampling_defaults == {}, "what does not count has no range"


def test_a_checkpoint_may_not_name_too_many_ends(folder: Path) -> None:
    for ids in ("[true]", "[1.0]", '["5"]', "[[5]]", str(list(range(MAX_STOP_TOKEN_IDS + 1)))):
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ids}}}')
        error = refusal(folder)
        assert error.code == "invalid_checkpoint"
        assert f"a list of at most {MAX_STOP_TOKEN_IDS}" in error.message
        assert len(error.message) < 400
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [3, {"9" * 400}, -5]}}')
    assert 3 in ModelFiles.open(str(folder)).eos_token_ids


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", TEMPLATE),
        ("chat_template.json", {"chat_template": TEMPLATE}),
        ("tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}),
        (
            "tokenizer_config.json",
            {
                "bos_token": {"content": "<s>"},
                "eos_token": "</s>",
                "chat_template": [
                    {"name": "tool_use", "template": "no"},
                    {"name": "default", "template": TEMPLATE},
                ],
            },
        ),
    ],
)
def test_chat_templates_wherever_they_are(folder: Path, name: str, content: object) -> None:
    write(folder, name, content)
    template = ModelFiles.open(str(folder)).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": "x"}]) == "<s>x</s>"


def test_older_special_tokens_file(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": TEMPLATE})
    write(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}})
    files = ModelFiles.open(str(folder))
    assert files.eos_token_ids == (2, 3)
    assert files.chat_template is not None
    assert files.chat_template.render([]) == "<s><|im_end|>"


def test_the_file_wins_over_the_key(folder: Path) -> None:
    change(folder, "tokenizer_config.json", chat_template="key")
    write(folder, "chat_template.jinja", "file")
    template = ModelFiles.open(str(folder)).chat_template
    assert template is not None
    assert template.render([]) == "file"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", [], "a JSON object"),
        ("config.json", {"eos_token_id": "two"}, "eos_token_id"),
        ("config.json", {"eos_token_id": [True]}, "eos_token_id"),
        ("config.json", {"max_position_embeddings": "many"}, "max_position_embeddings"),
        ("generation_config.json", {"do_sample": True, "top_p": 7}, "top_p"),
        ("generation_config.json", {"do_sample": True, "temperature": "hot"}, "temperature"),
        ("generation_config.json", {"do_sample": True, "top_k": 1.5}, "top_k"),
        ("config.json", {"vocab_size": None}, "vocab_size"),
        ("config.json", {"vocab_size": "400"}, "vocab_size"),
        ("config.json", {"vocab_size": True}, "vocab_size"),
        ("config.json", {"vocab_size": 10**40}, "vocab_size"),
        ("config.json", {"max_position_embeddings": 1e300}, "max_position_embeddings"),
        ("config.json", {"eos_token_id": ["2"]}, "eos_token_id"),
        ("tokenizer_config.json", {"eos_token": 5}, "eos_token"),
        ("tokenizer_config.json", {"bos_token": {"text": "<s>"}}, "bos_token"),
        ("special_tokens_map.json", {"sep_token": ["<s>"]}, "sep_token"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": 5}]}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": [{"name": [], "template": "x"}]}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": [{"name": "x"}]}, "chat_template"),
    ],
)
def test_broken_files_are_named(folder: Path, name: str, content: object, said: str) -> None:
    write(folder, name, content)
    error = refusal(folder)
    assert error.code == "invalid_checkpoint"
    assert name in error.message
    assert said in error.message


def test_a_template_that_does_not_compile(folder: Path) -> None:
    change(folder, "tokenizer_config.json", chat_template="{% if %}")
    assert refusal(folder).code == "invalid_chat_template"


def test_no_checkpoint_in_the_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "invalid_checkpoint"


def test_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert refusal(folder).code == "tokenizer_missing"
    write(folder, "tokenizer.model", "sentencepiece")
    error = refusal(folder)
    assert error.code == "tokenizer_missing"
    assert "tokenizer.model" in error.message
    assert "save_pretrained" in error.hint


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "./missing",
        "~/missing",
        "~nobody0/x",
        "a/b/c",
        "x" * 300,
        "missing/",
        "..",
        "C:\\x",
    ],
)
def test_paths_never_ask_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    error = refusal(name)
    assert error.code == ("invalid_checkpoint" if name == ".." else "model_not_found")


def test_a_file_is_no_checkpoint(folder: Path) -> None:
    error = refusal(folder / "config.json")
    assert error.code == "model_not_found"
    assert str(folder) in error.hint


def test_demo_is_the_bundled_one_even_beside_a_folder_of_that_name(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_files, "DEMO_FOLDER", folder)
    assert ModelFiles.open("demo").folder == folder
    monkeypatch.setattr(model_files, "DEMO_FOLDER", tmp_path / "nowhere")
    assert refusal("demo").code == "model_not_found"


class Hub:
    """Stands for the network: answers snapshot_download with a folder or an error."""

    def __init__(self, answer: Path | Exception) -> None:
        self.answer = answer
        self.patterns: list[list[str]] = []

    def download(self, name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        self.patterns.append(allow_patterns)
        assert "*/*" in ignore_patterns
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def test_small_files_come_before_the_weights(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    assert ModelFiles.open("owner/model").folder == folder
    assert ["*.safetensors" in patterns for patterns in hub.patterns] == [False, True]

    (folder / "tokenizer.json").unlink()
    hub.patterns.clear()
    assert refusal("owner/model").code == "tokenizer_missing"
    assert len(hub.patterns) == 1, "no weights for a model that cannot run"


def hub_error(kind: type[Exception]) -> Exception:
    """An instance as the library would raise it, without an HTTP answer."""
    error = kind.__new__(kind)
    error.args = ("what the server said",)
    return error


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        (errors.RepositoryNotFoundError, "model_not_found", "no model owner/model"),
        (errors.GatedRepoError, "model_not_found", "gated"),
        (errors.LocalEntryNotFoundError, "model_not_found", "cannot be reached"),
        (errors.OfflineModeIsEnabled, "model_not_found", "cannot be reached"),
        (errors.HfHubHTTPError, "model_download_failed", "what the server said"),
        (OSError, "model_download_failed", "what the server said"),
    ],
)
def test_answers_of_the_hub(
    kind: type[Exception], code: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(hub_error(kind)).download)
    error = refusal("owner/model")
    assert error.code == code
    assert said in error.message
    assert error.hint


def test_a_name_the_hub_cannot_have() -> None:
    error = refusal("not a valid name!")
    assert error.code == "model_not_found"
    assert "owner/model" in error.hint


def test_offline_for_real(tmp_path: Path) -> None:
    """The library itself, told to stay offline, with an empty cache."""
    script = (
        "from semipd.daemon.model.files import ModelFiles\n"
        "from semipd.core.errors import SemipdError\n"
        "try:\n    ModelFiles.open('owner/model')\n"
        "except SemipdError as error:\n    print(error.code)\n"
    )
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "model_not_found"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"vocab_size": null}'),
        ("tokenizer_config.json", "[" * 100_000),
    ],
)
def test_a_daemon_that_cannot_read_its_checkpoint_says_so(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    command = [
        sys.executable,
        "-m",
        "semipd.commands.daemon",
        "start",
        "--device",
        "fake",
        "--model",
        str(folder),
    ]
    command += ["--port", "0", "--socket", str(folder / "d.sock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert name in done.stderr


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tokenizer_config.json", "eos_token", "\ud800"),
        ("tokenizer_config.json", "bos_token", {"content": "<\udc00>"}),
        ("special_tokens_map.json", "pad_token", "\udfff"),
        ("tokenizer_config.json", "chat_template", "hello \ud83d {{ messages }}"),
        ("tokenizer_config.json", "chat_template", [{"name": "default", "template": "\ud83d"}]),
        ("chat_template.json", "chat_template", "\ud83d"),
    ],
)
def test_halves_of_surrogate_pairs(folder: Path, name: str, key: str, value: object) -> None:
    known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    write(folder, name, known | {key: value})
    error = refusal(folder)
    assert error.code == "invalid_checkpoint"
    assert str(folder / name) in error.message
    assert key in error.message
    assert str(error).encode()
