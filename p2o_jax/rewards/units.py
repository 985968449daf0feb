r"""Units behind a value: `5\text{ cm}`, `12 hours`, `\$20`, `25^\circ\text{C}`, `3^{rd}`.

A unit is optional: a value without one agrees with any. Two known units must be the same; they are
not converted. A bare letter behind a value is a variable, not a unit: `3t` is not 3.
"""

import functools
import re
from typing import NamedTuple

# A unit and its other names; plurals are understood.
_KNOWN = r"""
mm millimeter millimetre
cm centimeter centimetre
dm decimeter decimetre
m meter metre
km kilometer kilometre
nm nanometer nanometre
inch in
foot ft feet
yard yd
mile mi
mg milligram
g gm gram
kg kilogram
lb pound
oz ounce
ton tonne
ms millisecond
s sec second
min minute
h hr hour
day
week
month
year yr
am a.m. a.m
pm p.m. p.m
degree deg
radian rad
°C
°F
K kelvin
L l liter litre
mL ml milliliter millilitre
gallon gal
acre
hectare
dollar USD
cent
euro EUR €
GBP £
yen JPY ¥
rupee INR Rs Rs. ₹
N newton
J joule
W watt
Pa pascal
V volt
A ampere amp
C coulomb
Hz hertz
ohm
mol mole
eV
"""
_UNITS = {
    name: line.split()[0]
    for line in _KNOWN.strip().splitlines()
    for word in line.split()
    for name in (word, word + "s", word + "es")
}
# What is counted. It is ignored behind a number, and not compared.
_COUNTED = """
apple ball book boy box child children coin cookie cow cube digit edge egg face flower game girl
integer item marble man men woman women number orange page people person piece point rectangle
solution student team term ticket time toy tree triangle unit vertex vertices way word
"""
_NOUNS = {name for word in _COUNTED.split() for name in (word, word + "s")}
# Two letters that are hardly a product of variables, even where no space stands before them.
_GLUED = {"cm", "mm", "kg", "km", "ft", "hr", "lb", "mL", "ml"}
_SI_LETTERS = set("mgshLNJWVAK")
# Such words make a text a statement about the value.
_STATEMENT = re.compile(
    r"\b(?:is|are|if|for|or|and|not|no|mod|when|where|with|than|more|less|at|most|least)\b"
)
_POWERS = {"square": "2", "sq": "2", "sq.": "2", "cubic": "3", "cu": "3", "squared": "2"}
_POWERS |= {"cubed": "3"}
_BARE_WORDS = {*_UNITS, *_NOUNS, *_POWERS, "mph", "kmph", "kmh", "kph"}
_FONT = r"\\(?:text|textrm|textnormal|textit|textbf|mathrm|mathbf|mathit|mbox|operatorname) ?"
_POWER = r"(?:\^\{?-?[0-9]\}?)?"
_EXPLICIT = re.compile(
    rf"(?:(?: |/|\\cdot ?)*{_FONT}\{{[^{{}}\\]*(?:\^\{{?-?[0-9]\}}?[^{{}}\\]*)?\}}{_POWER})+$"
)
_DEGREES = re.compile(rf"\^(?:\\circ|\{{ ?\\circ ?\}}) ?(?:{_FONT}\{{)?(?P<scale>[CF]?)\}}?$")
_BARE = re.compile(rf"(?<=[0-9}})\]])(?P<gap> ?)(?P<name>[A-Za-z.]+(?:[ /][A-Za-z.]+)*{_POWER})$")
_TRIGONOMETRIC = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_BEFORE = re.compile(r"(?P<sign>-?)(?P<name>[€£¥₹]|USD|EUR|GBP|INR|Rs\.?) ?(?=[0-9.])")
_BEHIND = re.compile(r" ?(?P<name>[€£¥₹])$")
_ORDINAL = re.compile(rf"([0-9]+)\^?(?:\{{|{_FONT}\{{)*(?:st|nd|rd|th)\}}*")
_COMPOUND = re.compile(r"\b(?:mph|kmph|kmh|kph)\b")
_COMMAND = re.compile(r"\\[A-Za-z]+")


