"""Families with layers, norms, scales or positions of their own, against transformers' models
(PyTorch, float32) on the same checkpoints; and faults in each of these, which the checkpoints show.

One program per model and mesh computes logits and log-probs of the golden rows, continued greedily.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from p2o_jax.config import ConfigError
from p2o_jax.models import hf, hf_config, lora, sharding, transformer
from p2o_jax.models.spec import LayerType, LoraSpec, weights

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
NAMES = (
    "gemma2", "gemma3_text", "olmo2", "olmo3", "smollm3", "granite", "phi3", "ministral3",
    "qwen3_moe", "qwen3_moe_dense", "gpt_oss", "qwen3_5",
)  # fmt: skip
TOLERANCE = 2e-4
STEPS = 16
# keys of config.json without effect on the model, or in other words
NOT_COMPARED = (
    "_name_or_path", "transformers_version", "token_id", "cache_implementation", "hidden_act",
    "rope_parameters.type", "attention_factor", "max_window_layers", "experts_per_token",
    "initial_context_length",
)  # fmt: skip


@functools.cache
def golden(name):
    """Returns spec and golden arrays: the rows moved to the left, with their continuations."""
    arrays = dict(np.load(GOLDEN / name / "golden.npz"))
    length = arrays["attention_mask"].sum(axis=1)
    spec = hf_config.read_spec(GOLDEN / name).for_length(int(length.max()) + STEPS)
    rows = [
        np.concatenate([ids[-n:], more])
        for ids, n, more in zip(arrays["input_ids"], length, arrays["greedy_ids"], strict=True)
    ]
    want = [
        (arrays["logits"][b, -n:], arrays["token_logprobs"][b, -n:]) for b, n in enumerate(length)
    ]
    return spec, rows, want


@functools.cache
def params_of(name):
    return hf.load(GOLDEN / name, golden(name)[0])


def one_per_row(rows):
    """Returns tokens and segments of rows that hold one sequence each."""
    width = max(map(len, rows))
    tokens = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    return tokens, (np.arange(width) < np.array([len(row) for row in rows])[:, None]).astype(int)


def positions(segment):
    """Returns each token's position in its segment."""
    same = segment[:, :, None] == segment[:, None, :]
    return (same & np.tri(segment.shape[1], dtype=bool)).sum(axis=2) - 1


@jax.jit(static_argnames=("spec", "mesh"))
def compute(spec, params, token, position, segment, mesh=None):
    mixing = transformer.within_segments(segment)
    x, *_ = transformer.hidden(spec, params, token, position, mixing)
    logits = transformer.logits(spec, params, x)
    logps, *_ = transformer.token_logps(spec, params, token, position, segment, chunk=17, mesh=mesh)
    return logits, logps


def run(spec, params, token, segment, mesh=None):
    outputs = compute(spec, params, token, positions(segment), segment, mesh)
    return tuple(map(np.asarray, outputs))


def check(name, logits, logps):
    """Compares logits, log-probs and greedy tokens of `one_per_row` with the golden ones."""
    _, rows, want = golden(name)
    for b, (row, (want_logits, want_logps)) in enumerate(zip(rows, want, strict=True)):
        n = len(want_logits)
        assert np.abs(logits[b, :n] - want_logits).max() <= TOLERANCE
        assert np.abs(logps[b, :n] - want_logps).max() <= TOLERANCE
        np.testing.assert_array_equal(logits[b, n - 1 : n - 1 + STEPS].argmax(-1), row[n:])


@pytest.mark.parametrize("name", NAMES)
def test_logits_logps_and_greedy_tokens_equal_golden_padded_and_packed(name):
    spec, rows, _ = golden(name)
    token, segment = one_per_row(rows)
    logits, logps = run(spec, params_of(name), token, segment)
    check(name, logits, logps)
    if not fits_packed(rows):
        return
    # the same program with the last two sequences in one row
    packed, where = np.zeros_like(token), np.zeros_like(segment)
    packed[:2], where[:2] = token[:2], segment[:2]
    first, second = len(rows[2]), len(rows[3])
    packed[2, : first + second] = np.concatenate(rows[2:])
    where[2, : first + second] = [1] * first + [2] * second
    logits_packed, logps_packed = run(spec, params_of(name), packed, where)
    second_row = slice(first, first + second)
    np.testing.assert_allclose(logps_packed[2, second_row], logps[3, :second], atol=1e-5)
    np.testing.assert_allclose(logits_packed[2, second_row], logits[3, :second], atol=5e-5)


def fits_packed(rows):
    return len(rows[2]) + len(rows[3]) <= max(map(len, rows))


