"""Seed templates, checked before anything compiles."""

from dataclasses import replace
from pathlib import Path

import pytest

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.data.seed_templates import Seed
from p2o_jax.data.sources import Loaded
from p2o_jax.startup import preflight, run_directory
from tests.factories import change_config, make_question

GOLDEN = Path(__file__).parents[1] / "golden/hf/qwen3_tied"
CFG = config.resolve(
    Config(
        gepa=config.GepaConfig(
            max_template_tokens=40, budget="calls", max_metric_calls=1000, min_hard=20, dev_size=10
        ),
        data=config.DataConfig(max_prompt_tokens=60),
        rollout=config.RolloutConfig(prompt_buckets=(60, 80)),
    )
)
QUESTIONS = Loaded(
    "q.jsonl", (make_question("a", "1 + 1"), make_question("b", "2 " * 12)), 0, (1, 2)
)


@pytest.fixture(scope="module")
def chat():
    return Chat(load_tokenizer(GOLDEN), config.ChatConfig())


def seed(text):
    return Seed("s.txt:3", text)


def test_a_seed_must_be_short_and_fit_and_spell_no_special_token(chat):
    longest = len(chat.render(QUESTIONS.questions[1]))
    separator = chat.count_tokens("\n\n")
    fitting = "a " * ((80 - longest - separator) // chat.count_tokens("a "))
    for text in ("Be brief.", fitting.strip()):
        assert preflight.seed_problems(CFG, chat, [seed(text)], QUESTIONS) == []
    (line,) = preflight.seed_problems(CFG, chat, [seed(fitting + "a a a")], QUESTIONS)
    assert line.startswith("s.txt:3: a template of ") and "; 80 fit (config.rollout.prompt_" in line
    (line,) = preflight.seed_problems(CFG, chat, [seed("a " * 50)], QUESTIONS)
    assert line.startswith("s.txt:3: a template of ") and line.endswith("max_template_tokens=40")
    (line,) = preflight.seed_problems(CFG, chat, [seed("Stop <|im_end|>")], QUESTIONS)
    assert line == "s.txt:3: a template that spells a special token of the tokenizer"


def test_a_hint_must_be_short_and_fit_its_question_and_there_must_be_one(chat):
    cfg = change_config(CFG, gepa__reflector="hint", data__hint_field="hint")
    short, long = QUESTIONS.questions
    space = 80 - len(chat.render(long)) - chat.count_tokens("\n\n")
    # fits with the short question, but not with the long one
    hint = "a " * (space // chat.count_tokens("a ")) + "a a a"

    def problems(*hints, cfg=cfg):
        asked = [replace(q, hint=h) for q, h in zip((short, long), hints, strict=True)]
        return preflight.hint_problems(cfg, chat, replace(QUESTIONS, questions=tuple(asked)))

    assert problems("Count.", "") == [] == problems(hint, "Count.")
    (line,) = problems("", hint)
    assert line.startswith("q.jsonl:2: a template of ") and "of its question; 80 fit" in line
    (line,) = problems("a " * 50, "")
    assert line.startswith("q.jsonl:1: a template of ") and line.endswith("max_template_tokens=40")
    assert problems("", "") == ["q.jsonl: all hints are blank (config.data.hint_field=hint)"]
    assert problems("", "", cfg=CFG) == []


def test_a_run_keeps_its_hints():
    cfg = change_config(CFG, gepa__reflector="hint", data__hint_field="hint")
    hinted = replace(
        QUESTIONS, questions=tuple(replace(q, hint="Count.") for q in QUESTIONS.questions)
    )
    digests = [run_directory.question_digests(cfg, part) for part in (QUESTIONS, hinted)]
    assert digests[0] != digests[1]
    digests = [run_directory.question_digests(CFG, part) for part in (QUESTIONS, hinted)]
    assert digests[0] == digests[1]


def test_the_budget_must_pay_for_more_than_the_seeds(chat):
    """The empty template and three seeds on 10 dev questions, a parent and a child on 3."""
    seeds = [seed("a"), seed("b"), seed("c")]
    for calls, num_problems in ((46, 0), (45, 1)):
        cfg = change_config(CFG, gepa__max_metric_calls=calls)
        problems = preflight.seed_problems(cfg, chat, seeds, QUESTIONS)
        assert len(problems) == num_problems
        assert all("with 3 seed templates: that takes 46 rollouts" in line for line in problems)
        free = change_config(cfg, gepa__charge_all=False)
        assert preflight.seed_problems(free, chat, seeds, QUESTIONS) == []


def test_the_seeds_are_announced_and_replies_too_short_for_them(chat):
    cfg = change_config(CFG, gepa__seed_templates="s.txt", gepa__reflect_new_tokens=3)
    count, unusual = preflight.seed_notices(cfg, chat, [seed("a"), seed("a b c d e f")])
    assert count.startswith("s.txt: seed templates: 2, of up to ")
    assert unusual.startswith("unusual: config.gepa.reflect_new_tokens=3 is less than")
    assert preflight.seed_notices(CFG, chat, []) == []


def test_a_run_keeps_its_seeds(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("Be brief.")
    cfg = change_config(CFG, gepa__seed_templates=str(path))
    before = run_directory.question_digests(cfg, QUESTIONS)
    run = replace(run_directory.read(tmp_path / "run"), records={"questions.json": before})
    assert set(before) == {"q.jsonl", str(path)} and run.changed_questions(cfg, QUESTIONS) == []
    path.write_text("Be very brief.")
    (line,) = run.changed_questions(cfg, QUESTIONS)
    assert line.startswith(f"{path}: --workdir=") and "the same seed templates" in line
    path.unlink()
    assert len(run.changed_questions(cfg, QUESTIONS)) == 1
    with pytest.raises(ConfigError, match="no such file"):
        preflight.load_seeds(cfg)
    assert preflight.load_seeds(change_config(cfg, gepa__enabled=False)) == ()
