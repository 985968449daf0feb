"""The evaluate command as a user runs it, on a golden checkpoint (random weights) and real
layouts of the benchmarks.
"""

import dataclasses
import json
from pathlib import Path

import benchmark_fixtures as fixtures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax import config, evaluate
from p2o_jax.config import ConfigError
from p2o_jax.evaluation import report
from p2o_jax.evaluation.benchmark import Protocol
from p2o_jax.models import hf, hf_config, sharding
from p2o_jax.offline.evaluate import EvaluateOptions, evaluation_config
from p2o_jax.offline.policy import ModelSource
from p2o_jax.rewards.lenient import Grade
from p2o_jax.rl.learner import Learner, TrainState
from p2o_jax.state import RunState
from p2o_jax.tracking.checkpoint import Checkpoints
from p2o_jax.types import Completion, Question, Rollout, TemplatedQuestion, Verdict

MODEL = Path(__file__).parents[1] / "golden" / "hf" / "qwen3_tied"
SHORT = ("--config.rollout.max_new_tokens=8", "--config.reward.workers=1")


def problems(*argv):
    with pytest.raises(ConfigError) as e:
        evaluate.run([str(a) for a in argv])
    return e.value.problems


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Three benchmarks from three kinds of local sources, four samples each, plainly and under a
    template.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    sets = ",".join(
        (
            f"aime24={fixtures.aime24(folder / 'a')}",
            f"amc23={fixtures.amc23(folder / 'b')}@test",
            f"gsm8k={fixtures.gsm8k(folder / 'c')}@test",
        )
    )
    argv = [
        f"--model={MODEL}",
        f"--benchmarks={sets}",
        f"--out={folder / 'out'}",
        "--k=4",
        "--template= Think hard. ",
        *SHORT,
    ]
    evaluate.run(argv)
    return folder / "out"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_hold_every_figure_the_config_and_the_prompt(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    assert list(results["benchmarks"]) == ["aime24", "amc23", "gsm8k"]
    for name, size in (("aime24", 6), ("amc23", 6), ("gsm8k", 7)):
        for asked in ("plain", "templated"):
            v = results["benchmarks"][name][asked]
            assert (v["questions"], v["samples"], v["temperature"]) == (size, 4, 0.6)
            assert (
                v["prompt"].count("Think hard.\n\n") == (asked == "templated")
                and "What is 2 + 6?" in v["prompt"]
            )
            for grader in ("strict", "lenient"):
                assert (
                    set(v[grader]["pass_at"]) == {"1", "2", "4"}
                    and len(v[grader]["by_question"]) == size
                )
                assert v[grader]["pass_at"]["1"] == pytest.approx(v[grader]["mean"])
            assert (
                v["mean_tokens"] <= 8
                and 0 <= v["frac_truncated"] <= 1
                and v["time_outs"] == {"strict": 0, "lenient": 0}
            )
    assert results["config"]["rollout"]["max_new_tokens"] == 8 and results["versions"]["jax"]
    assert (
        results["protocol"] == {"k": 4, "k_large": 1, "temperature": 0.6}
        and results["template"] == "Think hard."
    )
    table = (evaluated / "results.md").read_text()
    assert (
        table.count("| aime24 |") == table.count("| gsm8k |") == 2
        and table.count("**average**") == 2
    )


def test_every_sample_is_kept(evaluated):
    for name, size in (("aime24", 6), ("amc23", 6), ("gsm8k", 7)):
        rows = lines(evaluated / "samples" / f"{name}.templated.jsonl")
        assert [r["n"] for r in rows] == [0, 1, 2, 3] * size and len(
            {r["question_id"] for r in rows}
        ) == size
        assert all(
            r["tokens"] <= 8
            and r["template"] == "Think hard."
            and r["strict"]["status"] in ("no_answer", "wrong")
            for r in rows
        )
    assert {r["answer"] for r in lines(evaluated / "samples" / "amc23.plain.jsonl")} == {
        f"{4 * i}.0" for i in range(2, 8)
    }
    assert "1234" in {r["answer"] for r in lines(evaluated / "samples" / "gsm8k.plain.jsonl")}


def test_a_run_s_policy_is_evaluated_with_the_run_s_prompts_and_leaves_no_copy(tmp_path, capsys):
    """A run whose weights were 1.5 times as large after two steps: at step 0 it samples what its
    model does, then something else.
    """
    run, data = tmp_path / "run", fixtures.aime25(tmp_path)
    run.mkdir()
    data_cfg = config.DataConfig(prompt_template="Now {question}")
    cfg = config.resolve(config.Config(model=config.ModelConfig(path=str(MODEL)), data=data_cfg))
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    spec, mesh = hf_config.read_spec(MODEL), sharding.make_mesh((1, 8, 1))
    learner = Learner(spec, mesh, cfg, 10, jnp.float32, 0)
    state = learner.init(hf.load(MODEL, spec, learner.param_shardings))
    checkpoints = Checkpoints(run, cfg.checkpoint)
    checkpoints.save(RunState(state))
    params = jax.tree.map(lambda w: w * 1.5, state.params)
    checkpoints.save(
        RunState(TrainState(params, state.opt_state, state.bad_updates), tick=1, step=2)
    )
    checkpoints.close()
    common = (f"--benchmarks=aime25={data}", "--k=2", *SHORT)
    # a folder of the user's, in which `model` was deleted once
    for name in (
        "model",
        "model.partial-1",
        "docs",
    ):
        (tmp_path / "old" / name).mkdir(parents=True)
        (tmp_path / "old" / name / "mine").write_text("mine")
    evaluate.run([f"--workdir={run}", "--step=0", f"--out={tmp_path / 'old'}", *common])
    assert "model.partial-1: left by a command that was killed" in capsys.readouterr().err.replace(
        "\n", ""
    )
    evaluate.run([f"--workdir={run}", f"--out={tmp_path / 'new'}", *common])
    evaluate.run(
        [
            f"--model={MODEL}",
            "--config.data.prompt_template=Now {question}",
            f"--out={tmp_path / 'model'}",
            *common,
        ]
    )
    old, new, model = (
        lines(tmp_path / name / "samples" / "aime25.plain.jsonl")
        for name in ("old", "new", "model")
    )
    assert old == model != new and {r["question"] for r in old} == {
        f"Now {q}" for q, _ in fixtures.SUMS
    }
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "results.json",
        "results.md",
        "samples",
    ]
    assert all(
        (tmp_path / "old" / name / "mine").exists() for name in ("model", "model.partial-1", "docs")
    )
    assert len(list((tmp_path / "old").iterdir())) == 6
    assert (
        "no template"
        in problems(f"--workdir={run}", "--template=best", f"--out={tmp_path / 'x'}", *common)[0]
    )


