"""Metrics of a step from those of its parts."""

from p2o_jax.tracking import metric_names

GAP = "train/logprob_gap_"


def gap(mean: float, largest: float, tokens: float) -> dict[str, float]:
    return {GAP + "mean": mean, GAP + "max": largest, GAP + "tokens": tokens}


def test_the_gap_counts_tokens_wherever_it_was_measured():
    """30 tokens at .1 before the updates, 10 at .5 in the first, none in the second."""
    updates = [
        {"train/bad_updates": 0.0, "train/loss": 1.0, **gap(0.5, 0.6, 10)},
        {"train/bad_updates": 1.0, "train/loss": 3.0},
    ]
    values = metric_names.of_updates({"distill/ratio_p50": 2.0, **gap(0.1, 0.9, 30)}, updates)
    assert values == {
        "distill/ratio_p50": 2.0,
        "train/loss": 2.0,
        "train/bad_updates": 1.0,
        **gap(0.2, 0.9, 40),
    }


def test_where_nothing_was_measured_there_is_no_gap():
    assert metric_names.of_updates({}, [{"train/bad_updates": 0.0}]) == {"train/bad_updates": 0.0}
