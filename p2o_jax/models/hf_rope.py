"""Rotary positions in config.json: read with typed access to its fields, and written back."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from p2o_jax.models.hf_fields import Fields
from p2o_jax.models.spec import Rope

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
USUAL_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "yarn")
# kinds of attention layers in config.json
FULL, SLIDING = "full_attention", "sliding_attention"
_ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale",
    "mscale_all_dim", "truncate", "partial_rotary_factor", "finetuned",
}  # fmt: skip
_LONGROPE_KEYS = {"short_factor", "long_factor"}


def read_rope(
    fields: Fields,
    max_positions: int,
    kinds: tuple[RopeKind, ...] = USUAL_KINDS,
    partial: bool = False,
    more_keys: frozenset[str] = frozenset(),
) -> Rope:
    """Returns the rope that config.json describes; problems are added to `fields`.

    Args:
        fields: config.json.
        max_positions: max_position_embeddings.
        kinds: kinds of scaling that the family has.
        partial: whether the family can rotate a part of the channels only.
        more_keys: keys of the rope that the family reads itself.
    """
    values = fields.values
    # in the order of transformers
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    within = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    if not isinstance(given, dict):
        fields.problems.append(f"{within}={given!r}: expected an object")
        return Rope()
    theta_from = given if given.get("rope_theta") is not None else values
    theta = Fields(theta_from, problems=fields.problems, defaults=fields.defaults).number(
        "rope_theta", 10000.0
    )
    factors = [place.get("partial_rotary_factor") for place in (given, values)]
    share = next((x for x in factors if x is not None), 1.0)
    if not partial and share not in (1, 1.0):
        fields.problems.append(f"partial_rotary_factor={share} is not supported; supported: 1")
    given = {key: value for key, value in given.items() if key not in more_keys}
    rope = _read(fields, within, given, theta, max_positions, kinds, share if partial else 1.0)
    return rope or Rope()


def read_ropes(fields: Fields, max_positions: int, thetas: Mapping[str, float]) -> dict[str, Rope]:
    """Returns the ropes of full and of sliding layers, for families that have two. Only full layers
    are scaled by rope_scaling of the older layout.

    Args:
        fields: config.json.
        max_positions: max_position_embeddings.
        thetas: bases where the nested rope_parameters do not state them.
    """
    values = fields.values
    nested, scaling = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    if not isinstance(nested, dict) or not isinstance(scaling, dict):
        fields.problems.append("rope_parameters and rope_scaling: expected objects")
        return dict.fromkeys((FULL, SLIDING), Rope())
    if unknown := sorted(set(nested) - {FULL, SLIDING}):
        fields.problems.append(
            f"rope_parameters: {_names(unknown)} not supported; supported: {FULL}, {SLIDING}"
        )
    ropes = {}
    for kind in (FULL, SLIDING):
        given = dict(nested.get(kind) or {}) | (scaling if kind == FULL else {})
        within = f"rope_parameters.{kind}" if nested.get(kind) else "rope_scaling"
        inner = Fields(given, f"{within}.", fields.problems)
        theta = inner.number("rope_theta", thetas[kind])
        rope = _read(fields, within, given, theta, max_positions, USUAL_KINDS, 1.0)
        ropes[kind] = rope or Rope()
    return ropes


def _read(
    fields: Fields,
    within: str,
    given: dict[str, Any],
    theta: float,
    max_positions: int,
    kinds: tuple[RopeKind, ...],
    partial: float,
) -> Rope | None:
    """Returns a rope; None with a problem if its kind is not supported.

    Args:
        fields: config.json.
        within: place of the rope in it.
        given: settings of the rope.
        theta: base of the frequencies.
        max_positions: max_position_embeddings.
        kinds: supported kinds.
        partial: share of the channels that is rotated.
    """
    kind: Any = given.get("rope_type") or given.get("type") or "default"
    if kind not in kinds:
        fields.problems.append(
            f"{within}.rope_type={kind!r} is not supported; supported: {_names(kinds)}"
        )
        return None
    known = _ROPE_KEYS | (_LONGROPE_KEYS if "longrope" in kinds else set())
    if unknown := sorted(set(given) - known):
        fields.problems.append(
            f"{within}: {_names(unknown)} not supported; supported: {_names(sorted(known))}"
        )
    original = None
    if fields.values.get("original_max_position_embeddings") is not None:
        original = fields.integer("original_max_position_embeddings")
    inner = Fields(given, f"{within}.", fields.problems)
    if kind == "longrope":
        return _longrope(fields, inner, theta, original, max_positions, partial)
    return _rope_of_kind(kind, theta, inner, original, max_positions, partial)


def _rope_of_kind(
    kind: RopeKind,
    theta: float,
    given: Fields,
    original: int | None,
    max_positions: int,
    partial: float,
) -> Rope:
    """Returns the rope of this kind.

    Args:
        kind: kind of scaling.
        theta: base of the frequencies.
        given: settings of the rope.
        original: the model's own original_max_position_embeddings, which overrides that of the
            rope.
        max_positions: max_position_embeddings.
        partial: share of the channels that is rotated.
    """
    if kind == "default":
        return Rope(theta=theta, partial=partial)
    if kind == "dynamic":
        return Rope(kind, theta, given.number("factor"), partial=partial)
    if kind == "linear":
        if original is None and given.values.get("original_max_position_embeddings") is not None:
            original = given.integer("original_max_position_embeddings")
        return Rope(kind, theta, given.number("factor"), original or 0, partial=partial)
    if original is None:
        original = given.integer("original_max_position_embeddings", max_positions or None)
    if kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        return Rope(
            kind,
            theta,
            given.number("factor"),
            original,
            low_freq_factor=low,
            high_freq_factor=high,
            partial=partial,
        )
    factor = given.number("factor", max_positions / original if max_positions else None)
    attention_factor = given.number("attention_factor", 0.0)
    mscale, mscale_all = given.number("mscale", 0.0), given.number("mscale_all_dim", 0.0)
    if not attention_factor and mscale and mscale_all and factor > 1:
        attention_factor = (0.1 * mscale * math.log(factor) + 1) / (
            0.1 * mscale_all * math.log(factor) + 1
        )
    return Rope(
        kind,
        theta,
        factor,
        original,
        beta_fast=given.number("beta_fast", 32.0),
        beta_slow=given.number("beta_slow", 1.0),
        attention_factor=attention_factor,
        truncate=bool(given.values.get("truncate", True)),
        partial=partial,
    )


def _longrope(
    fields: Fields,
    given: Fields,
    theta: float,
    original: int | None,
    max_positions: int,
    partial: float,
) -> Rope:
    """Returns a rope with a divisor for each frequency.

    Args:
        fields: config.json.
        given: settings of the rope.
        theta: base of the frequencies.
        original: the model's own original_max_position_embeddings.
        max_positions: max_position_embeddings.
        partial: share of the channels that is rotated.
    """
    original = original or given.integer("original_max_position_embeddings", max_positions or None)
    heads = fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", fields.integer("hidden_size") // heads)
    frequencies = int(head_dim * partial) // 2
    return Rope(
        "longrope",
        theta,
        given.number("factor", max_positions / original),
        original,
        attention_factor=given.number("attention_factor", 0.0),
        short_factors=given.numbers("short_factor", frequencies),
        long_factors=given.numbers("long_factor", frequencies),
        partial=partial,
    )


def write_rope(rope: Rope, max_positions: int = 0) -> dict[str, Any] | None:
    """Returns `rope_scaling` of config.json; None for unscaled positions. The base and the rotated
    share of channels have keys of their own there, as has the original length of longrope.
    """
    if rope.kind == "default":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "longrope":
        # exactly these keys: transformers 4 accepts no others
        scaling = {
            "type": rope.kind,
            "short_factor": list(rope.short_factors),
            "long_factor": list(rope.long_factors),
        }
        if rope.factor != max_positions / rope.original_max_positions:
            scaling["factor"] = rope.factor
    elif rope.original_max_positions:
        scaling["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if not rope.truncate:
            scaling["truncate"] = False
    if rope.attention_factor:
        scaling["attention_factor"] = rope.attention_factor
    return scaling


def nested_rope(rope: Rope) -> dict[str, Any]:
    """Returns a rope as the newer layout's rope_parameters hold it."""
    return {"rope_theta": rope.theta, **(write_rope(rope) or {"rope_type": "default"})}


def _names(names: Any) -> str:
    return ", ".join(map(str, names))
