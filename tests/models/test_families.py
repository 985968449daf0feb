"""Model families: one record each, consistent with transformers, and written as it is read."""

import json

import pytest
import transformers

from p2o_jax.models import hf_config, hf_tensors
from p2o_jax.models.families import FAMILIES
from p2o_jax.models.spec import block_weights
from tests.factories import make_spec


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_that_of_transformers(name):
    family, theirs = FAMILIES[name], transformers.AutoConfig.for_model(name)
    assert family.name == name == theirs.model_type
    assert hasattr(transformers, family.architecture)
    assert family.max_positions == theirs.max_position_embeddings
    assert family.window in (None, theirs.to_dict().get("sliding_window"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spec_of_a_family_is_written_as_it_is_read(name, tmp_path):
    family = FAMILIES[name]
    spec = make_spec(
        family=name, qk_norm=family.qk_norm, qkv_bias=family.qkv_bias, max_positions=128
    )
    (tmp_path / "config.json").write_text(json.dumps(hf_config.write_config(spec)))
    assert hf_config.read_spec(tmp_path) == spec
    in_files = {t.name for t in hf_tensors.tensors(spec) if t.layer == 0}
    names = block_weights(spec, spec.pattern[0])
    assert in_files == {f"model.layers.0.{family.block_tensors[n][0]}" for n in names}
