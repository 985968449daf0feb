"""The large language: twelve hard families, four easy ones, and ninety phrases.

    hard family  question                           a step                        steps  answer
    add          what is 4 3 9 1 2 + 8 3 5 0 7 ?    units 2 7 0 = 0 9 ;               5  6 digits
    subtract     take 2 7 4 1 0 5 from 8 1 2 0 3 4 ? column 4 5 0 gives 9 owes 1 ;    6  6 digits
    double       double 4 3 6 0 9 1 5 5 ?           twice 4 = 8 ;                     8  8 digits
    shift        shift e h c b a a l d ?            after e comes f ;                 8  8 letters
    caesar       caesar 3 e h c b a k l ?           move e 3 reach h ;                7  7 letters
    cipher       key a > f b > d … encode c a … ?   look c > a ;                      7  7 letters
    mirror       mirror e h c b a a l d ?           last d faces i ;                  8  8 letters
    total        totals of 4 3 9 8 1 7 2 5 ?        plus 7 9 makes 6 ;                8  8 digits
    order        order g a c b a f ?                least a leaves g c b a f ;        6  6 letters
    count        count b a b b c … ?                seen b now 3 ;                   10  10 digits
    binary       binary of 5 2 7 0 3 6 ?            bits 5 are 1 0 1 ;                6  18 bits
    compare      compare 4 7 , 8 2 , … ?            pair 4 7 top 7 ;                  7  7 digits

A step of `add` has two digits, the carry, and their sum; a step of `subtract` has two digits, the
debt, their difference, and the new debt. `mirror` reads from the end, `total` has running sums mod
10, `count` says which copy each letter is, and the digits of `binary` are octal.

The easy families are answered without steps: `reverse` and `repeat` of 6 letters, `largest of` and
`smallest of` 6 digits.
"""

import functools
import random
from itertools import accumulate

from p2o_jax.toy_world import families, phrases
from p2o_jax.toy_world.families import DIGITS, LETTERS, Family, Problem, spaced

PLACES = (*families.PLACES, "thousands", "myriads")
BITS = tuple("01")
WORDS = (
    *families.WORDS,
    "thousands",
    "myriads",
    "take",
    "from",
    "column",
    "gives",
    "owes",
    "caesar",
    "move",
    "reach",
    "mirror",
    "last",
)
WORDS += (
    "faces",
    "totals",
    "plus",
    "makes",
    "order",
    "least",
    "leaves",
    "count",
    "seen",
    "now",
    "binary",
    "bits",
    "are",
    "compare",
)
WORDS += ("pair", "top", ",", "repeat", "smallest")


def subtract(rng: random.Random, length: int = 6) -> Problem:
    """The difference of two numbers of `length` digits, with leading zeros.

    The steps put the digit of the larger number first.
    """
    small, great = sorted(rng.randrange(10**length) for _ in range(2))
    digits, above, below = [], f"{great:0{length}d}", f"{small:0{length}d}"
    steps, debt = [], 0
    for a, b in zip(map(int, reversed(above)), map(int, reversed(below)), strict=True):
        digit, owed = (a - b - debt) % 10, int(a < b + debt)
        steps.append(f"column {a} {b} {debt} gives {digit} owes {owed} ;")
        digits.append(digit)
        debt = owed
    return Problem(
        "subtract",
        f"take {spaced(below)} from {spaced(above)} ?",
        tuple(steps),
        spaced(digits[::-1]),
    )


def caesar(rng: random.Random, length: int = 7) -> Problem:
    """Each letter moved along the circular alphabet by the question's number, 2 to 9."""
    key, places = rng.randint(2, 9), [rng.randrange(len(LETTERS)) for _ in range(length)]
    letters, reached = (
        [LETTERS[p] for p in places],
        [LETTERS[(p + key) % len(LETTERS)] for p in places],
    )
    steps = tuple(f"move {a} {key} reach {b} ;" for a, b in zip(letters, reached, strict=True))
    return Problem("caesar", f"caesar {key} {spaced(letters)} ?", steps, spaced(reached))


def mirror(rng: random.Random, length: int = 8) -> Problem:
    """The letters in reverse order, each replaced by its opposite in the alphabet.

    The first and the last letter of the alphabet are opposites, and so on.
    """
    letters = rng.choices(LETTERS, k=length)
    opposite = dict(zip(LETTERS, reversed(LETTERS), strict=True))
    steps = tuple(f"last {a} faces {opposite[a]} ;" for a in reversed(letters))
    return Problem(
        "mirror",
        f"mirror {spaced(letters)} ?",
        steps,
        spaced([opposite[a] for a in reversed(letters)]),
    )


def total(rng: random.Random, length: int = 8) -> Problem:
    """The running sums of the digits, mod 10. A step adds the next digit to the sum."""
    digits = [rng.randrange(10) for _ in range(length)]
    sums = [s % 10 for s in accumulate(digits, initial=0)]
    steps = tuple(
        f"plus {before} {d} makes {after} ;"
        for before, d, after in zip(sums, digits, sums[1:], strict=False)
    )
    return Problem("total", f"totals of {spaced(digits)} ?", steps, spaced(sums[1:]))


def order(rng: random.Random, length: int = 6) -> Problem:
    """The letters in alphabetical order. A step removes the first one and lists the others."""
    letters = rng.choices(LETTERS, k=length)
    left, steps = list(letters), []
    while left:
        least = min(left)
        left.remove(least)
        steps.append(spaced(["least", least, "leaves", *left, ";"]))
    return Problem("order", f"order {spaced(letters)} ?", tuple(steps), spaced(sorted(letters)))


