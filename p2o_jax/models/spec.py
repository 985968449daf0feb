"""Specification of a model: its sizes, the types of its layers, and one table of all weights.

`weights(spec)` serves initialization, sharding, checkpoints, and ahead-of-time compilation alike.
Layers of different types follow each other in a pattern that repeats. The weights of the layers at
one place of the pattern are stacked, so that the repeats run in one loop (`ModelSpec.stacks`).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

# the projections of a sparse MLP, by those of a dense one
EXPERT_OF = {"gate": "expert_gate", "up": "expert_up", "down": "expert_down"}
# the projections of a Gated DeltaNet, by those of attention
DELTA_OF = {"q": "delta_q", "k": "delta_k", "v": "delta_v", "o": "delta_o"}


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the base, and how frequencies are scaled to longer contexts."""

    # dynamic: as default, up to the model's positions
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    theta: float = 10000.0
    factor: float = 1.0
    # before scaling; llama3, yarn, longrope, and linear where it is stated
    original_max_positions: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 0.0  # on cos and sin; 0: yarn 0.1 ln(factor) + 1, longrope see `rope`
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    # longrope: divisors of the frequencies, for sequences up to the original length and beyond it
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    long: bool = False  # longrope: use the long factors; see `ModelSpec.for_length`
    partial: float = 1.0  # the share of a head's channels, the first ones, that is rotated
    # queries at position p are multiplied by 1 + query_beta ln(1 + floor(p / original positions))
    query_beta: float = 0.0


@dataclass(frozen=True)
class Experts:
    """A sparse MLP: of many MLPs, the experts, a router chooses a few for each token."""

    count: int
    chosen: int  # experts per token
    mlp: int  # channels of each
    normalized: bool = True  # weights of the chosen experts sum to 1; else, those of all do
    bias: bool = False  # router and experts have biases
    # gate g <= limit, |up| <= limit, then (up + 1) g sigmoid(alpha g); 0: activation(g) up
    swiglu_limit: float = 0.0
    swiglu_alpha: float = 0.0


@dataclass(frozen=True)
class DeltaNet:
    """Gated DeltaNet in place of attention: a state per head instead of keys and values."""

    key_heads: int  # of queries and keys; each serves value_heads / key_heads heads of values
    value_heads: int
    key_dim: int
    value_dim: int
    conv: int  # tokens that a convolution covers, its own included

    @property
    def state_size(self) -> int:
        """Entries of the states of all heads."""
        return self.value_heads * self.key_dim * self.value_dim


@dataclass(frozen=True)
class LayerType:
    """What distinguishes a layer from other layers of its model. What they have in common is in
    `ModelSpec`.
    """

    window: int = 0  # tokens that a query attends to, its own included; 0: all before it
    soft_cap: float = 0.0  # attention scores s become cap tanh(s / cap); 0: not
    rope: Rope | None = None  # None: that of the model
    positions: bool = True  # whether queries and keys are rotated to their positions
    experts: Experts | None = None  # None: one MLP for all tokens
    delta: DeltaNet | None = None  # None: attention


