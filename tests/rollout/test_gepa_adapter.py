"""A prompt phase on the sampler, interrupted and resumed: the same templates, and every generated
token in the ledger once.
"""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from p2o_jax import config, gepa
from p2o_jax.config import Config
from p2o_jax.data.chat import templated
from p2o_jax.models import sharding, transformer
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.gepa_adapter import GepaAdapter, PhaseJournals, num_set_aside, settings_digest
from p2o_jax.rollout.pipeline import RolloutPipeline
from p2o_jax.runtime import distributed, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.state import Ledger, RunState
from p2o_jax.types import Question, SamplingParams, Verdict
from tests.factories import make_spec

SPEC = make_spec(vocab=32, width=16, layers=1, heads=2, kv_heads=1, mlp=16)
CFG = config.resolve(
    Config(
        rollout=config.RolloutConfig(
            questions=8,
            group_size=2,
            max_new_tokens=6,
            prompt_buckets=(32,),
            slots=8,
            prompt_cache_tokens=512,
            prefill_tokens=256,
        ),
        data=config.DataConfig(max_prompt_tokens=8),
        gepa=config.GepaConfig(
            parents=3,
            minibatch=2,
            dev_size=4.0,
            budget="calls",
            max_metric_calls=70,
            reflect_new_tokens=6,
            reflect_prompt_tokens=200,
            prompt_style="compact",
            temperature=1.0,
            acceptance="margin",
            acceptance_margin=0.0,
            filter_replies=False,
            leak_guard=False,
            max_template_tokens=8,
            patience=0,
        ),
    )
)
HARD = [Question(f"q{i}", ({"role": "user", "content": f"n{i}"},), str(i % 3)) for i in range(10)]


class Killed(Exception):
    pass


class LetterChat:
    """A token for each of the first characters of a text."""

    def render(self, question, template=""):
        return self.render_text(templated(question.messages, template)[-1]["content"])

    def render_text(self, text):
        return tuple(ord(c) % 31 for c in text[:30])

    opens_thought = False

    def decode(self, ids):
        return " ".join("abcdefghijklmnopqrstuvwxyz012345"[i] for i in ids)

    decode_thoughts = decode

    def count_tokens(self, text):
        return len(text.split())


def test_what_a_reward_function_says_is_feedback_unless_it_failed(pipeline):
    rollouts, weights = pipeline
    verdicts = [
        Verdict(0.2, 1.0, "wrong", "Shorter."),
        Verdict(0.0, 1.0, "error", "KeyError"),
        Verdict(1.0, 1.0, "correct"),
    ]
    judged = RolloutPipeline(
        rollouts.engine, rollouts.chat, lambda texts, questions: verdicts, rollouts.reporter
    )
    stages = GepaAdapter(
        judged, lambda: weights, lambda *_: ([], {}), CFG, rng.key(0, "gepa"), Ledger()
    )
    outcomes = stages.evaluate([("", q) for q in HARD[:3]])
    assert [(o.score, o.feedback) for o in outcomes] == [(0.2, "Shorter."), (0.0, ""), (1.0, "")]


def verify(texts, questions):
    return [
        Verdict(float(len(t) % 3 == int(q.answer)), 1.0, "correct")
        for t, q in zip(texts, questions, strict=True)
    ]


@pytest.fixture(scope="module")
def pipeline():
    mesh = sharding.make_mesh((1, 1, 1), devices=distributed.jax.devices()[:1])
    engine = Engine(SPEC, mesh, CFG.rollout, [6], (7,), 0, jnp.float32)
    rollouts = RolloutPipeline(engine, LetterChat(), verify, Reporter(enabled=False))
    return rollouts, engine.to_rollout_layout(transformer.init(SPEC, rng.key(0, "init")))


