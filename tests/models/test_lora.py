"""Adapters: equal to the base at first, trained alone, exact when merged; and a padded vocabulary
changes nothing.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from p2o_jax import config
from p2o_jax.models import hf, lora, sharding, transformer
from p2o_jax.models.spec import LoraSpec, ModelSpec
from p2o_jax.rl.batch import Example
from p2o_jax.rl.learner import Learner

SPEC = ModelSpec(
    "qwen3",
    50,
    32,
    2,
    4,
    2,
    8,
    64,
    qk_norm=True,
    tied=True,
    lora=LoraSpec(8, 16.0, config.LORA_TARGETS),
)
MESH = sharding.make_mesh((1, 1, 1), jax.devices()[:1])


def adapted(spec=SPEC, mesh=MESH):
    shardings = sharding.param_shardings(spec, mesh, sharding.LEARNER)
    base = jax.device_put(
        transformer.init(replace(spec, lora=None), jax.random.key(0)), lora_free(spec, shardings)
    )
    return lora.add(spec, base, jax.random.key(1), shardings)


def lora_free(spec, tree):
    return lora.split(spec, tree)[1] if spec.lora else tree


def logps(spec, params):
    return np.asarray(_logps(spec, params))


@functools.partial(jax.jit, static_argnums=0)
def _logps(spec, params):
    token = jax.random.randint(jax.random.key(2), (3, 12), 0, 50)
    position, segment = transformer.segments(jnp.ones((3, 12), bool))
    return transformer.token_logps(spec, params, token, position, segment)[0]


def shaken(params):
    """Returns the params with nonzero B of every adapter."""
    blocks = {
        n: w + 0.05 * jax.random.normal(jax.random.key(3), w.shape) if n.endswith("_b") else w
        for n, w in params["blocks"].items()
    }
    return {**params, "blocks": blocks}


def learner(spec, mesh=MESH):
    cfg = config.resolve(config.Config())
    rollout = replace(
        cfg.rollout,
        questions=2,
        group_size=2,
        max_new_tokens=8,
        prompt_buckets=(8, 32),
        temperature=1.0,
    )
    cfg = replace(
        cfg,
        rollout=rollout,
        optim=replace(cfg.optim, lr=1e-2, minibatch_questions=2, micro_rows=4, row_tokens=32),
    )
    return Learner(
        spec, mesh, replace(cfg, data=replace(cfg.data, max_prompt_tokens=8)), 10, jnp.float32, 0
    )


def scored(lrn, state):
    rng = np.random.default_rng(0)
    examples = []
    for advantage in (1.0, -1.0, 0.5, -0.5):
        response = rng.integers(0, 50, 6).astype(np.int32)
        examples.append(
            Example((1, 2, 3), (1, 2, 3), response, advantage, True, np.zeros(6, np.float32))
        )
    return lrn.score(lrn.policy(state), None, examples)[0]


def test_fresh_adapters_are_the_base():
    params = adapted()
    np.testing.assert_allclose(
        logps(SPEC, params), logps(replace(SPEC, lora=None), lora.split(SPEC, params)[1]), atol=1e-6
    )


def test_merged_equals_adapters_on_base():
    params = shaken(adapted())
    merged = lora.merge(SPEC, params)
    assert not any(lora.is_adapter(n) for n in merged["blocks"])
    assert np.abs(logps(SPEC, params) - logps(SPEC, adapted())).max() > 1e-2
    np.testing.assert_allclose(
        logps(SPEC, params), logps(replace(SPEC, lora=None), merged), atol=1e-5
    )


def test_merge_of_one_projection_by_hand():
    spec = replace(SPEC, lora=LoraSpec(2, 6.0, ("down",)))
    params = shaken(adapted(spec))
    a, b, w = (np.asarray(params["blocks"][n][1]) for n in ("down_lora_a", "down_lora_b", "down"))
    np.testing.assert_allclose(
        lora.merge(spec, params)["blocks"]["down"][1], w + 3.0 * a @ b, atol=1e-6
    )


def test_only_adapters_are_trained_and_have_optimizer_state():
    lrn = learner(SPEC)
    params = adapted()
    before = jax.tree.map(np.asarray, params)
    state = lrn.init(params)
    for _ in range(2):  # A has no gradient while B is zero
        state, stats = lrn.update(state, scored(lrn, state))
    assert stats["train/grad_norm"] > 0
    after = lrn.policy(state)
    for name, w in after["blocks"].items():
        assert np.array_equal(w, before["blocks"][name]) != lora.is_adapter(name), name
    assert np.array_equal(after["embed"], before["embed"])
    num_adapter = sum(w.size for n, w in before["blocks"].items() if lora.is_adapter(n))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * num_adapter


def test_frozen_base_is_the_reference():
    lrn = learner(SPEC)
    state = lrn.init(shaken(adapted()))
    sequences = [((1, 2, 3), np.array([4, 5, 6], np.int32))]
    reference = lrn.score_tokens(lrn.frozen, sequences, 32)[0]
    base = learner(replace(SPEC, lora=None))
    np.testing.assert_allclose(
        reference, base.score_tokens(lrn.frozen, sequences, 32)[0], atol=1e-6
    )
    assert np.abs(reference - lrn.score_tokens(lrn.policy(state), sequences, 32)[0]).max() > 1e-3


@pytest.mark.parametrize("shape", [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_sharded_adapters_equal_single_device(shape):
    mesh = sharding.make_mesh(shape)
    one, many = learner(SPEC), learner(replace(SPEC, padded_vocab=50 + -50 % shape[2]), mesh)
    one.cfg = many.cfg = replace(one.cfg, optim=replace(one.cfg.optim, micro_rows=8))
    states = [one.init(shaken(adapted())), many.init(shaken(adapted(mesh=mesh)))]
    for _ in range(2):
        states = [
            lrn.update(s, scored(lrn, s))[0] for lrn, s in zip((one, many), states, strict=True)
        ]
    for name, w in states[0].params["blocks"].items():
        np.testing.assert_allclose(w, states[1].params["blocks"][name], atol=1e-5, err_msg=name)


def test_peft_files_hold_each_adapter_transposed(tmp_path):
    params = shaken(adapted())
    lora.save_peft(tmp_path, SPEC, lora.split(SPEC, params)[0], "base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * SPEC.layers * len(config.LORA_TARGETS)
    a = tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    b = tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    np.testing.assert_array_equal(a.T, params["blocks"]["q_lora_a"][1])
    np.testing.assert_array_equal(b.T, np.asarray(params["blocks"]["q_lora_b"][1]).reshape(8, -1))


def test_peft_loads_the_adapters(tmp_path):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import torch

    params = shaken(adapted())
    hf.save(tmp_path / "base", SPEC.base, lora.split(SPEC, params)[1], dtype="float32")
    lora.save_peft(tmp_path / "peft", SPEC, lora.split(SPEC, params)[0], str(tmp_path / "base"))
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32),
        tmp_path / "peft",
    )
    token = np.asarray(jax.random.randint(jax.random.key(2), (3, 12), 0, 50))
    theirs = torch.log_softmax(model(torch.tensor(token)).logits, -1).detach().numpy()
    theirs = np.take_along_axis(theirs[:, :-1], token[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(logps(SPEC, params)[:, 1:], theirs, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_padded_vocabulary_changes_no_log_prob_and_stays_out_of_files(tmp_path, tied):
    spec = ModelSpec("qwen3", 50, 32, 2, 4, 2, 8, 64, qk_norm=True, tied=tied)
    padded = replace(spec, padded_vocab=56)
    params = transformer.init(spec, jax.random.key(0))
    hf.save(tmp_path / "a", spec, params, dtype="float32")
    loaded = hf.load(tmp_path / "a", padded)
    assert loaded["embed"].shape == (56, 32)
    assert not np.asarray(loaded["embed"][50:]).any()
    np.testing.assert_allclose(logps(padded, loaded), logps(spec, params), atol=1e-6)
    token = jnp.ones((1, 4), jnp.int32)
    entropy = [
        transformer.token_logps(s, p, token, token, token)[1]
        for s, p in ((spec, params), (padded, loaded))
    ]
    np.testing.assert_allclose(*entropy, atol=1e-5)
    hf.save(tmp_path / "b", padded, loaded, dtype="float32")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()
