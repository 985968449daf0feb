"""Which keys of a Hugging Face config.json change a model's results, and which of their values are
implemented.

A key is either read by `hf_config`, known to change nothing, or implemented for some of its values.
Any other key is rejected by name unless its value is off (null, false, 0, empty), because its
effect on the results is unknown.
"""

from collections.abc import Mapping
from typing import Any

from p2o_jax.models.families import FAMILIES
from p2o_jax.models.families.family import ModelFamily

_READ = frozenset({
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "partial_rotary_factor", "quantization_config", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types", "hidden_act", "bos_token_id", "eos_token_id",
    "pad_token_id",
})  # fmt: skip
# Training, dropout, class heads, outputs, caches, kernels, tensor types, and notes of tools.
# pretraining_tp only splits matrix products. auto_map names code, which is never run: the
# built-in class is used.
_NO_EFFECT = frozenset({
    "_name_or_path", "name_or_path", "_commit_hash", "_from_model_config", "transformers_version",
    "torch_dtype", "dtype", "use_cache", "cache_implementation", "auto_map", "tokenizer_class",
    "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id",
    "bos_token", "eos_token", "pad_token", "unk_token", "padding_side", "id2label", "label2id",
    "num_labels", "problem_type", "task_specific_params", "finetuning_task", "classifier_dropout",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "output_router_logits", "return_dict", "torchscript", "use_bfloat16", "is_decoder",
    "chunk_size_feed_forward", "pruned_heads", "tf_legacy_loss", "prefix",
    "tie_last_hidden_states", "keys_to_ignore_at_inference", "gradient_checkpointing",
    "initializer_range", "initializer_factor", "init_std", "attention_dropout", "attn_dropout",
    "attention_probs_dropout_prob", "hidden_dropout", "hidden_dropout_prob", "embd_pdrop",
    "embedding_dropout", "residual_dropout", "resid_pdrop", "attn_pdrop", "dropout",
    "dropout_rate", "pretraining_tp", "pad_vocab_size_multiple", "z_loss_weight",
    "z_loss_coefficient", "router_aux_loss_coef",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "_attn_implementation_autoset", "_experts_implementation", "_experts_implementation_internal",
    "_flash_attn_2_enabled", "use_flash_attn", "use_flash_attention", "use_flash_attention_2",
    "flash_attention", "unsloth_fixed", "unsloth_version", "model_name", "base_model",
    "base_model_name", "base_model_name_or_path", "is_llama_config", "transformers.js_config",
    "model_max_length", "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length",
    "seq_len", "n_ctx", "n_positions", "license", "tags", "language", "library_name",
    "pipeline_tag", "author", "description", "version", "date", "datasets", "chat_template",
    "add_bos_token", "add_eos_token", "ignore_index", "trust_remote_code", "neuron", "onnx",
    "torch_version",
})  # fmt: skip
# Generation settings, which old files keep in config.json.
_GENERATION = frozenset({
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids",
    "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "max_time", "min_length", "min_new_tokens",
    "min_p", "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "num_beam_groups", "num_beams", "num_return_sequences", "penalty_alpha",
    "prompt_lookup_num_tokens", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "stop_strings", "suppress_tokens", "target_lookbehind",
    "temperature", "top_h", "top_k", "top_p", "typical_p",
})  # fmt: skip
# Implemented values of keys that are not off at null or false.
_ON = {"is_causal": True, "causal": True, "use_rope": True, "scale_attn_weights": True}
# Implemented values of keys that are off at null or false.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("silu",),
    "activation_function": ("silu",),
    "norm_type": ("rmsnorm", "rms_norm", "RMSNorm"),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "logits_mup_width_multiplier": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "scale_emb": (1,),
    "rotary_pct": (1,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
}


def problems(values: Mapping[str, Any]) -> list[str]:
    """Returns a line for every setting that is not implemented, apart from sizes and positions."""
    if values.get("model_type") not in FAMILIES:
        return []
    family = FAMILIES[values["model_type"]]
    lines = []
    architectures = values.get("architectures") or []
    if architectures and family.architecture not in architectures:
        lines.append(
            f"architectures={architectures} is not supported; supported:"
            f" {_names(known.architecture for known in FAMILIES.values())}"
        )
    if quantization := values.get("quantization_config"):
        method = (
            quantization.get("quant_method", "unknown method")
            if isinstance(quantization, dict)
            else quantization
        )
        lines.append(
            f"quantization_config ({method}) is not supported; supported: float32, bfloat16 and"
            " float16 weights"
        )
    if restricted := _restricted(values, family):
        lines.append(f"{restricted} is not supported; supported: full attention in every layer")
    return lines + [
        line for key, value in values.items() if (line := _key_problem(family, key, value))
    ]


def _restricted(values: Mapping[str, Any], family: ModelFamily) -> str:
    """Returns what restricts attention in some layer, of families without sliding windows or where
    they are not implemented; empty if nothing does.
    """
    if values.get("use_sliding_window"):
        return f"use_sliding_window=true (sliding_window={values.get('sliding_window')})"
    layer_types = values.get("layer_types") or []
    if "sliding_window" in family.defaults or "layer_types" in family.keys:
        return ""
    if not isinstance(layer_types, list):
        return f"layer_types={layer_types!r}"
    others = sorted({str(t) for t in layer_types} - {"full_attention"})
    return f"layer_types with {_names(others)}" if others else ""


def _key_problem(family: ModelFamily, key: str, value: Any) -> str:
    """Returns what is wrong with the value of a key; empty if nothing is."""
    if key in _ON:
        return "" if value is True else f"{key}={_short(value)} is not supported; supported: true"
    off = value is None or value is False or value in (0, "", [], {})
    if off or key in _READ | _NO_EFFECT | _GENERATION | family.keys:
        return ""
    if key in _ONLY:
        return (
            ""
            if value in _ONLY[key]
            else f"{key}={_short(value)} is not supported; supported: {_names(_ONLY[key])}"
        )
    return (
        f"{key}={_short(value)} is not a known setting of {family.name}, and may change what the"
        f" model computes; remove {key} from config.json if it does not"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _names(names: Any) -> str:
    return ", ".join(map(str, names))