@pytest.mark.parametrize("fn", ["stranger:reward", "/somewhere/stranger.py:reward"])
def test_a_run_directory_runs_no_code_of_its_own(tmp_path, monkeypatch, fn):
    """Nothing of it is looked up, let alone compiled programs loaded from the folder that the
    run names.
    """
    reward = config.RewardConfig(fn=fn, env=("MY_KEY",))
    cfg = config.Config(
        reward=reward, train=config.TrainConfig(compile_cache=str(tmp_path / "cache"))
    )
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    folders = []
    monkeypatch.setattr("p2o_jax.config.loading.override", lambda *_: None)
    monkeypatch.setattr(
        "p2o_jax.runtime.distributed.start",
        lambda mesh, compile_cache: folders.append(compile_cache) or 8,
    )
    options = EvaluateOptions(tmp_path / "out", "aime24", ModelSource(workdir=str(tmp_path)))
    with pytest.raises(ConfigError) as error:
        evaluation_config(options._replace(overrides=[("train.seed", "1")]))
    (line,) = error.value.problems
    assert line.startswith(
        f"{tmp_path}/config.json: config.reward.fn={fn} would run this code with the environment"
        " variables MY_KEY"
    )
    assert "--allow-reward-fn" in line and folders == []
    assert (
        evaluation_config(
            options._replace(source=ModelSource(workdir=str(tmp_path), allow_reward_fn=True))
        ).reward
        == reward
    )
    own = options._replace(overrides=[("reward.fn", fn)])
    assert evaluation_config(own).reward == reward and folders == ["runs/cache"] * 2
    (tmp_path / "config.json").write_text(
        json.dumps({"reward": {"fn": "p2o_jax.rewards.examples:pattern"}})
    )
    assert evaluation_config(options).reward.fn == "p2o_jax.rewards.examples:pattern"
    assert (
        "unknown flag (did you mean --allow-reward-fn?)" in problems("--allow-reward", "--out=x")[0]
    )
    given = problems("--allow-reward-fn=yes", "--out=x")
    assert "--allow-reward-fn=yes: takes no value" in given


def test_larger_sets_are_asked_once_and_greedily():
    protocol = Protocol(16, 1, 0.6)
    assert [protocol.of(size) for size in (30, 99, 100, 1319)] == [
        (16, 0.6),
        (16, 0.6),
        (1, 0.0),
        (1, 0.0),
    ]
    assert Protocol(16, 4, 0.7).of(500) == (4, 0.7)


