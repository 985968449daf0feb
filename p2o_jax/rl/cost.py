"""Cost of the learner's part of a step, for the ledger."""

from collections.abc import Mapping, Sequence

from p2o_jax.models import flops
from p2o_jax.models.spec import ModelSpec
from p2o_jax.rl.batch import Example


def cost(
    spec: ModelSpec, scored: Sequence[Example], with_reference: bool
) -> dict[str, Mapping[str, float]]:
    """Returns sequences, tokens and estimated FLOPs of the phases score and update. Examples that
    the learner skipped cost nothing.
    """
    used = [e for e in scored if len(e.weight_R)]
    trained = [len(e.trained_on_ids) + len(e.response_ids) for e in used]
    passes = [n for n, e in zip(trained, used, strict=True) if not e.fresh]
    passes += [len(e.sampled_on_ids) + len(e.response_ids) for e in used if e.templated] + (
        trained if with_reference else []
    )
    return {
        "score": {
            "sequences": len(passes),
            "tokens": sum(passes),
            "flops": flops.scoring(spec, passes),
        },
        "update": {
            "sequences": len(trained),
            "tokens": sum(trained),
            "flops": flops.update(spec, trained),
        },
    }
