import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax.rewards.boxed import last_boxed


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
