"""Problems are right, the same in every run, and their split is a property of their text."""

import random

import pytest

from p2o_jax.world import families


def _problems(name: str, count: int = 300) -> list[families.Problem]:
    rng = random.Random(f"test/{name}")
    return [families.draw(rng, name, "pretrain") for _ in range(count)]


def _solve(problem: families.Problem) -> str:
    """The answer worked out from the question's text alone, another way than the generator's."""
    words = problem.question.split()
    letters = "abcdefghijkl"
    match problem.family:
        case "add":
            plus = words.index("+")
            total = int("".join(words[2:plus])) + int("".join(words[plus + 1 : -1]))
            return " ".join(f"{total:04d}")
        case "double":
            return " ".join(str(int(w) * 2)[-1] for w in words[1:-1])
        case "shift":
            return " ".join((letters + "a")[letters.index(w) + 1] for w in words[1:-1])
        case "cipher":
            encode = words.index("encode")
            key = dict(zip(words[1:encode:3], words[3:encode:3], strict=True))
            return " ".join(key[w] for w in words[encode + 1 : -1])
        case "reverse":
            return " ".join(reversed(words[1:-1]))
        case "largest":
            return max(words[2:-1])
    raise AssertionError(problem.family)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_answers_follow_from_the_question(name):
    for problem in _problems(name):
        assert problem.answer == _solve(problem)
        assert len(problem.answer.split()) == families.FAMILIES[name].answer_length


def test_the_chain_of_add_carries_and_ends_in_the_answer():
    for problem in _problems("add"):
        carry, answer = "0", ""
        for place, step in zip(("units", "tens", "hundreds"), problem.steps, strict=True):
            name, a, b, given, equals, new, digit, end = step.split()
            assert (name, equals, end, given) == (place, "=", ";", carry)
            assert int(new + digit) == int(a) + int(b) + int(given)
            carry, answer = new, digit + answer
        assert (carry + answer) == problem.answer.replace(" ", "")


@pytest.mark.parametrize(("name", "asked", "result"), [("double", 1, 3), ("shift", 1, 3), ("cipher", 1, 3)])
def test_the_steps_of_other_chains_are_the_questions_symbols_in_order(name, asked, result):
    for problem in _problems(name):
        steps = [step.split() for step in problem.steps]
        assert [step[asked] for step in steps] == problem.question.split()[-5:-1]
        assert " ".join(step[result] for step in steps) == problem.answer


def test_a_worked_example():
    text = "what is 4 3 9 + 8 3 5 ?"
    problem = next(p for p in (families.FAMILIES["add"].make(_Fixed(439, 835)) for _ in range(1)))
    assert problem.question == text
    assert problem.steps == ("units 9 5 0 = 1 4 ;", "tens 3 3 1 = 0 7 ;", "hundreds 4 8 0 = 1 2 ;")
    assert problem.answer == "1 2 7 4"


class _Fixed(random.Random):
    """Gives the numbers it was told."""

    def __init__(self, *numbers: int):
        super().__init__(0)
        self.numbers = list(numbers)

    def randint(self, a, b):
        return self.numbers.pop(0)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_drawing_is_deterministic(name):
    assert _problems(name, 20) == _problems(name, 20)


def test_families_share_no_step_format():
    def shape(step: str) -> tuple[str, ...]:
        return tuple(w if w not in families.DIGITS + families.LETTERS else "_" for w in step.split())

    shapes = [{shape(step) for problem in _problems(name, 5) for step in problem.steps} for name in families.HARD]
    assert len(set.union(*shapes)) == sum(map(len, shapes))


def test_hard_answers_cannot_be_guessed():
    for name in families.HARD:
        family = families.FAMILIES[name]
        assert len(family.symbols) ** family.answer_length >= 1000
        answers = {problem.answer for problem in _problems(name, 1000)}
        assert len(answers) > 500


def test_every_split_has_its_share_of_each_family():
    for name, family in families.FAMILIES.items():
        rng = random.Random(name)
        counts = dict.fromkeys(("pretrain", "train", "heldout", "probe"), 0)
        for _ in range(1600):
            counts[families.split_of(family.make(rng).question)] += 1
        assert counts["pretrain"] == pytest.approx(1200, abs=80)
        assert counts["train"] == pytest.approx(200, abs=50)
        assert counts["heldout"] == pytest.approx(100, abs=40)
        assert counts["probe"] == pytest.approx(100, abs=40)
