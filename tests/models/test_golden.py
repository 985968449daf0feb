"""Our model against transformers' models (PyTorch, float32) on the same checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.models import hf, hf_config, sharding, transformer

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
NAMES = ("qwen3_tied", "qwen3_untied", "qwen2_bias", "llama3_rope")
MESHES = ((1, 1, 1), (1, 2, 4), (1, 4, 2))
STEPS = 16


def load(name, mesh_shape=(1, 1, 1), rules=sharding.LEARNER, dtype="float32"):
    """Returns spec, params on the mesh and golden arrays of a checkpoint."""
    directory = GOLDEN / name
    spec = hf_config.read_spec(directory)
    mesh = sharding.make_mesh(mesh_shape, devices=jax.devices()[: int(np.prod(mesh_shape))])
    if sharding.problems(spec, mesh, rules):
        rules = {**rules, "head": None}  # six heads over four devices
    params = hf.load(directory, spec, sharding.param_shardings(spec, mesh, rules), dtype)
    return spec, params, dict(np.load(directory / "golden.npz"))


@jax.jit(static_argnames="spec")
def all_logits(spec, params, token_BT, mask_BT):
    position_BT, segment_BT = transformer.segments(mask_BT)
    x_BTD, *_ = transformer.hidden(
        spec, params, token_BT, position_BT, transformer.within_segments(segment_BT)
    )
    return transformer.logits(spec, params, x_BTD)


@jax.jit(static_argnames=("spec", "chunk"))
def all_logps(spec, params, token_BT, mask_BT, chunk):
    position_BT, segment_BT = transformer.segments(mask_BT)
    return transformer.token_logps(spec, params, token_BT, position_BT, segment_BT, chunk=chunk)[0]


def to_right_padded(values_BT, mask_BT):
    """Moves each row's real entries to the front, with zeros after them."""
    out = np.zeros_like(values_BT)
    for row, (values, mask) in enumerate(zip(values_BT, mask_BT, strict=True)):
        out[row, : mask.sum()] = values[mask]
    return out


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_golden(name, mesh):
    spec, params, golden = load(name, mesh)
    mask = golden["attention_mask"] > 0
    ours = np.asarray(all_logits(spec, params, golden["input_ids"], mask))
    assert np.abs(ours - golden["logits"])[mask].max() <= 5e-5


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_continuation_equals_golden(name, mesh):
    spec, params, golden = load(name, mesh)
    B, T = golden["input_ids"].shape
    tokens = np.pad(golden["input_ids"], ((0, 0), (0, STEPS)))
    mask = np.pad(golden["attention_mask"] > 0, ((0, 0), (0, STEPS)))
    for t in range(T, T + STEPS):
        tokens[:, t] = np.asarray(all_logits(spec, params, tokens, mask))[:, t - 1].argmax(-1)
        mask[:, t] = True
    np.testing.assert_array_equal(tokens[:, T:], golden["greedy_ids"])


@pytest.mark.parametrize("chunk", (17, 1024))
@pytest.mark.parametrize("name", NAMES)
def test_token_logps_equal_golden(name, chunk):
    spec, params, golden = load(name)
    ours = np.asarray(
        all_logps(spec, params, golden["input_ids"], golden["attention_mask"] > 0, chunk)
    )
    assert np.abs(ours - golden["token_logprobs"]).max() <= 5e-5


@pytest.mark.parametrize("name", NAMES)
def test_right_padding_equals_left_padding(name):
    spec, params, golden = load(name)
    mask = golden["attention_mask"] > 0
    assert (mask.sum(1) < mask.shape[1]).any()
    right_mask = to_right_padded(mask, mask)
    right_tokens = to_right_padded(golden["input_ids"], mask)
    ours = np.asarray(all_logits(spec, params, right_tokens, right_mask))
    assert np.abs(ours[right_mask] - golden["logits"][mask]).max() <= 5e-5
    logps = np.asarray(all_logps(spec, params, right_tokens, right_mask, 1024))
    assert np.abs(logps[right_mask] - golden["token_logprobs"][mask]).max() <= 5e-5


@pytest.mark.parametrize("name", NAMES)
def test_rollout_rules_give_golden_logits(name):
    spec, params, golden = load(name, (1, 2, 4), sharding.ROLLOUT)
    mask = golden["attention_mask"] > 0
    assert (
        np.abs(np.asarray(all_logits(spec, params, golden["input_ids"], mask)) - golden["logits"])[
            mask
        ].max()
        <= 5e-5
    )


@pytest.mark.parametrize("mesh", MESHES[1:])
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", NAMES)
def test_sharded_load_is_the_same_bits_in_the_asked_places(name, dtype, mesh):
    spec, params, _ = load(name, mesh, dtype=dtype)
    _, single, _ = load(name)
    for (path, leaf), whole in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(single), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(leaf), np.asarray(whole.astype(jnp.dtype(dtype))), err_msg=str(path)
        )
    q = params["blocks"]["q"]
    heads = spec.heads // mesh[2] if spec.heads % mesh[2] == 0 else spec.heads
    assert q.addressable_shards[0].data.shape == (
        spec.layers,
        spec.width // mesh[1],
        heads,
        spec.head_dim,
    )
