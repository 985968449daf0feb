"""Estimated FLOPs against sums by hand and XLA's count."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from p2o_jax.models import flops, transformer
from p2o_jax.models.spec import DeltaNet, LayerType, LoraSpec, ModelSpec, num_params
from p2o_jax.rl.batch import Example
from p2o_jax.rl.cost import cost
from tests.factories import make_spec

SPEC = make_spec(vocab=64, mlp=64)
N, A = num_params(SPEC), 4 * 2 * 4 * 8


def test_forward_by_hand():
    assert flops.forward(SPEC, 0, 1) == 2 * N + A
    assert flops.forward(SPEC, 3, 5) == 2 * 2 * N + A * (4 + 5)
    assert flops.forward(SPEC, 0, 3) + flops.forward(SPEC, 3, 9) == flops.forward(SPEC, 0, 9)
    sliding = replace(SPEC, pattern=(LayerType(window=4), LayerType()))
    saved = A // 2 * ((7 - 4) + (8 - 4) + (9 - 4))  # of tokens 6 to 8, in one of two layers
    assert flops.forward(sliding, 6, 9) == flops.forward(SPEC, 6, 9) - saved
    assert flops.forward(sliding, 0, 9) == flops.forward(SPEC, 0, 9) - saved - A // 2 * (1 + 2)
    assert flops.forward(sliding, 0, 4) == flops.forward(SPEC, 0, 4)


def test_a_delta_net_costs_the_same_at_every_position():
    """Four heads with states of 8 x 6: three products of 2 operations each."""
    delta = LayerType(delta=DeltaNet(2, 4, 8, 6, conv=4))
    hybrid = replace(SPEC, pattern=(delta, LayerType()))
    weights = 2 * num_params(hybrid)
    assert flops.forward(hybrid, 0, 1) == weights + 3 * 2 * 4 * 8 * 6 + A // 2
    assert flops.forward(hybrid, 6, 7) == weights + 3 * 2 * 4 * 8 * 6 + A // 2 * 7


def test_a_prompt_that_is_sampled_twice_is_read_once():
    once, twice = (
        flops.sampling(SPEC, [((1, 2, 3), 2)]),
        flops.sampling(SPEC, [((1, 2, 3), 2), ((1, 2, 3), 4)]),
    )
    assert once == flops.forward(SPEC, 0, 5) and twice - once == flops.forward(SPEC, 3, 7)


def test_an_update_is_three_forward_passes_two_with_adapters():
    lora = ModelSpec(**{**SPEC.__dict__, "lora": LoraSpec(4, 8.0, ("q",))})
    assert (
        flops.update(SPEC, [3, 5])
        == 3 * flops.scoring(SPEC, [3, 5])
        == 3 * (flops.forward(SPEC, 0, 3) + flops.forward(SPEC, 0, 5))
    )
    assert flops.update(lora, [4]) == 2 * flops.forward(SPEC, 0, 4)


def test_xla_counts_about_as_much():
    params = transformer.init(SPEC, jax.random.key(0), "float32")
    token_BT = jnp.zeros((1, 64), jnp.int32)
    position_BT = jnp.arange(64)[None]

    def run(params):
        x_BTD, *_ = transformer.hidden(
            SPEC,
            params,
            token_BT,
            position_BT,
            transformer.within_segments(jnp.ones_like(token_BT)),
        )
        return transformer.logits(SPEC, params, x_BTD)

    counted = jax.jit(run).lower(params).compile().cost_analysis()["flops"]
    # XLA counts a loop over layers once, and whole rows of scores
    assert 0.4 < counted / flops.forward(SPEC, 0, 64) < 2.0


def test_the_learner_s_cost_counts_what_was_scored():
    """A fresh example is trained but not scored; one without weights was left out of both."""

    def example(plain, sampled_on, length, used, fresh=False):
        logp = np.zeros(length, np.float32)
        weight = logp if used else logp[:0]
        return Example(
            plain,
            sampled_on,
            np.zeros(length, np.int32),
            1.0,
            True,
            logp,
            weight_R=weight,
            fresh=fresh,
        )

    examples = [
        example((1, 2), (1, 2), 3, True),
        example((1, 2), (7, 7, 1, 2), 4, True),
        example((1,), (1,), 5, False),
    ]
    examples.append(example((1,), (1,), 6, True, fresh=True))
    spent = cost(SPEC, examples, with_reference=False)
    assert spent["score"] == {
        "sequences": 3,
        "tokens": 5 + 6 + 8,
        "flops": flops.scoring(SPEC, [5, 6, 8]),
    }
    assert spent["update"] == {"sequences": 3, "tokens": 18, "flops": flops.update(SPEC, [5, 6, 7])}
    assert cost(SPEC, examples, with_reference=True)["score"]["tokens"] == 5 + 6 + 8 + 18
