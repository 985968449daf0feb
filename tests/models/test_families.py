"""Model families: one record each, consistent with transformers, and written as it is read."""

import json

import pytest
import transformers

from p2o_jax.models import hf_config, hf_tensors
from p2o_jax.models.families import COMPOSITES, FAMILIES
from p2o_jax.models.families.family import EXPERT
from p2o_jax.models.families.parts import repeating
from p2o_jax.models.spec import LayerType, block_weights

# models under another name use the class of this one
ALIASES = {"internlm3": "LlamaForCausalLM", "iquestcoder": "LlamaForCausalLM"}
REQUIRED = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


def read(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return hf_config.read_spec(folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_that_of_transformers(name, tmp_path):
    """What config.json does not state is read as transformers' default."""
    family, theirs = FAMILIES[name], transformers.AutoConfig.for_model(name).to_dict()
    assert hasattr(transformers, ALIASES.get(name, family.architecture))
    required = REQUIRED + ("rope_parameters",) * (name in ("ministral3", "gpt_oss"))
    few = {key: theirs[key] for key in required if theirs[key] is not None}
    assert read(tmp_path, few) == read(tmp_path, theirs)
    if name == "gemma3_text":  # composite checkpoints leave out the sizes, too
        assert read(tmp_path, {"model_type": name}) == read(tmp_path, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spec_of_a_family_is_written_as_it_is_read(name, tmp_path):
    family, theirs = FAMILIES[name], transformers.AutoConfig.for_model(name).to_dict()
    spec = read(tmp_path, theirs | {"bos_token_id": 3})
    assert read(tmp_path, hf_config.write_config(spec)) == spec
    in_files = {t.name for t in hf_tensors.tensors(spec) if t.place[:1] == (0,)}
    names = block_weights(spec, spec.pattern[0])
    expected = {family.block_tensors[n][0].replace(EXPERT, "0") for n in names}
    assert {f"model.layers.0.{name}" for name in expected} <= in_files
    # transformers reads what is written as the model that it was
    again = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert read(tmp_path, again) == spec


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_checkpoint_is_read_as_its_text_model(name, tmp_path):
    theirs = transformers.AutoConfig.for_model(name).to_dict()
    text = theirs["text_config"] | {"tie_word_embeddings": theirs["tie_word_embeddings"]}
    assert read(tmp_path, theirs) == read(tmp_path, text)
    assert hf_config.notices(tmp_path) == []
    read(tmp_path, theirs)
    (line,) = hf_config.notices(tmp_path)
    assert f"only the text model of {name} is used ({COMPOSITES[name]})" in line


def test_the_shortest_pattern_that_repeats():
    a, b = LayerType(), LayerType(window=8)
    assert repeating([b, a, b, a]) == repeating([b, a, b]) == (b, a)
    assert repeating([b, b, b]) == (b,)
    assert repeating([b, b, a]) == repeating([b, b, a, b]) == (b, b, a)
    assert repeating([a, b, b]) == (a, b, b)
