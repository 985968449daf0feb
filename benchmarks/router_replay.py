"""What `train.router_replay` does to the gap between sampler and learner:
`python -m benchmarks.router_replay`.

A model with experts and random weights samples in bfloat16, on a CPU in float32 with a cache in
int8. Then the learner's forward pass scores the responses, in bfloat16 or in float32, once choosing
experts anew and once with the sampler's choices. The router's weights
are those of initialization, times a factor: the larger it is, the further apart are the experts'
logits. Figures are the mean and largest absolute difference of log-probs, and the share of tokens
and layers in which the learner chooses other experts.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config import RolloutConfig
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.models import experts, sharding, transformer
from p2o_jax.models.spec import Experts, LayerType, ModelSpec
from p2o_jax.rl import batch
from p2o_jax.rollout.engine import Engine
from p2o_jax.types import Completion, Request, SamplingParams

SPEC = ModelSpec(
    "qwen3_moe",
    vocab=2048,
    width=256,
    layers=8,
    heads=8,
    kv_heads=2,
    head_dim=32,
    mlp=512,
    qk_norm=True,
    pattern=(LayerType(experts=Experts(count=32, chosen=4, mlp=128)),),
)
PROMPT = 32
COMMAND_LINE = CommandLine(
    "benchmarks.router_replay",
    __doc__,
    Flag("factors", "Factors on the router's weights", [1, 10, 50], kind=int, several=True),
    Flag("responses", "Responses to sample", 64, kind=int, within=COUNT),
    Flag("new-tokens", "Tokens of a response", 64, kind=int, within=COUNT),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures and reports.

    Raises:
        ConfigError: the flags are invalid.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    figures: dict[str, Any] = {}
    targets: dict[str, Target] = {}
    for factor in flags["factors"]:
        name = f"router_x{factor}"
        figures[name] = measure(SPEC, factor, flags["responses"], flags["new-tokens"])
        figures[f"{name}_gap_with_over_without"] = round(
            figures[name]["gap_mean_replayed"] / figures[name]["gap_mean"], 3
        )
        targets[f"{name}: the gap shrinks"] = Target(f"{name}_gap_with_over_without", "<=", 1.0)
    report.finish("router_replay", figures, targets)


def measure(spec: ModelSpec, factor: float, responses: int, new_tokens: int) -> dict[str, float]:
    """Returns the gap with and without replay, and the share of other choices.

    Args:
        spec: the model; its weights are random.
        factor: on the router's weights.
        responses: responses to sample.
        new_tokens: tokens of each.
    """
    params = transformer.init(spec, jax.random.key(0))
    params["blocks"]["router"] *= factor
    drawn = np.random.default_rng(0).integers(2, spec.vocab, (responses, PROMPT))
    prompts = [tuple(map(int, row)) for row in drawn]
    completions = sampled(spec, params, prompts, new_tokens)
    sequences = [(p, c.token_ids) for p, c in zip(prompts, completions, strict=True)]
    choice = experts.choices_of_token(spec, True)
    packed = batch.pack(sequences, PROMPT + new_tokens, responses, 1, 0, choice)
    packed.replay([c.choice_RX for c in completions])
    rows = packed.flat
    place = (rows.token, rows.position, rows.segment)

    @jax.jit
    def score(params: Any, recorded: jax.Array | None) -> transformer.Scored:
        return transformer.token_logps(spec, params, *place, dtype=dtype(), recorded_BTX=recorded)

    figures = {}
    for name, recorded in (("", None), ("_replayed", rows.choice)):
        logp_BT = np.asarray(score(params, recorded).logp_BT)
        parts = zip(packed.places, completions, strict=True)
        gap = np.concatenate([np.abs(logp_BT[r, a:b] - c.logp_R) for (r, a, b), c in parts])
        figures |= {f"gap_mean{name}": float(gap.mean()), f"gap_max{name}": float(gap.max())}
    differ = other_choices(spec, params, rows)
    return {name: round(value, 5) for name, value in {**figures, "frac_differ": differ}.items()}


def on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def dtype() -> Any:
    return jnp.float32 if on_cpu() else jnp.bfloat16


def sampled(
    spec: ModelSpec, params: Any, prompts: Sequence[tuple[int, ...]], new_tokens: int
) -> list[Completion]:
    """Returns a response to each prompt, with the experts that computed it."""
    cfg = RolloutConfig(
        questions=len(prompts),
        group_size=1,
        slots=len(prompts),
        min_slots=0,
        prompt_buckets=(PROMPT,),
        cache_dtype="int8" if on_cpu() else "auto",
    )
    mesh = sharding.make_mesh((1, 1, 1), jax.devices()[:1])
    engine = Engine(spec, mesh, cfg, [new_tokens], [0], 0, dtype(), record_experts=True)
    requests = [Request(prompt, str(i)) for i, prompt in enumerate(prompts)]
    weights = engine.to_rollout_layout(params)
    return engine.generate(weights, requests, SamplingParams(1.0, new_tokens), jax.random.key(1))


def other_choices(spec: ModelSpec, params: Any, rows: batch.PackedBatch) -> float:
    """Returns the share of recorded tokens and layers in which the learner chooses other experts,
    if nothing is replayed.
    """
    mixing = transformer.within_segments(jnp.asarray(rows.segment))
    mixing = mixing._replace(watch=lambda routed, _: routed.own_Nk)

    @jax.jit
    def choices(params: Any) -> Any:
        return transformer.hidden(
            spec, params, rows.token, rows.position, mixing, dtype=dtype()
        ).watched["blocks"]

    own_LNk = np.sort(np.asarray(choices(params)))
    L, N, k = own_LNk.shape
    recorded_LNk = np.sort(np.moveaxis(rows.choice.reshape(N, L, k), 1, 0))
    known_LN = recorded_LNk[..., 0] > 0
    return float((own_LNk + 1 != recorded_LNk).any(axis=-1)[known_LN].mean())


if __name__ == "__main__":
    command(run)
