"""What answers reflection prompts: a model on the sampler, or an endpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from p2o_jax.gepa import api
from p2o_jax.rollout.pipeline import Cost, RolloutPipeline
from p2o_jax.runtime import distributed
from p2o_jax.types import Reply, SamplingParams

# (prompts, names, cost of reflection so far) -> (replies, None where missing; cost)
Reflector = Callable[[Sequence[str], Sequence[str], Cost], tuple[Sequence[Reply | None], Cost]]


def of_model(
    pipeline: RolloutPipeline,
    weights: Callable[[], Any],
    sampling: SamplingParams,
    key: jax.Array,
) -> Reflector:
    """Returns the reflector of a model, whose params in rollout layout `weights` returns."""
    return lambda prompts, names, spent: pipeline.reply(weights(), prompts, names, sampling, key)


def of_endpoint(endpoint: api.Endpoint) -> Reflector:
    """Returns the reflector of an endpoint, which process 0 alone talks to."""

    def reflect(
        prompts: Sequence[str], names: Sequence[str], spent: Cost
    ) -> tuple[list[Reply | None], Cost]:
        def ask() -> tuple[list[Any], Cost]:
            replies, cost = endpoint.complete(prompts, names, spent)
            return [None if reply is None else reply.to_json() for reply in replies], cost

        values, cost = distributed.broadcast_from_main(ask)
        return [None if value is None else Reply.from_json(value) for value in values], cost

    return reflect