def count(rng: random.Random, length: int = 10) -> Problem:
    """For each letter, the number of its copies so far, including itself.

    There are four different letters.
    """
    kinds = rng.sample(LETTERS, 4)
    letters = [*kinds, *rng.choices(kinds, k=length - len(kinds))]
    rng.shuffle(letters)
    copies = [letters[: i + 1].count(letter) for i, letter in enumerate(letters)]
    steps = tuple(f"seen {letter} now {n} ;" for letter, n in zip(letters, copies, strict=True))
    return Problem("count", f"count {spaced(letters)} ?", steps, spaced(copies))


def binary(rng: random.Random, length: int = 6) -> Problem:
    """Octal digits in binary, three bits for each."""
    digits = [rng.randrange(8) for _ in range(length)]
    steps = tuple(f"bits {d} are {spaced(f'{d:03b}')} ;" for d in digits)
    return Problem(
        "binary",
        f"binary of {spaced(digits)} ?",
        steps,
        spaced("".join(f"{d:03b}" for d in digits)),
    )


def compare(rng: random.Random, length: int = 7) -> Problem:
    """The larger digit of each pair."""
    pairs = [(rng.randrange(10), rng.randrange(10)) for _ in range(length)]
    steps = tuple(f"pair {a} {b} top {max(a, b)} ;" for a, b in pairs)
    return Problem(
        "compare",
        f"compare {' , '.join(map(spaced, pairs))} ?",
        steps,
        spaced([max(pair) for pair in pairs]),
    )


def repeat(rng: random.Random, length: int = 6) -> Problem:
    """The letters unchanged."""
    letters = rng.choices(LETTERS, k=length)
    return Problem("repeat", f"repeat {spaced(letters)} ?", (), spaced(letters))


def smallest(rng: random.Random, length: int = 6) -> Problem:
    """The smallest of the digits."""
    digits = [rng.randrange(10) for _ in range(length)]
    return Problem("smallest", f"smallest of {spaced(digits)} ?", (), str(min(digits)))


FAMILIES = families.by_name(
    (
        Family("add", True, 1.5, DIGITS, functools.partial(families.add, places=PLACES)),
        Family("subtract", True, 1.5, DIGITS, subtract),
        Family("double", True, 1.0, DIGITS, functools.partial(families.double, length=8)),
        Family("shift", True, 1.0, LETTERS, functools.partial(families.shift, length=8)),
        Family("caesar", True, 1.5, LETTERS, caesar),
        Family("cipher", True, 1.5, LETTERS, functools.partial(families.cipher, pairs=8, length=7)),
        Family("mirror", True, 1.0, LETTERS, mirror),
        Family("total", True, 1.0, DIGITS, total),
        Family("order", True, 1.5, LETTERS, order),
        Family("count", True, 1.5, DIGITS, count),
        Family("binary", True, 1.0, BITS, binary),
        Family("compare", True, 1.0, DIGITS, compare),
        Family("reverse", False, 0.5, LETTERS, functools.partial(families.reverse, length=6)),
        Family("repeat", False, 0.5, LETTERS, repeat),
        Family("largest", False, 0.5, DIGITS, functools.partial(families.largest, length=6)),
        Family("smallest", False, 0.5, DIGITS, smallest),
    )
)

STRATEGIES: dict[str, tuple[str, str, str]] = {
    **phrases.STRATEGIES,
    "subtract": (
        "borrow from the next column when short",
        "subtract digit by digit and remember debts",
        "line the numbers up in columns",
    ),
    "caesar": (
        "move every letter by the given key",
        "advance along the circle as told",
        "note the size of the key",
    ),
    "mirror": (
        "swap each letter with its mirror image",
        "read from the end and flip letters",
        "begin with the last letter",
    ),
    "total": (
        "keep a sum and drop the tens",
        "add each number to the running total",
        "watch the total grow",
    ),
    "order": (
        "pick the least letter again and again",
        "remove the smallest one until none remain",
        "put all letters side by side",
    ),
    "count": (
        "number every letter by its earlier copies",
        "remember how often each letter came",
        "mark repeated letters",
    ),
    "binary": (
        "write every octal digit as three bits",
        "expand digits into groups of bits",
        "recall the powers of two",
    ),
    "compare": (
        "take pairs and keep the larger one",
        "hold a contest within each pair",
        "group the digits in twos",
    ),
}
DECOYS = tuple(
    phrase
    for phrase in phrases.DECOYS
    if phrase not in ("sort the items by size", "count the vowels in the word")
) + (
    "multiply out the brackets",
    "cancel common factors",
    "find the slope of the line",
    "measure every angle of the shape",
    "use the law of large numbers",
    "integrate by parts",
    "test the claim on special cases",
    "assume the opposite and find a contradiction",
    "split the problem into two halves",
    "translate the sentence word by word",
    "list the words that rhyme",
    "underline every verb",
    "name the capital of each country",
    "quote the law that applies",
    "convert miles into kilometres",
    "weigh the evidence for both parties",
    "find the greatest common divisor",
    "compute the average of the list",
    "plot the points on a grid",
    "simulate the machine by hand",
    "guess the rule from examples",
    "describe the scene in detail",
    "summarise the text in one line",
    "round every price to whole coins",
)
PHRASES = phrases.Phrases(STRATEGIES, DECOYS, phrases.USELESS, phrases.GENERIC)
