"""The science suites: their settings are sound, rows are made once, estimates by hand, and
tables from rows alone.
"""

import dataclasses
import json
import random

import pytest

from benchmarks.science import (
    arms,
    estimates,
    medium_report,
    report,
    run,
    run_figures,
    tables,
    teacher,
)
from p2o_jax import config
from p2o_jax.config import ConfigError, rules
from p2o_jax.toy_world import documents, families, phrases


def test_settings_of_all_arms_are_valid_and_seeds_share_bases():
    for suite in arms.SUITES:
        runs = list(arms.runs(suite, 1))
        assert len({r.overrides for r in runs}) == len(runs), (
            "two arms of a suite with the same settings"
        )
        for r in runs:
            assert not rules.problems(config.resolve(run.settings(r)), 1), r.arm.name
    first, second, third = (run.settings(arms.Run(arms.GRPO, "1e-3", seed)) for seed in range(3))
    assert first.world == third.world != second.world and (first.train.seed, third.train.seed) == (
        0,
        2,
    )
    assert run.command(arms.Run(arms.GRPO, "1e-3", 1), "w")[:4] == [
        "python",
        "-m",
        "p2o_jax.main",
        "--config=configs/science.py",
    ]


def test_runs_take_the_first_seed_of_every_arm_first_and_seeds_of_some_arms_are_fewer():
    runs = [(r.arm.name, r.seed) for r in arms.runs("dial", 5) if r.dial == "1e-5"]
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)
    assert runs.count(("grpo", 4)) == 1 and ("dapo", 3) not in runs and ("dapo", 2) in runs


def test_what_has_a_row_is_not_run_again(tmp_path):
    wanted = list(arms.runs("dial", 2))
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps({"overrides": r.overrides}) + "\n" for r in wanted[:5]))
    assert run.pending(wanted + wanted, results) == wanted[5:]
    assert run.pending(wanted, tmp_path / "none.jsonl") == wanted


def test_runs_on_other_sets_differ_in_nothing_else():
    for sets, usual in zip(arms.ELSEWHERE, (arms.GRPO, arms.RECOMMENDED), strict=True):
        ours, theirs = (run.settings(arms.Run(arm, "1e-3", 2)) for arm in (sets, usual))
        assert dataclasses.replace(ours, data=theirs.data) == theirs
        assert ours.data.eval_path.startswith("world,longer=world:longer")


def test_the_small_and_the_medium_world_have_configs_and_rows_of_their_own():
    small, medium = (next(arms.runs(suite, 1)) for suite in ("dial", "paper-medium"))
    assert small.overrides != medium.overrides
    assert "--config=configs/science_medium.py" in run.command(medium, "w")
    worlds = [run.settings(r).world for r in (small, medium)]
    assert [world.size for world in worlds] == ["small", "medium"]
    assert all(
        arm.against in {other.name for other in arms.PAPER_MEDIUM}
        for arm in arms.PAPER_MEDIUM
        if arm.against
    )


def test_figures_of_evaluations_and_of_the_mask():
    evaluations = [
        {"sets": {"world": {"accuracy": 0.0}, "longer": {"accuracy": 0.25}}},
        {"sets": {"world": {"accuracy": 0.5}, "longer": {"accuracy": 0.75}}},
    ]
    assert run_figures.other_sets(evaluations) == {"world": [0.0, 0.5], "longer": [0.25, 0.75]}
    assert run_figures.other_sets([{"accuracy": 0.5}]) == {}
    name = "distill/frac_right_masked"
    assert run_figures.frac_right_masked([{name: 0.1}, {}, {name: 0.3}]) == 0.2
    assert run_figures.frac_right_masked([{}]) is None


def test_a_failing_run_is_told_and_leaves_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run, "command", lambda run, workdir: ["python", "-c", "raise SystemExit('the reason')"]
    )
    monkeypatch.setattr(run.pretrain, "ensure_base", lambda world, progress: None)
    with pytest.raises(ConfigError, match="grpo, dial 1e-5, seed 0: exit code 1: the reason"):
        run.run_all(list(arms.runs("dial", 1))[:1], tmp_path / "results.jsonl", 1)
    assert not (tmp_path / "results.jsonl").exists()


def test_a_run_made_again_must_have_the_same_row(tmp_path, monkeypatch):
    one, other = list(arms.runs("dial", 1))[:2]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row(r, 0.5)) + "\n" for r in (one, other)))
    monkeypatch.setattr(run, "make", lambda r, core: {**row(r, 0.5), "cpu_seconds": 99.0})
    run.redo([one, other], results)
    monkeypatch.setattr(run, "make", lambda r, core: row(r, 0.5 if r == one else 0.25))
    with pytest.raises(ConfigError) as e:
        run.redo([one, other], results)
    assert (
        len(e.value.problems) == 4  # accuracies: at the end, its curve, by family, other sets
        and "grpo-16, dial 1e-5, seed 0: accuracy is 0.25, was 0.5" in e.value.problems
    )


