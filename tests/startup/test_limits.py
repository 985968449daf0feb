"""Token ids beyond the embedding and sequences beyond the positions are errors before anything
compiles.
"""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from p2o_jax import config, generate, score
from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.models import hf_config
from p2o_jax.models.spec import ModelSpec, Rope
from p2o_jax.plan.programs import SPECS
from p2o_jax.rollout import scheduler
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import limits, preflight, run_directory
from p2o_jax.startup.model import WORLD, open_model
from p2o_jax.toy_world import pretrain
from p2o_jax.types import Request

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests/golden/hf/qwen3_tied"
SPEC = ModelSpec(
    "qwen3", vocab=8, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=16, max_positions=100
)
SMALL = config.resolve(
    Config(
        rollout=config.RolloutConfig(max_new_tokens=40, prompt_buckets=(32, 64)),
        data=config.DataConfig(max_prompt_tokens=30),
        gepa=config.GepaConfig(
            max_template_tokens=20, reflect_prompt_tokens=50, reflect_new_tokens=30
        ),
    )
)


def test_experts_cannot_be_replayed_by_a_model_that_has_none(chat):
    replay = replace(SMALL, train=config.TrainConfig(router_replay=True))
    (line,) = limits.training_problems(replay, replace(SPEC, max_positions=0), chat, 20)
    assert "config.train.router_replay=true" in line and "qwen3 has no experts" in line


def test_a_cpu_refuses_to_compute_in_bfloat16():
    """XLA lacks some of the products."""
    cfg = replace(SMALL, model=config.ModelConfig(path=str(MODEL), compute_dtype="bfloat16"))
    (line,) = problems(open_model, cfg, Reporter(enabled=False))
    assert "config.model.compute_dtype=bfloat16" in line and "float32" in line


@pytest.fixture(scope="module")
def chat():
    return Chat(load_tokenizer(MODEL), config.ChatConfig())


def model_copy(tmp_path, vocab=384, **changes):
    """The golden model with the first `vocab` rows of its embedding, and other values in
    config.json.
    """
    directory = Path(shutil.copytree(MODEL, tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    embed = tensors["model.embed_tokens.weight"][:vocab].copy()
    save_file(tensors | {"model.embed_tokens.weight": embed}, directory / "model.safetensors")
    values = json.loads((directory / "config.json").read_text()) | {"vocab_size": vocab} | changes
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def problems(call, *args):
    with pytest.raises(ConfigError) as e:
        call(*args)
    return list(e.value.problems)


def opening(directory):
    cfg = replace(
        SMALL, model=replace(SMALL.model, path=str(directory)), mesh=replace(SMALL.mesh, fsdp=8)
    )
    return lambda: open_model(cfg, Reporter(enabled=False))


def test_tokens_beyond_the_embedding_are_named(tmp_path):
    tokens = {f"t{i}": i for i in range(8)}
    limits.check_token_ids(tmp_path, 8, tokens, (1,), 0)
    # Qwen's embeddings have more rows than its tokenizers tokens
    limits.check_token_ids(tmp_path, 12, tokens, (1,), 0)
    messages = problems(limits.check_token_ids, tmp_path, 8, tokens | {"<new>": 8}, (1,), 8)
    assert (
        messages[0]
        == f"{tmp_path}: the tokenizer's '<new>' has id 8; the embedding has 8 rows (vocab_size in"
        " config.json), for the ids 0 to 7"
    )
    assert "resize_token_embeddings" in messages[-1] and len(messages) == 2
    messages = problems(limits.check_token_ids, tmp_path, 1, tokens, (0,), 0)
    assert "'t1' has id 1" in messages[0] and "... and 2 more tokens" in messages[5]


@pytest.mark.parametrize(
    ("file", "values", "expected"),
    [
        (
            "config.json",
            {"eos_token_id": [2, 8]},
            "config.json: eos_token_id=8; the embedding has 8 rows",
        ),
        ("config.json", {"bos_token_id": 9}, "config.json: bos_token_id=9;"),
        ("config.json", {"pad_token_id": 8}, "config.json: pad_token_id=8;"),
        ("config.json", {"eos_token_id": -1}, "config.json: eos_token_id=-1;"),
        (
            "generation_config.json",
            {"eos_token_id": 10**20},
            "generation_config.json: eos_token_id=100000000000000000000;",
        ),
        (
            "generation_config.json",
            {"eos_token_id": "2"},
            "generation_config.json: eos_token_id='2' must be a token id",
        ),
        ("config.json", {"pad_token_id": -1}, ""),  # none, as in early Llama models
        ("config.json", {"eos_token_id": None, "pad_token_id": 7}, ""),
    ],
)
def test_special_ids_beyond_the_embedding_are_named(file, values, expected, tmp_path):
    (tmp_path / file).write_text(json.dumps(values))
    if expected:
        (messages,) = problems(limits.check_token_ids, tmp_path, 8, {}, (1,), 0)
        assert expected in messages
    else:
        limits.check_token_ids(tmp_path, 8, {}, (1,), 0)


@pytest.mark.parametrize(
    ("stop_ids", "pad_id", "name"), [((1, 8), 0, "stop"), ((1,), 8, "padding"), ((-1,), 0, "stop")]
)
def test_stop_and_padding_ids_of_the_tokenizer_are_checked_too(stop_ids, pad_id, name, tmp_path):
    (messages,) = problems(limits.check_token_ids, tmp_path, 8, {}, stop_ids, pad_id)
    assert f"the {name} id is" in messages


def test_a_model_with_a_token_too_many_is_not_opened(tmp_path):
    """The tokenizer of the golden models ends with the id 338."""
    model = opening(model_copy(tmp_path, vocab=339))()
    assert model.spec.vocab == 339
    shutil.rmtree(tmp_path / "model")
    messages = problems(opening(model_copy(tmp_path, vocab=338, eos_token_id=338)))
    assert (
        "has id 338; the embedding has 338 rows" in messages[0]
        and "config.json: eos_token_id=338" in messages[1]
    )


@pytest.mark.parametrize("stated", [300, 500])
def test_a_vocabulary_unlike_the_embedding_is_refused_when_the_model_is_opened(stated, tmp_path):
    directory = model_copy(tmp_path)
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"vocab_size": stated}))
    rule = (
        f"tensor model.embed_tokens.weight has shape [384, 64], expected {stated} rows, which is"
        " vocab_size in config.json"
    )
    assert rule in problems(opening(directory))[0]