class Stack(NamedTuple):
    """Layers of one type whose weights are stacked."""

    key: str  # in the params
    type: LayerType
    layers: tuple[int, ...]  # numbers of the layers, from 0
    repeats: bool  # whether it is a place of the pattern; otherwise one of the layers that remain


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters (arXiv 2106.09685) on the named projections: W + alpha / rank * A B, with W
    frozen.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer with grouped-query attention, a gated MLP and RMSNorm."""

    family: str  # a key of models.families.FAMILIES
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    norm_eps: float = 1e-6
    rope: Rope = field(default_factory=Rope)
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the MLP's gate
    norm_offset: bool = False  # norms multiply by 1 + weight
    pre_norms: bool = True  # attention and MLP get the normalized residual stream
    post_norms: bool = False  # their outputs are normalized
    qk_norm: bool = False  # queries and keys are normalized
    qk_norm_whole: bool = False  # over all heads together, not each head
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    attn_gate: bool = False  # attention's output is multiplied by a gate of each channel
    sinks: bool = False  # each head has a score of its own in the softmax, whose share is dropped
    query_scale: float = 0.0  # multiplies attention scores; 0: head_dim ** -0.5
    embed_scale: float = 1.0  # multiplies embeddings, but not the output head
    residual_scale: float = 1.0  # multiplies what a layer adds to the residual stream
    logit_divisor: float = 1.0  # divides logits
    logit_cap: float = 0.0  # then logits z become cap tanh(z / cap); 0: not
    tied: bool = False  # the embedding is also the output head
    max_positions: int = 0  # max_position_embeddings of config.json; 0: unknown. See `context`
    # rows of embedding and head if they must divide over devices; 0: vocab. Padding is never
    # predicted
    padded_vocab: int = 0
    lora: LoraSpec | None = None
    # types of the first layers; the layers after them repeat these
    pattern: tuple[LayerType, ...] = (LayerType(),)

    @property
    def layer_types(self) -> tuple[LayerType, ...]:
        """The type of each layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of layers: one per place of the pattern, then one for each layer that remains
        after its whole repeats.

        Gemma 3 has five layers with a sliding window before each full one. Of 26 layers, the stacks
        blocks_0 to blocks_5 hold four each, and tail_0 and tail_1 the last two.
        """
        period = len(self.pattern)
        whole = self.layers // period * period
        names = [f"blocks_{i}" for i in range(period)] if period > 1 else ["blocks"]
        repeated = [
            Stack(name, type, tuple(range(i, whole, period)), True)
            for i, (name, type) in enumerate(zip(names, self.pattern, strict=True))
            if whole
        ]
        remaining = [
            Stack(f"tail_{i - whole}", self.pattern[i - whole], (i,), False)
            for i in range(whole, self.layers)
        ]
        return (*repeated, *remaining)

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with experts."""
        return tuple(i for i, layer in enumerate(self.layer_types) if layer.experts)

    @property
    def mlp_channels(self) -> int:
        """Channels of the hidden layer of the widest MLP that a token passes through."""
        return max(
            layer.experts.chosen * layer.experts.mlp if layer.experts else self.mlp
            for layer in self.pattern
        )

    def rope_of(self, layer: LayerType) -> Rope | None:
        """Returns the rope of a layer; None if it has no positions."""
        return (layer.rope or self.rope) if layer.positions and not layer.delta else None

    @property
    def vocab_rows(self) -> int:
        """Rows of embedding and head."""
        return self.padded_vocab or self.vocab

    @property
    def context(self) -> int:
        """Longest sequence, in tokens, that the positions cover after rope scaling; 0: unknown.

        `max_positions` is the length before scaling, except where rope itself names a smaller one:
        Llama 3.1 has 131,072 with an original length of 8,192 (factor 8), Qwen's yarn 32,768 with
        an original length of 32,768 (factor 4: 131,072 in all).
        """
        if not self.max_positions or self.rope.kind in ("default", "dynamic", "longrope"):
            return self.max_positions
        original = self.rope.original_max_positions or self.max_positions
        if self.rope.kind == "llama3" and original < self.max_positions:
            return self.max_positions
        return max(self.max_positions, int(original * self.rope.factor))

    def for_length(self, tokens: int) -> "ModelSpec":
        """Returns the model for sequences of up to this many tokens, prompt and response together.

        Models with longrope have other frequencies for sequences beyond their original length.
        transformers chooses by the longest sequence of a batch, and changes in the middle of a
        response. ▲ Here a run uses one or the other throughout, as vLLM does, so that sampler and
        learner compute the same.
        """
        if self.rope.kind != "longrope":
            return self
        long = tokens > self.rope.original_max_positions
        return replace(self, rope=replace(self.rope, long=long))

    @property
    def base(self) -> "ModelSpec":
        """The model as stored in its checkpoint: without padding and adapters."""
        return replace(self, padded_vocab=0, lora=None)