class Phase:
    """The prompt phase of a state, as the loop runs it. `kill_at` raises before that call."""

    def __init__(self, pipeline, workdir, kill_at=None, seed=0, settings="s"):
        self.pipeline, self.weights = pipeline
        self.calls, self.kill_at, self.logged = [], kill_at, []
        self.journals = PhaseJournals(workdir, seed, settings, self.logged.append)

    def run(self, state):
        return self.journals.resume(state, 0, lambda journal: self.search(state, journal))

    def search(self, state, journal):
        sampling = SamplingParams(1.0, 6)
        key = rng.key(0, "gepa", state.step)

        def reply(prompts, names, spent):
            return self.pipeline.reply(self.weights, prompts, names, sampling, key)

        stages = GepaAdapter(self.pipeline, lambda: self.weights, reply, CFG, key, state.ledger)
        journal.account(lambda: stages.last_costs, stages.book)
        evaluate, reflect = (
            journal.evaluate(self.counted(stages.evaluate)),
            journal.reflect(self.counted(stages.reflect)),
        )
        result = gepa.search(
            HARD,
            evaluate,
            reflect,
            self.pipeline.chat.count_tokens,
            CFG.gepa,
            "s",
            fits=stages.fits,
            on_stage=stages.enter,
        )
        return result, stages.ledger

    def counted(self, call):
        def run(items):
            if len(self.calls) == self.kill_at:
                raise Killed
            self.calls.append(list(items))
            return call(items)

        return run


STATE = RunState(
    None,
    step=5,
    hard_ids=tuple(q.id for q in HARD),
    ledger=Ledger({"policy": {"generated_tokens": 100}}),
)


def untimed(ledger):
    return {
        phase: {k: v for k, v in row.items() if k != "seconds"}
        for phase, row in ledger.costs.items()
    }


def test_killed_at_every_call_it_ends_the_same_and_counts_every_token_once(pipeline, tmp_path):
    whole = Phase(pipeline, tmp_path / "whole")
    result, ledger = whole.run(STATE)
    assert len(result.templates) > 1 and len(whole.calls) > 6
    assert {"gepa_seed", "gepa_parents", "gepa_children", "gepa_dev", "gepa_reflect"} < set(
        ledger.costs
    )
    assert ledger.costs["gepa_seed"]["rollouts"] == 4 and ledger.costs["policy"] == {
        "generated_tokens": 100
    }
    evaluated = sum(
        row["rollouts"]
        for phase, row in ledger.costs.items()
        if phase.startswith("gepa") and phase != "gepa_reflect"
    )
    assert evaluated == result.stats["rollouts_generated"]
    assert all(
        row["flops"] > 0 and row["seconds"] > 0
        for phase, row in ledger.costs.items()
        if phase != "policy"
    )
    for kill_at in range(len(whole.calls)):
        first, second = (
            Phase(pipeline, tmp_path / str(kill_at), kill_at),
            Phase(pipeline, tmp_path / str(kill_at)),
        )
        with pytest.raises(Killed):
            first.run(STATE)
        again, ledger_again = second.run(STATE)
        assert again == result and untimed(ledger_again) == untimed(ledger)
        assert first.calls + second.calls == whole.calls and second.logged == []


@pytest.mark.parametrize("changed", ["seed", "settings", "step", "hard_ids"])
def test_another_phase_s_journal_is_renamed_logged_and_counted(pipeline, tmp_path, changed):
    before = Phase(pipeline, tmp_path)
    expected, _ = before.run(STATE)
    state = dataclasses.replace(
        STATE,
        **{"step": {"step": 6}, "hard_ids": {"hard_ids": STATE.hard_ids[1:]}}.get(changed, {}),
    )
    phase = Phase(
        pipeline, tmp_path, **{"seed": {"seed": 1}, "settings": {"settings": "t"}}.get(changed, {})
    )
    result, ledger = phase.run(state)
    assert (
        len(phase.logged) == 1 and "starts over" in phase.logged[0] and "\n" not in phase.logged[0]
    )
    assert phase.calls and num_set_aside(tmp_path, 0) == 1
    assert changed == "step" or result == expected  # this toy's answers depend on the step alone
    assert untimed(ledger)["gepa_seed"]["rollouts"] == 4


def test_a_damaged_journal_is_renamed(pipeline, tmp_path):
    expected, _ = Phase(pipeline, tmp_path).run(STATE)
    path = tmp_path / "gepa" / "journal_epoch_0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "damaged\n", *lines[2:]]))
    phase = Phase(pipeline, tmp_path)
    assert phase.run(STATE)[0] == expected and "line 2 of" in phase.logged[0]


def test_the_digest_of_settings_is_of_their_values():
    values = json.loads(json.dumps(dataclasses.asdict(CFG.gepa)))
    assert (
        settings_digest(values)
        == settings_digest(dict(reversed(values.items())))
        != settings_digest({**values, "parents": 4})
    )
