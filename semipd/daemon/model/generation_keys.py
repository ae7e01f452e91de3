"""Keys of generation_config.json that change what `transformers` generates, and that nobody reads here."""

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "forced_decoder_ids": (),
    "forced_eos_token_id": (),
    "guidance_scale": (0, 1),
    "length_penalty": (1,),
    "max_new_tokens": (),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "prompt_lookup_num_tokens": (0,),
    "sequence_bias": (),
    "stop_strings": (),
    "suppress_tokens": (),
    "token_healing": (),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}
"""Values without effect, beside null, false and what is empty."""


def unread_keys(generation: Mapping[str, object]) -> list[str]:
    """Those that are set to something that has an effect."""
    return [name for name, neutral in _NEUTRAL.items() if _has_effect(generation.get(name), neutral)]


def _has_effect(value: object, neutral: tuple[object, ...]) -> bool:
    return value is not None and value is not False and value not in ([], {}, "", *neutral)


def warn_of_unread(path: Path, generation: Mapping[str, object]) -> None:
    """Once, at the start."""
    if unread := unread_keys(generation):
        log.warning(
            "%s sets %s, which the daemon does not read: texts differ from those of transformers there. "
            "Send what you need with each request (docs/openai.md names the fields)",
            path,
            ", ".join(unread),
        )