def test_it_says_what_is_wrong(tmp_path, evaluated):
    data = fixtures.aime25(tmp_path)
    assert "--model or --workdir" in problems("--benchmarks=aime24", f"--out={tmp_path / 'o'}")[0]
    assert "--benchmarks: required" in problems("--model", MODEL, f"--out={tmp_path / 'o'}")[0]
    assert (
        "holds an evaluation already"
        in problems("--model", MODEL, f"--benchmarks=aime25={data}", f"--out={evaluated}")[0]
    )
    good = ("--model", MODEL, f"--benchmarks=aime25={data}", f"--out={tmp_path / 'o'}")
    both = problems(*good, "--k=1.5", "--temperature=nan")
    assert both == ("--k=1.5 must be an integer, at least 1", "--temperature=nan must be finite")
    assert (
        "--temperature=1e-38 must lie in [0.01, 100]" in problems(*good, "--temperature=1e-38")[0]
    )
    assert (
        "--k=0" in problems(*good, "--k=0")[0]
        and "--temperature=hot" in problems(*good, "--temperature=hot")[0]
    )
    assert "need --workdir" in problems(*good, "--template=best")[0]
    assert (
        "no column"
        in problems(
            *good[:2],
            f"--benchmarks=aime24={fixtures.jsonl(tmp_path / 'x.jsonl', [{'text': 1}])}",
            good[3],
        )[0]
    )
    assert "no such file" in problems(*good[:2], "--benchmarks=mine=none.jsonl", good[3])[0]
    assert (
        "a prompt of"
        in problems(
            *good, "--config.rollout.prompt_buckets=(4,)", "--config.data.max_prompt_tokens=4"
        )[0]
    )
    assert "no_such_module" in problems(*good, "--config.reward.fn=no_such_module:f")[0]
    assert not (tmp_path / "o" / "results.json").exists()
    (tmp_path / "o" / "samples").mkdir(parents=True)
    for name in ("results.md", "samples/aime25.plain.jsonl", "comparison.md"):
        (tmp_path / "o" / name).write_text("mine")
    assert ["never overwritten" in line for line in problems(*good)] == [True, True]
    assert "comparison.md exists" in problems(f"--compare={evaluated},{evaluated}", good[3])[0]


def sample(question_id, text, answer, correct, stopped=True, tokens=3):
    question = Question(question_id, ({"role": "user", "content": question_id},), answer)
    completion = Completion(np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), stopped)
    rollout = Rollout(
        TemplatedQuestion(question, "", ""),
        (1,),
        (1,),
        completion,
        text,
        Verdict(float(correct), 1.0, "correct" if correct else "wrong"),
    )
    return report.Sample(
        rollout, Grade(answer if correct else "?", "correct" if correct else "wrong")
    )


def test_measure_by_hand():
    """Two questions, four samples: 3 right of 4 and 1 of 4, the latter with two wrong ones that
    agree.
    """
    first = [sample("a", rf"\boxed{{{x}}}", "1", x in ("1", "1.0")) for x in ("1", "1.0", "1", "2")]
    second = [
        sample("b", rf"\boxed{{{x}}}", "5", x == "5", stopped=False, tokens=5)
        for x in ("5", "6", r"\left(6\right)", "6")
    ]
    result = report.measure([*first, *second], 4)
    assert result["strict"]["mean"] == 0.5 and result["strict"]["by_question"] == [0.75, 0.25]
    assert result["strict"]["pass_at"] == {"1": 0.5, "2": pytest.approx((1 + 0.5) / 2), "4": 1.0}
    assert result["strict"]["majority"] == 0.5 and result["lenient"]["mean"] == 0.5
    assert (result["mean_tokens"], result["frac_truncated"], result["graders_agree"]) == (
        4.0,
        0.5,
        1.0,
    )


def write_results(folder, scores, ids=("a", "b", "c", "d")):
    folder.mkdir()
    figures = {g: {"by_question": scores} for g in ("strict", "lenient")} | {
        "question_ids": list(ids),
        "samples": 2,
    }
    (folder / "results.json").write_text(json.dumps({"benchmarks": {"mine": {"plain": figures}}}))
    return folder


def test_comparison_is_paired_by_question(tmp_path, capsys):
    a, b = (
        write_results(tmp_path / "a", [1, 0, 0.5, 0]),
        write_results(tmp_path / "b", [1, 0.5, 1, 0.5]),
    )
    evaluate.run([f"--compare={a},{b}", f"--out={tmp_path / 'both'}"])
    result = json.loads((tmp_path / "both" / "comparison.json").read_text())["graders"]["strict"][
        "mine"
    ]
    assert (
        result[0]["mean"] == 0.375
        and result[1]["mean"] == 0.75
        and result[1]["difference"]["mean"] == 0.375
    )
    low, high = result[1]["difference"]["interval"]
    assert -0.3 < low < 0.375 < high < 1  # four questions
    assert "75.0, +37.5 [" in capsys.readouterr().out
    other = write_results(tmp_path / "c", [1, 0, 0, 0], ids="abcx")
    assert "other questions" in problems(f"--compare={a},{other}", f"--out={tmp_path / 'x'}")[0]
    assert (
        "No such file"
        in problems(f"--compare={a},{tmp_path / 'none'}", f"--out={tmp_path / 'x'}")[0]
    )


def test_an_evaluation_is_as_good_as_itself(evaluated, tmp_path):
    """The interval is of two runs that gave the same scores, and has a width."""
    evaluate.run([f"--compare={evaluated},{evaluated}", "--asked=templated", f"--out={tmp_path}"])
    graders = json.loads((tmp_path / "comparison.json").read_text())["graders"]
    for difference in (r[1]["difference"] for g in graders.values() for r in g.values()):
        low, high = difference["interval"]
        assert difference["mean"] == 0 and low == pytest.approx(-high) and 0 < high < 0.5
