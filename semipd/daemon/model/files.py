"""A model's name to a local folder, and what the daemon reads there: tokenizer, template, defaults."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError
from semipd.core.sampling import MAX_COUNT, MAX_STOP_TOKEN_IDS, RANGES, SamplingParams
from semipd.daemon.model.chat_template import ChatTemplate
from semipd.daemon.model.generation_keys import warn_of_unread
from semipd.daemon.model.hub import download
from semipd.daemon.model.tokenizer import Tokenizer
from semipd.system.json_file import UnusableJson, read_json_object

DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).parents[2] / "checkpoints" / "demo"

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_SAMPLED_ONLY = ("temperature", "top_p", "top_k", "min_p")
_PRIVATE = frozenset(
    {
        "auth_token",
        "cache_dir",
        "merges_file",
        "name_or_path",
        "special_tokens_map_file",
        "token",
        "tokenizer_file",
        "use_auth_token",
        "vocab_file",
    }
)
_OTHER_VOCABULARIES = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class ModelFiles:
    """What the daemon knows of a checkpoint; weights are the engine's.

    Attributes:
        folder: local checkpoint folder, for `Config.engine_settings`.
        eos_token_ids: every id that ends a text, from config, generation_config and the tokenizer.
        sampling_defaults: fields of SamplingParams that the checkpoint wants when the client is silent.
        max_position_embeddings: the checkpoint's context in tokens, 0 if it does not say. The engine's
            DeviceInfo.max_model_len is what holds.
        chat_template: None when the checkpoint has none.
        tokenizer_info: tokenizer_config.json for clients, with chat template and special tokens.
    """

    name: str
    folder: Path
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]
    sampling_defaults: Mapping[str, int | float]
    max_position_embeddings: int
    chat_template: ChatTemplate | None
    tokenizer_info: Mapping[str, Any]

    @classmethod
    def open(cls, name: str) -> "ModelFiles":
        """`name`: "demo", an existing folder, or a Hugging Face name, downloaded with progress on stderr.

        Blocking (reads files, may download). Raises SemipdError: `model_not_found`,
        `model_download_failed`, `invalid_checkpoint`, `tokenizer_missing`, `invalid_tokenizer`,
        `invalid_chat_template`.
        """
        folder = _local_folder(name)
        if folder is None:
            # the small files first: a missing tokenizer should not be found after gigabytes of weights
            folder = download(name, weights=False)
            _tokenizer_file(folder, name)
            folder = download(name, weights=True)
        return cls._read(name, folder)

    @classmethod
    def _read(cls, name: str, folder: Path) -> "ModelFiles":
        config = _read_json(folder / "config.json")
        if not config:
            message = f"{folder} holds no config.json: it is not a Hugging Face checkpoint."
            raise SemipdError(
                "invalid_checkpoint", message, "Name the folder with config.json and *.safetensors."
            )
        generation = _read_json(folder / "generation_config.json")
        warn_of_unread(folder / "generation_config.json", generation)
        tokenizer_config = _read_json(folder / "tokenizer_config.json")
        tokenizer = Tokenizer.from_file(_tokenizer_file(folder, name))
        special_tokens = _special_tokens(folder, tokenizer_config)
        source = _chat_template_source(folder, tokenizer_config)
        return cls(
            name=name,
            folder=folder,
            tokenizer=tokenizer,
            eos_token_ids=_eos_ids(folder, config, generation, tokenizer, special_tokens),
            sampling_defaults=_sampling_defaults(folder, generation),
            max_position_embeddings=_max_position_embeddings(folder, config),
            chat_template=None if source is None else ChatTemplate(source, special_tokens),
            tokenizer_info=_tokenizer_info(tokenizer_config, special_tokens, source),
        )


def _local_folder(name: str) -> Path | None:
    """None: ask the hub."""
    if name == DEMO_NAME:
        if not (DEMO_FOLDER / "config.json").is_file():
            message = f"The bundled demo model is missing from this installation ({DEMO_FOLDER})."
            raise SemipdError("model_not_found", message, "Install semipd again, or name another model.")
        return DEMO_FOLDER
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    try:
        if path.is_dir():
            return path.resolve()
        is_file = path.exists()
    except OSError as error:
        message = f"The folder {name} cannot be opened: {error.strerror}."
        hint = "Check the path and its permissions."
        raise SemipdError("model_not_found", message, hint, param="model.name") from error
    if is_file:
        message = f"{name} is a file; a checkpoint is a folder with config.json and *.safetensors."
        raise SemipdError("model_not_found", message, f"Name its folder: {path.parent}.", param="model.name")
    if _looks_like_path(name):
        raise SemipdError(
            "model_not_found",
            f"There is no folder {name} (from {Path.cwd()}).",
            "Check the path. A Hugging Face name has the form owner/model.",
            param="model.name",
        )
    return None


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name


def _tokenizer_file(folder: Path, name: str) -> Path:
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


def _bad_value(path: Path, key: str, value: object, wanted: str) -> SemipdError:
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
        raise _bad_value(path, name, token, 'Unicode text, or an object with it as "content"')
    return text


def _is_unicode(text: str) -> bool:
    """JSON's escapes can write half of a surrogate pair, which no tokenizer and no terminal takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _tokenizer_info(
    config: Mapping[str, Any], special_tokens: Mapping[str, str], chat_template: str | None
) -> dict[str, Any]:
    """In the names of tokenizer_config.json, without the places and tokens of whoever saved the file."""
    shown = {name: value for name, value in config.items() if name not in _PRIVATE}
    kind = shown.get("tokenizer_class")
    shown["tokenizer_class"] = kind if isinstance(kind, str) else "PreTrainedTokenizerFast"
    shown |= {"chat_template": chat_template, **special_tokens}
    # the file may hold NaN, which Python reads and JSON does not know
    plain: dict[str, Any] = json.loads(json.dumps(shown), parse_constant=lambda _name: None)
    return plain