def test_estimates_by_hand():
    """Of 1, 2, 3: a mean of 2 with a standard error of 3 ** -.5, t = 3.464 and 4.303 its quantile
    with 2 degrees of freedom. For them, p = 1 - (1 + 2 / t²) ** -.5.
    """
    assert estimates.estimate([0.5]) == (0.5, 0.5, 0.5, 1, 1.0)
    e = estimates.estimate([1.0, 2.0, 3.0])
    half, p = 4.3027 / 3**0.5, 1 - (1 + 2 / 12) ** -0.5
    assert e == pytest.approx((2, 2 - half, 2 + half, 3, p), rel=1e-4) and e.sign == 0
    d = estimates.difference({0: 0.5, 1: 0.75, 2: 9.0}, {0: 0.25, 1: 0.25, 3: 9.0})
    assert (d.mean, d.n, d.sign) == (0.375, 2, 0), "two seeds are too few for a verdict"
    zero, half = dict.fromkeys(range(3), 0.0), dict.fromkeys(range(3), 0.5)
    assert (estimates.difference(half, zero).sign, estimates.difference(zero, half).sign) == (1, -1)


def test_many_comparisons_are_corrected_by_hand():
    """Holm: the smallest of four p-values is compared with .05 / 4, the next with .05 / 3, and the
    first that is larger ends it. Two seeds are no comparison.
    """

    def of(mean, p, n=5):
        return estimates.Estimate(mean, mean - 1, mean + 1, n, p)

    several = [of(2, 0.016), of(-3, 0.012), of(2, 0.06), of(1, 0.02), of(2, 0.0001, n=2)]
    assert estimates.signs(several) == [1, -1, 0, 1, 0]
    assert estimates.signs([of(2, 0.013), *several[2:4], of(2, 0.2)]) == [0, 0, 0, 0]


def test_mean_accuracy_is_the_area_under_the_curve():
    curve = [[0, 0.0], [40, 0.4], [60, 0.4]]
    assert estimates.mean_accuracy(curve, 80) == pytest.approx(
        (40 * 0.2 + 20 * 0.4 + 20 * 0.4) / 80
    )
    assert estimates.mean_accuracy([[0, 0.0], [100, 1.0]], 50) == pytest.approx(0.0 + 0.5), (
        "an evaluation past the budget counts at it"
    )
    assert [estimates.at(curve, t) for t in (0, 20, 50, 99)] == pytest.approx([0, 0.2, 0.4, 0.4])


def test_the_teacher_knows_the_world_and_adds_what_a_failed_question_needs():
    rng = random.Random(0)
    for family in families.HARD:
        problem = families.draw(rng, family, "train")
        examples = [(problem.question, "so \\boxed{ 1 }", False, problem.answer)] * 3
        got = teacher.reply(documents.compact_prompt("take a deep breath", examples))
        assert got.startswith("``` ") and got.endswith(" ```")
        assert (
            phrases.level(family, got.strip("` ").split(phrases.SEPARATOR)) == "strong"
            and "breath" not in got
        )
    solved = documents.compact_prompt(
        phrases.STRATEGIES["add"][0], [("what is 1 + 1 ?", "x", True, "2")]
    )
    assert teacher.reply(solved) == f"``` {phrases.STRATEGIES['add'][0]} ```"


def row(r: arms.Run, accuracy: float) -> dict:
    curve = [[0, 0.0], [80_000, accuracy]]
    known = {
        "by_family": {"add": accuracy, "double": accuracy, "shift": 0.0, "compare": 0.25},
        "other_sets": {"world": [0.0, accuracy], "longer": [0.0, accuracy / 2]},
        "frac_right_masked": None,
        "accuracy": accuracy,
        "curve": curve,
        "p_chain_plain": float(r.dial) / 2,
        "cpu_seconds": 36.0,
        "versions": {"jax": "0"},
    }
    return {"arm": r.arm.name, "dial": r.dial, "seed": r.seed, "overrides": r.overrides, **known}


