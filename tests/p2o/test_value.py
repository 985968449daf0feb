"""What search and questions are worth, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from p2o_jax import config
from p2o_jax.p2o import mining, question_history, value
from p2o_jax.state import Assignment, Attempts, History, Ledger, RunState, SliceRecord
from p2o_jax.types import Question, SearchResult, template_id

T = template_id("T")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([((1, 1), 2)], 1 / 3),  # uniform: both succeed in a third of cases, neither in a third
        ([((1, 1), 8)], 7 / 9),  # 1 - 1/9 - 1/9
        ([((1, 1), 1), ((1, 1), 1)], 1 / 2),  # of two prompts, whose success is independent
        ([((1, 3), 1), ((3, 1), 1)], 1 - 3 / 16 - 3 / 16),
        ([((0, 1), 8)], 0),  # never succeeds
        ([((0, 1), 4), ((1, 0), 4)], 1),  # plainly never, under a template always
    ],
)
def test_chance_of_an_informative_group_by_hand(parts, expected):
    assert value.chance_informative(
        (value.Beta(*beta), count) for beta, count in parts
    ) == pytest.approx(expected, abs=1e-12)


def test_chance_of_an_informative_group_is_that_of_simulated_groups():
    draws, rng = 100_000, np.random.default_rng(0)
    parts = [(value.Beta(0.4, 9.0), 5), (value.Beta(2.0, 1.5), 3)]
    successes = sum(rng.binomial(n, rng.beta(*beta, size=draws)) for beta, n in parts)
    share = np.mean((successes > 0) & (successes < 8))
    assert value.chance_informative(parts) == pytest.approx(share, abs=0.006)  # 4 standard errors


def test_priors_are_shared_by_questions_of_a_kind_and_by_a_template():
    posteriors = value.Posteriors(
        {
            "never": {"": (0.0, 8.0), T: (2.0, 4.0)},
            "hardly": {"": (1.0, 8.0), T: (0.0, 2.0)},
            "often": {"": (7.0, 8.0)},
        }
    )
    rare, usual, template = 1.5 / 17, 7.5 / 9, 2.5 / 7  # half a success in one more rollout
    assert posteriors.success("never") == pytest.approx((8 * rare, 8 * (1 - rare) + 8))
    assert posteriors.success("hardly") == pytest.approx((8 * rare + 1, 8 * (1 - rare) + 7))
    assert posteriors.success("often") == pytest.approx((8 * usual + 7, 8 * (1 - usual) + 1))
    assert posteriors.success("not asked") == pytest.approx((8 * rare, 8 * (1 - rare)))
    assert posteriors.success("never", "T") == pytest.approx((template + 2, 1 - template + 2))
    assert posteriors.success("often", "T") == pytest.approx((template, 1 - template))
    assert posteriors.success("often", "unknown") == (0.5, 0.5)
    assert posteriors.solved("never", "T") and not posteriors.solved("hardly", "T")
    mixed = ("T", "T", "", "")
    assert posteriors.informative("never", mixed) == value.chance_informative(
        [(posteriors.success("never", "T"), 2), (posteriors.success("never"), 2)]
    )


KNOWN = value.Prospects(
    hard=20,
    plain=0.02,
    templated=0.8,  # worth a tenth of a plain group: .1 each
    epoch_tokens=10_000.0,
    epochs_left=10.0,
    fruitless=0,
    slice_tokens=1_000.0,
)


@pytest.mark.parametrize(
    ("change", "covered", "search", "training"),
    [
        # 4 epochs x 20 questions x half of them x (.1 - .02); a tenth of an epoch's 20 x .02
        ({}, [0.0], 3.2, 0.04),
        ({"fruitless": 3}, [0.0], 0.8, 0.04),  # of earlier phases
        ({"fruitless": 3}, [0.0, 0.0], 3.2 / 5, 0.04),  # and one of this phase
        ({"fruitless": 3}, [0.0, 0.5], 1.6, 0.1 * (10 * 0.1 + 10 * 0.02)),  # half is covered
        ({"fruitless": 3}, [0.0, 0.5, 0.5], 0.8, 0.12),  # which ends the count of earlier ones
        ({"epochs_left": 0.5}, [0.0], 0.4, 0.04),
        ({"plain": 0.3}, [0.0], 0.0, 0.6),  # a plain group is informative as often
        ({}, [1.0], 0.0, 0.2),  # nothing left to cover
        ({"slice_tokens": 90_000.0}, [0.0], 3.2, 3.6),  # an expensive slice
    ],
)
def test_what_a_further_slice_of_search_brings_by_hand(change, covered, search, training):
    decision = value.decide(replace(KNOWN, **change), covered)
    assert decision == pytest.approx((search, training))


@pytest.mark.parametrize(
    ("covered", "expected"),
    [([0.0], 0), ([0.0, 0.0], 1), ([0.0, 0.5], 0), ([0.0, 0.5, 0.5, 0.5], 2), ([0.5, 0.5], 1)],
)
def test_fruitless_iterations_by_hand(covered, expected):
    assert value.fruitless(covered) == expected


def state(**changes):
    """After two epochs of ten steps; two of three questions are hard, one solved under T."""
    recent = {
        "q0": {"": (0.0, 8.0), T: (4.0, 4.0)},
        "q1": {"": (0.0, 8.0)},
        "q2": {"": (8.0, 8.0)},
    }
    values = {
        "step": 20,
        "hard_ids": ("q0", "q1"),
        "assignment": Assignment({"q0": ("T",) * 4 + ("",) * 4, "q1": ("T",) * 4 + ("",) * 4}),
        "history": History(recent=recent, tokens={"q0": 10.0, "q1": 30.0, "q2": 5.0}),
        "ledger": Ledger(
            {"policy": {"generated_tokens": 4_000.0}, "gepa_evaluate": {"generated_tokens": 600.0}}
        ),
    }
    return RunState(None, **{**values, **changes})


CFG = config.resolve(
    config.Config(
        rollout=config.RolloutConfig(group_size=8),
        gepa=config.GepaConfig(
            schedule="adaptive",
            carry_over=3,
            parents=2,
            minibatch=3,
            reflect_new_tokens=40,
            max_template_tokens=32,
        ),
        train=config.TrainConfig(epochs=6),
    )
)


def test_prospects_of_a_phase_by_hand():
    known = value.prospects(state(), 10, CFG)
    posteriors = value.Posteriors(state().history.recent)
    assert known.hard == 2 and known.epoch_tokens == 2_000 and known.epochs_left == 4
    # q1 has not been solved under T
    assert known.templated == posteriors.informative("q0", ("T",) * 4 + ("",) * 4)
    assert known.plain == pytest.approx(
        (posteriors.informative("q0", ("",) * 8) + posteriors.informative("q1", ("",) * 8)) / 2
    )
    assert known.slice_tokens == 2 * (2 * 3 * 20 + 32)  # before any was made
    after = value.prospects(state(slices=SliceRecord(3, 2)), 10, CFG)
    assert (after.slice_tokens, after.fruitless) == (200, 2)
    train = replace(CFG.train, max_generated_tokens=6_600)
    assert value.prospects(state(), 10, replace(CFG, train=train)).epochs_left == 1


def test_only_the_adaptive_schedule_decides():
    assert value.worth(state(), 10, CFG)([0.0]) == value.decide(
        value.prospects(state(), 10, CFG), [0.0]
    )
    always = replace(CFG, gepa=replace(CFG.gepa, schedule="every_epoch"))
    assert value.worth(state(), 10, always)([0.0]) is None


@pytest.mark.parametrize(
    ("iterations", "fruitless", "after"),
    [(0, 0, (4, 2)), (3, 3, (7, 5)), (3, 1, (7, 1)), (2, 0, (6, 0))],
)
def test_fruitless_slices_are_counted_across_phases(iterations, fruitless, after):
    before = SliceRecord(4, 2)
    result = SearchResult(
        ("",), (None,), (), (), ((),), (), {"iterations": iterations, "fruitless": fruitless}
    )
    assert value.searched(before, result) == SliceRecord(*after)
    assert value.searched(before, None) == before


def test_recent_rollouts_count_in_full_and_older_ones_half_as_much_with_every_epoch():
    def epoch(history, number, **attempts):
        tallies = {name: Attempts(by_template) for name, by_template in attempts.items()}
        return question_history._closed(
            replace(history, epoch=number, attempts=tallies), hard=set()
        )

    history = epoch(History(), 0, q={"": (1, 8)}, r={"": (0, 8)})
    assert history.recent == {"q": {"": (1, 8)}, "r": {"": (0, 8)}}
    history = epoch(history, 1, q={"": (0, 4), T: (3, 4)})
    assert history.recent == {"q": {"": (0.5, 8), T: (3, 4)}, "r": {"": (0, 4)}}
    for number in range(2, 7):
        history = epoch(history, number)
    assert history.recent["r"] == {"": (0, 4 / 32)}
    assert epoch(history, 7).recent["r"] == {}, "an eighth of a rollout says nothing"
    assert RunState.from_json(None, RunState(None, history=history).to_json()).history == history


def test_scores_that_training_knows():
    history = History(attempts={"q": Attempts({"": (2, 8), T: (1, 4), template_id("U"): (0, 4)})})
    question, other = (Question(name, (), "x") for name in ("q", "r"))
    known = question_history.known_scores(history, CFG.gepa)
    assert known("", question) == 0.25  # the share of plain rollouts
    assert (known("T", question), known("U", question)) == (1, 0)  # any of those under a template
    assert known("V", question) is None and known("", other) is None
    always = question_history.known_scores(history, replace(CFG.gepa, schedule="every_epoch"))
    assert always("", question) is None


def asked(epoch, skip_below, **changes):
    batch = [Question(f"q{i}", (), "x") for i in range(4)]  # q3 was never asked
    cfg = replace(CFG, mining=replace(CFG.mining, skip_below=skip_below))
    return [q.id for q in mining.worth_asking(batch, state(**changes), epoch, cfg)]


def test_questions_whose_group_is_hopeless_are_not_asked():
    posteriors, group = value.Posteriors(state().history.recent), ("T",) * 4 + ("",) * 4
    chances = [
        posteriors.informative("q0", group),
        posteriors.informative("q1", group),
        posteriors.informative("q2", ("",) * 8),
        posteriors.informative("q3", ("",) * 8),
    ]
    share = [chance / (sum(chances) / 4) for chance in chances]
    assert share[2] < share[0] and share[2] < share[1]
    for limit in (0.3, 0.9):
        left = [q for q, s in zip(("q0", "q1", "q2"), share, strict=False) if s >= limit]
        seen = {tuple(asked(epoch, limit)) for epoch in range(1, 1 + mining.ASKED_AGAIN)}
        assert all(set(left) | {"q3"} <= set(one) for one in seen)
        assert len(seen) > 1 and set().union(*seen) == {"q0", "q1", "q2", "q3"}
    assert asked(0, 0.9) == asked(1, 0.0) == ["q0", "q1", "q2", "q3"]


def test_every_question_is_asked_again():
    counts = dict.fromkeys(("q0", "q1", "q2", "q3"), 0)
    nothing = {name: {"": (8.0, 8.0)} for name in counts}
    nothing["q0"] = {"": (4.0, 8.0)}
    for epoch in range(1, 1 + mining.ASKED_AGAIN):
        for name in asked(
            epoch, 0.9, history=History(recent=nothing), assignment=Assignment(), hard_ids=()
        ):
            counts[name] += 1
    assert counts == {"q0": mining.ASKED_AGAIN, "q1": 1, "q2": 1, "q3": 1}


def test_hard_questions_that_are_not_asked_stay_hard():
    batch = [Question(f"q{i}", (), "x") for i in range(4)]
    assert mining.still_hard(batch, batch[:2], ("q0", "q2", "q9")) == ("q2",)
    assert mining.counts(batch, [*batch[:2], batch[0]], ("q0",), ("q0", "q5")) == {
        "hard/questions_step": 1,
        "hard/questions_epoch": 2,
        "rollout/questions_left_out": 2,
    }
