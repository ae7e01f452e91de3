"""Which keys of a config.json may be passed over. No torch here.

A key that is neither read nor known to be harmless might change the arithmetic, and a model computed without
it would write wrong text. So the rule is, for every key of the file:

* it is read (`READ`): its value is honoured or refused where it is read;
* it is harmless (`HARMLESS`, or a name that begins with one of `HARMLESS_PREFIXES`): it describes the
  checkpoint, its training, its use with a library, or how text is sampled;
* it is known (`_neutral`), and says null or what the model does anyway, such as a multiplier of 1;
* it is unknown and says nothing: null, false, or an empty text, list or object;
* otherwise the checkpoint is refused, and the key is named.
"""

import math
from collections.abc import Mapping
from typing import Any

from semipd.checkpoints.families import Family
from semipd.network.config import ModelConfig


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


READ = _names(
    """
    architectures model_type auto_map vocab_size hidden_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim intermediate_size hidden_act rms_norm_eps max_position_embeddings
    tie_word_embeddings attention_bias mlp_bias dtype torch_dtype quantization_config compression_config
    quantization rope_theta rope_scaling rope_parameters partial_rotary_factor
    original_max_position_embeddings sliding_window use_sliding_window max_window_layers layer_types
    """
)

HARMLESS = _names(
    """
    transformers_version name_or_path transformers.js_config tokenizer_class processor_class license language
    library_name tags base_model dataset datasets finetuning_task task_specific_params problem_type prefix
    id2label label2id num_labels classifier_dropout summary_type author version revision
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id mask_token_id cls_token_id
    decoder_start_token_id end_token_id bos_token eos_token pad_token unk_token
    use_cache cache_implementation output_attentions output_hidden_states output_scores return_dict
    return_dict_in_generate torchscript use_bfloat16 chunk_size_feed_forward attn_implementation
    use_flash_attn use_flash_attention use_flash_attention_2 flash_attention is_decoder pretraining_tp
    gradient_checkpointing use_gradient_checkpointing initializer_range initializer_std init_std
    initializer_factor attention_dropout attn_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout
    hidden_dropout_prob attention_probs_dropout_prob dropout residual_dropout embedding_dropout mlp_dropout
    attention_dropout_prob dropout_prob layerdrop ffn_dropout tie_encoder_decoder tf_legacy_loss
    router_aux_loss_coef aux_loss_alpha loss_type use_fused_loss output_router_logits
    max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p min_p typical_p repetition_penalty length_penalty
    encoder_no_repeat_ngram_size no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens
    model_max_length max_sequence_length max_seq_len max_seq_length seq_length n_ctx n_positions
    torch_compile save_safetensors is_llama_config
    """
)
"""Generation defaults count where generation_config.json has them; limits of length, where
max_position_embeddings does."""

HARMLESS_PREFIXES = ("_", "unsloth", "training_", "train_")


def unhonoured(data: Mapping[str, Any], config: ModelConfig, family: Family) -> list[str]:
    """Keys of config.json that would have to change the arithmetic and do not, in the file's order."""
    neutral, read = _neutral(config), READ | family.keys()
    return [
        key
        for key, value in data.items()
        if key not in read
        and key not in HARMLESS
        and not key.startswith(HARMLESS_PREFIXES)
        and not _is_neutral(value, neutral.get(key))
    ]


def _is_neutral(value: object, usual: tuple[object, ...] | None) -> bool:
    """`usual`: what a known key may say; None: the key is unknown."""
    if usual is None:
        return _says_nothing(value)
    return value is None or any(_is_same(value, each) for each in usual)


def _says_nothing(value: object) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _neutral(config: ModelConfig) -> dict[str, tuple[object, ...]]:
    """What arithmetic keys of other families, and other spellings of ours, are in a model of this shape."""
    one, none, silu = (1,), (0,), ("silu", "swish")
    return {
        **dict.fromkeys(_FACTORS, one),
        **dict.fromkeys(_COUNTS, none),
        **dict.fromkeys(("hidden_activation", "activation_function", "activation", "mlp_act"), silu),
        **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm"), (config.qk_norm,)),
        **dict.fromkeys(("qkv_bias", "use_qkv_bias", "attn_bias"), (config.qkv_bias,)),
        **dict.fromkeys(_EPSILONS, (config.rms_norm_eps,)),
        **dict.fromkeys(("rotary_dim", "qk_head_dim", "v_head_dim"), (config.head_dim,)),
        "attention_multiplier": (config.head_dim**-0.5,),
        "query_pre_attn_scalar": (config.head_dim,),
        "no_rope_layers": ([1] * config.num_layers,),
        "is_causal": (True,),
        "position_embedding_type": ("rope", "rotary"),
        "norm_type": ("rms_norm", "rmsnorm"),
    }


_FACTORS = (
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
    "scale_emb",
    "rotary_pct",
    "ep_size",
)
_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_shared_experts",
    "num_nextn_predict_layers",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
_EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def _is_same(value: object, usual: object) -> bool:
    if isinstance(value, bool) or isinstance(usual, bool) or not isinstance(value, int | float):
        return type(value) is type(usual) and value == usual
    return isinstance(usual, int | float) and math.isclose(value, usual, rel_tol=1e-6)
