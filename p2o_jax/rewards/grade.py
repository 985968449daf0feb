r"""Decides whether the content of a box equals a reference answer.

Options of multiple choice are compared by letter, words without case, units by name, and everything
else by what it means: `reading` gives SymPy objects, `compare` compares them. Runs in worker
processes only, because it may hang or crash.
"""

import re

from p2o_jax.rewards import choices, compare, normalize, plain_text, reading, units

_FONT = re.compile(
    r"\\(?:text|textrm|textnormal|textit|textbf|mathrm|mathbf|mathit|mbox|operatorname)"
    r" ?\{([^{}]*)\}"
)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’,;.!\- ]*")
_ARTICLE = re.compile(r"^(?:an?|the) (?=\w{2})")
_SHORT_WORDS = {"yes", "no", "odd", "all", "one", "two", "six", "ten"}
_RATIO = re.compile(r"[^:,;=]+(?::[^:,;=]+){2,}")
_DOLLARS = re.compile(r"\\\$ ?[0-9.]")
_PERCENT = re.compile(r" ?(?:\\(?:text|mathrm) ?\{ ?)?\b(?:percent(?:age)?|pct)\b ?\}?$")
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})")
_LISTED = re.compile(
    r"\\(?:text|mathrm|mbox) ?\{[ ,]*(?:and|or)[ ,]*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
)


def math_equal(box: str, answer: str) -> str:
    """Returns "correct", "wrong", or "error" if the reference answer is empty."""
    if not normalize.normalize(answer):
        return "error"
    return "correct" if equal(box, answer) else "wrong"


def equal(box: str, answer: str) -> bool:
    """Whether the content of a box equals a reference answer."""
    if normalize.equal(box, answer):
        return True
    decided = _options_equal(box, answer)
    if decided is not None:
        return decided
    in_dollars = [_DOLLARS.search(text) is not None for text in (answer, box)]
    box, answer = (
        _PERCENT.sub(r"\%", normalize.normalize(text)).removeprefix("\\approx").strip()
        for text in (box, answer)
    )
    if not box:
        return False
    decided = _words_equal(_FONT.sub(r" \1 ", box), _FONT.sub(r" \1 ", answer))
    if decided is not None:
        return decided
    ours, theirs = units.split(answer, reference=True), units.split(box, reference=False)
    ours, theirs = (
        q._replace(unit=q.unit or "dollar") if dollars else q
        for q, dollars in zip((ours, theirs), in_dollars, strict=True)
    )
    if not units.agree(ours, theirs):
        return False
    answer, box = ours.value, theirs.value
    # "5 m" for 5\text{ m}: the text says that the bare letter is a unit
    if ours.text and not theirs.text:
        box = _without(box, ours.text)
    if theirs.text and not ours.text:
        answer = _without(answer, theirs.text)
    return _values_equal(box, answer)


def _options_equal(box: str, answer: str) -> bool | None:
    """Whether the options of two answers are equal; None if the answers name none."""
    gold, given = choices.read(answer), choices.read(box)
    if gold is None:
        return equal(given.text, answer) if given and given.text else None
    if given is None:
        if gold.text:
            return choices.letter(box) == gold.letter or equal(box, gold.text)
        return True if choices.letter(box) == gold.letter else None
    if gold.letter != given.letter:
        return False
    return not (gold.text and given.text) or equal(given.text, gold.text)


def _words_equal(box: str, answer: str) -> bool | None:
    """Whether two answers are the same words; None if they may be formulas."""
    box, answer = " ".join(box.split()).strip(" ."), " ".join(answer.split()).strip(" .")
    if not _WORDS.fullmatch(box) or not _WORDS.fullmatch(answer):
        return None
    a, b = (_ARTICLE.sub("", text.casefold()).replace("-", " ") for text in (box, answer))
    if a == b and len(a) > 1:
        one_way = len(b) > 3 or b in _SHORT_WORDS or box == answer
        return True if one_way or box.istitle() or answer.istitle() else None
    words = " " in answer or min(len(a), len(b)) > 3 or bool({a, b} & _SHORT_WORDS)
    return False if words else None


def _without(value: str, unit: str) -> str:
    unit = unit.strip()
    return value[: -len(unit)].strip() if value.endswith(unit) and len(value) > len(unit) else value


def _values_equal(box: str, answer: str) -> bool:
    if (decided := normalize.equal(box, answer)) is not None:
        return decided
    if _RATIO.fullmatch(box) or _RATIO.fullmatch(answer):
        return _ratios_equal(box.split(":"), answer.split(":"))
    times = [_TIME.fullmatch(text) for text in (box, answer)]
    if times[0] and times[1]:
        return [int(n) for n in times[0].groups()] == [int(n) for n in times[1].groups()]
    percent = [text.endswith("%") for text in (box, answer)]
    if any(percent):
        box, answer = (re.sub(r" ?\\?%$", "", text) for text in (box, answer))
        if all(percent) or _values_equal(box, answer):
            return _values_equal(box, answer)
        box, answer = (
            rf"\frac{{{t}}}{{100}}" if p else t for t, p in zip((box, answer), percent, strict=True)
        )
    euler = reading.euler(answer)
    readings = [False, True] if plain_text.has_log(answer) else [False]
    for natural_log in readings:
        gold = reading.read(answer, euler=euler, natural_log=natural_log)
        given = reading.read(box, euler=euler)
        if gold is not None and given is not None and _objects_equal(gold, given):
            return True
    ours, theirs = _text(answer), _text(box)
    return ours == theirs or _lists_equal(plain_text.split(theirs), plain_text.split(ours))


def _lists_equal(box: list[str], answer: list[str]) -> bool:
    """Whether the parts of unreadable lists are equal, in any order where all parts are named."""
    if len(box) != len(answer) or len(answer) < 2:
        return False
    if all("=" in part for part in (*box, *answer)):
        box, answer = sorted(box), sorted(answer)
    return all(bool(b) and equal(a, b) for a, b in zip(box, answer, strict=True))


def _objects_equal(gold: reading.Read, given: reading.Read) -> bool:
    try:
        return compare.equal(gold, given)
    except Exception:  # the edge: SymPy may raise anything on such input
        return False


def _ratios_equal(box: list[str], answer: list[str]) -> bool:
    """Whether two ratios of three and more terms are proportional."""
    return len(box) == len(answer) and all(
        _values_equal(rf"\frac{{{a}}}{{{box[0]}}}", rf"\frac{{{b}}}{{{answer[0]}}}")
        for a, b in zip(box[1:], answer[1:], strict=True)
    )


def _text(value: str) -> str:
    """The text of an answer without fonts and quotes, to compare what cannot be read."""
    value = re.sub(r"\\[cl]?dots(?![A-Za-z])|\.\.\.", r"\\ldots ", value)
    return normalize.normalize(re.sub(r"[\"`]", "", _LISTED.sub(",", _FONT.sub(r"\1", value))))
