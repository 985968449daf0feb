"""What several families read from config.json and write to it: biases, windows, and the types of
their layers.
"""

from collections.abc import Sequence
from typing import Any

from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.hf_rope import FULL, SLIDING
from p2o_jax.models.spec import Experts, LayerType, ModelSpec

# keys of `biases`
ATTENTION_BIAS = frozenset({"attention_bias"})
BIASES = frozenset({"attention_bias", "mlp_bias"})


def biases(fields: Fields) -> dict[str, bool]:
    """Reads biases of all projections of attention, and of the MLP."""
    attention = fields.flag("attention_bias")
    return {"qkv_bias": attention, "o_bias": attention, "mlp_bias": fields.flag("mlp_bias")}


def attention_bias(fields: Fields) -> dict[str, bool]:
    """Reads biases of all projections of attention."""
    attention = fields.flag("attention_bias")
    return {"qkv_bias": attention, "o_bias": attention}


def window(fields: Fields) -> int:
    """Reads the size of sliding windows; 0: none."""
    return fields.off_or(fields.integer, "sliding_window")


def layer_kinds(fields: Fields, sliding: Sequence[bool]) -> list[str]:
    """Reads which layers slide: `layer_types`, or where it is missing, those marked in `sliding`.

    Records a problem if layers slide without a window.
    """
    kinds = fields.of_layers(
        "layer_types", [SLIDING if s else FULL for s in sliding], (FULL, SLIDING)
    )
    if SLIDING in kinds and not window(fields):
        fields.problems.append("sliding_window is missing, which layers of layer_types have")
    return kinds


def repeating(types: Sequence[LayerType]) -> tuple[LayerType, ...]:
    """Returns the shortest pattern whose repeats begin with these types of layers."""
    periods = (
        n
        for n in range(1, len(types))
        if all(a == b for a, b in zip(types, types[n:], strict=False))
    )
    return tuple(types[: next(periods, len(types))])


def experts(fields: Fields, count: str, channels: str, **kind: Any) -> Experts:
    """Reads the experts of a sparse MLP.

    Args:
        fields: config.json.
        count: key of the number of experts.
        channels: key of the channels of each.
        kind: other fields of `Experts`.
    """
    read = Experts(
        fields.integer(count),
        fields.integer("num_experts_per_tok"),
        fields.integer(channels),
        **kind,
    )
    if read.chosen > read.count:
        fields.problems.append(
            f"num_experts_per_tok={read.chosen} is more than the experts, {read.count}"
        )
    return read


def experts_of(spec: ModelSpec) -> Experts:
    """Returns the experts of the model's sparse layers, of which there is at least one."""
    return next(layer.experts for layer in spec.pattern if layer.experts)


def all_sliding(fields: Fields) -> dict[str, Any]:
    """Reads a model in which either all layers slide or none."""
    return {"pattern": (LayerType(window=window(fields)),)}


def kinds_of(spec: ModelSpec) -> dict[str, Any]:
    """Returns `layer_types` and `sliding_window` of config.json."""
    windows = [layer.window for layer in spec.layer_types]
    return {
        "layer_types": [SLIDING if w else FULL for w in windows],
        "sliding_window": max(windows) or None,
    }
