"""Problems are right, the same in every run, and their split is a property of their text."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from p2o_jax.toy_world import families
from p2o_jax.toy_world.families import Family
from p2o_jax.toy_world.languages import LANGUAGES, LARGE, Language


def _checked(language: Language) -> list[Family]:
    """The families whose questions `_solve` understands."""
    elsewhere = (language.elsewhere.get(name, ()) for name in ("longer", "untrained"))
    return [*language.families.values(), *(family for part in elsewhere for family in part)]


every_family = pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, id=f"{size}-{f.name}")
        for size, language in LANGUAGES.items()
        for f in _checked(language)
    ],
)
every_language = pytest.mark.parametrize(
    "language", [pytest.param(language, id=size) for size, language in LANGUAGES.items()]
)


def _problems(family: Family, count: int = 200) -> list[families.Problem]:
    rng = random.Random(f"test/{family.name}")
    return [family.draw(rng, "pretrain") for _ in range(count)]


def _solve(problem: families.Problem) -> str:
    """The answer computed from the question's text alone, in another way than the generator."""
    words = problem.question.split()
    asked, letters = words[1:-1], "abcdefghijkl"
    match problem.family:
        case "add":
            first, second = (
                problem.question.removeprefix("what is")
                .removesuffix("?")
                .replace(" ", "")
                .split("+")
            )
            return " ".join(str(int(first) + int(second)).zfill(len(first) + 1))
        case "subtract":
            below, above = (
                problem.question.removeprefix("take")
                .removesuffix("?")
                .replace(" ", "")
                .split("from")
            )
            return " ".join(str(int(above) - int(below)).zfill(len(above)))
        case "double":
            return " ".join(str(int(w) * 2)[-1] for w in asked)
        case "shift":
            return " ".join((letters + "a")[letters.index(w) + 1] for w in asked)
        case "caesar":
            return " ".join(
                (letters + letters)[letters.index(w) + int(asked[0])] for w in asked[1:]
            )
        case "cipher":
            encode = words.index("encode")
            key = dict(zip(words[1:encode:3], words[3:encode:3], strict=True))
            return " ".join(key[w] for w in words[encode + 1 : -1])
        case "mirror":
            return (
                "".join(asked[::-1])
                .translate(str.maketrans("abcdefghijkl", "lkjihgfedcba"))
                .replace("", " ")
                .strip()
            )
        case "total":
            return " ".join(
                str(sum(map(int, words[2 : end + 1])))[-1] for end in range(2, len(words) - 1)
            )
        case "order":
            return " ".join(sorted(asked))
        case "count":
            seen = Counter[str]()
            return " ".join(str(seen[w]) for w in asked if not seen.update([w]))
        case "binary":
            digits = "".join(words[2:-1])
            return " ".join(f"{int(digits, 8):b}".zfill(3 * len(digits)))
        case "compare":
            return " ".join(max(pair.split()) for pair in " ".join(asked).split(","))
        case "reverse":
            return " ".join(reversed(asked))
        case "repeat":
            return " ".join(asked)
        case "largest":
            return max(words[2:-1])
        case "smallest":
            return min(words[2:-1])
    raise AssertionError(problem.family)


@every_family
def test_answers_follow_from_the_question(family):
    for problem in _problems(family):
        assert problem.family == family.name
        assert problem.answer == _solve(problem)
        answer = problem.answer.split()
        assert set(answer) <= set(family.symbols)
        guess = family.guess(random.Random(problem.question), len(answer)).split()
        assert len(guess) == len(answer) and set(guess) <= set(family.symbols)


@every_family
def test_chains_are_of_one_shape_and_their_words_have_ids(family):
    """Measuring (`measure.chain_figures`) finds the steps of all problems where those of the
    first are.
    """
    language = next(own for own in LANGUAGES.values() if family in _checked(own))
    known = {*families.DIGITS, *families.LETTERS, *language.words}
    problems = _problems(family)
    assert len({tuple(len(step.split()) for step in p.steps) for p in problems}) == 1
    assert (
        all(step.endswith(" ;") for p in problems for step in p.steps)
        and bool(problems[0].steps) == family.hard
    )
    assert {
        word for p in problems for text in (p.question, *p.steps, p.answer) for word in text.split()
    } <= known


@every_language
def test_the_chain_of_add_carries_and_ends_in_the_answer(language):
    for problem in _problems(language.families["add"]):
        carry, answer = "0", ""
        places = ("units", "tens", "hundreds", "thousands", "myriads")[: len(problem.steps)]
        for place, step in zip(places, problem.steps, strict=True):
            name, a, b, given, equals, new, digit, end = step.split()
            assert (name, equals, end, given) == (place, "=", ";", carry)
            assert int(new + digit) == int(a) + int(b) + int(given)
            carry, answer = new, digit + answer
        assert (carry + answer) == problem.answer.replace(" ", "")


