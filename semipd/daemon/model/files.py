"""A model's name to where it lies, and what the daemon reads there: tokenizer, template, defaults."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semipd.checkpoints.gguf.config_json import is_gguf
from semipd.core.errors import SemipdError
from semipd.core.sampling import MAX_COUNT, MAX_STOP_TOKEN_IDS, RANGES, SamplingParams
from semipd.daemon.model.chat_template import ChatTemplate
from semipd.daemon.model.documents import (
    Documents,
    bad_value,
    folder_documents,
    gguf_documents,
    tokenizer_file,
)
from semipd.daemon.model.generation_keys import warn_of_unread
from semipd.daemon.model.hub import download
from semipd.daemon.model.ready_models import READY_MODELS, ReadyModel, fetched
from semipd.daemon.model.tokenizer import Tokenizer

DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).parents[2] / "checkpoints" / "demo"

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


@dataclass(frozen=True)
class ModelFiles:
    """What the daemon knows of a checkpoint; weights are the engine's.

    Attributes:
        folder: local checkpoint folder, or file of GGUF, for `Config.engine_settings`.
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
    def open(cls, name: str, check: Callable[[Path], object] = lambda _folder: None) -> "ModelFiles":
        """`name`: "demo", that of a fetched model, an existing folder or file of GGUF, or a Hugging Face
        name, downloaded with progress on stderr. `check` sees the folder before its weights are fetched.

        Blocking (reads files, may download). Raises SemipdError: `model_not_found`,
        `model_download_failed`, what `check` raises, `invalid_checkpoint`, `tokenizer_missing`,
        `invalid_tokenizer`, `invalid_chat_template`.
        """
        folder = _local_folder(name)
        if folder is None:
            # the small files first: what they can tell should not be found after gigabytes of weights
            folder = download(name, weights=False)
            check(folder)
            tokenizer_file(folder, name)
            folder = download(name, weights=True)
        else:
            check(folder)
        return cls._read(name, folder)

    @classmethod
    def _read(cls, name: str, folder: Path) -> "ModelFiles":
        said = gguf_documents(folder) if is_gguf(folder) else folder_documents(folder, name)
        warn_of_unread(said.generation_path, said.generation)
        return cls(
            name=name,
            folder=folder,
            tokenizer=said.tokenizer,
            eos_token_ids=_eos_ids(said),
            sampling_defaults=_sampling_defaults(said.generation_path, said.generation),
            max_position_embeddings=_max_position_embeddings(said.config_path, said.config),
            chat_template=None
            if said.chat_template is None
            else ChatTemplate(said.chat_template, said.special_tokens),
            tokenizer_info=_tokenizer_info(said),
        )


def _local_folder(name: str) -> Path | None:
    """None: ask the hub."""
    if name == DEMO_NAME:
        if not (DEMO_FOLDER / "config.json").is_file():
            message = f"The bundled demo model is missing from this installation ({DEMO_FOLDER})."
            raise SemipdError("model_not_found", message, "Install semipd again, or name another model.")
        return DEMO_FOLDER
    if name in READY_MODELS:
        return _fetched(READY_MODELS[name])
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    try:
        if path.is_dir():
            return path.resolve()
        if is_gguf(path) and path.exists():
            return path.resolve()
        is_file = path.exists()
    except OSError as error:
        message = f"The folder {name} cannot be opened: {error.strerror}."
        hint = "Check the path and its permissions."
        raise SemipdError("model_not_found", message, hint, param="model.name") from error
    if is_file:
        message = (
            f"{name} is a file, but no *.gguf; a checkpoint is a folder with config.json and *.safetensors."
        )
        raise SemipdError("model_not_found", message, f"Name its folder: {path.parent}.", param="model.name")
    if _looks_like_path(name):
        raise SemipdError(
            "model_not_found",
            f"There is no folder or file {name} (from {Path.cwd()}).",
            "Check the path. A Hugging Face name has the form owner/model.",
            param="model.name",
        )
    return None


def _fetched(model: ReadyModel) -> Path:
    path = fetched(model)
    if path is None:
        message = f"{model.title} has not been fetched yet, and starting downloads nothing by this name."
        hint = f"Run semipd-daemon fetch {model.name} first."
        raise SemipdError("model_not_found", message, hint, param="model.name")
    return path


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name


def _tokenizer_info(said: Documents) -> dict[str, Any]:
    """In the names of tokenizer_config.json, without the places and tokens of whoever saved the file."""
    shown = {name: value for name, value in said.tokenizer_config.items() if name not in _PRIVATE}
    kind = shown.get("tokenizer_class")
    shown["tokenizer_class"] = kind if isinstance(kind, str) else "PreTrainedTokenizerFast"
    shown |= {"chat_template": said.chat_template, **said.special_tokens}
    # the file may hold NaN, which Python reads and JSON does not know
    plain: dict[str, Any] = json.loads(json.dumps(shown), parse_constant=lambda _name: None)
    return plain


def _eos_ids(said: Documents) -> tuple[int, ...]:
    ids = _id_list(said.config_path, said.config.get("eos_token_id"))
    ids |= _id_list(said.generation_path, said.generation.get("eos_token_id"))
    if "eos_token" in said.special_tokens:
        token_id = said.tokenizer.token_id(said.special_tokens["eos_token"])
        ids |= set() if token_id is None else {token_id}
    # an id outside the model's vocabulary (-1 means "none" in some files) can never be sampled
    vocab_size = _vocab_size(said.config_path, said.config) or said.tokenizer.vocab_size
    return tuple(sorted(token_id for token_id in ids if 0 <= token_id < vocab_size))


def _vocab_size(path: Path, config: Mapping[str, Any]) -> int | None:
    """None when the file does not say, as those with a `text_config` do not."""
    if "vocab_size" not in config:
        return None
    value = config["vocab_size"]
    if type(value) is not int or not 0 < value < 2**31:
        raise bad_value(path, "vocab_size", value, "a number of tokens")
    return value


def _id_list(path: Path, raw: object) -> set[int]:
    ids = [] if raw is None else raw if isinstance(raw, list) else [raw]
    if not all(type(token_id) is int for token_id in ids) or len(ids) > MAX_STOP_TOKEN_IDS:
        wanted = f"a token id or a list of at most {MAX_STOP_TOKEN_IDS}"
        raise bad_value(path, "eos_token_id", raw, wanted)
    return set(ids)


def _sampling_defaults(path: Path, generation: Mapping[str, Any]) -> dict[str, int | float]:
    """As `transformers` reads the file: temperature and truncation count only under do_sample. What is no
    number is refused whether it counts or not."""
    do_sample = generation.get("do_sample")
    if type(do_sample) not in (bool, type(None)):
        raise bad_value(path, "do_sample", do_sample, "true or false")
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
    raise bad_value(path, name, value, f"a {'whole ' if name == 'top_k' else ''}number, {RANGES[name]}")


def _max_position_embeddings(path: Path, config: Mapping[str, Any]) -> int:
    value = config.get("max_position_embeddings", 0)
    if type(value) is not int or not 0 <= value < 2**31:
        raise bad_value(path, "max_position_embeddings", value, "a number of tokens")
    return value