@pytest.mark.parametrize(
    ("name", "shape", "rules"),
    [
        pytest.param(name, shape, rules, marks=[pytest.mark.slow] * (name not in usual))
        for shape, rules, usual in (
            ((1, 2, 4), "LEARNER", ("olmo3", "phi3", "gpt_oss")),
            ((1, 4, 2), "ROLLOUT", ("gemma3_text", "qwen3_5")),
        )
        for name in NAMES
        if (name, shape[2]) != ("qwen3_5", 4)  # it has two heads
    ],
)
def test_eight_devices_give_the_golden_numbers(name, shape, rules):
    spec, rows, _ = golden(name)
    mesh = sharding.make_mesh(shape)
    shardings = sharding.param_shardings(spec, mesh, getattr(sharding, rules))
    params = hf.load(GOLDEN / name, spec, shardings)
    check(name, *run(spec, params, *one_per_row(rows), mesh))


def windows(spec, change):
    """Returns the spec with another size of its sliding windows."""
    pattern = tuple(
        dataclasses.replace(layer, window=change(layer.window) if layer.window else 0)
        for layer in spec.pattern
    )
    return dataclasses.replace(spec, pattern=pattern)


def layers(spec, **changes):
    pattern = tuple(dataclasses.replace(layer, **changes) for layer in spec.pattern)
    return dataclasses.replace(spec, pattern=pattern)


def experts(spec, **changes):
    """Returns the spec with these changes of its experts."""
    pattern = tuple(
        layer.experts
        and dataclasses.replace(layer, experts=dataclasses.replace(layer.experts, **changes))
        or layer
        for layer in spec.pattern
    )
    return dataclasses.replace(spec, pattern=pattern)


def rope(spec, **changes):
    return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, **changes))


FAULTS = {
    "window one too large": ("gemma2", lambda s: windows(s, lambda w: w + 1)),
    "window one too small": ("gemma2", lambda s: windows(s, lambda w: w - 1)),
    "no window": ("olmo3", lambda s: windows(s, lambda w: 0)),
    "soft cap of attention left out": ("gemma2", lambda s: layers(s, soft_cap=0.0)),
    "soft cap of logits left out": ("gemma2", lambda s: dataclasses.replace(s, logit_cap=0.0)),
    "rope of the wrong layer type": ("gemma3_text", lambda s: layers(s, rope=s.rope)),
    "layer without positions rotated": ("smollm3", lambda s: layers(s, positions=True)),
    "query scale left out": ("gemma3_text", lambda s: dataclasses.replace(s, query_scale=0.0)),
    "queries not scaled by position": ("ministral3", lambda s: rope(s, query_beta=0.0)),
    "residual multiplier left out": (
        "granite",
        lambda s: dataclasses.replace(s, residual_scale=1.0),
    ),
    "sinks left out": ("gpt_oss", lambda s: dataclasses.replace(s, sinks=False)),
    "limit of the experts' activation left out": (
        "gpt_oss",
        lambda s: experts(s, swiglu_limit=1e9),
    ),
    "weights of chosen experts not normalized": (
        "qwen3_moe",
        lambda s: experts(s, normalized=False),
    ),
    "weights of chosen experts normalized": (
        "qwen3_moe_dense",
        lambda s: experts(s, normalized=True),
    ),
    "one expert too few": ("qwen3_moe", lambda s: experts(s, chosen=1)),
    "all channels rotated": ("qwen3_5", lambda s: rope(s, partial=1.0)),
    "short factors beyond the original length": ("phi3", lambda s: rope(s, long=False)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault):
    name, plant = FAULTS[fault]
    spec, rows, _ = golden(name)
    faulty = plant(spec)
    params = {
        key: {n: w for n, w in params_of(name)[key].items() if n in table}
        if isinstance(table, dict)
        else params_of(name)[key]
        for key, table in weights(faulty).items()
    }
    logits, logps = run(faulty, params, *one_per_row(rows))
    with pytest.raises(AssertionError):
        check(name, logits, logps)


def test_phi3_has_other_frequencies_up_to_its_original_length():
    spec, _, _ = golden("phi3")
    arrays = np.load(GOLDEN / "phi3" / "golden_rows.npz")
    length = arrays["attention_mask"].sum(axis=1)
    rows = [ids[-n:] for ids, n in zip(arrays["input_ids"], length, strict=True)]
    logits, logps = run(spec.for_length(32), params_of("phi3"), *one_per_row(rows))
    assert (length > 32).tolist() == [True, False, False, False]
    for b in (1, 2, 3):
        n = length[b]
        assert np.abs(logits[b, :n] - arrays["logits"][b, -n:]).max() <= TOLERANCE
        assert np.abs(logps[b, :n] - arrays["token_logprobs"][b, -n:]).max() <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_an_export_has_the_tensors_and_the_config_of_the_original(name, tmp_path):
    spec = hf_config.read_spec(GOLDEN / name)
    hf.save(tmp_path / "out", spec, params_of(name), dtype="float32")
    ours, theirs = (all_tensors(d) for d in (tmp_path / "out", GOLDEN / name))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor, err_msg=key)
    configs = [
        transformers.AutoConfig.from_pretrained(d).to_dict()
        for d in (tmp_path / "out", GOLDEN / name)
    ]
    a, b = (flat(config) for config in configs)
    differing = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    assert not {key for key in differing if not key.endswith(NOT_COMPARED)}