def test_the_chain_of_subtract_borrows_and_ends_in_the_answer():
    for problem in _problems(LARGE.families["subtract"]):
        debt, answer = "0", ""
        for step in problem.steps:
            column, a, b, owed, gives, digit, owes, new, _ = step.split()
            assert (column, gives, owes, owed) == ("column", "gives", "owes", debt)
            assert int(a) - int(b) - int(owed) == int(digit) - 10 * int(new)
            debt, answer = new, digit + answer
        assert debt == "0" and answer == problem.answer.replace(" ", "")


PLACES_IN_A_STEP = {  # of the question's symbols, and of the answer's
    "double": (slice(1, 2), slice(3, 4)),
    "shift": (slice(1, 2), slice(3, 4)),
    "cipher": (slice(1, 2), slice(3, 4)),
    "caesar": (slice(1, 2), slice(4, 5)),
    "mirror": (slice(1, 2), slice(3, 4)),
    "total": (slice(2, 3), slice(4, 5)),
    "count": (slice(1, 2), slice(3, 4)),
    "binary": (slice(1, 2), slice(3, 6)),
    "compare": (slice(1, 3), slice(4, 5)),
}


@pytest.mark.parametrize(
    "family",
    [
        f
        for language in LANGUAGES.values()
        for f in language.families.values()
        if f.name in PLACES_IN_A_STEP
    ],
    ids=lambda f: f.name,
)
def test_the_steps_of_other_chains_are_the_questions_symbols_in_order(family):
    asked, result = PLACES_IN_A_STEP[family.name]
    for problem in _problems(family):
        symbols = [word for step in problem.steps for word in step.split()[asked]]
        question = [word for word in problem.question.split()[:-1] if word != ","][-len(symbols) :]
        assert symbols == (question[::-1] if family.name == "mirror" else question)
        assert (
            " ".join(word for step in problem.steps for word in step.split()[result])
            == problem.answer
        )


def test_each_step_of_order_takes_the_least_of_what_the_last_one_left():
    for problem in _problems(LARGE.families["order"]):
        left = problem.question.split()[1:-1]
        for step in problem.steps:
            least, taken, leaves, *rest = step.split()
            assert (least, leaves, rest.pop()) == ("least", "leaves", ";")
            assert taken == min(left) and Counter(left) - Counter([taken]) == Counter(rest)
            left = rest
        assert not left and problem.answer == " ".join(step.split()[1] for step in problem.steps)


def test_steps_of_total_carry_the_sum_on():
    for problem in _problems(LARGE.families["total"]):
        steps = [step.split() for step in problem.steps]
        assert steps[0][1] == "0" and all(new[1] == old[4] for old, new in pairwise(steps))


def test_a_worked_example():
    text = "what is 4 3 9 + 8 3 5 ?"
    problem = families.FAMILIES["add"].make(_Fixed(439, 835))
    assert problem.question == text
    assert problem.steps == ("units 9 5 0 = 1 4 ;", "tens 3 3 1 = 0 7 ;", "hundreds 4 8 0 = 1 2 ;")
    assert problem.answer == "1 2 7 4"


class _Fixed(random.Random):
    """A random generator that returns given numbers."""

    def __init__(self, *numbers: int):
        super().__init__(0)
        self.numbers = list(numbers)

    def randint(self, a, b):
        return self.numbers.pop(0)

    def randrange(self, start, stop=None, step=1):
        return self.numbers.pop(0)


def test_a_worked_example_with_debts():
    problem = LARGE.families["subtract"].make(_Fixed(304, 15))
    assert problem.question == "take 0 0 0 0 1 5 from 0 0 0 3 0 4 ?"
    assert problem.steps[:3] == (
        "column 4 5 0 gives 9 owes 1 ;",
        "column 0 1 1 gives 8 owes 1 ;",
        "column 3 0 1 gives 2 owes 0 ;",
    )
    assert problem.answer == "0 0 0 2 8 9"


@every_family
def test_drawing_is_deterministic(family):
    assert _problems(family, 20) == _problems(family, 20)


@every_language
def test_families_share_no_step_format(language):
    def shape(step: str) -> tuple[str, ...]:
        return tuple(
            w if w not in families.DIGITS + families.LETTERS else "_" for w in step.split()
        )

    shapes = [
        {shape(step) for problem in _problems(language.families[name], 5) for step in problem.steps}
        for name in language.hard
    ]
    assert len(set.union(*shapes)) == sum(map(len, shapes))


@every_language
def test_hard_answers_cannot_be_guessed(language):
    for name in language.hard:
        family = language.families[name]
        answers = {problem.answer for problem in _problems(family, 1000)}
        assert {len(family.symbols) ** len(a.split()) >= 1000 for a in answers} == {True}
        assert len(answers) > 500


@every_family
def test_every_split_has_its_share_of_each_family(family):
    rng = random.Random(family.name)
    counts = Counter(families.split_of(family.make(rng).question) for _ in range(1600))
    assert counts["pretrain"] == pytest.approx(1200, abs=80)
    assert counts["train"] == pytest.approx(200, abs=50)
    assert counts["heldout"] == pytest.approx(100, abs=40)
    assert counts["probe"] == pytest.approx(100, abs=40)
