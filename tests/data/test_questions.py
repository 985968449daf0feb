import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2o_jax.data.questions import Questions
from p2o_jax.types import Question


def some(n):
    return [Question(f"q{i}", ({"role": "user", "content": str(i)},), str(i)) for i in range(n)]


def test_last_batch_of_an_epoch_is_what_is_left():
    questions = Questions(some(10), per_step=4, seed=0)
    assert questions.steps_per_epoch == 3
    assert [len(questions.batch(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert [questions.epoch(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [questions.ends_epoch(step) for step in range(7)] == [
        False,
        False,
        False,
        True,
        False,
        False,
        True,
    ]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.integers(0, 3))
def test_every_question_comes_once_per_epoch(n, per_step, seed, epoch):
    questions = Questions(some(n), per_step, seed)
    steps = range(epoch * questions.steps_per_epoch, (epoch + 1) * questions.steps_per_epoch)
    batches = [questions.batch(step) for step in steps]
    assert all(batches)
    assert sorted(q.id for batch in batches for q in batch) == sorted(
        q.id for q in questions.questions
    )


def test_order_depends_on_seed_and_epoch_only():
    steps = [5, 0, 3, 3, 11, 1]
    a, b = (Questions(some(12), 4, seed=7) for _ in range(2))
    in_order = [b.batch(step) for step in range(12)]
    assert [a.batch(step) for step in steps] == [in_order[step] for step in steps]
    assert Questions(some(12), 4, seed=8).batch(0) != a.batch(0)
    assert [q for step in range(3) for q in a.batch(step)] != [
        q for step in range(3, 6) for q in a.batch(step)
    ]
    # Held fast: a change of this order would break every resume.
    assert [q.id for q in a.batch(0)] == ["q2", "q4", "q3", "q11"]


def test_by_id_keeps_the_order_of_the_ids():
    questions = Questions(some(5), 2, seed=0)
    assert [q.answer for q in questions.by_id(["q3", "q0", "q3"])] == ["3", "0", "3"]
    with pytest.raises(KeyError):
        questions.by_id(["nobody"])


def test_equal_ids_are_refused():
    with pytest.raises(AssertionError, match="ids"):
        Questions(some(2) + some(1), 2, seed=0)