def test_the_page_is_made_from_rows_alone(tmp_path, monkeypatch):
    """With P²O ahead by .5 everywhere, one ablation worse as the paper says, one the other way
    round; twice gives the same page.
    """
    page = tmp_path / "results.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for name, path in {
        "PAGE": page,
        "DIAL_PLOT": tmp_path / "d.png",
        "RECIPE_PLOT": tmp_path / "r.png",
    }.items():
        monkeypatch.setattr(report, name, path)
    score = {
        "recommended": 0.9,
        "every-epoch": 0.9,
        "faithful": 0.6,
        "no-distillation": 0.2,
        "same-template": 0.8,
        "r+calls-150": 0.95,
    }
    rows = {
        r.overrides: row(r, score.get(r.arm.name, 0.4) + r.seed / 100)
        for suite in arms.SUITES
        for r in arms.runs(suite, 3)
    }
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(r) + "\n" for r in rows.values()))
    report.write(results)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "**+0.250 [+0.250, +0.250]** (grpo" in text and "**+0.150 [+0.150, +0.150]**" in text
    lines = {
        line.split(" | ")[0].strip("| "): line
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert lines["trained on the templated prompt"].endswith(
        "| **-0.200 [-0.200, -0.200]** | yes |"
    )
    assert lines["one template per group"].endswith("| no: the other way round |")
    assert lines["GEPA with half the budget"].endswith("| helps |")
    assert f"{len(rows)} runs, {len(rows) / 100:.1f} CPU hours" in text
    assert (tmp_path / "d.png").stat().st_size > 10_000 and (tmp_path / "r.png").exists()
    report.write(results)
    assert page.read_text() == text


def test_the_tables_of_the_medium_world_by_hand(tmp_path):
    """A mean over the budget is half the end. Three seeds, one of them higher by .1 throughout."""
    ends = {"grpo": 0.0, "recommended": 0.8, "mask": 0.4, "one-reflection": 0.8}
    rows = []
    for r in arms.runs("paper-medium", 3):
        end = ends.get(r.arm.name.removeprefix("medium-"))
        if end is not None:
            masked = 0.04 if r.arm.name == "medium-mask" else None
            rows.append(row(r, end + (r.seed == 2) / 10) | {"frac_right_masked": masked})
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(r) + "\n" for r in rows))
    _, _, figures, _, less = medium_report.medium(tables.read(results)).split("\n\n")
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in figures.splitlines()}
    assert len(cells) == 2 + 4
    assert cells["Recommended, with the mask (`distill.eps_low=.99`)"][1:] == [
        "0.217 [0.145, 0.288] (3)",
        "0.433 [0.290, 0.577] (3)",
        "0.433 [0.290, 0.577] (3)",
        "0.125 [0.125, 0.125] (3)",
        "0.433 [0.290, 0.577] (3)",
        "4.0% |",
    ]
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in less.splitlines()}
    assert len(cells) == 2 + 3
    assert cells["Recommended, with the mask (`distill.eps_low=.99`)"][1:] == [
        "P²O, recommended",
        "**-0.200 [-0.200, -0.200]**",
        "**-0.400 [-0.400, -0.400]**",
        "**-0.400 [-0.400, -0.400]**",
        "+0.000 [+0.000, +0.000]",
        "**-0.400 [-0.400, -0.400]**",
        "–",
        "worse |",
    ]
    assert cells["GRPO, groups of 8"][-1] == "yes |"
    assert cells["Recommended, one round of reflection in place of GEPA"][-1] == (
        "no difference shown |"
    )
    assert medium_report.medium({}) == medium_report.elsewhere({}) == ""


def test_the_table_out_of_distribution_by_hand(tmp_path):
    """Half as accurate on longer questions."""
    rows = [
        row(r, 0.0 if r.arm.name == "elsewhere-grpo" else 0.8) for r in arms.runs("elsewhere", 3)
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(r) + "\n" for r in rows))
    accuracies, less = medium_report.elsewhere(tables.read(results)).split("Less that of GRPO")
    lines = [line for line in accuracies.splitlines() if line.startswith("| small, 1e-3")]
    assert lines == [
        "| small, 1e-3 | GRPO, groups of 8 | 0.000 [0.000, 0.000] (3) | 0.000 [0.000, 0.000] (3)"
        " | – | – |",
        "| small, 1e-3 | P²O, recommended | 0.800 [0.800, 0.800] (3) | 0.400 [0.400, 0.400] (3)"
        " | – | – |",
    ]
    (line,) = [line for line in less.splitlines() if line.startswith("| small, 1e-3")]
    assert line == (
        "| small, 1e-3 | P²O, recommended | **+0.800 [+0.800, +0.800]** |"
        " **+0.400 [+0.400, +0.400]** | – | – |"
    )


def test_a_page_without_its_place_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PAGE", tmp_path / "results.md")
    (tmp_path / "results.md").write_text("no markers")
    (tmp_path / "results.jsonl").write_text(json.dumps(row(next(arms.runs("dial", 1)), 0.5)) + "\n")
    with pytest.raises(ConfigError, match="no lines"):
        report.write(tmp_path / "results.jsonl")
    assert (tmp_path / "results.md").read_text() == "no markers"