def test_a_prompt_with_an_unknown_id_is_not_sampled():
    scheduler.check([Request((0, 7), "a"), Request((), "b")], 8)
    for bad in (8, -1):
        with pytest.raises(
            ValueError, match=rf"token id {bad} \(b\); the model's embedding has the ids 0 to 7"
        ):
            scheduler.check([Request((0, 7), "a"), Request((0, bad, 1), "b")], 8)


@pytest.mark.parametrize(
    ("max_positions", "rope", "expected"),
    [
        (0, Rope(), 0),
        (4096, Rope(), 4096),
        (
            131072,
            Rope("llama3", factor=8.0, original_max_positions=8192),
            131072,
        ),  # Llama 3.1: as config.json states
        (131072, Rope("llama3", factor=32.0, original_max_positions=8192), 131072),  # Llama 3.2
        (8192, Rope("llama3", factor=8.0, original_max_positions=8192), 65536),
        (
            32768,
            Rope("yarn", factor=4.0, original_max_positions=32768),
            131072,
        ),  # Qwen 2.5 as its card says
        (
            40960,
            Rope("yarn", factor=4.0, original_max_positions=32768),
            131072,
        ),  # Qwen 3 as its card says
        (131072, Rope("yarn", factor=4.0, original_max_positions=32768), 131072),
        (4096, Rope("linear", factor=4.0), 16384),  # Vicuna 1.5 16k
        (32768, Rope("linear", factor=8.0, original_max_positions=4096), 32768),
    ],
)
def test_context_is_what_positions_and_rope_scaling_cover(max_positions, rope, expected):
    assert replace(SPEC, max_positions=max_positions, rope=rope).context == expected


def test_a_response_beyond_the_positions_is_refused_and_allowed_on_demand():
    assert limits.response_problems(SMALL, SPEC, "p", 60) == []
    (messages,) = limits.response_problems(SMALL, SPEC, "the prompt of 61 tokens", 61)
    assert (
        messages
        == "config.rollout.max_new_tokens=40 after the prompt of 61 tokens makes 101 tokens: the"
        " model has 100 positions (max_position_embeddings in config.json);"
        " config.model.allow_long_context=true allows more; a config.rollout.max_new_tokens of"
        " up to 39 fits"
    )
    allowed = replace(SMALL, model=replace(SMALL.model, allow_long_context=True))
    assert limits.response_problems(allowed, SPEC, "p", 10**6) == []
    assert limits.response_problems(SMALL, replace(SPEC, max_positions=0), "p", 10**6) == []
    assert "fits" not in limits.response_problems(SMALL, SPEC, "p", 100)[0]


def test_longrope_s_factors_follow_the_longest_sequence_that_is_allowed():
    longest = config.longest_sequence(SMALL)
    rope = Rope("longrope", factor=2.0, original_max_positions=longest, long_factors=(2.0,) * 8)
    short = replace(SPEC, rope=rope).for_length(longest)
    long = replace(SPEC, rope=replace(rope, original_max_positions=longest - 1)).for_length(longest)
    assert (short.rope.long, long.rope.long) == (False, True)
    assert "the short factors" in limits.notices(short, longest)[0]
    assert "the long factors" in limits.notices(long, longest)[0]
    assert limits.notices(SPEC, longest) == []


