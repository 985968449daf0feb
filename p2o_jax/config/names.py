"""Names of settings: those of earlier versions, and those of other libraries that users try."""

import difflib
from typing import Any

from p2o_jax.config.schema import Config
from p2o_jax.config.setting import settings

# settings of earlier versions
RENAMED = {"rollout.bank_tokens": "rollout.prompt_cache_tokens"}
# Switches that no suite showed to help (docs/log.md), and what belonged to them. They only matter
# to training, and runs begun before are not resumed.
REMOVED = {
    "assign.bandit",
    "assign.bandit_prior",
    "assign.bandit_discount",
    "distill.transfer_scale",
    "gepa.reliance",
    "mining.sticky",
}
REMOVED_VALUES = {"distill.mode": ("transfer", "ratio_mask")}  # and what stands for them in records

# Names in TRL, verl, Tunix and others, by setting. A key is looked up by its last part.
_ALIASES = {
    "model.path": "model_name model_name_or_path model_id base_model",
    "model.compute_dtype": "bf16 dtype torch_dtype",
    "model.remat": "gradient_checkpointing enable_gradient_checkpointing checkpointing",
    "lora.rank": "lora_r lora_rank r",
    "lora.alpha": "lora_alpha",
    "lora.targets": "lora_target_modules target_modules",
    "data.path": "dataset dataset_name train_files train_path",
    "data.eval_path": "eval_dataset val_files eval_files",
    "data.question_field": "prompt_key prompt_field",
    "data.answer_field": "answer_key label_key ground_truth_key target_field",
    "data.max_prompt_tokens": "max_prompt_length max_prompt_len",
    "mesh.tensor": "tensor_parallel_size tensor_model_parallel_size tp",
    "rollout.questions": "batch_size train_batch_size rollout_batch_size global_batch_size",
    "rollout.group_size": "num_generations n num_samples_per_prompt n_samples_per_prompt",
    "rollout.max_new_tokens": (
        "max_tokens max_completion_length max_response_length max_tokens_to_generate"
        " total_generation_steps max_length"
    ),
    "rollout.max_sampling_rounds": "max_num_gen_batches",
    "reward.fn": "reward_fn reward_func reward_funcs reward_function reward_weights",
    "adv.kind": "adv_estimator advantage_estimator scale_rewards norm_adv_by_std_in_grpo",
    "loss.ratio": "importance_sampling_level loss_mode",
    "loss.clip_low": "epsilon epsilon_low clip_ratio clip_ratio_low clip_eps cliprange",
    "loss.clip_high": "epsilon_high clip_ratio_high",
    "loss.dual_clip": "clip_ratio_c delta",
    "loss.aggregation": "loss_type loss_agg_mode",
    "loss.kl": "kl_loss_type use_kl_loss kl_penalty",
    "loss.kl_coef": "beta kl_loss_coef kl_coeff init_kl_coef",
    "loss.entropy_coef": "entropy_coeff entropy_loss_coef",
    "loss.overlong": "mask_truncated_completions overlong_filter",
    "optim.lr": "learning_rate",
    "optim.schedule": "lr_scheduler lr_scheduler_type warmup_style lr_schedule",
    "optim.warmup_frac": "warmup_ratio lr_warmup_steps_ratio warmup_steps",
    "optim.b1": "adam_beta1 beta1",
    "optim.b2": "adam_beta2 beta2",
    "optim.clip_norm": "max_grad_norm grad_clip gradient_clip gradient_clipping",
    "optim.minibatch_questions": "mini_batch_size ppo_mini_batch_size minibatch_size",
    "optim.micro_rows": (
        "per_device_train_batch_size ppo_micro_batch_size ppo_micro_batch_size_per_gpu"
        " train_micro_batch_size micro_batch_size gradient_accumulation_steps"
    ),
    "eval.every_steps": "eval_steps eval_every_n_steps test_freq eval_every",
    "checkpoint.every_steps": "save_steps save_freq save_interval_steps",
    "checkpoint.keep": "save_total_limit max_to_keep",
    "train.epochs": "num_train_epochs total_epochs num_epochs",
    "train.rollout_is": (
        "vllm_importance_sampling_correction vllm_importance_sampling_mode rollout_correction tis"
    ),
    "train.rollout_is_cap": "vllm_importance_sampling_cap tis_imp_ratio_cap",
    "train.router_replay": "enable_rollout_routing_replay moe_router_replay rollout_routing_replay",
    "train.num_samples_logged": "num_completions_to_print log_completions",
    "train.wandb_project": "report_to project_name",
}
ALIASES = {alias: key for key, aliases in _ALIASES.items() for alias in aliases.split()}


def current_names(values: dict[str, Any]) -> dict[str, Any]:
    """A config.json of any version, with the settings under their current names, and without what
    was removed since.
    """
    values = {
        key: dict(value) if isinstance(value, dict) else value for key, value in values.items()
    }
    for old, new in RENAMED.items():
        (section, old_name), (new_section, new_name) = old.split("."), new.split(".")
        if isinstance(values.get(section), dict) and old_name in values[section]:
            values.setdefault(new_section, {})[new_name] = values[section].pop(old_name)
    for section, name in (key.split(".") for key in REMOVED):
        if isinstance(values.get(section), dict):
            values[section].pop(name, None)
    for key, (gone, instead) in REMOVED_VALUES.items():
        section, name = key.split(".")
        if isinstance(values.get(section), dict) and values[section].get(name) == gone:
            values[section][name] = instead
    return values


def same_setting(key: str) -> str:
    """The setting that is called so in another library, or in another section; empty if none is."""
    last = key.rpartition(".")[2].lower().replace("-", "_")
    named = [known for known in settings(Config) if known.rpartition(".")[2] == last]
    return ALIASES.get(last) or (named[0] if named else "")


def did_you_mean(key: str) -> str:
    """The hint that follows "no such key": the setting that was probably meant."""
    if key in RENAMED:
        return f" (it is now config.{RENAMED[key]})"
    if key in REMOVED:
        return " (removed: no suite showed that it helps, see docs/log.md)"
    close = difflib.get_close_matches(key, settings(Config), n=1, cutoff=0.5)
    # a slip of a finger first: rollout.tempratur
    slip = difflib.get_close_matches(key, settings(Config), n=1, cutoff=0.9)
    meant = (slip and slip[0]) or same_setting(key) or (close and close[0])
    return f" (did you mean config.{meant}?)" if meant else ""