def all_tensors(directory):
    """Returns the tensors of all safetensors files of a directory."""
    files = sorted(directory.glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def flat(config, prefix=""):
    """Returns the settings of a config and of the objects in it."""
    values = {}
    for key, value in config.items():
        values |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return values


@pytest.mark.parametrize(
    ("outer", "inner", "prefix", "architecture"),
    [
        ("gemma3", "gemma3_text", "language_model.model.", "Gemma3ForConditionalGeneration"),
        ("mistral3", "ministral3", "model.language_model.", "Mistral3ForConditionalGeneration"),
        ("qwen3_5", "qwen3_5", "model.language_model.", "Qwen3_5ForConditionalGeneration"),
    ],
)
def test_the_text_model_of_a_composite_checkpoint_is_read(
    outer, inner, prefix, architecture, tmp_path
):
    text = json.loads((GOLDEN / inner / "config.json").read_text())
    whole = {"model_type": outer, "architectures": [architecture], "text_config": text}
    whole |= {"vision_config": {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 256}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    head = "language_model.lm_head." if prefix.endswith("model.model.") else "lm_head."
    tensors = {
        name.replace("lm_head.", head)
        if name.startswith("lm_head.")
        else prefix + name.removeprefix("model."): tensor
        for name, tensor in load_file(GOLDEN / inner / "model.safetensors").items()
    }
    others = ("vision_tower.patch.weight", "model.vision_tower.patch.weight", "mtp.norm.weight")
    vision = {name: np.ones((2, 2), np.float32) for name in others}
    save_file(tensors | vision, tmp_path / "model.safetensors")
    spec = hf_config.read_spec(tmp_path)
    assert spec == hf_config.read_spec(GOLDEN / inner)
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path, spec), params_of(inner))
    del tensors[f"{prefix}norm.weight"]
    save_file(
        tensors | {f"{prefix}extra": vision["vision_tower.patch.weight"]},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ConfigError, match=r"model\.norm\.weight is missing(.|\n)*model\.extra"):
        hf.check(tmp_path, spec)


def test_adapters_of_fused_projections_are_not_written_for_peft(tmp_path):
    spec, _, _ = golden("phi3")
    adapted = dataclasses.replace(spec, lora=LoraSpec(2, 4.0, ("k", "o", "up")))
    with pytest.raises(ConfigError, match="phi3 has one projection for k, up and others"):
        lora.peft_names(adapted)
    only = dataclasses.replace(spec, lora=LoraSpec(2, 4.0, ("o", "down")))
    assert lora.peft_names(only) == {"o": "self_attn.o_proj", "down": "mlp.down_proj"}


def test_adapters_of_experts_and_delta_nets_are_not_written_for_peft():
    for name, targets in (("qwen3_moe", ("q", "up")), ("qwen3_5", ("v",))):
        adapted = dataclasses.replace(golden(name)[0], lora=LoraSpec(2, 4.0, targets))
        with pytest.raises(ConfigError, match="have no modules in peft"):
            lora.peft_names(adapted)
    attention = dataclasses.replace(golden("qwen3_moe")[0], lora=LoraSpec(2, 4.0, ("q", "v")))
    assert lora.peft_names(attention) == {"q": "self_attn.q_proj", "v": "self_attn.v_proj"}


def test_models_under_another_name_are_read_as_llama(tmp_path):
    values = json.loads((GOLDEN / "llama3_rope" / "config.json").read_text())
    llama = hf_config.read_spec(GOLDEN / "llama3_rope")
    for name in ("internlm3", "iquestcoder"):
        (tmp_path / "config.json").write_text(
            json.dumps(values | {"model_type": name, "architectures": None})
        )
        assert hf_config.read_spec(tmp_path) == dataclasses.replace(llama, family=name)
    qwen2 = hf_config.read_spec(GOLDEN / "qwen2_bias")
    values = json.loads((GOLDEN / "qwen2_bias" / "config.json").read_text())
    more = {"model_type": "seed_oss", "architectures": ["SeedOssForCausalLM"], "head_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(values | more))
    assert hf_config.read_spec(tmp_path) == dataclasses.replace(qwen2, family="seed_oss")
    assert qwen2.pattern == (LayerType(),)
