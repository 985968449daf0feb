"""A sample of the cases of `benchmarks.fuzz`, and planted faults that it must detect."""

import pytest

from benchmarks import fuzz
from p2o_jax.rewards import boxed
from p2o_jax.runtime import console


def test_random_input_is_accepted_or_refused():
    figures = fuzz.measure(3000, "tests", log=print)
    assert figures["failures"] == 0 and figures["cases"] == 3000
    assert (
        100 < figures["refused"]["settings"] < 500 and 100 < figures["refused"]["questions"] < 500
    ), "some pass, some do not"
    assert figures["megabyte_s"] < 2


@pytest.mark.parametrize(
    ("fault", "cases"),
    [("an exception", 300), ("a box too early", 3000), ("a control character", 300)],
)
def test_planted_faults_are_detected(monkeypatch, fault, cases):
    if fault == "an exception":
        monkeypatch.setattr(fuzz.rules, "problems", lambda cfg, n: [][n])
    elif fault == "a box too early":
        monkeypatch.setattr(
            fuzz, "last_boxed", lambda text: boxed.last_boxed(text.replace(r"\}", "}"))
        )
    else:
        monkeypatch.setattr(
            fuzz, "printable", lambda text: console.printable(text).replace("\\x9b", "\x9b")
        )
    assert fuzz.measure(cases, "tests", log=lambda line: None)["failures"] > 0
