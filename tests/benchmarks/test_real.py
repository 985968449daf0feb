"""The suite on a real model: its settings are sound, and the table is made of rows alone."""

import pytest

from benchmarks.science import estimates, real
from p2o_jax import config
from p2o_jax.config import ConfigError, loading, rules
from tests.toy_runs import ROOT


def test_settings_of_all_arms_are_valid_and_differ():
    assert len({str(arm.settings) for arm in real.ARMS}) == len(real.ARMS)
    for arm in real.ARMS:
        values = loading.load_config_dict(
            str(ROOT / "examples" / "laptop" / "config.py"),
            [("model.path", "m"), ("data.path", "d"), ("arms", "()"), *arm.settings.items()],
        )
        cfg = config.resolve(loading.from_config_dict(values))
        assert rules.problems(cfg, 1) == [], arm.name
        assert cfg.train.max_generated_tokens == real.BUDGET


def test_student_s_interval_by_hand():
    mean, low, high = estimates.t_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def row(arm, seed, accuracy):
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": accuracy,
        "curve": [[0, 0.0], [12_000, 0.0], [24_000, accuracy]],
        "generated_tokens": 24_000.0 + seed,
        "seconds": 60.0,
        "frac_right_masked": 0.1 if arm == "mask" else None,
        "peak_gib": 4.0 + seed,
    }


def test_the_table_by_hand(tmp_path):
    """The mean over the budget is a quarter of the last accuracy; two seeds differ by .2 and .1."""
    rows = [row("p2o", 1, 0.4), row("grpo", 0, 0.0), row("p2o", 0, 0.8), row("grpo", 1, 0.0)]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{real.BEGIN}\nold\n{real.END}\nafter\n")
    real.write([*rows, row("mask", 0, 0.0)], page)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    table = [line.split(" | ") for line in lines if line.startswith("| ")][2:]
    assert [cells[1:4] for cells in table] == [
        ["0.000, 0.000", "0.000", ""],
        ["0.800, 0.400", "0.150", "+0.150 [-0.485, +0.785]"],
        ["0.000", "0.000", ""],
    ]
    assert table[1][5:] == ["24,000", "60", "5.0 GiB |"] and table[2][4] == "10.0%"


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(ConfigError, match=r"page.md: no lines"):
        real.write([], tmp_path / "page.md")