def _eos_ids(
    folder: Path,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: Tokenizer,
    special_tokens: Mapping[str, str],
) -> tuple[int, ...]:
    ids = _id_list(folder / "config.json", config.get("eos_token_id"))
    ids |= _id_list(folder / "generation_config.json", generation.get("eos_token_id"))
    if "eos_token" in special_tokens:
        token_id = tokenizer.token_id(special_tokens["eos_token"])
        ids |= set() if token_id is None else {token_id}
    # an id outside the model's vocabulary (-1 means "none" in some files) can never be sampled
    vocab_size = _vocab_size(folder, config) or tokenizer.vocab_size
    return tuple(sorted(token_id for token_id in ids if 0 <= token_id < vocab_size))


def _vocab_size(folder: Path, config: Mapping[str, Any]) -> int | None:
    """None when the file does not say, as those with a `text_config` do not."""
    if "vocab_size" not in config:
        return None
    value = config["vocab_size"]
    if type(value) is not int or not 0 < value < 2**31:
        raise _bad_value(folder / "config.json", "vocab_size", value, "a number of tokens")
    return value


def _id_list(path: Path, raw: object) -> set[int]:
    ids = [] if raw is None else raw if isinstance(raw, list) else [raw]
    if not all(type(token_id) is int for token_id in ids) or len(ids) > MAX_STOP_TOKEN_IDS:
        wanted = f"a token id or a list of at most {MAX_STOP_TOKEN_IDS}"
        raise _bad_value(path, "eos_token_id", raw, wanted)
    return set(ids)


def _sampling_defaults(folder: Path, generation: Mapping[str, Any]) -> dict[str, int | float]:
    """As `transformers` reads the file: temperature and truncation count only under do_sample. What is no
    number is refused whether it counts or not."""
    path = folder / "generation_config.json"
    do_sample = generation.get("do_sample")
    if type(do_sample) not in (bool, type(None)):
        raise _bad_value(path, "do_sample", do_sample, "true or false")
    given = {name: generation.get(name) for name in ("repetition_penalty", *_SAMPLED_ONLY)}
    numbers = {name: _number(path, name, value) for name, value in given.items() if value is not None}
    found: dict[str, Any] = {
        name: value for name, value in numbers.items() if do_sample or name not in _SAMPLED_ONLY
    }
    try:
        replace(SamplingParams(max_tokens=1, seed=0), **found).validate(vocab_size=1)
    except SemipdError as error:
        message = f"{path}: {error.message}"
        raise SemipdError("invalid_checkpoint", message, "Correct the file or fetch it again.") from error
    return found


def _number(path: Path, name: str, value: object) -> int | float:
    """As in a request: a whole number may be written as 50.0, and a top_k of -1, or beyond every vocabulary,
    is off."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and name == "top_k":
        return 0 if value == -1 or value > MAX_COUNT else value
    if type(value) is int or (type(value) is float and math.isfinite(value) and name != "top_k"):
        return value
    raise _bad_value(path, name, value, f"a {'whole ' if name == 'top_k' else ''}number, {RANGES[name]}")


def _max_position_embeddings(folder: Path, config: Mapping[str, Any]) -> int:
    value = config.get("max_position_embeddings", 0)
    if type(value) is not int or not 0 <= value < 2**31:
        raise _bad_value(folder / "config.json", "max_position_embeddings", value, "a number of tokens")
    return value


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
        raise _bad_value(path, "chat_template", template, "Unicode text without halves of surrogate pairs")
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
        raise _bad_value(path, "chat_template", raw, "a template or a list of named templates") from error
    raise _bad_value(path, "chat_template", raw, "a template or a list of named templates")
