"""A checkpoint's folder for the fake device: tokenizer, chat template and vocabulary, but no weights."""

import json
from pathlib import Path

from support import tiny_tokenizers

from semipd.config.config import default_engine_settings
from semipd.core.settings import EngineSettings
from semipd.daemon.model.files import ModelFiles

CONTEXT_TOKENS = 1024
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'function' %}{{ raise_exception('what is a function?') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content | trim }}"
    "{% for call in message.tool_calls or [] %} call {{ call.function.arguments.city }}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>{% endif %}{% endif %}"
)


def fake_model(folder: Path, *, chat_template: str | None = TEMPLATE) -> ModelFiles:
    """400 tokens, byte-level."""
    tokenizer = tiny_tokenizers.byte_level()
    config = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": CONTEXT_TOKENS}
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": tokenizer.token_to_id("</s>")}))
    template = {} if chat_template is None else {"chat_template": chat_template}
    return ModelFiles.open(str(tiny_tokenizers.save(tokenizer, folder, **template)))


def fake_settings(model: ModelFiles) -> EngineSettings:
    return default_engine_settings(device="fake", model_dir=str(model.folder))
