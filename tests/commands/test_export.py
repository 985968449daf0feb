"""What an export carries besides weights: where responses stop and how chat messages are
rendered, here and in transformers.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from p2o_jax import config, export, generate
from p2o_jax.config import ConfigError
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.models import hf, hf_config, lora, sharding
from p2o_jax.rl.learner import Learner
from p2o_jax.state import RunState
from p2o_jax.tracking.checkpoint import Checkpoints

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor"
    " %}<|im_start|>assistant\n"
)
QUESTIONS = [f"What is {i} + {7 * i}?" for i in range(6)]
RESPONSE_TOKENS = 32


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def model_copy(folder, name="qwen3_tied", **token_ids):
    """A golden model without generation_config.json."""
    shutil.copytree(GOLDEN / name, folder)
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", **token_ids)
    return folder


def base(folder):
    """A base model: no chat template, <|endoftext|> alone as its end."""
    model_copy(folder, eos_token_id=0)
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    return folder, config.ChatConfig(template=TURNS)


def chat_model(folder):
    return model_copy(folder, eos_token_id=2), config.ChatConfig()


def two_ends(folder):
    return model_copy(folder, "llama3_rope", eos_token_id=[2, 7]), config.ChatConfig()


def own_template(folder):
    """A chat model under another template than its own, which stands in both places that
    transformers knows.
    """
    model_copy(folder, eos_token_id=2)
    edit(folder / "tokenizer_config.json", chat_template="{{ raise_exception('not this one') }}")
    return folder, config.ChatConfig(
        template="Q: {{ messages[-1].content }}\nA:",
        system_prompt="Be brief.",
        enable_thinking=True,
    )


KINDS = {base: [0, 2], chat_model: 2, two_ends: [2, 7], own_template: 2}


def finished(workdir, directory, chat, **sections):
    """A run with one checkpoint: (state, spec).

    Its policy is the model, but more likely to stop, since the rows of its stop tokens are doubled
    in the head. With adapters, it is the model with adapters of random numbers.
    """
    cfg = config.resolve(
        config.Config(
            model=config.ModelConfig(path=str(directory), **sections.pop("model", {})),
            chat=chat,
            **sections,
        )
    )
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    spec = dataclasses.replace(hf_config.read_spec(directory), lora=lora.from_config(cfg.lora))
    mesh = sharding.make_mesh((1, 8, 1))
    learner, shardings = (
        Learner(spec, mesh, cfg, 10, jnp.float32, 0),
        sharding.param_shardings(spec, mesh, sharding.LEARNER),
    )
    params = hf.load(
        directory, spec, lora.split(spec, shardings)[1] or shardings, cfg.model.param_dtype
    )
    if spec.lora:
        params = lora.add(spec, params, jax.random.key(1), shardings)
        params["blocks"] = {
            n: w + 0.1 if n.endswith("_lora_b") else w for n, w in params["blocks"].items()
        }
    else:
        head, ends = (
            "embed" if spec.tied else "lm_head",
            jnp.array(load_tokenizer(directory).stop_ids),
        )
        params[head] = params[head].at[ends].mul(2.0)
    state = learner.init(params)
    checkpoints = Checkpoints(workdir, cfg.checkpoint)
    checkpoints.save(RunState(state))
    checkpoints.close()
    return state, spec


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def exported(request, tmp_path_factory):
    """(kind, the run's model, its chat settings, its export)"""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    directory, chat = request.param(folder / "model")
    finished(folder / "run", directory, chat)
    export.run([f"--workdir={folder / 'run'}", f"--out={folder / 'out'}", "--dtype=float32"])
    return request.param, directory, chat, folder / "out"


def test_an_export_names_the_stop_tokens_of_the_run(exported):
    kind, directory, _, out = exported
    stop_ids = load_tokenizer(directory).stop_ids
    for name in ("config.json", "generation_config.json"):
        values = json.loads((out / name).read_text())
        assert values["eos_token_id"] == KINDS[kind]
        assert values["pad_token_id"] == 0
    assert load_tokenizer(out).stop_ids == stop_ids
    source, copy = (json.loads((folder / "config.json").read_text()) for folder in (directory, out))
    assert copy["bos_token_id"] == source["bos_token_id"]


def test_an_export_renders_prompts_as_the_run(exported):
    _, directory, chat, out = exported
    ours = Chat(load_tokenizer(directory), chat)
    theirs = Chat(load_tokenizer(out), dataclasses.replace(chat, template=""))
    assert theirs.render_text("What is 1 + 1?") == ours.render_text("What is 1 + 1?")
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
    expected = {"system_prompt": chat.system_prompt, "enable_thinking": chat.enable_thinking}
    assert json.loads((out / "p2o_jax.json").read_text()) == expected | {
        "prompt_template": config.DataConfig().prompt_template
    }


def test_transformers_renders_and_stops_where_we_do(exported, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    _, _, chat, out = exported
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
    settings = [f"--config.chat.enable_thinking={str(chat.enable_thinking).lower()}"]
    settings += [f"--config.chat.system_prompt={chat.system_prompt}"] if chat.system_prompt else []
    flags = ["--temperature=0", f"--config.rollout.max_new_tokens={RESPONSE_TOKENS}", *settings]
    generate.run(
        [
            f"--model={out}",
            f"--prompts={tmp_path / 'p.jsonl'}",
            f"--out={tmp_path / 'out.jsonl'}",
            *flags,
        ]
    )
    ours = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    system = [{"role": "system", "content": chat.system_prompt}] if chat.system_prompt else []
    for question, row in zip(QUESTIONS, ours, strict=True):
        inputs = tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": question}],
            add_generation_prompt=True,
            enable_thinking=chat.enable_thinking,
            return_tensors="pt",
            return_dict=True,
        )
        theirs = model.generate(**inputs, do_sample=False, max_new_tokens=RESPONSE_TOKENS)[
            0, inputs["input_ids"].shape[1] :
        ]
        assert theirs.tolist() == row["token_ids"]
    assert {row["token_ids"][-1] for row in ours if row["stopped"]} == set(
        load_tokenizer(out).stop_ids
    )
    assert len({row["tokens"] for row in ours}) > 1


def test_adapters_keep_the_float32_they_were_trained_in(tmp_path, monkeypatch):
    directory, chat = chat_model(tmp_path / "model")
    settings = {
        "lora": config.LoraConfig(rank=4, targets=("q", "down")),
        "model": {"param_dtype": "bfloat16"},
    }
    state, spec = finished(tmp_path / "run", directory, chat, **settings)
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.model.path={directory}"]
    write_beside, before = hf_config.write_beside, sorted(tmp_path.iterdir())
    monkeypatch.setattr(hf_config, "write_beside", lambda *_, **__: Path("/dev/full/x").read_text())
    with pytest.raises(ConfigError):
        export.run([*flags, f"--out={tmp_path / 'peft'}", "--adapter=peft"])
    assert sorted(tmp_path.iterdir()) == before, "a failed export leaves nothing"
    monkeypatch.setattr(hf_config, "write_beside", write_beside)
    export.run([*flags, f"--out={tmp_path / 'peft'}", "--adapter=peft"])
    adapters = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    trained = np.asarray(state.params["blocks"]["down_lora_a"])
    assert (
        trained.dtype == np.float32
        and (trained != trained.astype(jnp.bfloat16).astype(np.float32)).any()
    )
    stored = adapters["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored.T, trained[1])
    assert (
        json.loads((tmp_path / "peft" / "generation_config.json").read_text())["eos_token_id"] == 2
    )
    assert (
        load_tokenizer(tmp_path / "peft").chat_template == load_tokenizer(directory).chat_template
    )

    for dtype in ("float32", "bfloat16"):
        export.run([*flags, f"--out={tmp_path / dtype}", f"--dtype={dtype}"])
    exact = lora.merge(
        spec,
        lora.join(jax.device_get(state.params), hf.load(directory, spec.base, dtype="bfloat16")),
        "float32",
    )
    whole, half = (
        hf.load(tmp_path / dtype, spec.base)["blocks"]["down"] for dtype in ("float32", "bfloat16")
    )
    # bfloat16 keeps 2 to 3 digits
    np.testing.assert_allclose(whole, exact["blocks"]["down"], rtol=1e-5, atol=1e-7)
    # rounded once
    np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16).astype(jnp.float32))
