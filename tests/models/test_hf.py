"""Hugging Face checkpoints: configs, round trips, bad input, and our exports as transformers reads
them.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from p2o_jax.config import ConfigError
from p2o_jax.models import hf, hf_config, hf_reader, rope, sharding, transformer
from p2o_jax.models.spec import LayerType, ModelSpec, Rope, num_params

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
NAMES = ("qwen3_tied", "qwen3_untied", "qwen2_bias", "llama3_rope")
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
SPEC = ModelSpec(
    "qwen3",
    vocab=40,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=24,
    qk_norm=True,
    max_positions=128,
)
YARN = Rope("yarn", 1e6, 4.0, 256)


def same(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b
    )


def copy(name, tmp_path):
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def edit(path, **changes):
    """Changes keys of a JSON file; None deletes a key."""
    values = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(values))


def load(directory):
    return hf.load(directory, hf_config.read_spec(directory))


def problems(call, *args, **kwargs):
    with pytest.raises(ConfigError) as e:
        call(*args, **kwargs)
    return list(e.value.problems)


# Rope: transformers 5.23.0 on torch 2.13.0, ROPE_INIT_FUNCTIONS[kind], head_dim 16: inverse
# frequencies and factor on cos and sin.
@pytest.mark.parametrize(
    ("given", "scale", "expected"),
    (
        (
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            1.0,
            [
                0.25,
                0.079056941,
                0.025,
                0.0079056947,
                0.0024999999,
                0.00079056947,
                0.00025000001,
                7.9056947e-05,
            ],
        ),
        (
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 500000.0,
            },
            1.0,
            [
                1.0,
                0.067133039,
                0.0011751885,
                0.00022789578,
                4.419417e-05,
                8.5702559e-06,
                1.6619674e-06,
                3.2229329e-07,
            ],
        ),
        (
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 256,
                "rope_theta": 1000000.0,
            },
            1.138629436111989,
            [
                1.0,
                0.13337095,
                0.015811389,
                0.0014058533,
                0.00025000001,
                4.4456985e-05,
                7.9056936e-06,
                1.4058534e-06,
            ],
        ),
        (
            {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 512,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
                "attention_factor": 1.25,
                "rope_theta": 10000.0,
            },
            1.25,
            [
                1.0,
                0.31622776,
                0.071608461,
                0.0073249983,
                0.00125,
                0.00039528473,
                0.00012500001,
                3.9528473e-05,
            ],
        ),
        (
            {
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "mscale": 1.0,
                "mscale_all_dim": 0.707,
                "rope_theta": 10000.0,
            },
            1.0857263992561355,
            [
                1.0,
                0.31622776,
                0.1,
                0.023914725,
                0.0051249997,
                0.00084986218,
                2.4999999e-05,
                7.9056945e-06,
            ],
        ),
    ),
)
@pytest.mark.parametrize("layout", ("transformers 4", "transformers 4, type", "transformers 5"))
def test_rope_kinds_equal_transformers(given, scale, expected, layout, tmp_path):
    path = copy("llama3_rope", tmp_path) / "config.json"
    if layout == "transformers 5":
        edit(
            path,
            rope_scaling=None,
            rope_theta=None,
            torch_dtype=None,
            dtype="float32",
            rope_parameters=given,
        )
    else:
        given = dict(given)
        theta = given.pop("rope_theta")
        if layout == "transformers 4, type":
            given["type"] = given.pop("rope_type")
        edit(path, rope_scaling=given, rope_theta=theta)
    read = hf_config.read_spec(path.parent).rope
    np.testing.assert_allclose(rope.inverse_frequencies(read, 16), expected, rtol=2e-6)
    assert rope.attention_scale(read) == pytest.approx(scale, rel=1e-12)


def test_rope_turns_a_pair_by_hand():
    cos, sin = rope.angles(Rope("linear", 100.0, 2.0), 4, jnp.array([[3]]))
    np.testing.assert_allclose(cos[0, 0], np.cos([3 / 2, 3 / 20]), rtol=1e-6)
    turned = rope.rotate(jnp.array([[[[1.0, 2.0, 3.0, 4.0]]]]), cos, sin)[0, 0, 0]
    c, s = np.cos([1.5, 0.15]), np.sin([1.5, 0.15])
    np.testing.assert_allclose(
        turned,
        [c[0] - 3 * s[0], 2 * c[1] - 4 * s[1], 3 * c[0] + s[0], 4 * c[1] + 2 * s[1]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", NAMES)
def test_config_of_an_export_reads_as_the_same_spec(name, tmp_path):
    spec = hf_config.read_spec(GOLDEN / name)
    (tmp_path / "config.json").write_text(json.dumps(hf_config.write_config(spec)))
    assert hf_config.read_spec(tmp_path) == spec


def test_config_names_everything_unsupported_at_once(tmp_path):
    path = copy("qwen3_tied", tmp_path) / "config.json"
    edit(
        path,
        hidden_act="gelu",
        use_sliding_window=True,
        sliding_window=64,
        quantization_config={"quant_method": "awq"},
        mlp_bias=True,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0},
        hidden_size="wide",
        architectures=["Qwen3ForSequenceClassification"],
    )
    messages = problems(hf_config.read_spec, path.parent)
    assert all(p.startswith(f"{path}: ") for p in messages)
    for word in (
        "gelu",
        "use_sliding_window",
        "awq",
        "mlp_bias",
        "dynamic",
        "hidden_size",
        "SequenceClassification",
    ):
        assert sum(word in p for p in messages) == 1, word
    assert "supported: default, linear, llama3, yarn" in "\n".join(messages)


def test_unknown_model_type_lists_the_supported(tmp_path):
    path = copy("qwen3_tied", tmp_path) / "config.json"
    edit(path, model_type="gemma3n", architectures=["Gemma3nForCausalLM"])
    (messages,) = problems(hf_config.read_spec, path.parent)
    assert messages.startswith(f"{path}: model_type='gemma3n' is not supported; supported: qwen3, ")
    assert messages.endswith(", gemma3, mistral3, qwen3_5")


@pytest.mark.parametrize(
    ("changes", "word"),
    (
        (
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "sliding_attention",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "full_attention"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5",
        ),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ({"head_dim": 15}, "head_dim=15 must be even"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ),
)
def test_config_problem_is_named(changes, word, tmp_path):
    path = copy("qwen3_tied", tmp_path) / "config.json"
    edit(path, **changes)
    (messages,) = problems(hf_config.read_spec, path.parent)
    assert word in messages


def test_mistral_s_window_is_that_of_config_or_of_transformers(tmp_path):
    spec = dataclasses.replace(
        SPEC, family="mistral", qk_norm=False, pattern=(LayerType(window=64),)
    )
    config = hf_config.write_config(spec)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert hf_config.read_spec(tmp_path) == spec
    path.write_text(json.dumps(config | {"sliding_window": None}))
    assert hf_config.read_spec(tmp_path).pattern == (LayerType(),)
    edit(path, sliding_window=None)  # without the key
    assert hf_config.read_spec(tmp_path).pattern == (LayerType(window=4096),)


@pytest.mark.parametrize(("window", "refused"), ((64, True), (128, False), (None, False)))
def test_a_window_of_llama_is_refused_where_it_limits(window, refused, tmp_path):
    config = hf_config.write_config(dataclasses.replace(SPEC, family="llama", qk_norm=False))
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": window}))
    if refused:
        assert "sliding_window=64" in problems(hf_config.read_spec, tmp_path)[0]
    else:
        assert hf_config.read_spec(tmp_path).pattern == (LayerType(),)


@pytest.mark.parametrize(
    ("changes", "line"),
    (
        ({"is_causal": False}, "is_causal=False is not supported; supported: true"),
        ({"is_causal": 0}, "is_causal=0 is not supported"),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0 is not supported; supported: 1"),
        (
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping=30.0 is not a known setting of qwen3",
        ),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"query_pre_attn_scalar": 224}, "query_pre_attn_scalar=224"),
        ({"embedding_multiplier": 12}, "embedding_multiplier=12"),
        ({"residual_multiplier": 0.22}, "residual_multiplier=0.22"),
        ({"attention_multiplier": 0.0078125}, "attention_multiplier=0.0078125"),
        ({"scale_emb": 12}, "scale_emb=12"),
        ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers=[1, 1, 0]"),
        ({"norm_type": "layernorm"}, "norm_type='layernorm'"),
        ({"hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation='gelu_pytorch_tanh'"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"attention_sink": True}, "attention_sink=True"),
        ({"rope_interleaved": True}, "rope_interleaved=True"),
        (
            {"per_layer_config": {"0": {"num_key_value_heads": 1}}},
            "per_layer_config={'0': {'num_key_value_heads': 1}}",
        ),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights='other.safetensors'"),
        ({"quantization": {"bits": 4}}, "quantization={'bits': 4}"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false': expected true or false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"brand_new": "x" * 99}, "brand_new='" + "x" * 56 + "... is not a known setting"),
    ),
)
def test_what_would_change_the_numbers_is_refused_by_name(changes, line, tmp_path):
    path = copy("qwen3_tied", tmp_path) / "config.json"
    edit(path, **changes)
    (messages,) = problems(hf_config.read_spec, path.parent)
    assert f"{path}: {line}" in messages


def test_a_key_that_is_null_where_transformers_asks_for_truth_is_refused(tmp_path):
    path = copy("qwen3_tied", tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"is_causal": None}))
    assert "is_causal=None" in problems(hf_config.read_spec, path.parent)[0]


@pytest.mark.parametrize("name", NAMES)
def test_keys_without_effect_do_not_hinder(name, tmp_path):
    """Keys that transformers writes for a family, keys of hub files, and unknown settings that are
    off.
    """
    path = copy(name, tmp_path) / "config.json"
    spec, values = hf_config.read_spec(path.parent), json.loads(path.read_text())
    whole = json.loads(
        transformers.AutoConfig.for_model(spec.family).to_json_string(use_diff=False)
    )
    whole.pop("rope_parameters")  # which would go before a rope_theta
    hub = {
        "_name_or_path": "a/b",
        "transformers_version": "4.40.1",
        "torch_dtype": "bfloat16",
        "unsloth_fixed": True,
        "pretraining_tp": 2,
        "is_llama_config": True,
        "rope_interleaved": False,
        "use_mrope": False,
        "transformers.js_config": {"dtype": "q4"},
        "task_specific_params": {"x": {"max_length": 5}},
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "max_length": 4096,
        "repetition_penalty": 1.1,
        "id2label": {"0": "LABEL_0"},
        "gradient_checkpointing": True,
        "is_causal": True,
        "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
        "num_experts": 0,
        "final_logit_softcapping": None,
        "logits_scaling": 1.0,
        "attention_dropout": 0.1,
        "quantization_config": None,
        "mlp_only_layers": [],
        "max_sequence_length": 2048,
    }
    path.write_text(json.dumps(whole | hub | values))
    assert hf_config.read_spec(path.parent) == spec


def test_positions_that_are_not_stated_are_those_of_transformers(tmp_path):
    for name in NAMES:
        path = copy(name, tmp_path) / "config.json"
        edit(path, max_position_embeddings=None, rope_scaling=None)
        spec = hf_config.read_spec(path.parent)
        assert (
            spec.max_positions
            == transformers.AutoConfig.for_model(spec.family).max_position_embeddings
        )


def test_a_commit_is_read_from_the_hub_s_cache(tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    assert hf_config.revision(tmp_path / "models--a--b/snapshots" / commit) == commit
    assert hf_config.revision(tmp_path / commit) is None
    assert hf_config.revision(tmp_path / "snapshots" / "main") is None


def test_missing_and_broken_config_are_named(tmp_path):
    assert problems(hf_config.read_spec, tmp_path) == [f"{tmp_path / 'config.json'}: no such file"]
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read as JSON" in problems(hf_config.read_spec, tmp_path)[0]


def test_locate_tells_how_to_do_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hf_config.locate(tmp_path) == tmp_path
    assert problems(hf_config.locate, tmp_path / "nowhere") == [
        f"{tmp_path / 'nowhere'}: no such directory"
    ]
    assert (
        "Without a network, give the path of a directory"
        in problems(hf_config.locate, "nobody/no-such-model")[0]
    )


@pytest.mark.parametrize("max_shard_bytes", (5e9, 1e5))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", NAMES)
def test_import_export_import_is_bit_equal(name, dtype, max_shard_bytes, tmp_path):
    spec = hf_config.read_spec(GOLDEN / name)
    params = hf.load(GOLDEN / name, spec, dtype=dtype)
    hf.save(
        tmp_path / "out",
        spec,
        params,
        GOLDEN / name,
        dtype,
        max_shard_bytes,
        {"eos_token_id": [2, 3], "pad_token_id": 0},
    )
    again = hf.load(tmp_path / "out", hf_config.read_spec(tmp_path / "out"), dtype=dtype)
    same(params, again)
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files >= {"config.json", "generation_config.json"} | TOKENIZER_FILES
    assert ("model.safetensors" in files) == (max_shard_bytes == 5e9)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == [2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_export_of_float32_has_the_tensors_of_the_import(tmp_path):
    spec = hf_config.read_spec(GOLDEN / "llama3_rope")
    hf.save(tmp_path / "out", spec, load(GOLDEN / "llama3_rope"), dtype="float32")
    theirs, ours = (
        load_file(GOLDEN / "llama3_rope" / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    same(theirs, ours)
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as f:
        assert f.metadata() == {"format": "pt"}


def test_export_of_sharded_params_equals_export_of_whole(tmp_path):
    spec = hf_config.read_spec(GOLDEN / "qwen3_tied")
    mesh = sharding.make_mesh((1, 2, 4))
    for name, shardings in (
        ("whole", None),
        ("split", sharding.param_shardings(spec, mesh, sharding.LEARNER)),
    ):
        hf.save(tmp_path / name, spec, hf.load(GOLDEN / "qwen3_tied", spec, shardings))
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (
        tmp_path / "split/model.safetensors"
    ).read_bytes()


def test_index_of_an_export_counts(tmp_path):
    params = transformer.init(SPEC, jax.random.key(0))
    hf.save(tmp_path / "out", SPEC, params, max_shard_bytes=4000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_parameters": num_params(SPEC),
        "total_size": 2 * num_params(SPEC),
    }
    assert set(index["weight_map"].values()) == {
        p.name for p in (tmp_path / "out").glob("*.safetensors")
    }
    same(
        hf.load(tmp_path / "out", SPEC, dtype="bfloat16"),
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), params),
    )


def test_large_tensors_are_read_in_pieces(monkeypatch):
    spec = hf_config.read_spec(GOLDEN / "qwen3_untied")
    expected = load(GOLDEN / "qwen3_untied")
    monkeypatch.setattr(hf_reader, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(hf_reader, "_MAPPED_BYTES", 3000)
    monkeypatch.setattr(hf_reader, "_TILE", 7)
    same(load(GOLDEN / "qwen3_untied"), expected)
    by_channel = {**sharding.ROLLOUT, "channel": "tensor", "head": None, "kv_head": None}
    same(
        hf.load(
            GOLDEN / "qwen3_untied",
            spec,
            sharding.param_shardings(spec, sharding.make_mesh((1, 2, 4)), by_channel),
        ),
        expected,
    )


def test_bfloat16_file_loads_exactly_as_float32(tmp_path):
    params = transformer.init(SPEC, jax.random.key(0), "bfloat16")
    hf.save(tmp_path / "out", SPEC, params)
    same(hf.load(tmp_path / "out", SPEC), jax.tree.map(lambda x: x.astype(jnp.float32), params))


def test_existing_target_is_refused_and_overwritten_on_demand(tmp_path):
    params = transformer.init(SPEC, jax.random.key(0))
    out = tmp_path / "out"
    out.mkdir()
    hf.save(out, SPEC, params)
    before = (out / "model.safetensors").read_bytes()
    other = jax.tree.map(lambda x: x + 1, params)
    assert "not empty" in problems(hf.save, out, SPEC, other)[0]
    assert (out / "model.safetensors").read_bytes() == before
    hf.save(out, SPEC, other, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_export_touches_no_neighbour_and_follows_a_link(tmp_path):
    """DIR.old and DIR.partial were deleted once."""
    params = transformer.init(SPEC, jax.random.key(0))
    for name in ("out.old", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    for overwrite in (False, True):
        hf.save(tmp_path / "out", SPEC, params, overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "elsewhere",
        "out",
        "out.old",
        "out.partial",
    ]
    assert (tmp_path / "out").is_symlink() and (
        tmp_path / "elsewhere" / "model.safetensors"
    ).is_file()
    assert all(
        (tmp_path / name / "mine").read_text() == "mine" for name in ("out.old", "out.partial")
    )


def test_interrupted_export_leaves_no_target(tmp_path):
    params = transformer.init(SPEC, jax.random.key(0))
    broken = {k: v for k, v in params.items() if k != "lm_head"}
    with pytest.raises(KeyError):
        hf.save(tmp_path / "out", SPEC, broken)
    assert not list(tmp_path.iterdir())
    hf.save(tmp_path / "out", SPEC, params)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_export_without_tokenizer_or_architecture_is_refused(tmp_path):
    params = transformer.init(SPEC, jax.random.key(0))
    assert problems(hf.save, tmp_path / "out", SPEC, params, tokenizer_dir=tmp_path) == [
        f"{tmp_path}: holds no tokenizer"
    ]
    assert (
        "qk_norm=False"
        in problems(hf_config.write_config, dataclasses.replace(SPEC, qk_norm=False))[0]
    )


def test_missing_extra_and_misshapen_tensors_are_all_listed(tmp_path):
    directory = copy("llama3_rope", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((8, 64), np.float32)
    tensors["model.layers.2.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
    tensors["model.layers.0.mlp.gate_proj.weight"] = np.zeros((160, 64), np.int8)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    save_file(tensors, directory / "model.safetensors")
    file = directory / "model.safetensors"
    assert sorted(problems(load, directory)) == sorted(
        [
            f"{directory}: tensor model.norm.weight is missing",
            f"{directory}: tensor model.layers.1.mlp.up_proj.weight is missing",
            (
                f"{file}: tensor model.layers.0.self_attn.q_proj.weight has shape [8, 64], expected"
                " [64, 64]"
            ),
            (
                f"{file}: tensor model.layers.0.mlp.gate_proj.weight is I8; supported: F32, BF16,"
                " F16, F64"
            ),
            f"{file}: tensor model.layers.2.self_attn.q_proj.bias [64] is not part of this model",
        ]
    )


def test_tied_lm_head_is_ignored_if_equal_and_refused_if_not(tmp_path):
    directory = copy("qwen3_tied", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},
        directory / "model.safetensors",
    )
    same(load(directory), load(GOLDEN / "qwen3_tied"))
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1},
        directory / "model.safetensors",
    )
    assert problems(load, directory) == [
        f"{directory / 'model.safetensors'}: lm_head.weight differs from the embedding that"
        " config.json ties it to"
    ]


def test_truncated_files_are_named(tmp_path):
    directory = copy("qwen3_untied", tmp_path)
    names = ("model-00002-of-00005.safetensors", "model-00004-of-00005.safetensors")
    for name, keep in zip(names, (-100, 5), strict=True):
        (directory / name).write_bytes((directory / name).read_bytes()[:keep])
    messages = problems(load, directory)
    assert len(messages) == 2
    assert all(
        p.startswith(f"{directory / name}: truncated")
        for p, name in zip(messages, names, strict=True)
    )


def test_missing_shard_and_wrong_index_are_named(tmp_path):
    directory = copy("qwen3_untied", tmp_path)
    index = directory / "model.safetensors.index.json"
    (directory / "model-00003-of-00005.safetensors").unlink()
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["lm_head.weight"] = "elsewhere.safetensors"
    weight_map["model.norm.weight"] = "model-00001-of-00005.safetensors"
    edit(index, weight_map=weight_map)
    assert problems(load, directory) == [
        (
            f"{directory / 'elsewhere.safetensors'}: missing, but model.safetensors.index.json"
            " names it"
        ),
        (
            f"{directory / 'model-00003-of-00005.safetensors'}: missing, but"
            " model.safetensors.index.json names it"
        ),
        (f"{index}: maps model.norm.weight to model-00001-of-00005.safetensors, which lacks it"),
    ]


def test_a_single_file_is_read_before_an_index_as_transformers_does(tmp_path):
    directory = copy("qwen3_untied", tmp_path)
    tensors = {
        name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()
    }
    newer = {name: t + 1 for name, t in tensors.items()}
    save_file(newer, directory / "model.safetensors")
    loaded = load(directory)
    np.testing.assert_array_equal(loaded["embed"], newer["model.embed_tokens.weight"])
    for shard in directory.glob("model-*.safetensors"):
        shard.unlink()  # transformers' save_pretrained removes them, and leaves the index
    same(load(directory), loaded)


def test_adapters_beside_the_weights_are_not_ignored(tmp_path):
    directory = copy("qwen3_tied", tmp_path)
    (directory / "adapter_config.json").write_text("{}")
    assert problems(load, directory) == [
        f"{directory / 'adapter_config.json'}: adapters beside a model are not read; merge them"
        " into its weights"
    ]


def test_float8_tensors_are_refused_by_name(tmp_path):
    """A line for each of the first ten projections with their scales, and how many more there
    are.
    """
    directory = copy("qwen3_tied", tmp_path)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    projections = [name for name in tensors if "_proj" in name]
    small = {name: tensors[name].astype(ml_dtypes.float8_e4m3fn) for name in projections}
    scales = {f"{name}_scale_inv": np.ones((1, 1), np.float32) for name in projections}
    save_file(tensors | small | scales, file)
    spec = hf_config.read_spec(directory)
    messages = problems(hf.check, directory, spec)
    assert messages == problems(hf.load, directory, spec)
    assert len(projections) == 21 and len(messages) == 22
    assert (
        messages[0]
        == f"{file}: tensor model.layers.0.self_attn.q_proj.weight is F8_E4M3; supported: F32,"
        " BF16, F16, F64"
    )
    assert (
        messages[10] == "... and 11 more tensors like the last"
        and "_scale_inv [1, 1] is not part of this model" in messages[11]
    )


def test_directory_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    (messages,) = problems(hf.load, tmp_path, SPEC)
    assert messages.startswith(f"{tmp_path}: holds no weights") and "pytorch_model.bin" in messages


ROPES = (
    Rope("linear", 1e4, 2.0),
    Rope("llama3", 5e5, 8.0, 64),
    YARN,
    dataclasses.replace(YARN, attention_factor=1.3, truncate=False),
)
VARIANTS = [dataclasses.replace(SPEC, rope=r) for r in ROPES] + [
    dataclasses.replace(SPEC, family="mistral", qk_norm=False),
    dataclasses.replace(SPEC, family="llama", qk_norm=False, tied=True, kv_heads=4),
    dataclasses.replace(SPEC, family="qwen2", qk_norm=False, qkv_bias=True),
]


@pytest.mark.parametrize(
    "source",
    (*sorted(path.name for path in GOLDEN.iterdir()), *VARIANTS),
    ids=lambda s: s if isinstance(s, str) else f"{s.family}-{s.rope.kind}",
)
def test_transformers_loads_the_export_and_computes_the_same(source, tmp_path, caplog):
    torch = pytest.importorskip("torch")
    import transformers

    if isinstance(source, str):
        spec, golden = hf_config.read_spec(GOLDEN / source), np.load(GOLDEN / source / "golden.npz")
        tokens, mask = golden["input_ids"], golden["attention_mask"]
        spec, params = spec.for_length(tokens.shape[1]), load(GOLDEN / source)
    else:
        spec, tokens, mask = (
            source,
            np.random.default_rng(0).integers(0, source.vocab, (2, 100)),
            np.ones((2, 100), int),
        )
        params = jax.tree.map(
            lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape),
            transformer.init(spec, jax.random.key(0)),
        )
    hf.save(tmp_path / "out", spec, params, GOLDEN / "qwen3_tied", "float32", max_shard_bytes=50000)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    logger.removeHandler(caplog.handler)
    assert not any(info.values()), info
    warnings = [
        r.getMessage()
        for r in caplog.records
        if r.levelno >= logging.WARNING and r.name.startswith("transformers")
    ]
    # about our made-up yarn factors, and about what the older layout of longrope leaves open
    harmless = ("does not match the ratio implicitly set", "original_max_position_embeddings")
    assert all(any(text in w for text in harmless) for w in warnings), warnings
    position, segment = transformer.segments(jnp.asarray(mask > 0))
    inputs = {"attention_mask": mask, "position_ids": np.asarray(position)}
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), **{k: torch.tensor(x) for k, x in inputs.items()})
        theirs = theirs.logits.numpy()
    x, *_ = transformer.hidden(
        spec, params, jnp.asarray(tokens), position, transformer.within_segments(segment)
    )
    ours = np.asarray(transformer.logits(spec, params, x))
    assert np.abs(ours - theirs)[mask > 0].max() <= 2e-4 * max(1.0, np.abs(theirs).max())
    if isinstance(source, str):
        assert np.abs(theirs - golden["logits"])[mask > 0].max() <= 2e-4
