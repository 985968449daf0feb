"""Custom reward functions: workers, deadlines, scores, feedback, and reported errors."""

import sys
import textwrap

import pytest

from p2o_jax import config
from p2o_jax.rewards import examples
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.types import Question, Verdict

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "How much?"})


def question(answer="42", **meta):
    return Question("q", MESSAGES, answer, "some.jsonl", meta)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a user's module, importable by this process and by its workers."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "broken_reward.py").write_text("1 / 0\n")
    (folder / "my_reward.py").write_text(
        textwrap.dedent("""
            import sys, time

            NUMBER = 3

            def reward(messages, response, answer, meta):
                if response == "hang":
                    while True:
                        pass
                if response == "exit":
                    sys.exit(1)
                if response == "raise":
                    raise KeyError("level")
                if response.startswith("return"):
                    return {
                        "many": 1.5,
                        "nan": float("nan"),
                        "none": None,
                        "pair": (0.5, 3),
                        "text": "0.25",
                        "yes": True,
                    }[response[7:]]
                if response == "seen":
                    first, last = messages[0]["role"], messages[-1]["content"]
                    return 1.0, "|".join([first, last, answer, str(meta["level"]), meta["when"]])
                return len(response) / 10
            """)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def mine(folder):
    with Scorer(
        config.RewardConfig(fn="my_reward:reward", success_above=0.3, workers=2, timeout_s=1.0)
    ) as scorer:
        assert scorer.problems() == []
        yield scorer


def judged(scorer, *responses, **meta):
    return scorer.judge(responses, [question(**meta)] * len(responses))


def test_scores_are_graded_and_success_is_above_the_threshold(mine):
    assert judged(mine, "", "abc", "abcd", "abcdefghij") == [
        Verdict(0.0, 1.0, "wrong"),
        Verdict(0.3, 1.0, "wrong"),
        Verdict(0.4, 1.0, "correct"),
        Verdict(1.0, 1.0, "correct"),
    ]
    assert judged(mine, "return text", "return yes") == [
        Verdict(0.25, 1.0, "wrong"),
        Verdict(1.0, 1.0, "correct"),
    ]


def test_it_gets_messages_answer_and_other_columns_and_may_return_feedback(mine):
    class Day:
        def __str__(self):
            return "Monday"

    assert judged(mine, "seen", level=3, when=Day()) == [
        Verdict(1.0, 1.0, "correct", "system|How much?|42|3|Monday")
    ]


def test_faults_are_errors_with_the_reason_and_affect_no_other_call(mine):
    verdicts = judged(
        mine,
        "raise",
        "abcd",
        "return many",
        "return nan",
        "return none",
        "return pair",
        "exit",
        "hang",
        "abcde",
    )
    statuses = [
        "error",
        "correct",
        "error",
        "error",
        "error",
        "error",
        "error",
        "time_out",
        "correct",
    ]
    assert [v.status for v in verdicts] == statuses
    assert [v.answer_score for v in verdicts] == [0, 0.4, 0, 0, 0, 0, 0, 0, 0.5]
    assert (
        verdicts[0].note == "KeyError: 'level'" and "expected a score in [0, 1]" in verdicts[2].note
    )


def test_equal_responses_to_a_question_are_judged_once(mine):
    before = mine.counts
    assert len(set(mine.judge(["abc"] * 5, [question()] * 5))) == 1
    assert mine.counts["slow"] - before["slow"] == 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            "no_such_module:f",
            "No module named 'no_such_module'; the current folder is not searched: give"
            " FILE.py:function",
        ),
        ("/no/such/file.py:f", "FileNotFoundError"),
        ("my_reward:nothing", "has no attribute 'nothing'"),
        ("my_reward:NUMBER", "cannot be called"),
        ("broken_reward:f", "ZeroDivisionError"),
    ],
)
def test_a_missing_function_is_reported_before_the_run(folder, fn, message):
    with Scorer(config.RewardConfig(fn=fn, workers=1)) as scorer:
        (line,) = scorer.problems()
    assert line.startswith(f"config.reward.fn={fn}: ") and message in line


def test_a_file_is_loaded_by_its_path_and_the_current_folder_is_not_searched(tmp_path, monkeypatch):
    code = """
    from __future__ import annotations
    from dataclasses import dataclass

    @dataclass
    class Score:
        value: float

    def reward(messages, response, answer, meta):
        return Score(0.25).value
    """
    (tmp_path / "by path.py").write_text(textwrap.dedent(code))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])  # as in a command
    cfg = config.resolve(
        config.Config(reward=config.RewardConfig(fn="by path.py:reward", workers=1))
    )
    assert cfg.reward.fn == f"{tmp_path}/by path.py:reward" and config.resolve(cfg) == cfg
    with Scorer(cfg.reward) as scorer:
        assert scorer.problems() == [] and judged(scorer, "x")[0].answer_score == 0.25
    (tmp_path / "by_name.py").write_text("def reward(*_):\n    return 1.0\n")
    with Scorer(config.RewardConfig(fn="by_name:reward", workers=1)) as scorer:
        assert "the current folder is not searched" in scorer.problems()[0]


def test_without_a_function_the_reference_answers_judge():
    with Scorer(config.RewardConfig(kind="exact")) as scorer:
        assert scorer.problems() == []
        assert [v.status for v in judged(scorer, r"\boxed{42}", r"\boxed{41}", "42")] == [
            "correct",
            "wrong",
            "no_answer",
        ]


PATTERN = r"Answer: \d+ (cm|m)"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("so\nAnswer: 12 cm\n \n", 1.0),
        ("Answer: 12 km", 0.0),
        ("Answer: 12 cm\nOr 13", 0.0),
        ("", 0.0),
    ],
)
def test_pattern_by_hand(response, score):
    assert examples.pattern(MESSAGES, response, PATTERN, {})[0] == score


@pytest.mark.parametrize(
    ("response", "score", "feedback"),
    [
        ('so ```json\n{"a": 1, "b": [2]}\n```', 1.0, "All fields are right."),
        (
            '{"a": 1, "b": [2]} no: {"a": 2, "b": [2], "c": {"a": 1}}',
            0.5,
            "Wrong or missing fields: a.",
        ),
        ('{"b": 2}', 0.0, "Wrong or missing fields: a, b."),
        ("{ x } {", 0.0, "The response holds no JSON object."),
    ],
)
def test_json_fields_by_hand(response, score, feedback):
    assert examples.json_fields(MESSAGES, response, '{"a": 1, "b": [2]}', {}) == (score, feedback)


def test_a_pattern_that_never_ends_meets_the_deadline():
    with Scorer(
        config.RewardConfig(fn="p2o_jax.rewards.examples:pattern", workers=1, timeout_s=1.0)
    ) as scorer:
        verdicts = scorer.judge(["a" * 40 + "b", "aaa"], [question("(a+)+"), question("(a+)+")])
    assert [v.status for v in verdicts] == ["time_out", "correct"]
