import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax.rewards.boxed import final_answer, last_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{ 1 2 }", "1 2"),
        (r"\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\{b} c} d", r"a \\{b} c"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{x \boxed{7}", "7"),
        (r"\boxed{5} in \boxed form", "5"),
        (r"\boxed{5} \boxedx{6}", "5"),
        (r"\\boxed{5}", "5"),
        ("\\boxed{a\nb}", "a\nb"),
    ],
)
def test_last_boxed_finds_content(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        r"\boxed",
        r"\boxed 5",
        r"\fbox{5}",
        r"\boxed{5",
        r"\boxed{1} \boxed{2",
        r"\boxed{5\}",
        "\\boxed{5\\",
        r"boxed{5}",
    ],
)
def test_last_boxed_is_none_without_a_closed_last_box(text):
    assert last_boxed(text) is None


@pytest.mark.parametrize(
    "piece", ["{", "}", "{}", "\\boxed", "\\boxed{", "\\boxed ", "\\{", "\\", " "]
)
def test_last_boxed_takes_linear_time(piece):
    text = "\\boxed{" + piece * (1_000_000 // len(piece))
    start = time.process_time()
    last_boxed(text)
    last_boxed(text + "}")
    assert time.process_time() - start < 5


balanced = st.recursive(
    st.text(st.characters(blacklist_characters="{}\\", blacklist_categories=["Cs"]), max_size=5)
    | st.sampled_from([r"\{", r"\}", r"\\", r"\x"]),
    lambda inner: inner.map(lambda s: "{" + s + "}") | st.lists(inner, max_size=3).map("".join),
    max_leaves=10,
)


@given(
    st.text(max_size=20), balanced, st.text(st.characters(blacklist_characters="\\"), max_size=20)
)
def test_last_boxed_returns_any_balanced_content(before, content, after):
    assert last_boxed(before + r" \boxed{" + content + "}" + after) == content.strip()


@given(
    st.lists(st.sampled_from(["\\boxed", "{", "}", "\\", " ", "x", "\x00"]), max_size=30).map(
        "".join
    )
)
def test_last_boxed_never_fails(text):
    content = last_boxed(text)
    assert content is None or content in text


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{(2, 2)} and \boxed{(6, 2)}", "(2, 2), (6, 2)"),
        (r"$\boxed{1}$, $\boxed{2}$, or \(\boxed{3}\)", "1, 2, 3"),
        (r"$x = \boxed{1}$ or $x = \boxed{2}$", "1, 2"),
        (r"\[\boxed{a} \quad\text{and}\quad \boxed{b}\]", "a, b"),
        ("- $\\boxed{1}$\n- $\\boxed{2}$".replace("-", "*"), "1, 2"),
        (r"\boxed{4}, \boxed{4}", "4"),
        (r"\boxed{\boxed{7}}", "7"),
        # not one statement
        (r"First \boxed{3}. Then \boxed{4}.", "4"),
        (r"It is \boxed{3}, so the answer is \boxed{4}", "4"),
        (r"$a = \boxed{2}$, $b = \boxed{3}$, $a + b = \boxed{5}$", "5"),
        (r"\boxed{1}" + " " * 100 + r"\boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{1, \boxed{2}", "2"),
    ],
)
def test_the_boxes_of_one_statement_are_one_answer(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>\boxed{7}", None),
        (r"<think>\boxed{7}</think>It is 7.", None),
        (r"<think>\boxed{7}</think>\boxed{8}", "8"),
        (r"\boxed{7}</think>\boxed{8}", "8"),
        (r"<think>a</think>\boxed{6}<think>\boxed{7}</think>\boxed{8}", "8"),
        (r"<think>a</think>\boxed{6}<think>\boxed{7}", None),
        (r"<thinking>\boxed{7}</thinking>\boxed{8}", "8"),
        (r"[THINK]\boxed{7}[/THINK]\boxed{8}", "8"),
        (r"[THINK]\boxed{7}", None),
        (r"◁think▷\boxed{7}◁/think▷\boxed{8}", "8"),
        (r"analysisWe try \boxed{7}assistantfinalIt is \boxed{8}", "8"),
        (r"analysisWe try \boxed{7}", None),
        (r"By analysis, \boxed{7}", "7"),
        (r"I think \boxed{7}", "7"),
    ],
)
def test_only_boxes_after_the_thinking_count(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    "piece",
    [r"\boxed{1}, ", r"\boxed{", "<think>", "</think>", r"\boxed{1} and ", r"x = \boxed{2}, "],
)
def test_final_answer_takes_linear_time(piece):
    start = time.process_time()
    final_answer(piece * (1_000_000 // len(piece)))
    assert time.process_time() - start < 5
