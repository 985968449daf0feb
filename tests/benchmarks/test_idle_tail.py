"""The simulation of the end of a step, by hand."""

import numpy as np
import pytest

from benchmarks import idle_tail


class Fixed(idle_tail.Lengths):
    """Groups of the same lengths."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def group(self):
        return float(self.lengths.mean()), self.lengths


def test_lengths_have_the_mean_that_is_asked_for():
    lengths = idle_tail.Lengths(3000, 0.9)
    drawn = np.concatenate([lengths.group()[1] for _ in range(4000)])
    assert drawn.mean() == pytest.approx(3000, rel=0.03) and drawn.max() <= 12_288


def test_a_step_ends_with_its_longest_response(monkeypatch):
    """One shard of two slots, responses of 4, 2 and 1 tokens: 4 beside 2 and 1, 7 of 8 in use."""
    monkeypatch.setattr(idle_tail, "QUESTIONS", 1)
    monkeypatch.setattr(idle_tail, "GROUP", 3)
    of = idle_tail.by_step(Fixed([4, 2, 1]), 1, 2, 3, known=False)
    reads = 7 * 512 + (8 + 2 + 0)
    assert of == (4, 7 / 8, reads, 0)


def test_what_is_carried_over_fills_the_slots(monkeypatch):
    """One slot is always in use: a step of one group takes the sum of its lengths."""
    monkeypatch.setattr(idle_tail, "QUESTIONS", 1)
    monkeypatch.setattr(idle_tail, "GROUP", 3)
    of = idle_tail.carried_over(Fixed([4, 2, 1]), 1, 1, 5)
    assert (of.iterations, of.busy, of.stale) == (7, 1, 0)
    two = idle_tail.carried_over(Fixed([4, 2, 1]), 1, 2, 50)
    assert two.iterations == pytest.approx(3.5, rel=0.05) and two.busy == pytest.approx(1, rel=0.05)
    assert two.stale > 0
