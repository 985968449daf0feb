"""The model and the devices it is spread over."""

from dataclasses import dataclass
from typing import Literal

from p2o_jax.config.ranges import SECONDS
from p2o_jax.config.setting import setting

LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class ModelConfig:
    """The policy: its weights and dtypes, and what bounds the memory of its forward pass."""

    path: str = setting(
        "world",
        'A Hugging Face directory, or "world": the built-in base model, pretrained on first use.',
    )
    param_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "Dtype of the master weights. Adapters are always float32."
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "Dtype of activations. auto: bfloat16 on TPU and GPU, float32 on CPU."
    )
    remat: Literal["none", "full", "dots"] = setting(
        "full",
        "What the backward pass recomputes in each layer. dots: everything but matrix products.",
        resumable=True,
    )
    allow_long_context: bool = setting(
        False,
        "Allow prompts and responses longer than the positions that the model was made for"
        " (max_position_embeddings, extended by rope scaling). Otherwise that is an error.",
        resumable=True,
    )
    logit_chunk: int = setting(
        1024,
        "Tokens whose [chunk, vocabulary] logits are in memory at a time, on each shard of the"
        " mesh's data x fsdp.",
        ge=1,
        resumable=True,
    )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, trained in place of the weights; the frozen weights also serve as the
    reference policy.
    """

    rank: int = setting(0, "Rank of the adapters. 0: no adapters; all weights are trained.", ge=0)
    alpha: float = setting(16.0, "The adapters' output is scaled by alpha / rank.", gt=0, le=1e6)
    targets: tuple[str, ...] = setting(
        LORA_TARGETS,
        "Projections that get an adapter. gate, up and down are those of each expert, too; q, k, v"
        " and o those of Gated DeltaNet layers.",
    )


@dataclass(frozen=True)
class ChatConfig:
    """How questions are rendered as prompts."""

    system_prompt: str = setting("", "System message before every question. Empty: none.")
    enable_thinking: bool = setting(
        False, "Passed to the tokenizer's chat template as its `enable_thinking` argument."
    )
    template: str = setting(
        "", "Jinja chat template, for models without one. Empty: the tokenizer's own."
    )


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh, and how long processes wait for each other.

    One of `data`, `fsdp` and `tensor` may be -1: all devices that the others leave.
    """

    cpu_devices: int = setting(
        0,
        "Devices to split the CPU into, where there is no accelerator. 0: as JAX is configured,"
        " usually 1.",
        ge=0,
        le=4096,
    )
    data: int = setting(
        1, "Size of the axis that replicates weights and splits rows.", ge=1, also=(-1,)
    )
    fsdp: int = setting(
        -1, "Size of the axis that splits weights, optimizer state and rows.", ge=1, also=(-1,)
    )
    tensor: int = setting(
        1, "Size of the axis that splits heads, MLP and vocabulary.", ge=1, also=(-1,)
    )
    start_s: float = setting(
        300.0, "Seconds within which all processes must have started.", SECONDS
    )
    silent_s: float = setting(
        100.0, "Seconds without a heartbeat from a process after which all processes end.", SECONDS
    )
    absent_s: float = setting(
        1800.0,
        "Seconds that a process may keep the others waiting at a barrier before all end.",
        SECONDS,
    )
