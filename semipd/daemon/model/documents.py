"""What a checkpoint says beside its weights, whether it is a folder or one file of GGUF."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd.checkpoints.gguf.config_json import config_json
from semipd.checkpoints.gguf.header import GgufHeader
from semipd.core.errors import SemipdError
from semipd.daemon.model.gguf_tokenizer import gguf_tokenizer, special_tokens
from semipd.daemon.model.tokenizer import Tokenizer
from semipd.system.json_file import UnusableJson, read_json_object

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_OTHER_VOCABULARIES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class Documents:
    """Attributes:
    config_path, generation_path: where `config` and `generation` stand, for messages.
    special_tokens: names like bos_token to their text.
    tokenizer_config: as in tokenizer_config.json.
    chat_template: None when the checkpoint has none.
    """

    config_path: Path
    generation_path: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: Tokenizer
    tokenizer_config: Mapping[str, Any]
    special_tokens: Mapping[str, str]
    chat_template: str | None


def folder_documents(folder: Path, name: str) -> Documents:
    """Raises SemipdError: `invalid_checkpoint`, `tokenizer_missing`, `invalid_tokenizer`."""
    config_path, generation_path = folder / "config.json", folder / "generation_config.json"
    config = _read_json(config_path)
    if not config:
        message = f"{folder} holds no config.json: it is not a Hugging Face checkpoint."
        raise SemipdError(
            "invalid_checkpoint", message, "Name the folder with config.json and *.safetensors."
        )
    tokenizer_config = _read_json(folder / "tokenizer_config.json")
    return Documents(
        config_path,
        generation_path,
        config,
        _read_json(generation_path),
        Tokenizer.from_file(tokenizer_file(folder, name)),
        tokenizer_config,
        _special_tokens(folder, tokenizer_config),
        _chat_template_source(folder, tokenizer_config),
    )


def gguf_documents(path: Path) -> Documents:
    """Raises SemipdError: what `GgufHeader.read`, `config_json` and `gguf_tokenizer` raise."""
    header = GgufHeader.read(path)
    template = header.metadata.get("tokenizer.chat_template")
    tokens = special_tokens(path, header.metadata)
    return Documents(
        path,
        path,
        config_json(header),
        {},
        Tokenizer.of(lambda: gguf_tokenizer(path, header.metadata), path),
        dict(tokens),
        tokens,
        template if isinstance(template, str) else None,
    )


def tokenizer_file(folder: Path, name: str) -> Path:
    path = folder / "tokenizer.json"
    if path.is_file():
        return path
    found = [other for other in _OTHER_VOCABULARIES if (folder / other).is_file()]
    message = f"{name} has no tokenizer.json" + (f", only {', '.join(found)}." if found else ".")
    if not found:
        raise SemipdError("tokenizer_missing", message, "Copy tokenizer.json into the checkpoint's folder.")
    convert = f'AutoTokenizer.from_pretrained("{name}").save_pretrained("converted")'
    raise SemipdError(
        "tokenizer_missing",
        message,
        "Convert it where `transformers` and `sentencepiece` are installed: "
        f"python -c 'from transformers import AutoTokenizer; {convert}', "
        f"then copy converted/tokenizer.json to {folder}.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Empty when the file does not exist."""
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}
    except UnusableJson as error:
        raise SemipdError("invalid_checkpoint", f"{path} {error}.", "Fetch the file again.") from error


def bad_value(path: Path, key: str, value: object, wanted: str) -> SemipdError:
    message = f"{path}: {key} is {value!r:.200}, expected {wanted}."
    return SemipdError("invalid_checkpoint", message, "Correct the file or fetch it again.")


def _special_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Names like bos_token to their text; older checkpoints keep them in special_tokens_map.json."""
    older = folder / "special_tokens_map.json"
    given = {name: (older, token) for name, token in _read_json(older).items()}
    newer = folder / "tokenizer_config.json"
    given |= {name: (newer, token) for name, token in tokenizer_config.items()}
    return {
        name: _token_text(given[name][0], name, given[name][1])
        for name in _SPECIAL_TOKENS
        if name in given and given[name][1] is not None
    }


def _token_text(path: Path, name: str, token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not _is_unicode(text):
        raise bad_value(path, name, token, 'Unicode text, or an object with it as "content"')
    return text


def _is_unicode(text: str) -> bool:
    """JSON's escapes can write half of a surrogate pair, which no tokenizer and no terminal takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _chat_template_source(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The file chat_template.jinja, else the key in chat_template.json, else in tokenizer_config.json."""
    jinja_file = folder / "chat_template.jinja"
    if jinja_file.is_file():
        try:
            return jinja_file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            message = f"{jinja_file} cannot be read: {error}."
            raise SemipdError("invalid_checkpoint", message, "Fetch the file again.") from error
    for path, data in (
        (folder / "chat_template.json", _read_json(folder / "chat_template.json")),
        (folder / "tokenizer_config.json", tokenizer_config),
    ):
        if data.get("chat_template") is not None:
            return _unicode(path, _default_template(path, data["chat_template"]))
    return None


def _unicode(path: Path, template: str | None) -> str | None:
    if template is not None and not _is_unicode(template):
        raise bad_value(path, "chat_template", template, "Unicode text without halves of surrogate pairs")
    return template


def _default_template(path: Path, raw: object) -> str | None:
    """One template, or a list of named ones, of which "default" is for plain chat."""
    if isinstance(raw, str):
        return raw
    try:
        named = {entry["name"]: entry["template"] for entry in raw}  # type: ignore[attr-defined]
        template = named.get("default")
        if template is None or isinstance(template, str):
            return template
    except (TypeError, KeyError) as error:
        raise bad_value(path, "chat_template", raw, "a template or a list of named templates") from error
    raise bad_value(path, "chat_template", raw, "a template or a list of named templates")