class Weight(NamedTuple):
    """Shape, logical axes (for sharding), and initializer: normal with std `scale`, or a
    constant.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["normal", "ones", "zeros"] = "normal"
    scale: float = 0.02
    adapter: bool = False
    exact: bool = False  # small, and used in float32: not rounded for sampling either

    def dtype(self, param_dtype: str) -> str:
        """Returns the dtype in which params hold this weight; `param_dtype` is model.param_dtype.

        Adapters are always float32: they are small, and the only weights that a run with adapters
        trains.
        """
        return "float32" if self.adapter or self.exact else param_dtype


Weights = dict[str, "Weight | Weights"]


def weights(spec: ModelSpec) -> Weights:
    """Returns every weight of the model, as a tree with the structure of the params. Stacks have a
    leading layer axis.
    """
    V, D = spec.vocab_rows, spec.width
    tree: Weights = {
        "embed": Weight((V, D), ("vocab", "width")),
        "final_norm": norm_weight(spec, D),
    }
    for stack in spec.stacks:
        tree[stack.key] = {
            n: w._replace(shape=(len(stack.layers), *w.shape), axes=("layer", *w.axes))
            for n, w in block_weights(spec, stack.type).items()
        }
    if not spec.tied:
        tree["lm_head"] = Weight((V, D), ("vocab", "width"))
    return tree


def block_weights(spec: ModelSpec, layer: LayerType) -> dict[str, Weight]:
    """Returns the weights of one layer of this type."""
    D, H, K, C, F = spec.width, spec.heads, spec.kv_heads, spec.head_dim, spec.mlp
    residual_scale = 0.02 / (2 * spec.layers) ** 0.5
    if layer.delta:
        block = _delta_net(layer.delta, D, residual_scale)
    else:
        block = {
            # with a gate, each head's query channels and then those of its gate
            "q": Weight((D, H, C * (1 + spec.attn_gate)), ("width", "head", "channel")),
            "k": Weight((D, K, C), ("width", "kv_head", "channel")),
            "v": Weight((D, K, C), ("width", "kv_head", "channel")),
            "o": Weight((H, C, D), ("head", "channel", "width"), scale=residual_scale),
        }
    if layer.experts:
        block |= _experts(layer.experts, D, residual_scale)
    else:
        block |= {
            "gate": Weight((D, F), ("width", "mlp")),
            "up": Weight((D, F), ("width", "mlp")),
            "down": Weight((F, D), ("mlp", "width"), scale=residual_scale),
        }
    block |= _norms(spec, layer) | _biases(spec, layer)
    if spec.sinks and not layer.delta:
        block["sinks"] = Weight((H,), ("head",), "zeros", exact=True)
    if spec.lora:
        for name in adapted(spec.lora, layer):
            block |= _adapter(name, block[name], spec.lora.rank)
    return block


def adapted(lora: LoraSpec, layer: LayerType) -> tuple[str, ...]:
    """Returns the weights of a layer that get an adapter: the targets; in a layer with experts, the
    experts' own gate, up and down; in one with a DeltaNet, its own q, k, v and o.
    """
    own = (EXPERT_OF if layer.experts else {}) | (DELTA_OF if layer.delta else {})
    return tuple(own.get(name, name) for name in lora.targets)


def _delta_net(delta: DeltaNet, width: int, residual_scale: float) -> dict[str, Weight]:
    """Returns the weights of a Gated DeltaNet: projections of queries, keys, values, the gate of
    the output, b, and the step of g; convolutions; g = -exp(a_log) softplus(step + step_bias).
    """
    D, K, V = width, delta.key_heads, delta.value_heads
    keys, values, conv_scale = (K, delta.key_dim), (V, delta.value_dim), delta.conv**-0.5
    key_axes, value_axes = ("kv_head", "channel"), ("head", "channel")
    return {
        "delta_q": Weight((D, *keys), ("width", *key_axes)),
        "delta_k": Weight((D, *keys), ("width", *key_axes)),
        "delta_v": Weight((D, *values), ("width", *value_axes)),
        "delta_gate": Weight((D, *values), ("width", *value_axes)),
        "delta_write": Weight((D, V), ("width", "head")),
        "delta_step": Weight((D, V), ("width", "head")),
        # [heads, channels, 1, tokens]
        "conv_q": Weight((*keys, 1, delta.conv), (*key_axes, "conv", "conv"), scale=conv_scale),
        "conv_k": Weight((*keys, 1, delta.conv), (*key_axes, "conv", "conv"), scale=conv_scale),
        "conv_v": Weight((*values, 1, delta.conv), (*value_axes, "conv", "conv"), scale=conv_scale),
        "a_log": Weight((V,), ("head",), "zeros", exact=True),
        "step_bias": Weight((V,), ("head",), "ones", exact=True),
        "delta_norm": Weight((delta.value_dim,), ("norm",), "ones"),
        "delta_o": Weight((*values, D), ("head", "channel", "width"), scale=residual_scale),
    }


def _experts(experts: Experts, width: int, residual_scale: float) -> dict[str, Weight]:
    """Returns the weights of a sparse MLP."""
    E, D, F = experts.count, width, experts.mlp
    inward, outward = ("expert", "width", "expert_mlp"), ("expert", "expert_mlp", "width")
    weights = {
        "router": Weight((D, E), ("width", "router")),
        "expert_gate": Weight((E, D, F), inward),
        "expert_up": Weight((E, D, F), inward),
        "expert_down": Weight((E, F, D), outward, scale=residual_scale),
    }
    if experts.bias:
        weights |= {
            "router_bias": Weight((E,), ("router",), "zeros", exact=True),
            "expert_gate_bias": Weight((E, F), ("expert", "expert_mlp"), "zeros"),
            "expert_up_bias": Weight((E, F), ("expert", "expert_mlp"), "zeros"),
            "expert_down_bias": Weight((E, D), ("expert", "norm"), "zeros"),
        }
    return weights


def norm_weight(spec: ModelSpec, *shape: int, axes: tuple[str, ...] = ("norm",)) -> Weight:
    """Returns the weight of a norm, initialized so that it multiplies by 1."""
    return Weight(shape, axes, "zeros" if spec.norm_offset else "ones")


def _norms(spec: ModelSpec, layer: LayerType) -> dict[str, Weight]:
    """Returns the norms of a layer."""
    D, H, K, C = spec.width, spec.heads, spec.kv_heads, spec.head_dim
    norms = {}
    if spec.pre_norms:
        norms |= {"attn_norm": norm_weight(spec, D), "mlp_norm": norm_weight(spec, D)}
    if spec.post_norms:
        norms |= {"attn_post_norm": norm_weight(spec, D), "mlp_post_norm": norm_weight(spec, D)}
    if layer.delta:
        return norms
    if spec.qk_norm and spec.qk_norm_whole:
        norms |= {
            "q_norm": norm_weight(spec, H, C, axes=("head", "channel")),
            "k_norm": norm_weight(spec, K, C, axes=("kv_head", "channel")),
        }
    elif spec.qk_norm:
        norms |= {"q_norm": norm_weight(spec, C), "k_norm": norm_weight(spec, C)}
    return norms


def _biases(spec: ModelSpec, layer: LayerType) -> dict[str, Weight]:
    """Returns the biases of a layer, without those of experts."""
    D, H, K, C, F = spec.width, spec.heads, spec.kv_heads, spec.head_dim, spec.mlp
    biases = {}
    if spec.qkv_bias and not layer.delta:
        biases |= {
            "q_bias": Weight((H, C), ("head", "channel"), "zeros"),
            "k_bias": Weight((K, C), ("kv_head", "channel"), "zeros"),
            "v_bias": Weight((K, C), ("kv_head", "channel"), "zeros"),
        }
    if spec.o_bias and not layer.delta:
        biases["o_bias"] = Weight((D,), ("norm",), "zeros")
    if spec.mlp_bias and not layer.experts:
        biases |= {
            "gate_bias": Weight((F,), ("mlp",), "zeros"),
            "up_bias": Weight((F,), ("mlp",), "zeros"),
            "down_bias": Weight((D,), ("norm",), "zeros"),
        }
    return biases


def num_inputs(name: str) -> int:
    """Returns the number of axes of a projection's inputs: heads and channels of an output
    projection, else one.
    """
    return 2 if name in ("o", "delta_o") else 1


def _adapter(name: str, w: Weight, rank: int) -> dict[str, Weight]:
    """Returns A [inputs, rank] and B [rank, outputs] of a projection. Experts have an A and a B
    each.
    """
    first = int(name in EXPERT_OF.values())
    end = first + num_inputs(name)
    fan_in = math.prod(w.shape[first:end])
    return {
        f"{name}_lora_a": Weight(
            (*w.shape[:end], rank), (*w.axes[:end], "rank"), scale=fan_in**-0.5, adapter=True
        ),
        f"{name}_lora_b": Weight(
            (*w.shape[:first], rank, *w.shape[end:]),
            (*w.axes[:first], "rank", *w.axes[end:]),
            "zeros",
            adapter=True,
        ),
    }


@functools.cache
def num_params(spec: ModelSpec) -> int:
    """Returns the number of parameters."""
    return _count(weights(spec), lambda w: 1)


@functools.cache
def num_active_params(spec: ModelSpec) -> int:
    """Returns the number of parameters that a token is multiplied by: of experts, the chosen ones
    only.
    """
    total = num_params(spec)
    for stack in spec.stacks:
        if experts := stack.type.experts:
            of_experts = _count(weights(spec)[stack.key], lambda w: "expert" in w.axes)
            total -= of_experts // experts.count * (experts.count - experts.chosen)
    return total


def _count(tree: Any, times: Callable[[Weight], int]) -> int:
    """Returns the parameters of a tree of weights, each counted `times(weight)` times."""
    if isinstance(tree, Weight):
        return math.prod(tree.shape) * times(tree)
    return sum(_count(w, times) for w in tree.values())