class Quantity(NamedTuple):
    """A value and the unit behind it."""

    value: str
    unit: str = ""  # the name of a known unit; empty for none, and for counted things
    text: str = ""  # the unit as it is written


def split(normalized: str, reference: bool) -> Quantity:
    """The value and the unit of a normalized answer.

    A text is a unit if it names a known one, or if it stands behind a number and states nothing. A
    bare word is one if it can hardly be a product of variables; in a `reference` it must stand
    apart from the value, too.
    """
    if ordinal := _ORDINAL.fullmatch(normalized):
        return Quantity(ordinal.group(1))
    if match := _BEFORE.match(normalized):
        value = match["sign"] + normalized[match.end() :]
        return Quantity(value, _UNITS[match["name"]], match["name"])
    if match := _BEHIND.search(normalized):
        return Quantity(normalized[: match.start()], _UNITS[match["name"]], match["name"])
    degrees = _DEGREES.search(normalized)
    if degrees and degrees.start() and not _TRIGONOMETRIC.search(normalized):
        unit = "°" + degrees["scale"] if degrees["scale"] else "degree"
        return Quantity(normalized[: degrees.start()], unit, degrees.group())
    if (match := _EXPLICIT.search(normalized)) and match.start():
        value, text = normalized[: match.start()].rstrip(), _plain(match.group())
        if unit := name(text):
            return Quantity(value, unit, text)
        closed = re.search("[A-Za-z]", _COMMAND.sub("", value)) is None
        if not closed or _STATEMENT.search(text):
            return Quantity(normalized)
        # a word is what is counted; one or two letters are a unit that is not in the table
        return Quantity(value, "" if re.search("[A-Za-z]{3}", text) else text.strip(), text)
    if match := _BARE.search(normalized):
        words = re.split("[ /]", re.sub(r"\^\{?-?[0-9]\}?$", "", match["name"]))
        if all(_may_stand_bare(word, match["gap"] == " ", reference) for word in words):
            return Quantity(normalized[: match.start()], name(match["name"]), match["name"])
    return Quantity(normalized)


def agree(a: Quantity, b: Quantity) -> bool:
    """False if both quantities have a known unit, and not the same."""
    return a.unit == b.unit or not a.unit or not b.unit


@functools.lru_cache(1024)
def name(text: str) -> str:
    r"""The name of a known unit, such as "cm^2" for "square centimeters"; empty for other texts."""
    exponents: dict[str, int] = {}
    for place, part in enumerate(
        re.split(r"/|\bper\b", _COMPOUND.sub(_spelled, text.strip(" ()")))
    ):
        words = part.replace("\\cdot", " ").split()
        power = next((_POWERS[word] for word in words if word in _POWERS), "1")
        for word in words:
            if word in _POWERS:
                continue
            base, _, exponent = word.partition("^")
            known = _UNITS.get(base) or _UNITS.get(base.lower().rstrip("."))
            if not known:
                return ""
            sign = -1 if place else 1
            exponents[known] = exponents.get(known, 0) + sign * int(exponent.strip("{}") or power)
    return " ".join(
        known + (f"^{n}" if n != 1 else "") for known, n in sorted(exponents.items()) if n
    )


def _spelled(match: re.Match[str]) -> str:
    return {"mph": "mile/h"}.get(match.group(), "km/h")


def _plain(text: str) -> str:
    return re.sub(_FONT, " ", text).replace("}", "").replace("{", "")


def _may_stand_bare(word: str, apart: bool, reference: bool) -> bool:
    """Whether a bare word behind a value is a unit rather than a product of variables."""
    if len(word) == 1:
        return apart and not reference and word in _SI_LETTERS
    if len(word) == 2:
        return word in _UNITS and (apart or (word in _GLUED and not reference))
    return word in _UNITS or word.lower() in _BARE_WORDS or word == "per"
