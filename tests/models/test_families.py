"""Model families: one record each, consistent with transformers, and written as it is read."""

import json

import pytest
import transformers

from p2o_jax.config import ConfigError
from p2o_jax.models import hf_config, hf_tensors
from p2o_jax.models.families import COMPOSITES, FAMILIES
from p2o_jax.models.families.family import EXPERT
from p2o_jax.models.families.parts import repeating
from p2o_jax.models.spec import Experts, LayerType, block_weights

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


ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
QWEN3_5 = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "image_token_id": 248056,
    "video_token_id": 248057,
    "tie_word_embeddings": True,
    "vision_config": {"model_type": "qwen3_5"},
    "text_config": {
        "model_type": "qwen3_5_text",
        "attention_bias": False,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9216,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.25,
        "rope_parameters": {**ROPE, "mrope_interleaved": True, "mrope_section": [11, 11, 10]},
        "vocab_size": 248320,
    },
}


def test_config_json_of_qwen3_5_as_it_is_published(tmp_path):
    spec = read(tmp_path, QWEN3_5)
    assert len(spec.pattern) == 4 and [bool(layer.delta) for layer in spec.pattern] == [1, 1, 1, 0]
    assert spec.tied and spec.rope.partial == 0.25 and spec.layers == 32
    written = hf_config.write_config(spec)["rope_parameters"]
    assert written == {**ROPE, "mrope_interleaved": True, "mrope_section": [11, 11, 10]}
    for key, value, message in (
        ("attn_output_gate", False, "attn_output_gate=false is not supported"),
        ("linear_num_key_heads", 12, "linear_num_value_heads=32 must be a multiple"),
        ("layer_types", ["full_attention"] * 32, "layer_types has no linear_attention layer"),
        ("layer_types", ["mamba"] * 32, "layer_types with 'mamba' is not supported"),
        ("output_gate_type", "swish", "output_gate_type='swish' is not a known setting"),
    ):
        text = QWEN3_5["text_config"] | {key: value}
        with pytest.raises(ConfigError, match=message):
            read(tmp_path, QWEN3_5 | {"text_config": text})


def test_experts_of_qwen3_moe_by_either_key_and_what_is_wrong_with_them(tmp_path):
    values = {
        "model_type": "qwen3_moe", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "moe_intermediate_size": 8, "num_experts_per_tok": 2, "norm_topk_prob": True,
    }  # fmt: skip
    older, newer = (
        read(tmp_path, values | {key: 6}) for key in ("num_experts", "num_local_experts")
    )
    assert older == newer and older.pattern[0].experts == Experts(6, 2, 8)
    sparse = {"num_experts": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    spec = read(tmp_path, values | sparse)
    assert [bool(layer.experts) for layer in spec.layer_types] == [False, True, False, False]
    with pytest.raises(ConfigError, match="num_experts_per_tok=2 is more than the experts, 1"):
        read(tmp_path, values | {"num_experts": 1})
    with pytest.raises(ConfigError, match="decoder_sparse_step leave no experts"):
        read(tmp_path, values | {"num_experts": 6, "decoder_sparse_step": 5})
    with pytest.raises(ConfigError, match="mlp_only_layers='0': expected a list"):
        read(tmp_path, values | {"num_experts": 6, "mlp_only_layers": "0"})


def test_gpt_oss_as_published_is_refused_for_its_quantization(tmp_path):
    theirs = transformers.AutoConfig.for_model("gpt_oss").to_dict()
    with pytest.raises(ConfigError, match=r"quantization_config \(mxfp4\) is not supported"):
        read(tmp_path, theirs | {"quantization_config": {"quant_method": "mxfp4"}})
    with pytest.raises(ConfigError, match="num_experts_per_tok=9 is more than the experts, 8"):
        read(tmp_path, theirs | {"num_local_experts": 8, "num_experts_per_tok": 9})
    spec = read(tmp_path, theirs)
    assert spec.sinks and [layer.window > 0 for layer in spec.pattern] == [True, False]
