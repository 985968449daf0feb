"""What follows from the settings: lengths, batch sizes, mesh shapes, and what reflects."""

from typing import Literal

from p2o_jax.config.schema import Config
from p2o_jax.config.sections.model import MeshConfig


def max_prompt_tokens(config: Config) -> int:
    """The longest prompt that the sampler takes: its largest bucket."""
    return max(config.rollout.prompt_buckets)


def longest_template_tokens(config: Config) -> int:
    """The longest template that there can be: one that evolves without filters is as long as a
    reply.
    """
    gepa = config.gepa
    return (
        gepa.max_template_tokens
        if gepa.filter_replies or gepa.reflector == "hint"
        else max(gepa.max_template_tokens, gepa.reflect_new_tokens)
    )


def max_templated_prompt_tokens(config: Config) -> int:
    """The longest T(x, z): a longest plain prompt under a longest template, at most the longest
    prompt that the sampler takes.
    """
    return min(
        max_prompt_tokens(config), config.data.max_prompt_tokens + config.gepa.max_template_tokens
    )


def trained_row_tokens(config: Config) -> int:
    """T of the update's rows: as set, or long enough for every prompt that is trained on, with any
    response.
    """
    longest = (
        max_templated_prompt_tokens(config)
        if config.distill.mode == "off"
        else config.data.max_prompt_tokens
    )
    return config.optim.row_tokens or longest + config.rollout.max_new_tokens


def templated_row_tokens(config: Config) -> int:
    """T of the rows that score responses on templated prompts."""
    return max(
        config.optim.row_tokens, max_templated_prompt_tokens(config) + config.rollout.max_new_tokens
    )


def longest_sequence(config: Config) -> int:
    """A bound on the tokens of a sequence in training, evaluation and reflection: the longest
    prompt and the longest reply to it.
    """
    prompt = max(max_prompt_tokens(config), config.data.max_prompt_tokens)
    reply = config.gepa.reflect_new_tokens if model_reflects(config) else 0
    return prompt + max(config.rollout.max_new_tokens, reply)


def minibatch_questions(config: Config) -> int:
    """Questions of an optimizer update."""
    return min(config.optim.minibatch_questions, config.rollout.questions)


def minibatch_rollouts(config: Config) -> int:
    """Rollouts of an optimizer update."""
    return minibatch_questions(config) * config.rollout.group_size


def reflector(config: Config) -> Literal["", "policy", "reference", "api"]:
    """What reflects in a run; empty without prompt phases."""
    source = config.gepa.reflector
    return source if config.gepa.enabled and source != "hint" else ""


def has_hints(config: Config) -> bool:
    """Whether the templates of a run are the hints of its questions."""
    return config.gepa.enabled and config.gepa.reflector == "hint"


def model_reflects(config: Config) -> bool:
    """Whether a model on the sampler reflects, not an endpoint."""
    return reflector(config) in ("policy", "reference")


def mesh_shape(mesh: MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) with a -1 replaced by what is left of the devices."""
    shape = [mesh.data, mesh.fsdp, mesh.tensor]
    if shape.count(-1) == 1:
        known = -shape[0] * shape[1] * shape[2]
        shape[shape.index(-1)] = max(num_devices // max(known, 1), 1)
    return shape[0], shape[1], shape[2]
