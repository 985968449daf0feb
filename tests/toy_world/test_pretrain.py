"""Pretraining ends in a Hugging Face directory that loads again, is deterministic, and is done
once.
"""

import dataclasses
import functools
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from p2o_jax import config
from p2o_jax.models import hf, hf_config, transformer
from p2o_jax.toy_world import documents, families, measure, pretrain
from p2o_jax.toy_world.languages import LARGE, SMALL

TINY = config.WorldConfig(
    steps=5, batch_rows=2, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=32
)

token_logps = jax.jit(transformer.token_logps, static_argnums=0)


@pytest.fixture(scope="module", autouse=True)
def fewer_questions():
    """The base models below are measured on fewer questions, by all eight devices."""
    measured = functools.partial(measure.chain_figures, num_questions=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "chain_figures", measured)
        patch.setattr(measure, "ROWS", 16)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    cfg = dataclasses.replace(TINY, cache_dir=str(tmp_path_factory.mktemp("world")))
    lines = []
    directory = pretrain.ensure_base(cfg, lines.append)
    return cfg, directory, lines


def test_the_base_is_complete_and_cached(base):
    cfg, directory, lines = base
    assert directory == pretrain.base_directory(cfg)
    names = {path.name for path in directory.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "world.json",
    } <= names
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
    assert lines
    again = []
    assert pretrain.ensure_base(cfg, again.append) == directory and not again


def test_what_a_killed_start_left_is_reported_and_kept(base):
    cfg, directory, _ = base
    cfg = dataclasses.replace(cfg, seed=1)
    left = pretrain.base_directory(cfg)
    left = left.with_name(f"{left.name}.partial-0")
    left.mkdir()
    lines = []
    pretrain.ensure_base(cfg, lines.append)
    assert lines[0].startswith(f"{left}: left by a command that was killed") and left.is_dir()
    left.rmdir()
    shutil.rmtree(pretrain.base_directory(cfg))


def test_world_json_tells_what_was_measured(base):
    cfg, directory, _ = base
    report = json.loads((directory / "world.json").read_text())
    assert report["world"] == dataclasses.asdict(cfg)
    assert set(report["families"]) == set(families.HARD)
    assert 0 <= report["p_chain_plain"] < 1 and report["seconds"] > 0 and report["loss"] > 0
    assert [len(report["families"][name]["p_go_on_plain"]) for name in families.HARD] == [
        3,
        4,
        4,
        4,
    ]


def test_the_saved_model_is_the_trained_one(base):
    cfg, directory, _ = base
    spec = pretrain.model_spec(cfg)
    params, _ = pretrain.pretrain(cfg, spec, lambda line: None)
    loaded_spec = hf_config.read_spec(directory)
    assert loaded_spec == spec
    loaded = hf.load(directory, loaded_spec)
    token = np.arange(12)[None] % spec.vocab
    rows = token, np.arange(12)[None], np.ones((1, 12), np.int32)
    want, *_ = token_logps(spec, params, *rows)
    got, *_ = token_logps(loaded_spec, loaded, *rows)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id and len(tokenizer) == spec.vocab


def test_the_name_follows_what_the_weights_depend_on():
    name = pretrain.base_directory(TINY).name
    assert pretrain.base_directory(dataclasses.replace(TINY, p_chain_plain=1e-3)).name != name
    assert pretrain.base_directory(dataclasses.replace(TINY, seed=1)).name != name
    same = dataclasses.replace(
        TINY, cache_dir="elsewhere", hard_per_family=3, easy_per_family=1, heldout_per_family=5
    )
    assert pretrain.base_directory(same).name == name


def test_a_model_of_the_large_world_has_its_vocabulary_and_is_measured_on_its_chains():
    cfg = dataclasses.replace(TINY, size="large", row_tokens=128)
    spec = pretrain.model_spec(cfg)
    assert pretrain.base_directory(cfg) != pretrain.base_directory(
        dataclasses.replace(cfg, size="small")
    )
    params = transformer.init(spec, jax.random.key(0))
    figures = measure.chain_figures(spec, params, LARGE, cfg.seed, cfg.row_tokens, num_questions=2)
    steps = [len(LARGE.families[name].make(random.Random(0)).steps) for name in LARGE.hard]
    assert (
        list(figures) == list(LARGE.hard)
        and [len(row["p_go_on_plain"]) for row in figures.values()] == steps
    )
    assert all(0 < p < 50 / spec.vocab for row in figures.values() for p in row["p_go_on_plain"]), (
        "untrained: no better than by lot"
    )


def test_each_layers_matrices_are_made_orthogonal_by_themselves():
    spec = pretrain.model_spec(TINY)
    params = transformer.init(spec, jax.random.key(0))
    grads = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), params)
    make = pretrain.optimizer(100)
    state, update = jax.jit(make.init)(params), jax.jit(make.update)
    for _ in range(2):  # the warm-up begins with a learning rate of zero
        updates, state = update(grads, state, params)
    lr = pretrain.MUON_LR / pretrain.WARMUP_STEPS
    for name, shape in {"q": (32, 32), "o": (32, 32), "k": (32, 16), "down": (32, 32)}.items():
        for layer in updates["blocks"][name]:
            singular = np.linalg.svd(np.asarray(layer).reshape(shape), compute_uv=False) / lr
            assert np.median(singular) > 0.6 and singular.max() < 1.3, name
    adam = pretrain.ADAM_LR / pretrain.WARMUP_STEPS
    assert np.abs(updates["embed"]).max() == pytest.approx(adam, rel=0.2)


def test_scores_agree_with_token_logps():
    spec = pretrain.model_spec(TINY)
    params = transformer.init(spec, jax.random.key(2))
    document = documents.Document(
        "be bold\n\ndouble 1 2 3 4 ?", "twice 1 = 2 ; so \\boxed{ 2 4 6 8 }"
    )
    (logp,), (first,) = measure.score(spec, params, SMALL, [document], 96)
    assert logp.shape == first.shape == (13,)
    token, _ = measure.packing.encode(document, measure.packing.ids_of_words(SMALL))
    rows = (
        jnp.asarray(row)[None]
        for row in (token, np.arange(len(token)), np.ones(len(token), np.int32))
    )
    want, *_ = token_logps(spec, params, *rows)
    np.testing.assert_allclose(logp, want[0, -13:], rtol=1e-5, atol=1e-5)
