"""Rotary positions in config.json: read with typed access to its fields, and written back."""

import math
from typing import Any, Literal, get_args

from p2o_jax.models.spec import Rope

RopeKind = Literal["default", "linear", "llama3", "yarn"]
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)
_ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings",
    "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale",
    "mscale_all_dim", "truncate", "partial_rotary_factor", "finetuned",
}  # fmt: skip


class Fields:
    """Typed values of config.json. A missing or mistyped value is recorded as a problem and read as
    1.
    """

    def __init__(self, values: dict[str, Any], within: str = "", problems: list[str] | None = None):
        self.values, self.within = values, within
        self.problems: list[str] = [] if problems is None else problems

    def integer(self, key: str, default: int | None = None) -> int:
        """Returns a whole number of at least 1, or the default if the key is absent or null."""
        value = self._get(key, default)
        if value is not default and (type(value) is not int or value < 1):
            self.problems.append(f"{self.within}{key}={value!r}: expected a positive whole number")
            return 1
        return 1 if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive number, or the default if the key is absent or null."""
        value = self._get(key, default)
        if value is not default and (type(value) not in (int, float) or not 0 < value < math.inf):
            self.problems.append(f"{self.within}{key}={value!r}: expected a positive number")
            return 1.0
        return 1.0 if value is None else float(value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is None:
            self.problems.append(f"{self.within}{key} is missing")
        return default


def read_rope(fields: Fields, max_positions: int) -> Rope:
    """Returns the rope that config.json describes; problems are added to `fields`."""
    values = fields.values
    # in the order of transformers
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    within = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    if not isinstance(given, dict):
        fields.problems.append(f"{within}={given!r}: expected an object")
        return Rope()
    kind = given.get("rope_type") or given.get("type") or "default"
    theta_from = given if given.get("rope_theta") is not None else values
    theta = Fields(theta_from, problems=fields.problems).number("rope_theta", 10000.0)
    unknown = sorted(set(given) - _ROPE_KEYS)
    if kind not in ROPE_KINDS:
        fields.problems.append(
            f"{within}.rope_type={kind!r} is not supported; supported: {_names(ROPE_KINDS)}"
        )
        return Rope()
    if unknown:
        fields.problems.append(
            f"{within}: {_names(unknown)} not supported; supported: {_names(sorted(_ROPE_KEYS))}"
        )
    for place in (given, values):
        if place.get("partial_rotary_factor") not in (None, 1, 1.0):
            fields.problems.append(
                f"partial_rotary_factor={place['partial_rotary_factor']} is not supported;"
                " supported: 1"
            )
    original = None
    if values.get("original_max_position_embeddings") is not None:
        original = fields.integer("original_max_position_embeddings")
    return _rope_of_kind(
        kind, theta, Fields(given, f"{within}.", fields.problems), original, max_positions
    )


def _rope_of_kind(
    kind: RopeKind, theta: float, given: Fields, original: int | None, max_positions: int
) -> Rope:
    """Returns the rope of this kind.

    Args:
        kind: kind of scaling.
        theta: base of the frequencies.
        given: settings of the rope.
        original: the model's own original_max_position_embeddings, which overrides that of the
            rope.
        max_positions: max_position_embeddings.
    """
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        if original is None and given.values.get("original_max_position_embeddings") is not None:
            original = given.integer("original_max_position_embeddings")
        return Rope(kind, theta, given.number("factor"), original or 0)
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
    )


def write_rope(rope: Rope) -> dict[str, Any] | None:
    """Returns `rope_scaling` of config.json; None for unscaled positions."""
    if rope.kind == "default":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.original_max_positions:
        scaling["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor:
            scaling["attention_factor"] = rope.attention_factor
        if not rope.truncate:
            scaling["truncate"] = False
    return scaling


def _names(names: Any) -> str:
    return ", ".join(map(str, names))