def test_every_kind_of_sequence_of_a_run_is_checked(chat):
    """A plain prompt of 10 tokens, "\\n\\n" of 2, a template of 20, a response of 40: 72.
    Reflection: 50, those around, 30.
    """
    joined, around = len(chat.tokenizer.encode("\n\n")), len(chat.render_text(""))

    def problems_of(positions, cfg=SMALL):
        return limits.training_problems(cfg, replace(SPEC, max_positions=positions), chat, 10)

    templated, reflection = 10 + joined + 20 + 40, 50 + around + 30
    assert problems_of(max(templated, reflection)) == []
    (line,) = problems_of(reflection - 1)
    assert line.startswith(
        f"config.gepa.reflect_prompt_tokens=50, {around} tokens of chat template around them and"
    )
    assert "config.gepa.reflect_new_tokens=30" in line and f"{reflection} tokens" in line
    line = problems_of(templated - 1)[0]
    assert (
        line.startswith("config.rollout.max_new_tokens=40 after a prompt of up to")
        and f"makes {templated} tokens" in line
    )
    for name in (
        "config.gepa.max_template_tokens=20",
        "config.data.max_prompt_tokens=30",
        "config.rollout.prompt_buckets=(32, 64)",
    ):
        assert name in line
    assert len(problems_of(50)) == 2 and "of up to 8 fits" not in problems_of(50)[1]
    api = replace(SMALL, gepa=replace(SMALL.gepa, reflector="api"))
    assert problems_of(templated, api) == [] and len(problems_of(templated - 1, api)) == 1
    plain = replace(SMALL, gepa=replace(SMALL.gepa, enabled=False))
    assert (
        problems_of(50, plain) == []
        and "the longest question's prompt of 10 tokens" in problems_of(49, plain)[0]
    )


def test_templated_prompts_are_no_longer_than_the_sampler_takes(chat):
    narrow = replace(
        SMALL,
        rollout=replace(SMALL.rollout, prompt_buckets=(31,)),
        gepa=replace(SMALL.gepa, reflector="api"),
    )
    assert limits.training_problems(narrow, replace(SPEC, max_positions=71), chat, 30) == []
    assert limits.training_problems(narrow, replace(SPEC, max_positions=70), chat, 30) != []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda p: p.stem)
def test_shipped_configs_fit_their_models(path, chat):
    """With questions as long as they allow. Qwen3 has 40,960 positions."""
    values = runpy.run_path(str(path))["get_config"]()
    cfg = config.resolve(loading.from_config_dict(values))
    world = cfg.model.path == WORLD
    spec = (
        pretrain.model_spec(cfg.world) if world else replace(SPECS["qwen3-4b"], max_positions=40960)
    )
    assert (
        spec.max_positions
        and limits.training_problems(cfg, spec, chat, cfg.data.max_prompt_tokens) == []
    )


def test_a_run_that_is_too_long_does_not_start(tmp_path):
    """With whatever else is wrong; by default responses have 12,288 tokens, and the golden
    models 512 positions.
    """
    (tmp_path / "q.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    cfg = config.resolve(
        Config(
            model=config.ModelConfig(path=str(MODEL)),
            data=config.DataConfig(path=str(tmp_path / "q.jsonl")),
        )
    )
    cfg = replace(cfg, optim=replace(cfg.optim, micro_rows=len(jax.devices())))
    messages = problems(
        preflight.open_run, cfg, run_directory.read(tmp_path / "run"), Reporter(enabled=False)
    )
    assert [line.split("=")[0] for line in messages] == [
        "config.rollout.max_new_tokens",
        "config.gepa.reflect_prompt_tokens",
    ]
    assert not (tmp_path / "run").exists()


def test_commands_check_what_they_are_asked_for(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n{"prompt": "a longer one"}\n')
    run = [
        f"--model={MODEL}",
        f"--prompts={tmp_path / 'p.jsonl'}",
        f"--out={tmp_path / 'out.jsonl'}",
    ]
    (messages,) = problems(generate.run, run)
    assert (
        messages.startswith("config.rollout.max_new_tokens=512 after the prompt of")
        and "p.jsonl:2 makes" in messages
    )
    assert "the model has 512 positions" in messages and not (tmp_path / "out.jsonl").exists()
    ids = np.ones((2, 9), np.int32)
    np.savez(tmp_path / "t.npz", input_ids=ids, attention_mask=np.arange(9) < [[4], [9]])
    directory = model_copy(tmp_path, max_position_embeddings=8)
    run = [f"--model={directory}", f"--tokens={tmp_path / 't.npz'}", f"--out={tmp_path / 'o.npz'}"]
    (messages,) = problems(score.run, run)
    assert "t.npz: a row of 9 tokens: the model has 8 positions" in messages
    score.run([*run, "--config.model.allow_long_context=true"])
    assert hf_config.read_spec(directory).max_positions == 8
