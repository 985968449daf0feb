"""What a start refuses: a workdir of another run, other questions, a damaged record; and where
held-out questions come from.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from p2o_jax import config, gepa
from p2o_jax.config import Config, ConfigError
from p2o_jax.data.sources import load
from p2o_jax.models import hf_config, sharding
from p2o_jax.models.spec import num_params
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import components, preflight, run_directory
from p2o_jax.startup.model import WORLD
from p2o_jax.startup.questions import load_heldout, load_sets
from p2o_jax.state import RunState
from p2o_jax.tracking import disk_space
from p2o_jax.tracking.checkpoint import Checkpoints
from p2o_jax.types import Outcome, Question
from tests.factories import make_spec

CFG = config.resolve(Config(data=config.DataConfig(prompt_template="{question}")))


def questions(path: Path, answers: str):
    path.write_text(
        "".join(
            json.dumps({"question": f"q{i}", "answer": a}) + "\n" for i, a in enumerate(answers)
        )
    )
    return load(path, CFG.data)


def test_held_out_questions_of_the_world_or_of_a_file(tmp_path):
    (world,) = load_heldout(CFG)
    assert world.path == WORLD
    questions(tmp_path / "held.jsonl", "12")
    (own,) = load_heldout(
        replace(CFG, data=replace(CFG.data, eval_path=str(tmp_path / "held.jsonl")))
    )
    assert len(own.questions) == 2 and own.name == "held"
    with pytest.raises(ConfigError, match="no such file"):
        load_heldout(replace(CFG, data=replace(CFG.data, eval_path=str(tmp_path / "none.jsonl"))))
    assert load_heldout(replace(CFG, data=replace(CFG.data, path="q.jsonl"))) == []
    both = load_sets(CFG, f"world,mine={tmp_path / 'held.jsonl'}", "--benchmarks")
    assert [part.name for part in both] == ["world", "mine"]
    assert both[0].questions == world.questions


def test_a_disk_without_room_for_the_checkpoints_is_told_with_all_else(tmp_path, monkeypatch):
    """Among others: an over-long question. 4 checkpoints of 12 bytes a weight are planned."""
    questions(tmp_path / "q.jsonl", "12")
    golden = Path(__file__).parents[1] / "golden/hf/qwen3_tied"
    cfg = replace(CFG, model=replace(CFG.model, path=str(golden)), mesh=replace(CFG.mesh, fsdp=8))
    cfg = replace(cfg, data=replace(cfg.data, path=str(tmp_path / "q.jsonl"), max_prompt_tokens=1))
    size = 12 * num_params(hf_config.read_spec(golden))
    for free, count in ((4 * size - 1, 1), (4 * size, 0)):
        monkeypatch.setattr(
            disk_space.os, "statvfs", lambda _, n=free: SimpleNamespace(f_bavail=n, f_frsize=1)
        )
        with pytest.raises(ConfigError) as e:
            preflight.open_run(cfg, run_directory.read(tmp_path / "run"), Reporter(enabled=False))
        lines = [line for line in e.value.problems if "checkpoints of" in line]
        assert len(lines) == count and len(e.value.problems) > count


@pytest.mark.parametrize("given", ["model", "data"])
def test_the_world_and_own_things_do_not_mix(tmp_path, given):
    questions(tmp_path / "q.jsonl", "12")
    golden = Path(__file__).parents[1] / "golden/hf/qwen3_tied"
    cfg = replace(CFG, model=replace(CFG.model, path=str(golden))) if given == "model" else CFG
    cfg = (
        replace(cfg, data=replace(cfg.data, path=str(tmp_path / "q.jsonl")))
        if given == "data"
        else cfg
    )
    with pytest.raises(ConfigError, match="only go together"):
        preflight.open_run(
            replace(cfg, mesh=replace(cfg.mesh, fsdp=8)),
            run_directory.read(tmp_path / "run"),
            Reporter(enabled=False),
        )


def test_checkpoints_around_prompt_phases_only(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, config.CheckpointConfig(every_steps=0))
    saved = []
    monkeypatch.setattr(kept, "save", lambda state: saved.append(state.tick))
    states = [
        RunState({}, tick=0, step=0),
        RunState({}, tick=1, step=1, phase="prompts"),
        RunState({}, tick=2, step=1),
    ]
    kept.save_if_due(RunState({}), states[0])
    kept.save_if_due(*states[:2])
    kept.save_if_due(*states[1:])
    kept.close()
    assert saved == [1, 2]


def test_one_model_at_a_time_is_laid_out():
    """The policy, what reflects, the policy again: each is released before the next is built,
    which is built only where it is not there.
    """
    policy, frozen, alive, built = {}, {}, [], []

    class Weights:
        def __del__(self):
            alive.remove(id(self))

    def to_rollout_layout(params):
        assert not alive, "two models at a time"
        weights = Weights()
        alive.append(id(weights))
        built.append("policy" if params is policy else "frozen")
        return weights

    rollout_weights = components.RolloutWeights(to_rollout_layout)
    for params in (policy, policy, frozen, frozen, policy):
        rollout_weights.of(params)
    assert built == ["policy", "frozen", "policy"]


def test_the_initial_model_is_held_for_whoever_asks_for_it():
    """For a KL term in the params' dtype; where it only reflects, in that of computation."""
    mesh, spec = (
        sharding.make_mesh((1, 8, 1)),
        make_spec(vocab=64, qk_norm=False),
    )

    def held(kl="off", reflector="policy"):
        cfg = replace(
            CFG,
            loss=replace(CFG.loss, kl=kl),
            gepa=replace(CFG.gepa, enabled=True, reflector=reflector),
        )
        return components.reference_bytes(cfg, spec, mesh, jnp.bfloat16)

    assert held() == held(reflector="api") == 0 and held("k3", "reference") == held(
        "k3"
    ) == 2 * held(reflector="reference")
    # two bytes each, an eighth of all but norms
    assert num_params(spec) / 4 < held(reflector="reference") < num_params(spec) / 2


