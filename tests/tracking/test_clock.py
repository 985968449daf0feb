"""How long the rest of a run takes."""

import pytest

from p2o_jax.tracking import clock


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (3540, "59 min"), (3600, "1 h 0 min"),
     (11_111, "3 h 5 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert clock.duration(seconds) == text


def test_the_pace_of_this_start_is_what_counts(monkeypatch):
    """At .5 after a resume, at .6 ten seconds later: .4 are left, forty seconds."""
    now = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr(clock.time, "monotonic", lambda: next(now))
    pace = clock.Pace()
    assert [pace.left(0.5), pace.left(0.6), pace.left(0.8)] == ["", "40 s left", "20 s left"]


def test_no_progress_has_no_time_left():
    pace = clock.Pace()
    assert [pace.left(0.5), pace.left(0.5)] == ["", ""]
