"""The prompts that the reflecting model reads."""

import dataclasses

import pytest
from gepa_toy import count_tokens, settings
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax.gepa import compact_prompt, reflection
from p2o_jax.gepa.reflection import ReflectionExample

RIGHT = ReflectionExample("How much?", "one two three", 1.0, 1.0, "42", True)
WRONG = ReflectionExample("How many?", "four five six", 0.0, 1.0, "43", False)
MUTE = ReflectionExample("How long?", "seven eight nine", 0.0, 0.0, "44", False)
BASE = 300  # words that surely hold the prompt without responses


def long(example, num):
    return dataclasses.replace(example, output=" ".join(f"w{i}" for i in range(num)))


def outputs(prompt):
    return [
        part.split("## Feedback")[0].strip() for part in prompt.split("## Generated Outputs\n")[1:]
    ]


def test_paper_prompt_is_gepas_around_our_examples():
    proposal = pytest.importorskip("gepa.strategies.instruction_proposal")
    records = [
        {
            "Inputs": e.question,
            "Generated Outputs": e.output,
            "Feedback": reflection.feedback(e, True),
        }
        for e in (RIGHT, WRONG, MUTE)
    ]
    theirs = proposal.InstructionProposalSignature.prompt_renderer(
        {"current_instruction_doc": "Add.", "dataset_with_feedback": records}
    )
    assert reflection.paper_prompt("Add.", [RIGHT, WRONG, MUTE], True) == theirs


def test_paper_prompt_survives_a_template_that_spells_a_placeholder():
    prompt = reflection.paper_prompt("Mind <side_info> and <curr_param>.", [RIGHT], True)
    assert "Mind <side_info> and <curr_param>." in prompt and prompt.count("# Example 1") == 1


def test_feedback_says_what_is_wrong_with_answer_and_score():
    texts = [reflection.feedback(e, True) for e in (RIGHT, WRONG, MUTE)]
    assert len(set(texts)) == 3
    for example, text in zip((RIGHT, WRONG, MUTE), texts, strict=True):
        assert example.answer in text and f"Score: {example.score:.2f}" in text
        assert example.answer not in reflection.feedback(example, False)


def test_a_reward_function_s_own_words_take_the_place_of_ours():
    commented = dataclasses.replace(WRONG, comment=" Two fields are missing.\n", score=0.25)
    assert (
        reflection.feedback(commented, True)
        == "Two fields are missing. The reference answer is 43.\nScore: 0.25"
    )
    assert (
        reflection.feedback(dataclasses.replace(commented, answer=""), True)
        == "Two fields are missing.\nScore: 0.25"
    )


def test_compact_prompt_word_for_word():
    examples = [("add 2 and 3", "a b c d e f g", False, "5"), ("add  1\nand 1", "so 2", True, "2")]
    assert (
        compact_prompt("sum  first", examples)
        == "instruction ``` sum first ``` question add 2 and 3 output b c d e f g feedback wrong"
        " expected 5 question add 1 and 1 output so 2 feedback right expected 2 write a better"
        " instruction"
    )
    hidden = compact_prompt("", [("add 1 and 1", "", True, "")])
    assert (
        hidden == "instruction ``` ``` question add 1 and 1 output feedback right write a better"
        " instruction"
    )


def test_build_in_compact_style_drops_trailing_examples():
    alone = compact_prompt("", [("How many?", "four five six", False, "43")])
    cfg = settings(prompt_style="compact", reflect_prompt_tokens=count_tokens(alone))
    assert reflection.build("", [WRONG, RIGHT], cfg, count_tokens) == reflection.ReflectionPrompt(
        alone, 0, 1
    )
    hidden = dataclasses.replace(cfg, show_reference_answer=False)
    assert "expected" not in reflection.build("", [WRONG], hidden, count_tokens).text


def test_build_leaves_what_fits_alone():
    prompt = reflection.build("Add.", [RIGHT, long(WRONG, 100)], settings(), count_tokens)
    assert prompt == reflection.ReflectionPrompt(
        reflection.paper_prompt("Add.", [RIGHT, long(WRONG, 100)], True), 0, 0
    )


def test_build_cuts_in_the_middle_and_format_failures_hardest():
    cfg = settings(reflect_prompt_tokens=BASE + 1500)
    prompt = reflection.build(
        "Add.", [RIGHT, long(WRONG, 5000), long(MUTE, 5000)], cfg, count_tokens
    )
    whole, wrong, mute = outputs(prompt.text)
    assert (prompt.num_cut, prompt.num_dropped) == (2, 0)
    assert whole == RIGHT.output
    for cut in (wrong, mute):
        assert (
            cut.startswith("w0 w1 ")
            and cut.endswith(" w4999")
            and cut.count(reflection.MARKER.strip()) == 1
        )
    assert 100 < count_tokens(mute) <= 200 < 1000 < count_tokens(wrong)
    assert count_tokens(prompt.text) <= cfg.reflect_prompt_tokens


def test_build_drops_trailing_examples_when_nothing_is_left_to_cut():
    examples = [dataclasses.replace(WRONG, question="long " * 300) for _ in range(3)]
    prompt = reflection.build(
        "Add.", examples, settings(reflect_prompt_tokens=BASE + 250), count_tokens
    )
    assert (
        prompt.num_dropped == 2
        and "# Example 1" in prompt.text
        and "# Example 2" not in prompt.text
    )
    assert reflection.build(
        "Add.", examples, settings(reflect_prompt_tokens=100), count_tokens
    ) == reflection.ReflectionPrompt("", 0, 3)


@given(
    st.integers(0, 400),
    st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=4),
)
def test_build_never_exceeds_the_limit(limit, shapes):
    cfg = settings(reflect_prompt_tokens=150 + limit)
    examples = [long(MUTE if mute else WRONG, num) for num, mute in shapes]
    prompt = reflection.build("Add.", examples, cfg, count_tokens)
    assert count_tokens(prompt.text) <= cfg.reflect_prompt_tokens
    assert prompt.num_dropped + prompt.text.count("# Example") == len(examples)


@given(st.text(max_size=300), st.integers(0, 60))
def test_cut_middle_stays_within_the_limit(text, limit):
    assert len(reflection.cut_middle(text, limit, len)) <= limit