def test_a_limit_below_any_reflection_prompt_is_an_error():
    """In words, as the compact prompt is put together: 8 around question, output and verdict, 4
    with them, and the question's own.
    """
    questions = [
        Question("a", ({"role": "user", "content": "two words"},), "7"),
        Question("b", ({"role": "user", "content": "one"},), "7"),
    ]
    chat = SimpleNamespace(count_tokens=lambda text: len(text.split()), render_text=lambda text: ())

    def lines(limit, **changes):
        gepa = replace(
            CFG.gepa, **{"prompt_style": "compact", "reflect_prompt_tokens": limit, **changes}
        )
        return preflight.reflection_problems(replace(CFG, gepa=gepa), chat, questions)

    shortest = (
        "instruction ``` ``` question one output feedback wrong expected 7 write a better"
        " instruction"
    )
    assert (
        len(shortest.split()) == 14
        and lines(14) == []
        and lines(12, show_reference_answer=False) == []
    )
    for changes in ({}, {"reflector": "api"}):
        (line,) = lines(13, **changes)
        assert line.startswith(
            "config.gepa.reflect_prompt_tokens=13 is less than any reflection prompt takes, 14"
            " tokens with one example"
        )
    # the same limits as the search has
    small = replace(
        CFG.gepa,
        prompt_style="compact",
        minibatch=1,
        dev_size=1.0,
        max_iterations=1,
        budget="calls",
        max_metric_calls=50,
    )
    for limit, sent in ((13, 0), (14, 1)):
        sizes: list[int] = []
        pool = [questions[1], replace(questions[1], id="c")]
        gepa.search(
            pool,
            lambda pairs: [Outcome(0.0, 1.0, "") for _ in pairs],
            lambda prompts, sizes=sizes: sizes.append(len(prompts)) or ["" for _ in prompts],
            chat.count_tokens,
            replace(small, reflect_prompt_tokens=limit, parents=1),
            "s",
        )
        assert len(sizes) == sent
    (paper,) = lines(100, prompt_style="paper")
    assert "config.gepa.reflect_prompt_tokens=100 is less than any" in paper


def test_the_least_reflection_prompt_is_checked_at_the_start(tmp_path):
    """Though an endpoint reflects: it is sent no prompts either."""
    questions(tmp_path / "q.jsonl", "12")
    golden = Path(__file__).parents[1] / "golden/hf/qwen3_tied"
    api = config.ApiConfig(base_url="http://localhost:1/v1", model="m", key_env=())
    cfg = replace(
        CFG,
        model=replace(CFG.model, path=str(golden)),
        data=replace(CFG.data, path=str(tmp_path / "q.jsonl")),
        api=api,
    )
    cfg = replace(cfg, gepa=replace(CFG.gepa, reflector="api", reflect_prompt_tokens=20))
    with pytest.raises(
        ConfigError,
        match=r"config\.gepa\.reflect_prompt_tokens=20 is less than any reflection prompt takes",
    ):
        preflight.open_run(
            replace(cfg, mesh=replace(cfg.mesh, fsdp=8)),
            run_directory.read(tmp_path / "run"),
            Reporter(enabled=False),
        )


def test_unusual_settings_are_noticed_when_a_run_opens(tmp_path, monkeypatch):
    questions(tmp_path / "q.jsonl", "12")
    golden, lines = Path(__file__).parents[1] / "golden/hf/qwen3_tied", []
    cfg = replace(
        CFG,
        model=replace(CFG.model, path=str(golden), allow_long_context=True),
        mesh=replace(CFG.mesh, fsdp=8),
    )
    cfg = replace(
        cfg,
        data=replace(cfg.data, path=str(tmp_path / "q.jsonl")),
        optim=replace(cfg.optim, lr=0.0),
    )
    reporter = Reporter(enabled=False)
    reporter.line = lines.append  # type: ignore[method-assign]
    preflight.open_run(cfg, run_directory.read(tmp_path / "run"), reporter)
    unusual, no_box = lines
    assert unusual == "unusual: config.optim.lr=0: no weight changes"
    assert "q.jsonl: 2 of 2 prompts do not ask for a \\boxed{} answer" in no_box
    (tmp_path / "run").mkdir()
    directory = run_directory.read(tmp_path / "run")
    monkeypatch.setattr(
        run_directory.RunDirectory, "notices", lambda self, cfg, *parts: ["no record"]
    )
    preflight.open_run(cfg, directory, reporter)
    assert lines[2:] == [unusual, "no record", no_box]


def test_the_chat_template_around_a_reflection_prompt_counts():
    cfg = replace(
        CFG,
        gepa=replace(CFG.gepa, reflect_prompt_tokens=90),
        rollout=replace(CFG.rollout, prompt_buckets=(50, 100)),
    )
    assert (
        preflight.reflection_problems(cfg, SimpleNamespace(render_text=lambda text: (1,) * 10))
        == []
    )
    (line,) = preflight.reflection_problems(
        cfg, SimpleNamespace(render_text=lambda text: (1,) * 11)
    )
    assert "reflect_prompt_tokens=90 and 11 tokens" in line and "(50, 100)" in line
